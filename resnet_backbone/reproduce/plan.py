"""A table's plan as text: data to get, commands, schedules, time."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from resnet_backbone.data.catalog import check_dataset_files, get_dataset
from resnet_backbone.data.images.classes import missing_classes
from resnet_backbone.data.prepare.shapes import generate_shapes, write_crops
from resnet_backbone.reproduce.jobs import OTHER, Job, Jobs, Schedule, read_state
from resnet_backbone.reproduce.tables import V100_FLOPS, Cost

_ITERATIONS = 40  # records are written every 20; the second is without the start
_IMAGES = 16


def missing_data(jobs: Iterable[Job]) -> list[tuple[str, str]]:
    """Return ``(data set, command that gets it)`` of what the jobs read and is not there; own data has no command."""
    missing: dict[str, str] = {}
    for job in jobs:
        names = [*([] if job.eval_only else job.cfg.DATASETS.TRAIN), *job.cfg.DATASETS.TEST]
        if job.training.classifier:  # images with a class each
            missing |= {name: command for name in names if (command := missing_classes(name)) is not None}
            continue
        for spec in (get_dataset(name, job.cfg.DATASETS.OWN) for name in names):
            try:
                check_dataset_files(spec)
            except FileNotFoundError:
                missing[spec.name] = spec.fetch_command
    return list(missing.items())


def plan_text(jobs: Jobs, tools: str, gpu_name: str, *, measure: bool = False) -> str:
    """Return the plan of ``jobs``.

    Args:
        jobs: of one table.
        tools: path of the folder of the tools, as the commands write it.
        gpu_name: as CUDA names it; ``""`` for the CPU.
        measure: time some iterations of each training here, in place of the estimates from what is known.

    Raises:
        ValueError: a run's folder holds what no run writes.
    """
    gpus = jobs.options.gpus
    where = f"{gpus} GPU{'s' if gpus > 1 else ''} ({gpu_name})" if gpu_name else "the CPU"
    lines = [f"# {jobs.table.title}: on {where}", ""]
    if missing := missing_data(jobs):
        lines += ["Data that is not there, and how to get it:"]
        lines += [f"  {name}: {command or 'your own data'}" for name, command in missing] + [""]
    for number, job in enumerate(jobs, start=1):
        state = read_state(job)
        status = state.text + ("; it will not be touched" if state.status == OTHER else "")
        rows = [row.name for row in jobs.table.rows if job in jobs.of_row(row.key)]
        names = f" (row{'s' if len(rows) > 1 else ''}: {', '.join(rows)})" if rows else ""
        lines += [f"{number}. {job.name}: {status}{names}"]
        lines += [f"   {line}" for line in _description(job, tools, gpu_name, measure)]
        lines += [f"   $ {shlex.join(['python', *job.command(tools)])}", ""]
    return "\n".join(lines if measure else lines + _total(jobs, gpu_name))


def _description(job: Job, tools: str, gpu_name: str, measure: bool) -> Iterator[str]:
    if job.eval_only:
        yield "evaluation alone, time not estimated"
        return
    yield job.schedule.text()
    passes, rest = divmod(job.own_schedule.images_per_step, job.schedule.images_per_step)
    if passes > 1 and not rest and not job.training.classifier:
        yield (
            f"(torchvision engine: SOLVER.ACCUMULATION_STEPS {passes} in place of the SOLVER values keeps the config's "
            f"{job.own_schedule.max_iter:,} steps of {job.own_schedule.images_per_step} images, in {passes} parts)"
        )
    gpus = job.options.gpus
    yield _measured(job, tools) if measure else estimate_text(job.training.cost, job.schedule, gpus, gpu_name)


def _total(jobs: Jobs, gpu_name: str) -> list[str]:
    """The hours of all trainings together, and what they are estimated from."""
    costs = [(job.training.cost, job.schedule) for job in jobs if not job.eval_only and job.training.cost is not None]
    if not gpu_name:
        on_cores = [(cost, schedule) for cost, schedule in costs if cost.core_seconds is not None]
        if not on_cores:
            return []
        hours = duration_text(sum(core_hours(*one) for one in on_cores))
        basis = dict.fromkeys(cost.basis for cost, _ in on_cores)
        first = f"Together about {hours} of one core, without evaluation; --parallel shares it among cores. Basis:"
        return [first, *(f"  - {text}" for text in basis), ""]
    gpu = find_gpu(gpu_name)
    known = [(cost, schedule) for cost, schedule in costs if cost.v100_seconds is not None]
    if gpu is None or not known:
        return []
    lows, highs = zip(*(gpu_hours(cost, schedule, gpu) for cost, schedule in known), strict=True)
    low, high = GPUS[gpu]
    speed = (
        f"{low / 1e12:.0f} to {high / 1e12:.0f} TFLOP/s assumed, 12 to 20 % of its TF32 peak; not measured"
        if low < high
        else "the GPU on which Detectron2's zoo was measured"
    )
    basis = dict.fromkeys([*(cost.basis for cost, _ in known), f"{gpu}: {speed}"])
    total = hours_text(sum(lows), sum(highs))
    return [f"Together about {total} GPU-hours. Basis:", *(f"  - {text}" for text in basis), ""]


# Part of the name that CUDA gives a GPU -> floating point operations a second that it reaches in training a detector in
# float32 (TF32 in convolutions where it has that), low and high. Of all but V100 only the data sheet is known: 12 to
# 20 % of the dense TF32 peak is assumed.
GPUS = {
    "V100": (V100_FLOPS, V100_FLOPS),
    "A100": (0.12 * 156e12, 0.20 * 156e12),
    "H100": (0.12 * 494e12, 0.20 * 494e12),
    "H200": (0.12 * 494e12, 0.20 * 494e12),
}


def find_gpu(name: str) -> str | None:
    """Return the one of :data:`GPUS` that is part of ``name`` (CUDA says e.g. ``NVIDIA H200``), or None."""
    return next((gpu for gpu in GPUS if gpu.lower() in name.lower()), None)


def gpu_hours(cost: Cost, schedule: Schedule, gpu: str) -> tuple[float, float]:
    """Return the hours of one GPU that all images of a schedule take, low and high, evaluation not counted.

    Raises:
        ValueError: nothing is known of a GPU.
    """
    images = schedule.max_iter * schedule.images_per_step
    if cost.v100_seconds is None:
        raise ValueError(f"nothing is known of a GPU: {cost.basis}")
    low, high = (images * seconds * V100_FLOPS / 3600 for seconds in cost.v100_seconds)
    slow, fast = GPUS[gpu]
    return low / fast, high / slow


def core_hours(cost: Cost, schedule: Schedule) -> float:
    """Return the hours of one core of a CPU that all images of a schedule take, evaluation not counted.

    Raises:
        ValueError: nothing is known of a CPU.
    """
    if cost.core_seconds is None:
        raise ValueError(f"nothing is known of a CPU: {cost.basis}")
    return schedule.max_iter * schedule.images_per_step * cost.core_seconds / 3600


def duration_text(hours: float) -> str:
    """Return ``"9 min"`` or ``"2.5 h"``."""
    return f"{hours:.1f} h" if hours >= 2 else f"{60 * hours:.0f} min"


def estimate_text(cost: Cost | None, schedule: Schedule, gpus: int, gpu_name: str) -> str:
    """Return the estimate as one line, without its basis.

    Args:
        cost: of one image; None where nobody knows.
        schedule: of the training.
        gpus: how many share the images.
        gpu_name: as CUDA names it, or ``""`` for the CPU.
    """
    gpu = find_gpu(gpu_name)
    if not gpu_name:
        if cost is None or cost.core_seconds is None:
            return "time on this CPU not known: --measure times some iterations"
        return f"about {duration_text(core_hours(cost, schedule))} on one core, without evaluation"
    if cost is None or cost.v100_seconds is None:
        return "GPU-hours not known, nobody has measured this training: --measure times some iterations on this machine"
    if gpu is None:
        known = ", ".join(GPUS)
        return f"GPU-hours not known for {gpu_name!r} (known: {known}): --measure times some iterations on this machine"
    low, high = gpu_hours(cost, schedule, gpu)
    wall = hours_text(low / gpus, high / gpus)
    return f"about {hours_text(low, high)} GPU-hours, {wall} h on {gpus} {gpu}, without evaluation"


def hours_text(low: float, high: float) -> str:
    """Return ``"124"``, ``"60 to 90"`` or ``"7.1"``."""
    texts = [f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _measured(job: Job, tools: str) -> str:
    """Train a few iterations of ``job`` and return what the full training would take, as text.

    Everything is the config's own (image size, RoIs, images a step, processes) except the weights, which are random and
    barely learn, and the images, which are generated.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_shapes(folder / "shapes", num_train=_IMAGES, num_val=1, seed=0)
        arguments = job.command(tools)
        arguments += ["MODEL.WEIGHTS", "", "OUTPUT_DIR", f"{folder}/run"]
        if not job.training.classifier:
            shapes = {"JSON": f"{folder}/shapes/annotations/train.json", "IMAGES": f"{folder}/shapes/train"}
            arguments += ["DATASETS.OWN", str([{"NAME": "timed", **shapes}]), "DATASETS.TRAIN", "['timed']"]
        else:
            write_crops(folder / "shapes/annotations/train.json", folder / "shapes/train", folder / "crops")
            arguments += ["DATASETS.TRAIN", str([f"{folder}/crops"])]
        arguments += ["DATASETS.TEST", "[]", "TEST.EVAL_PERIOD", "0", "SEED", "0"]
        arguments += ["SOLVER.MAX_ITER", str(_ITERATIONS), "SOLVER.WARMUP_ITERS", "0", "SOLVER.STEPS", "[]"]
        arguments += ["SOLVER.BASE_LR", "1e-9", "SOLVER.CHECKPOINT_PERIOD", "1000"]
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"could not be timed: {' '.join(last)} (exit status {done.returncode} of {shlex.join(arguments)})"
        records = map(json.loads, (folder / "run" / "metrics.json").read_text(encoding="utf-8").splitlines())
        *_, seconds = (float(record["time"]) for record in records if "time" in record)
    hours = seconds * job.schedule.max_iter / 3600
    return (
        f"about {hours:.2g} h here, without evaluation ({seconds:.3g} s an iteration, measured over the second half of "
        f"{_ITERATIONS} with random weights on generated images)"
    )
