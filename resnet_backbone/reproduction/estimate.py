"""How long a training takes: GPU-hours from what others measured or from counted arithmetic, and their basis."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_backbone.reproduction.schedule import Schedule

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


COST_R101_FPN = measured_cost(0.286, "Faster R-CNN R101-FPN at 640 to 800 pixels")
COST_R101_C4 = measured_cost(0.619, "Faster R-CNN R101-C4 at 640 to 800 pixels")
COST_VGG16_MODERN = Cost(
    (0.30 / 2, 0.45 / 2),
    "estimated, not measured: 0.30 to 0.45 s a step of 16 images on 8 V100, from 707 G multiply-adds an image at "
    "640 to 800 pixels",
)
# 600 x 800 pixels, 64 RoIs; conv1 and conv2, or stem and res2, have no backward pass.
COST_R101_PAPER = counted_cost(373e9, "ResNet-101 at 600 pixels with 64 RoIs")
COST_VGG16_PAPER = counted_cost(386e9, "VGG-16 at 600 pixels with 64 RoIs")


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
