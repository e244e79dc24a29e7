"""Values that can be obeyed and are seldom meant: told as warnings, before the first step and where a loss diverges."""

from __future__ import annotations

import logging

from fvcore.common.config import CfgNode

logger = logging.getLogger(__name__)

_MOST_RATE = 4.0  # times the usual one; training from random weights takes twice as much
_IMAGENET_RGB = (123.675, 116.28, 103.53)
_NEAR = 3.0  # between two ways to compute the mean of ImageNet


def warn_of_suspicious(cfg: CfgNode, *, training: bool = True) -> None:
    """Log each of :func:`suspicions` as a warning."""
    for text in suspicions(cfg, training=training):
        logger.warning("%s", text)


def suspicions(cfg: CfgNode, *, training: bool = True) -> list[str]:
    """Return a sentence for each value, or combination of values, that is probably a mistake, with what to write.

    Args:
        cfg: of a detector, checked, before the run completes it.
        training: False leaves out what an evaluation does not read.
    """
    return [*(_rate(cfg) + _schedule(cfg) if training else ()), *_pixels(cfg)]


def usual_rate(cfg: CfgNode) -> float:
    """Return the learning rate that SOLVER.IMS_PER_BATCH asks for by the linear rule (Goyal et al. 2017, 1706.02677).

    For 16 images Detectron2 has 0.02 for R-CNNs and 0.01 for RetinaNet; a network without norms bears half as much.
    """
    lower = cfg.MODEL.META_ARCHITECTURE == "RetinaNet" or cfg.MODEL.RESNET_BACKBONE.NORM == ""
    return (0.01 if lower else 0.02) * cfg.SOLVER.IMS_PER_BATCH / 16


def _rate(cfg: CfgNode) -> list[str]:
    rate, usual = cfg.SOLVER.BASE_LR, usual_rate(cfg)
    if rate <= _MOST_RATE * usual * (1 + 1e-9):
        return []
    return [
        f"SOLVER.BASE_LR {rate:g} is {rate / usual:.0f} times the usual {usual:g} for SOLVER.IMS_PER_BATCH "
        f"{cfg.SOLVER.IMS_PER_BATCH}, and the loss may diverge; if it does, write SOLVER.BASE_LR {usual:g}"
    ]


def _schedule(cfg: CfgNode) -> list[str]:
    solver, found = cfg.SOLVER, []
    late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        parts = [round(solver.MAX_ITER * part) for part in (2 / 3, 8 / 9)]
        found.append(
            f"SOLVER.STEPS {list(solver.STEPS)}: {late} never come, SOLVER.MAX_ITER is {solver.MAX_ITER}, so that the "
            f'learning rate does not fall there; write, for example, SOLVER.STEPS "{parts}"'
        )
    if solver.WARMUP_ITERS > solver.MAX_ITER:
        found.append(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is more than SOLVER.MAX_ITER {solver.MAX_ITER}: the learning "
            f"rate never reaches SOLVER.BASE_LR {solver.BASE_LR:g}; write SOLVER.WARMUP_ITERS "
            f"{max(solver.MAX_ITER // 10, 1)}"
        )
    return found


def _pixels(cfg: CfgNode) -> list[str]:
    """What weights do not say: with INPUT_FROM_WEIGHTS they replace these keys."""
    if cfg.MODEL.WEIGHTS and cfg.MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS:
        return []
    mean, std, order = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD), cfg.INPUT.FORMAT
    found = [
        f"MODEL.{key} {values} looks like that of images from 0 to 1, and images are read from 0 to 255; write "
        f"{[round(value * 255, 3) for value in values]}"
        for key, values in (("PIXEL_MEAN", mean), ("PIXEL_STD", std))
        if any(values) and all(abs(value) < 1 for value in values)
    ]
    other = {"RGB": "BGR", "BGR": "RGB"}.get(order)
    crossed = _IMAGENET_RGB if order == "BGR" else _IMAGENET_RGB[::-1]
    if other and len(mean) == 3 and all(abs(a - b) < _NEAR for a, b in zip(mean, crossed, strict=True)):
        found.append(
            f"MODEL.PIXEL_MEAN {mean} is ImageNet's in the order {other}, and INPUT.FORMAT is {order}; write "
            f"INPUT.FORMAT {other}, or PIXEL_MEAN {mean[::-1]} (and PIXEL_STD likewise)"
        )
    return found
