"""One malformed input, what its reader must answer, and the child process in which many of them are read in turn."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

MARKER = "payload-ran"
SECONDS = 10.0  # of one case, on the processor: a busy machine makes none of them slower
HANGS = 300  # seconds by the clock after which a case that waits is ended
MEBIBYTES = 256.0  # of one case, beyond what the process has before it
ADDRESS_SPACE = 8 << 30  # beyond what the process has mapped before the first case
OURS = {
    "ValueError",
    "ConfigError",
    "WeightsError",
    "OSError",
    "FileNotFoundError",
    "TypeError",
    "DownloadError",
    "PermissionError",
}


@dataclass(frozen=True)
class Case:
    """A file to write, and the reader that gets its path.

    Attributes:
        name: unique; the id of the test.
        file: name of the file.
        content: makes its bytes.
        read: the public reader under test.
        repaired: it is read all the same, as the reader's docstring says.
    """

    name: str
    file: str
    content: Callable[[], bytes]
    read: Callable[[Path], Any]
    repaired: bool = False
    named: str = ""  # what the message must have, where it is not the name of the file
    says: str = ""  # a pattern that the message must have, too
    makes: tuple[str, ...] = ()  # files that the test itself puts beside it


@dataclass(frozen=True)
class Outcome:
    """What became of a case. ``error`` is the class, "" where the reader returned; "died" where it took the process."""

    error: str
    message: str
    seconds: float  # on the processor
    mebibytes: float
    left: tuple[str, ...]  # files that the reader made


def run_all(cases: Sequence[Case], folder: Path) -> dict[str, Outcome]:
    """Read the cases in one forked child; after one that kills it, go on in the next."""
    outcomes: dict[str, Outcome] = {}
    log = folder / "outcomes.jsonl"
    while len(outcomes) < len(cases):
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _run_in_child(cases[len(outcomes) :], folder, log)
        _, status = os.waitpid(child, 0)
        for line in log.read_text().splitlines() if log.exists() else []:
            name, values = json.loads(line)
            outcomes[name] = Outcome(**{**values, "left": tuple(values["left"])})
        if len(outcomes) < len(cases):
            killer = cases[len(outcomes)].name
            outcomes[killer] = Outcome("died", f"with status {status} (signal or code of the process)", 0, 0, ())
            with log.open("a") as file:
                file.write(json.dumps([killer, asdict(outcomes[killer])]) + "\n")
    return outcomes


def _run_in_child(cases: Sequence[Case], folder: Path, log: Path) -> None:
    status = 1
    try:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, resource.RLIM_INFINITY))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        for case in cases:
            # The default action of both signals ends the process.
            signal.alarm(HANGS)
            resource.setrlimit(
                resource.RLIMIT_CPU, (int(time.process_time() + 2 * SECONDS) + 1, resource.RLIM_INFINITY)
            )
            outcome = _run(case, folder / case.name)
            with log.open("a") as file:
                file.write(json.dumps([case.name, asdict(outcome)]) + "\n")
        status = 0
    finally:
        os._exit(status)


def _run(case: Case, folder: Path) -> Outcome:
    folder.mkdir()
    os.chdir(folder)
    path = folder / case.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(case.content())
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begun = _kibibytes("VmRSS"), time.process_time()
    error, message = "", ""
    try:
        case.read(path)
    except BaseException as raised:  # noqa: B036  # whatever comes out of a reader is what is asked for
        error, message = type(raised).__name__, str(raised)
    seconds, peak = time.process_time() - begun, (_kibibytes("VmHWM") - before) / 1024
    expected = {Path(case.file).parts[0], *case.makes}
    left = sorted(item.name for item in folder.iterdir() if item.name not in expected)
    path.unlink(missing_ok=True)
    return Outcome(error, message[:20_001].encode(errors="replace").decode(), seconds, peak, tuple(left))


def _kibibytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def check(case: Case, outcome: Outcome) -> None:
    """Demand what every case must have: an error of ours that names the file, or the repair; and nothing else."""
    if outcome.error == "died":
        pytest.fail(f"{case.name}: the process died {outcome.message}")
    assert outcome.seconds < SECONDS and outcome.mebibytes < MEBIBYTES, outcome
    assert MARKER not in outcome.left, "the payload ran"
    if case.repaired:
        assert (outcome.error, outcome.message) == ("", "")
        return
    assert outcome.error in OURS, f"{outcome.error or 'no error'}: {outcome.message[:500]}"
    assert (case.named or case.file.split("/")[-1]) in outcome.message, outcome.message[:500]
    assert re.search(case.says, outcome.message), outcome.message[:500]
    assert len(outcome.message) <= 20_000
    assert outcome.left == ()


def unique(cases: Iterator[Case]) -> list[Case]:
    """List the cases, each name once: what is counted is what is different."""
    found = list(cases)
    names = [case.name for case in found]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return found
