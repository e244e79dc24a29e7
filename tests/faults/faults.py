#!/usr/bin/env python
"""Faults, and what becomes of a training: `python tests/faults/faults.py` prints the table.

Every fault happens to a small real training in processes of its own. What is promised: within 60 seconds the run ends
with a message that says what to do, without a traceback, and with the last good checkpoint intact; and, the fault
mended, ``--resume`` goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # where this is a script

from resnet_backbone.engine.command_line import RESUME_ME
from resnet_backbone.files.checkpoints import describe_damage, last_checkpoint
from tests.faults.runs import TinyRun
from tests.processes import Forked

LIMIT_S = 60
LONG = ["SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "3", "DATASETS.TEST", "[]"]


class NotPossibleHere(Exception):
    """This machine does not allow to bring the fault about."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run to which a fault happened."""

    status: int
    text: str  # all that was printed
    seconds: float  # from the fault to the end
    intact: bool  # the last checkpoint is whole, or none is named
    goes_on: bool | None  # with --resume after the fault was mended; None where there is nothing to go on with

    @property
    def last_lines(self) -> str:
        """The message: what follows the log; of a run that went on, its warnings."""
        start = max(self.text.rfind(f"\n{kind}: ") for kind in ("error", "interrupted"))
        if start < 0:
            return "\n".join(line for line in self.text.splitlines() if " WARNING " in line)
        return self.text[start:].strip()


@dataclass(frozen=True)
class Fault:
    """A fault, how it is brought about, and the words that the message must have."""

    name: str
    happen: Callable[[Path], Outcome]
    status: int
    words: tuple[str, ...]


def _ended(run: TinyRun, process: Forked, since: float, mend: Callable[[], object] | None) -> Outcome:
    """Wait for the end of a run; then mend the fault and go on for one iteration more."""
    ended, text = process.finish()
    seconds = time.monotonic() - since
    try:
        last = last_checkpoint(run.output)
        intact = last is None or not describe_damage(last)
    except OSError:
        last, intact = None, False
    goes_on = None
    if mend is not None and last is not None:
        mend()
        done = int(last.stem.removeprefix("model_")) + 1
        status, more = run.finish("--resume", keys=["SOLVER.MAX_ITER", str(done + 1)])
        goes_on = status == 0 and f"resumed after iteration {done} of" in more
    return Outcome(ended, text, seconds, intact, goes_on)


def _train_until_a_checkpoint(folder: Path, *keys: str, options: Sequence[str] = ()) -> tuple[TinyRun, Forked]:
    run = TinyRun(folder, *LONG, *keys)
    process = run.start(*options)
    if not run.wait_for("model_0000002.pth", process):
        raise RuntimeError(f"the training did not begin:\n{process.output}")
    return run, process


def disk_full(folder: Path) -> Outcome:
    """Room for two checkpoints (148 MB) and a half."""
    with _small_disk(folder / "disk", megabytes=375) as disk:
        run = TinyRun(folder, *LONG)
        run.output = disk / "output"
        process = run.start()
        run.wait_for("model_0000005.pth", process)
        return _ended(run, process, time.monotonic(), mend=(run.output / "model_0000002.pth").unlink)


def no_room_for_one(folder: Path) -> Outcome:
    with _small_disk(folder / "disk", megabytes=20) as disk:
        run = TinyRun(folder, *LONG)
        run.output = disk / "output"
        return _ended(run, run.start(), time.monotonic(), mend=None)


def read_only_output(folder: Path) -> Outcome:
    with _small_disk(folder / "disk", megabytes=20) as disk:
        _mount("-o", "remount,ro", disk)
        run = TinyRun(folder, *LONG)
        run.output = disk / "output"
        return _ended(run, run.start(), time.monotonic(), mend=None)


def output_turns_read_only(folder: Path) -> Outcome:
    """The folder is covered by a read-only view of itself: what is open goes on, nothing new can be made."""
    run, process = _train_until_a_checkpoint(folder)
    made = _mount("--bind", run.output, run.output) and _mount("-o", "remount,bind,ro", run.output)
    if not made:
        process.send(signal.SIGKILL)
        raise NotPossibleHere("nothing can be mounted here")
    return _ended(run, process, time.monotonic(), mend=lambda: subprocess.run(["umount", run.output], check=True))


def truncated_checkpoint(folder: Path) -> Outcome:
    """The newest checkpoint loses its second half; ``--resume`` takes the one before."""
    run = TinyRun(folder, *LONG)
    run.finish(keys=["SOLVER.MAX_ITER", "7"])
    path = run.output / "model_final.pth"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return _ended(run, run.start("--resume", keys=["SOLVER.MAX_ITER", "8"]), time.monotonic(), mend=None)


def missing_image(folder: Path) -> Outcome:
    run, process = _train_until_a_checkpoint(folder)
    image = next((run.data / "shapes/train").iterdir())
    hidden = image.rename(folder / image.name)
    return _ended(run, process, time.monotonic(), mend=lambda: hidden.rename(image))


def missing_image_before(folder: Path) -> Outcome:
    run = TinyRun(folder, *LONG)
    next((run.data / "shapes/train").iterdir()).unlink()
    return _ended(run, run.start(), time.monotonic(), mend=None)


def lost_data(folder: Path) -> Outcome:
    """The folder of images is gone, as when a network disk is unmounted; images are loaded by two processes."""
    run, process = _train_until_a_checkpoint(folder, "DATALOADER.NUM_WORKERS", "2")
    images = run.data / "shapes/train"
    hidden = images.rename(folder / "hidden")
    return _ended(run, process, time.monotonic(), mend=lambda: hidden.rename(images))


def corrupt_jpeg(folder: Path) -> Outcome:
    run, process = _train_until_a_checkpoint(folder, "DATALOADER.NUM_WORKERS", "1")
    image = next((run.data / "shapes/train").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    return _ended(run, process, time.monotonic(), mend=lambda: image.write_bytes(whole))


def dead_worker(folder: Path) -> Outcome:
    """A process that loads images is killed, as the system does where memory runs out."""
    run, process = _train_until_a_checkpoint(folder, "DATALOADER.NUM_WORKERS", "2")
    os.kill(_children(process.pid)[0], signal.SIGKILL)
    return _ended(run, process, time.monotonic(), mend=lambda: None)


def dead_rank(folder: Path) -> Outcome:
    """One of two training processes is killed."""
    run, process = _train_until_a_checkpoint(folder, options=["--num-gpus", "2"])
    os.kill(_children(process.pid)[-1], signal.SIGKILL)
    return _ended(run, process, time.monotonic(), mend=lambda: None)


def failing_rank(folder: Path) -> Outcome:
    """One of two training processes cannot read an image."""
    run, process = _train_until_a_checkpoint(folder, options=["--num-gpus", "2"])
    image = next((run.data / "shapes/train").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    return _ended(run, process, time.monotonic(), mend=lambda: image.write_bytes(whole))


def pre_empted(folder: Path) -> Outcome:
    run, process = _train_until_a_checkpoint(folder, "DATALOADER.NUM_WORKERS", "2")
    for pid in [process.pid, *_children(process.pid)]:  # as clusters do: to every process
        os.kill(pid, signal.SIGTERM)
    return _ended(run, process, time.monotonic(), mend=lambda: None)


def two_pre_empted(folder: Path) -> Outcome:
    run, process = _train_until_a_checkpoint(folder, options=["--num-gpus", "2"])
    process.send(signal.SIGTERM)
    return _ended(run, process, time.monotonic(), mend=lambda: None)


def interrupted(folder: Path) -> Outcome:
    run, process = _train_until_a_checkpoint(folder)
    process.send(signal.SIGINT)
    return _ended(run, process, time.monotonic(), mend=lambda: None)


def diverging(folder: Path) -> Outcome:
    run = TinyRun(folder, *LONG, "SOLVER.WARMUP_ITERS", "0")
    run.finish(keys=["SOLVER.MAX_ITER", "4"])
    process = run.start("--resume", keys=["SOLVER.BASE_LR", "1e6"])
    return _ended(run, process, time.monotonic(), mend=None)


FAULTS = [
    Fault("disk full", disk_full, 1, ("No space left on device", "last good checkpoint is", "model_0000005.pth")),
    Fault("no room for one checkpoint", no_room_for_one, 1, ("a checkpoint takes", "MB are free")),
    Fault("read-only output", read_only_output, 1, ("mounted read-only", "name another OUTPUT_DIR")),
    Fault("output turns read-only", output_turns_read_only, 1, ("Read-only file system", "last good checkpoint is")),
    Fault("truncated newest checkpoint", truncated_checkpoint, 0, ("going back to", "model_0000005.pth")),
    Fault("missing image, before", missing_image_before, 1, ("1 of the 12 images", "missing")),
    Fault("missing image, in the middle", missing_image, 1, ("no such image file", "is kept", "--resume")),
    Fault("lost data folder", lost_data, 1, ("no such image file", "is kept", "--resume")),
    Fault("corrupt JPEG", corrupt_jpeg, 1, ("cannot be read as an image", "is kept", "--resume")),
    Fault("dead loader process", dead_worker, 1, ("a process that loads images has died", "DATALOADER.NUM_WORKERS")),
    Fault("dead rank of two", dead_rank, 1, ("was killed by SIGKILL", "the others were ended", "--resume")),
    Fault("failing rank of two", failing_rank, 1, ("ended with status 1", "the others were ended", "--resume")),
    Fault("SIGTERM to every process", pre_empted, RESUME_ME, ("ended by", "is kept", "--resume")),
    Fault("SIGTERM to two ranks", two_pre_empted, RESUME_ME, ("ended by", "--resume")),
    Fault("Ctrl-C", interrupted, RESUME_ME, ("ended by", "is kept", "--resume")),
    Fault("diverging", diverging, 1, ("not finite at iteration", "times the usual", "last good checkpoint is")),
]


def problems(fault: Fault, outcome: Outcome, limit: float = LIMIT_S) -> list[str]:
    """What is not as promised; within ``limit`` seconds, which a busy machine may need more of."""
    found = [f"the message lacks {word!r}" for word in fault.words if word not in outcome.text]
    if outcome.status != fault.status:
        found.append(f"the exit status is {outcome.status}, not {fault.status}")
    if outcome.seconds > limit:
        found.append(f"it took {outcome.seconds:.0f} s")
    if "Traceback" in outcome.text:
        found.append("there is a traceback")
    if not outcome.intact:
        found.append("the last checkpoint is broken")
    if outcome.goes_on is False:
        found.append("--resume does not go on")
    return found


@contextmanager
def _small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    place.mkdir()
    if not _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place):
        raise NotPossibleHere("a small disk cannot be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def _mount(*words: str | Path) -> bool:
    try:
        return subprocess.run(["mount", *words], capture_output=True).returncode == 0
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    """Pids of the processes that Python started for a process, in the order of their start."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def main() -> int:
    """Print the table; return 1 where something is not as promised."""
    wanted = sys.argv[1:]
    bad = 0
    print(f"{'fault':<30} {'status':>6} {'seconds':>7}  {'checkpoint':<10} {'resumes':<8} outcome")
    for fault in FAULTS:
        if wanted and not any(word in fault.name for word in wanted):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome = fault.happen(Path(folder))
            except NotPossibleHere as error:
                print(f"{fault.name:<30} not run: {error}")
                continue
        found = problems(fault, outcome)
        bad += bool(found)
        goes_on = {None: "-", True: "yes", False: "NO"}[outcome.goes_on]
        intact = "intact" if outcome.intact else "BROKEN"
        head = f"{fault.name:<30} {outcome.status:>6} {outcome.seconds:>7.1f}  {intact:<10} {goes_on:<8}"
        print(f"{head} {'as promised' if not found else 'NOT AS PROMISED: ' + '; '.join(found)}")
        print(
            "\n".join(f"    {line}" for line in (outcome.last_lines or outcome.text[-1500:]).splitlines()), flush=True
        )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
