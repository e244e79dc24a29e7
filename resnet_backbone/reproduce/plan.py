"""A table's plan as text: data to get, commands in order, the schedule each implies, and how long it takes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator

from resnet_backbone.data.catalog import check_dataset_files, get_dataset
from resnet_backbone.data.images.classes import missing_classes
from resnet_backbone.reproduce.estimate import estimate_text, find_gpu, gpu_hours, hours_text
from resnet_backbone.reproduce.jobs import Job, Jobs
from resnet_backbone.reproduce.results import OTHER, read_state

Measure = Callable[[Job], str]  # times real iterations of a training, in words


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
