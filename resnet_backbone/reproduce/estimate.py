"""Schedules for another batch size (the linear rule), and estimates of GPU-hours with their basis."""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode

_KEYS = {
    "images_per_step": "SOLVER.IMS_PER_BATCH",
    "base_lr": "SOLVER.BASE_LR",
    "max_iter": "SOLVER.MAX_ITER",
    "steps": "SOLVER.STEPS",
    "warmup_iters": "SOLVER.WARMUP_ITERS",
    "eval_period": "TEST.EVAL_PERIOD",
    "checkpoint_period": "SOLVER.CHECKPOINT_PERIOD",
}


@dataclass(frozen=True)
class Schedule:
    """What changes in SOLVER (and TEST) with the number of images a step; the fields are those of ``_KEYS``."""

    images_per_step: int
    base_lr: float
    max_iter: int
    steps: tuple[int, ...]
    warmup_iters: int
    eval_period: int
    checkpoint_period: int  # scaled, too: VGG-16's 128 checkpoints on one GPU would take 140 GB

    def overrides(self, cfg: CfgNode) -> tuple[str, ...]:
        """Return the ``KEY VALUE`` words that give ``cfg`` this schedule; none where it has it."""
        own = schedule_of(cfg)
        changed = {key: getattr(self, name) for name, key in _KEYS.items() if getattr(self, name) != getattr(own, name)}
        return tuple(word for key, value in changed.items() for word in (key, _word(value)))

    def text(self) -> str:
        """One line for people."""
        drops = f", x0.1 at {' and '.join(f'{step:,}' for step in self.steps)}" if self.steps else ""
        return (
            f"{self.max_iter:,} iterations of {self.images_per_step} images, learning rate {self.base_lr:g}"
            f"{drops}, warm-up {self.warmup_iters:,}"
        )


def schedule_of(cfg: CfgNode) -> Schedule:
    """Return the schedule that a config describes."""
    solver = cfg.SOLVER
    steps = tuple(solver.STEPS) if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" else ()
    return Schedule(
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.MAX_ITER,
        tuple(step for step in steps if step < solver.MAX_ITER),
        solver.WARMUP_ITERS,
        cfg.TEST.EVAL_PERIOD,
        solver.CHECKPOINT_PERIOD,
    )


def scale_schedule(cfg: CfgNode, images_per_step: int) -> Schedule:
    """Return the schedule of ``cfg`` for another number of images a step: the rate times k, the iterations through k.

    Source: Goyal et al., arXiv 1706.02677, section 2.1; the arithmetic is that of Detectron2's
    ``DefaultTrainer.auto_scale_workers``.

    Raises:
        ValueError: no images.
    """
    if images_per_step < 1:
        raise ValueError(f"a step needs one image or more, got {images_per_step}")
    own = schedule_of(cfg)
    factor = images_per_step / own.images_per_step
    if factor == 1:
        return own
    return Schedule(
        images_per_step,
        float(f"{own.base_lr * factor:.10g}"),  # as it is printed
        round(own.max_iter / factor),
        tuple(round(step / factor) for step in own.steps),
        round(own.warmup_iters / factor),
        round(own.eval_period / factor),
        max(1, round(own.checkpoint_period / factor)),
    )


def images_for(cfg: CfgNode, gpus: int, reference_gpus: int) -> int:
    """Return how many images a step has on ``gpus``, each with as many as where the config was made for.

    Raises:
        ValueError: a number of GPUs that the images cannot be shared among.
    """
    images = cfg.SOLVER.IMS_PER_BATCH * gpus
    if gpus < 1 or images % reference_gpus:
        raise ValueError(
            f"{cfg.SOLVER.IMS_PER_BATCH} images on {reference_gpus} GPUs do not scale to {gpus}: "
            f"give --images-per-step, a multiple of {gpus}"
        )
    return images // reference_gpus


def _word(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


# Arithmetic a V100 does, floating point operations a second: what Detectron2's zoo implies. Faster R-CNN R101-C4 takes
# 0.619 s for 2 images of 1463 G multiply-adds a GPU, R50-C4 0.543 s for 2 of 1309 G.
V100_FLOPS = 9.45e12
_ZOO = "measured by Detectron2's zoo on 8 V100 with 16 images a step"


@dataclass(frozen=True)
class Cost:
    """What one image of a training costs."""

    v100_seconds: tuple[float, float]  # on one V100, low and high
    basis: str


def measured_cost(seconds_per_step: float, what: str) -> Cost:
    """Return the cost of a detector of Detectron2's zoo: 16 images a step, two on each of eight V100."""
    seconds = seconds_per_step / 2
    return Cost((seconds, seconds), f"{seconds_per_step:g} s a step for {what}, {_ZOO}")


def counted_cost(multiply_adds: float, what: str) -> Cost:
    """Return the cost of a detector that nobody measured, from its multiply-adds for one training image."""
    seconds = 2 * multiply_adds / V100_FLOPS
    return Cost(
        (seconds, seconds),
        f"counted, not measured: {multiply_adds / 1e9:.0f} G multiply-adds an image for {what}, "
        f"at the {V100_FLOPS / 1e12:g} TFLOP/s that Detectron2's zoo reaches on a V100",
    )


def classifier_cost(billions: float, name: str) -> Cost:
    """Return the cost of a classifier: one image forward (``billions`` of multiply-adds) and twice that backward."""
    return counted_cost(3 * billions * 1e9, f"training {name} at 224 pixels")


# Of detectors, by the names that tables.yaml gives them.
COSTS = {
    "r101_fpn": measured_cost(0.286, "Faster R-CNN R101-FPN at 640 to 800 pixels"),
    "vgg16_modern": Cost(
        (0.30 / 2, 0.45 / 2),
        "estimated, not measured: 0.30 to 0.45 s a step of 16 images on 8 V100, from 707 G multiply-adds an image at "
        "640 to 800 pixels",
    ),
    # 600 x 800 pixels, 64 RoIs; conv1 and conv2, or stem and res2, have no backward pass.
    "r101_paper": counted_cost(373e9, "ResNet-101 at 600 pixels with 64 RoIs"),
    "vgg16_paper": counted_cost(386e9, "VGG-16 at 600 pixels with 64 RoIs"),
}


@dataclass(frozen=True)
class Gpu:
    """How fast a GPU trains a detector in float32 (TF32 in convolutions where it has that)."""

    name: str  # part of the name that CUDA gives it
    flops: tuple[float, float]  # reached, a second: low and high
    basis: str


def _by_peak(name: str, peak: float) -> Gpu:
    """A GPU of which only the data sheet is known; detectors reach 12 to 20 % of the dense TF32 peak, it is assumed."""
    low, high = 0.12 * peak, 0.20 * peak
    basis = f"{name}: {low / 1e12:.0f} to {high / 1e12:.0f} TFLOP/s assumed, 12 to 20 % of its TF32 peak; not measured"
    return Gpu(name, (low, high), basis)


GPUS = (
    Gpu("V100", (V100_FLOPS, V100_FLOPS), "V100: the GPU on which Detectron2's zoo was measured"),
    _by_peak("A100", 156e12),
    _by_peak("H100", 494e12),
    _by_peak("H200", 494e12),
)


def find_gpu(name: str) -> Gpu | None:
    """Return the known GPU whose name is part of ``name`` (CUDA says e.g. ``NVIDIA H200``), or None."""
    return next((gpu for gpu in GPUS if gpu.name.lower() in name.lower()), None)


def gpu_hours(cost: Cost, schedule: Schedule, gpu: Gpu) -> tuple[float, float]:
    """Return the hours of one GPU that all images of a schedule take, low and high, evaluation not counted."""
    images = schedule.max_iter * schedule.images_per_step
    low, high = (images * seconds * V100_FLOPS / 3600 for seconds in cost.v100_seconds)
    return low / gpu.flops[1], high / gpu.flops[0]


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
        return "time on this CPU not known: --measure times some iterations"
    if cost is None:
        return "GPU-hours not known, nobody has measured this training: --measure times some iterations on this machine"
    if gpu is None:
        known = ", ".join(known.name for known in GPUS)
        return f"GPU-hours not known for {gpu_name!r} (known: {known}): --measure times some iterations on this machine"
    low, high = gpu_hours(cost, schedule, gpu)
    wall = hours_text(low / gpus, high / gpus)
    return f"about {hours_text(low, high)} GPU-hours, {wall} h on {gpus} {gpu.name}, without evaluation"


def hours_text(low: float, high: float) -> str:
    """Return ``"124"``, ``"60 to 90"`` or ``"7.1"``."""
    texts = [f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"
