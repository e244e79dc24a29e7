"""A table's plan as text (data to get, commands, schedules, time), and running its commands one after another."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from resnet_backbone.data.catalog import check_dataset_files, get_dataset
from resnet_backbone.data.images.classes import missing_classes
from resnet_backbone.data.prepare.shapes import generate_shapes, write_crops
from resnet_backbone.reproduce.estimate import estimate_text, find_gpu, gpu_hours, hours_text
from resnet_backbone.reproduce.jobs import Job, Jobs
from resnet_backbone.reproduce.results import FINISHED, OTHER, can_resume, read_state

logger = logging.getLogger(__name__)

Measure = Callable[[Job], str]  # times real iterations of a training, in words
CONSOLE = "console.log"  # in the folder of a run: all that its commands printed
_SECONDS_TO_END = 60
_ITERATIONS = 40  # records are written every 20; the second is without the start
_IMAGES = 16


def missing_data(jobs: Iterable[Job]) -> list[tuple[str, str]]:
    """Return ``(data set, command that gets it)`` of what the jobs read and is not there; own data has no command."""
    missing: dict[str, str] = {}
    for job in jobs:
        names = [*([] if job.evaluates else job.cfg.DATASETS.TRAIN), *job.cfg.DATASETS.TEST]
        if "OWN" not in job.cfg.DATASETS:  # images with a class each
            missing |= {name: command for name in names if (command := missing_classes(name)) is not None}
            continue
        for spec in (get_dataset(name, job.cfg.DATASETS.OWN) for name in names):
            try:
                check_dataset_files(spec)
            except FileNotFoundError:
                missing[spec.name] = spec.fetch_command
    return list(missing.items())


def plan_text(jobs: Jobs, script: str, gpu_name: str, measure: Measure | None = None) -> str:
    """Return the plan of ``jobs``.

    Args:
        jobs: of one table.
        script: path of the table's tool, as the commands write it.
        gpu_name: as CUDA names it; ``""`` for the CPU.
        measure: times iterations of a training here; None takes the estimates of what is known.

    Raises:
        ValueError: a run's folder holds what no run writes.
    """
    gpus = jobs.setting.gpus
    where = f"{gpus} GPU{'s' if gpus > 1 else ''} ({gpu_name})" if gpu_name else "the CPU"
    lines = [f"# {jobs.table.title}: on {where}", ""]
    if missing := missing_data(jobs):
        lines += ["Data that is not there, and how to get it:"]
        lines += [f"  {name}: {command or 'your own data'}" for name, command in missing] + [""]
    for number, job in enumerate(jobs, start=1):
        lines += [
            f"{number}. {job.name}: {_status(job)}{_rows(jobs, job)}",
            *(f"   {line}" for line in _what(job, gpu_name, measure)),
        ]
        lines += [f"   $ {shlex.join(['python', *job.command(script)])}", ""]
    if measure is None:
        lines += _total(jobs, gpu_name)
    return "\n".join(lines)


def _status(job: Job) -> str:
    state = read_state(job)
    detail = f" ({state.detail})" if state.detail else ""
    return f"{state.status}{detail}" + ("; it will not be touched" if state.status == OTHER else "")


def _rows(jobs: Jobs, job: Job) -> str:
    names = [row.name for row in jobs.table.rows if job in jobs.of_row(row.key)]
    return f" (row{'s' if len(names) > 1 else ''}: {', '.join(names)})" if names else ""


def _what(job: Job, gpu_name: str, measure: Measure | None) -> Iterator[str]:
    if job.evaluates:
        yield "evaluation alone, time not estimated"
        return
    yield job.schedule.text()
    passes, rest = divmod(job.own_schedule.images_per_step, job.schedule.images_per_step)
    if passes > 1 and not rest and "OWN" in job.cfg.DATASETS:
        yield (
            f"(torchvision engine: SOLVER.ACCUMULATION_STEPS {passes} in place of the SOLVER values keeps the config's "
            f"{job.own_schedule.max_iter:,} steps of {job.own_schedule.images_per_step} images, in {passes} parts)"
        )
    if measure is not None:
        yield measure(job)
    else:
        yield estimate_text(job.training.cost, job.schedule, job.gpus, gpu_name)


def _total(jobs: Jobs, gpu_name: str) -> list[str]:
    """The hours of all trainings together, and what they are estimated from."""
    gpu = find_gpu(gpu_name)
    known = [(cost, job.schedule) for job in jobs if not job.evaluates and (cost := job.training.cost) is not None]
    if gpu is None or not known:
        return []
    hours = [gpu_hours(cost, schedule, gpu) for cost, schedule in known]
    total = hours_text(sum(low for low, _ in hours), sum(high for _, high in hours))
    basis = dict.fromkeys([*(cost.basis for cost, _ in known), gpu.basis])
    return [f"Together about {total} GPU-hours. Basis:", *(f"  - {text}" for text in basis), ""]


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
