"""Times contenders side by side: each in a process of its own, called in turn, so that none has the machine to itself.

A contender is a function that prepares something and returns what is timed. One that cannot import its library is
reported as not installed. The peak memory of a call is that of its own process.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Cases = dict[str, tuple[str, Sequence["Measurement"], Mapping[str, Any]]]  # by title; see :func:`save`
LIBRARIES = ("torch", "torchvision", "timm", "detectron2", "pycocotools", "faster-coco-eval", "onnxruntime")


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: as it is reported.
        prepare: runs in the contender's process and returns the call that is timed. It, and what the first call
            returns, must be picklable: a function of a module, or a ``functools.partial`` of one.
    """

    name: str
    prepare: Callable[[], Callable[[], Any]]


@dataclass
class Measurement:
    """What was seen of a contender: one time for each round, in seconds, and memory in MiB.

    ``resident_mib`` is what its process holds before a call, ``peak_mib`` the most it held during one; on a GPU both
    are of its tensors, and None is not measured. ``outcome`` is what the first call returned. ``problem`` says why
    there is nothing else.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    resident_mib: float | None = 0.0
    peak_mib: float | None = 0.0
    outcome: Any = None
    problem: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


def measure(
    contenders: Sequence[Contender], *, rounds: int, warmup: int = 1, threads: int, device: str = "cpu"
) -> list[Measurement]:
    """Call the contenders in turn, ``rounds`` times after ``warmup`` calls each that do not count.

    Args:
        contenders: names must differ.
        rounds: 1 or more.
        warmup: 1 or more; the first one's return value becomes the outcome.
        threads: that torch uses in each process.
        device: ``cpu``, or ``cuda`` to wait for the GPU and measure its memory.
    """
    context = get_context("spawn")
    measurements = [Measurement(contender.name) for contender in contenders]
    workers: dict[int, tuple[Any, Any]] = {}
    os.environ["OMP_NUM_THREADS"] = str(threads)  # inherited by the processes
    try:
        for index, contender in enumerate(contenders):
            print(f"preparing {contender.name}", flush=True)
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, contender.prepare, threads, device), daemon=True)
            process.start()
            theirs.close()
            workers[index] = (process, ours)
            status, detail = _receive(ours)
            if status == "ready":
                measurements[index].outcome = _call(ours)[2]
                for _ in range(warmup - 1):
                    _call(ours)
            else:
                measurements[index].problem = detail
                print(f"  {detail.splitlines()[-1]}", flush=True)
                workers.pop(index)
        for number in range(rounds):
            for index, (_, connection) in workers.items():
                seconds, memory, _ = _call(connection)
                found = measurements[index]
                found.seconds.append(seconds)
                found.resident_mib = max(found.resident_mib or 0, memory[0])
                found.peak_mib = max(found.peak_mib or 0, memory[1])
            print(f"round {number + 1} of {rounds}", flush=True)
    finally:
        for process, connection in workers.values():
            connection.close()
            process.join(10)
            if process.is_alive():
                process.kill()
    return measurements


def _work(connection: Connection, prepare: Callable[[], Callable[[], Any]], threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    try:
        call = prepare()
    except ImportError as error:
        connection.send(("absent", f"not installed: {str(error).split(' (')[0]}"))  # without the path of the library
        return
    except Exception:  # noqa: BLE001  whatever it is, the others are still measured
        connection.send(("failed", traceback.format_exc()))
        return
    connection.send(("ready", ""))
    first = True
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        before = _begin_memory(device)
        start = time.perf_counter()
        outcome = call()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        connection.send((seconds, (before, _peak_memory(device)), outcome if first else None))
        first = False


def _receive(connection: Connection) -> tuple[str, str]:
    try:
        return connection.recv()
    except EOFError:
        return "failed", "its process ended"


def _call(connection: Connection) -> tuple[float, tuple[float, float], Any]:
    connection.send("call")
    return connection.recv()


def _begin_memory(device: str) -> float:
    """Start to watch the peak; return what is held now, MiB."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # the peak of the resident set becomes its present size; Linux, proc(5)
    return _status_mib("VmRSS")


def _peak_memory(device: str) -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else _status_mib("VmHWM")


def _status_mib(key: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def table(measurements: Sequence[Measurement], baseline: str, *, per_call: int = 1, unit: str = "") -> str:
    """Return a Markdown table with ratios to the contender called ``baseline``.

    Args:
        measurements: of :func:`measure`.
        baseline: name of the contender whose ratio is 1.
        per_call: how many things one call does; with ``unit``, their name, a column gives things a second.
    """
    times = {m.name: m.median for m in measurements if not m.problem}
    header = ["", "median s", "quartiles", "times as fast", "peak MiB", "before MiB"]
    if unit:
        header.insert(3, f"{unit}/s")
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for m in measurements:
        if m.problem:
            lines.append([m.name, m.problem.splitlines()[-1], *[""] * (len(header) - 2)])
            continue
        first, third = m.quartiles
        ratio = f"{times[baseline] / m.median:.2f}" if baseline in times else ""
        row = [m.name, f"{m.median:.3g}", f"{first:.3g} to {third:.3g}", ratio]
        if unit:
            row.insert(3, f"{per_call / m.median:.4g}")
        memory = ["" if mib is None else f"{mib:.0f}" for mib in (m.peak_mib, m.resident_mib)]
        lines.append([*row, *memory])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def environment(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Return what a figure depends on: machine, threads and versions."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, {capability}"


def save(
    path: Path | None,
    question: str,
    cases: Cases,
    *,
    threads: int,
    device: str = "cpu",
) -> None:
    """Write what :mod:`benchmarks.report` draws the page of results from.

    Args:
        path: a JSON file; None writes nothing.
        question: what was asked, one sentence.
        cases: by title, the baseline's name, the measurements and further figures to print below the table.
        threads: see :func:`measure`.
        device: see :func:`measure`.
    """
    if path is None:
        return
    content = {
        "question": question,
        "environment": environment(threads, device),
        "cases": [
            {
                "title": title,
                "baseline": baseline,
                "measurements": [{k: v for k, v in asdict(m).items() if k != "outcome"} for m in measurements],
                "further": further,
            }
            for title, (baseline, measurements, further) in cases.items()
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")
