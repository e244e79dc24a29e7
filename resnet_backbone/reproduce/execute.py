"""Running the commands of a plan one after another, resuming what was stopped, and timing this machine."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from resnet_backbone.data.prepare.crops import write_crops
from resnet_backbone.data.prepare.shapes import generate_shapes
from resnet_backbone.reproduce.jobs import Job, Jobs
from resnet_backbone.reproduce.plan import missing_data
from resnet_backbone.reproduce.results import FINISHED, OTHER, can_resume, read_state

_ITERATIONS = 40  # records are written every 20; the second is without the start
_IMAGES = 16


def measured_text(job: Job, script: str) -> str:
    """Train a few iterations of ``job`` and return what its whole training would take, in words.

    Everything is the config's own (image size, RoIs, images a step, processes) except the weights, which are random and
    barely learn, and the images, which are generated.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_shapes(folder / "shapes", num_train=_IMAGES, num_val=1, seed=0)
        words = job.command(script)
        words += ["MODEL.WEIGHTS", "", "OUTPUT_DIR", f"{folder}/run"]
        if "OWN" in job.cfg.DATASETS:
            own = {
                "NAME": "timed",
                "JSON": f"{folder}/shapes/annotations/train.json",
                "IMAGES": f"{folder}/shapes/train",
            }
            words += ["DATASETS.OWN", str([own]), "DATASETS.TRAIN", "['timed']"]
        else:  # a classifier's: images with a class each
            write_crops(folder / "shapes/annotations/train.json", folder / "shapes/train", folder / "crops")
            words += ["DATASETS.TRAIN", str([f"{folder}/crops"])]
        words += ["DATASETS.TEST", "[]", "TEST.EVAL_PERIOD", "0", "SEED", "0"]
        words += ["SOLVER.MAX_ITER", str(_ITERATIONS), "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "[]"]
        words += ["SOLVER.BASE_LR", "1e-9", "SOLVER.CHECKPOINT_PERIOD", "1000"]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"could not be timed: {' '.join(last)} (exit status {done.returncode} of {shlex.join(words)})"
        seconds = _seconds_per_iteration(folder / "run" / "metrics.json")
    hours = seconds * job.schedule.max_iter / 3600
    return (
        f"about {hours:.2g} h here, without evaluation ({seconds:.3g} s an iteration, measured over the second half of "
        f"{_ITERATIONS} with random weights on generated images)"
    )


def _seconds_per_iteration(path: Path) -> float:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return float([record["time"] for record in records if "time" in record][-1])


logger = logging.getLogger(__name__)

CONSOLE = "console.log"  # in the folder of a run: all that its commands printed
_SECONDS_TO_END = 60


class CommandFailed(Exception):
    """A command ended with a status other than 0."""


def run_jobs(jobs: Jobs, script: str, terminal: TextIO, *, keep_going: bool) -> list[str]:
    """Run what is not finished, resume what was started. Return what failed, a text each.

    Args:
        jobs: of a table.
        script: path of train_net.py.
        terminal: gets all that the commands print.
        keep_going: go on with the next command after one that failed.

    Raises:
        ValueError: a folder holds a run with other settings; nothing was run then.
        FileNotFoundError: data is not there; nothing was run then.
        CommandFailed: a command failed, without ``keep_going``.
        KeyboardInterrupt: passed on when the command that was running has ended.
    """
    refuse_other_settings(jobs)
    refuse_missing_data(jobs)
    failed = []
    for job in jobs:
        if read_state(job).status == FINISHED:
            logger.info("%s is finished", job.folder)
            continue
        words = job.command(script, resume=can_resume(job.folder) and not job.evaluates)
        try:
            run_command(words, terminal, job.folder)
        except CommandFailed as error:
            if not keep_going:
                raise
            failed.append(str(error))
    return failed


def refuse_other_settings(jobs: Jobs) -> None:
    """Raise ValueError where the folder of a job holds a run with other settings than the plan's."""
    for job in jobs:
        state = read_state(job)
        if state.status == OTHER:
            raise ValueError(
                f"{job.folder} holds a run with other settings ({state.detail}): give another --output, the options of "
                f"that run, or move the folder away"
            )


def refuse_missing_data(jobs: Jobs) -> None:
    """Raise FileNotFoundError where a job that is not finished reads data that is not there: all of it at once."""
    missing = missing_data(job for job in jobs if read_state(job).status != FINISHED)
    if missing:
        names = ", ".join(name for name, _ in missing)
        commands = "; ".join(dict.fromkeys(command or "(your own data: DATASETS.OWN)" for _, command in missing))
        raise FileNotFoundError(f"data that is not there: {names}. Get it with: {commands}, or add --prepare")


def run_command(words: Sequence[str], terminal: TextIO, folder: Path | None = None) -> None:
    """Run ``python WORDS``; what it prints goes to ``terminal``, and into ``folder`` once that is there.

    An interruption is handed to the command and all its processes, which end before this returns.

    Raises:
        CommandFailed: the status is not 0.
    """
    printed = shlex.join(["python", *words])
    logger.info("running: %s", printed)
    process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},  # whatever that of the terminal is
        start_new_session=True,
    )
    try:
        _copy_output(process, printed, terminal, folder)
        status = process.wait()
    except BaseException:
        _end(process)
        raise
    if status:
        raise CommandFailed(f"exit status {status} of: {printed}")


def _copy_output(process: subprocess.Popen[str], printed: str, terminal: TextIO, folder: Path | None) -> None:
    waiting = [f"$ {printed}\n"]
    log: TextIO | None = None
    try:
        for line in process.stdout or ():
            terminal.write(line)
            terminal.flush()
            waiting.append(line)
            if log is None and folder is not None and folder.is_dir():
                log = (folder / CONSOLE).open("a", encoding="utf-8")
            if log is not None:
                log.writelines(waiting)
                log.flush()
                waiting.clear()
    finally:
        if log is not None:
            log.close()


def _end(process: subprocess.Popen[str]) -> None:
    """End a command and the processes it started: by the signal of Ctrl-C, then by force."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        logger.info("ending process %d (%s)", process.pid, signal.Signals(number).name)
        try:
            os.killpg(process.pid, number)
            process.wait(_SECONDS_TO_END)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue  # to the stronger signal
