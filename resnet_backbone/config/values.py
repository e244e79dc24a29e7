"""Values that an engine cannot obey, told before any work."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from fvcore.common.config import CfgNode

from resnet_backbone.config.acceleration import ALLOWED as ACCELERATION
from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.config.files import value_of
from resnet_backbone.config.process import TF32

logger = logging.getLogger(__name__)

# Keys of which both engines know some values only.
COMMON: dict[str, tuple[object, ...]] = {
    "VERSION": (2,),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "TF32": TF32,
    **ACCELERATION,
}
_LEAST = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.DETECTIONS_PER_IMAGE": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1,
}


def check_values(
    cfg: CfgNode, allowed: Mapping[str, tuple[object, ...]], lengths: Mapping[str, int], engine: str
) -> None:
    """Raise ValueError for a value, or a combination of values, that no engine or this one cannot obey.

    Args:
        cfg: the whole config of a run.
        allowed: what the engine knows, beside :data:`COMMON`, of keys of which it knows some values only.
        lengths: how many values a key has.
        engine: its name, for messages.
    """
    check_allowed(cfg, {**COMMON, **allowed}, engine)
    check_least(cfg, _LEAST)
    check_lengths(cfg, lengths)
    check_training(cfg)
    acceleration_of(cfg)
    _check_combinations(cfg)
    _check_improvements(cfg)


def check_allowed(cfg: CfgNode, allowed: Mapping[str, tuple[object, ...]], engine: str) -> None:
    """Raise ValueError for a key with another value than ``allowed`` lists."""
    for key, values in allowed.items():
        value = value_of(cfg, key)
        if value not in values:
            known = " or ".join(repr(value) for value in values)
            raise ValueError(f"{key} is {value!r}, of which the {engine} engine knows only {known}")


def check_least(cfg: CfgNode, least: Mapping[str, float]) -> None:
    """Raise ValueError for a key whose value is below that in ``least``."""
    for key, bound in least.items():
        if value_of(cfg, key) < bound:
            raise ValueError(f"{key} is {value_of(cfg, key)}; it must be {bound} or more")


def check_lengths(cfg: CfgNode, lengths: Mapping[str, int]) -> None:
    """Raise ValueError for a key that has another number of values than ``lengths`` says."""
    for key, length in lengths.items():
        if len(value_of(cfg, key)) != length:
            raise ValueError(f"{key} is {value_of(cfg, key)}; it must have {length} values")


def check_training(cfg: CfgNode) -> None:
    """Raise ValueError for a device that is not there, or a schedule that goes back."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE is 'cuda', and torch finds no GPU that it can use; write MODEL.DEVICE cpu")
    steps = list(cfg.SOLVER.STEPS)
    if steps != sorted(set(steps)):
        raise ValueError(f"SOLVER.STEPS {steps} must increase")


def check_batches(cfg: CfgNode) -> None:
    """Raise ValueError for a batch that cannot be divided, or a precision that the CPU does not train in.

    For the loops of :mod:`resnet_backbone.training`; Detectron2 has its own.
    """
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH % solver.ACCUMULATION_STEPS:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} must be a multiple of "
            f"SOLVER.ACCUMULATION_STEPS {solver.ACCUMULATION_STEPS}"
        )
    if solver.AMP.ENABLED and solver.AMP.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("float16 does not train on the CPU: write SOLVER.AMP.DTYPE bfloat16")


def warn_of_far_sizes(cfg: CfgNode) -> None:
    """Warn where multi-scale testing looks at sizes far from the one that the detector is made for."""
    sizes, usual = list(cfg.TEST.MULTI_SCALE.SIZES), cfg.INPUT.MIN_SIZE_TEST
    if not cfg.TEST.MULTI_SCALE.ENABLED or usual < 1:
        return
    if max(sizes) > 3 * usual or not any(usual / 1.5 <= size <= 1.5 * usual for size in sizes):
        near = [round(usual * factor / 6) for factor in (5, 6, 7)]
        logger.warning(
            'TEST.MULTI_SCALE.SIZES %s are far from INPUT.MIN_SIZE_TEST %d; nearer ones: TEST.MULTI_SCALE.SIZES "%s"',
            sizes,
            usual,
            near,
        )


def _check_combinations(cfg: CfgNode) -> None:
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and cfg.MODEL.MASK_ON:
        raise ValueError("MODEL.MASK_ON is True, and MODEL.META_ARCHITECTURE RetinaNet has no masks: write False")
    box = cfg.MODEL.ROI_BOX_HEAD
    if not 0 <= box.DROPOUT < 1:
        raise ValueError(f"MODEL.ROI_BOX_HEAD.DROPOUT is {box.DROPOUT}; it must be 0 or more, and below 1")
    if box.DROPOUT and box.NAME != "VGGBoxHead":
        raise ValueError(f"MODEL.ROI_BOX_HEAD.DROPOUT is {box.DROPOUT}; only NAME: VGGBoxHead has it, write 0.0")


def _check_improvements(cfg: CfgNode) -> None:
    """What makes use of the second stage needs one."""
    box, refinement, multi_scale = cfg.MODEL.ROI_BOX_HEAD, cfg.TEST.BOX_REFINEMENT, cfg.TEST.MULTI_SCALE
    asked = {
        "MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT": (box.GLOBAL_CONTEXT, "False"),
        "TEST.BOX_REFINEMENT.ENABLED": (refinement.ENABLED, "False"),
        "TEST.MULTI_SCALE.ENABLED": (multi_scale.ENABLED, "False"),
        "TEST.ENSEMBLE": (bool(cfg.TEST.ENSEMBLE), "[]"),
    }
    for key, (is_on, off) in asked.items():
        if is_on and cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
            raise ValueError(
                f"{key} is for detectors with a second stage, MODEL.META_ARCHITECTURE GeneralizedRCNN, not "
                f"{cfg.MODEL.META_ARCHITECTURE}: write {off}"
            )
        if is_on and key.startswith("TEST.") and cfg.MODEL.MASK_ON:
            raise ValueError(f"{key} improves boxes alone, and MODEL.MASK_ON is True: write {key} {off}")
    for key, value in (("NMS_THRESH", refinement.NMS_THRESH), ("VOTE_THRESH", refinement.VOTE_THRESH)):
        if not 0 <= value <= 1:
            raise ValueError(f"TEST.BOX_REFINEMENT.{key} is {value}; it must lie between 0 and 1")
    if not all(isinstance(folder, str) for folder in cfg.TEST.ENSEMBLE):
        raise ValueError(
            f"TEST.ENSEMBLE {list(cfg.TEST.ENSEMBLE)} must be names of folders, such as ['output/other_run']"
        )
    sizes = list(multi_scale.SIZES)
    lengths = [*sizes, multi_scale.MAX_SIZE]
    if not sizes or any(type(n) is not int or n < 1 for n in lengths) or sizes != sorted(set(sizes)):
        raise ValueError(
            f"TEST.MULTI_SCALE.SIZES {sizes} and MAX_SIZE {multi_scale.MAX_SIZE} must be lengths in pixels, and SIZES "
            f"must increase"
        )
