"""Checks of single values that an engine cannot obey, before any work."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from fvcore.common.config import CfgNode

from resnet_backbone.config.acceleration import ALLOWED as ACCELERATION
from resnet_backbone.config.acceleration import TF32, acceleration_of
from resnet_backbone.config.merge import value_of

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
_LEAST: dict[str, float] = {
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.DETECTIONS_PER_IMAGE": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.WEIGHT_DECAY_NORM": 0,
    "SOLVER.BASE_LR_END": 0,
    "SOLVER.GAMMA": 0,
    "INPUT.MIN_SIZE_TEST": 0,  # as large as the files are
    "INPUT.MAX_SIZE_TRAIN": 1,
    "INPUT.MAX_SIZE_TEST": 1,
    "MODEL.FPN.OUT_CHANNELS": 1,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.RPN.SMOOTH_L1_BETA": 0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 1,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 0,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 1,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 0,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 1,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.RETINANET.NUM_CLASSES": 1,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 1,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 0,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0,
    "MODEL.RESNET_BACKBONE.PAD_TO": 0,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 1,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 0,  # the true boxes alone
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1,
}
# Parts of a whole, and overlaps.
_PARTS = (
    "MODEL.RPN.POSITIVE_FRACTION",
    "MODEL.RPN.NMS_THRESH",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.ANCHOR_GENERATOR.OFFSET",
    "SOLVER.WARMUP_FACTOR",
    "TEST.BOX_REFINEMENT.NMS_THRESH",
    "TEST.BOX_REFINEMENT.VOTE_THRESH",
)
_OVERLAPS = ("MODEL.RPN.IOU_THRESHOLDS", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "MODEL.RETINANET.IOU_THRESHOLDS")


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
    check_pixels(cfg)
    acceleration_of(cfg)
    _check_parts(cfg)
    _check_sizes(cfg)
    _check_retinanet_and_dropout(cfg)
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
        value = value_of(cfg, key)
        if value is not None and value < bound:
            raise ValueError(f"{key} is {value}; it must be {bound} or more")


def check_lengths(cfg: CfgNode, lengths: Mapping[str, int]) -> None:
    """Raise ValueError for a key that has another number of values than ``lengths`` says."""
    for key, length in lengths.items():
        if len(value_of(cfg, key)) != length:
            raise ValueError(f"{key} is {value_of(cfg, key)}; it must have {length} values")


def check_training(cfg: CfgNode) -> None:
    """Raise ValueError for a device that is not there, a schedule that goes back or a step that cannot be made."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE is 'cuda', and torch finds no GPU that it can use; write MODEL.DEVICE cpu")
    steps = list(cfg.SOLVER.STEPS)
    if steps != sorted(set(steps)):
        raise ValueError(f"SOLVER.STEPS {steps} must increase")
    if steps and steps[0] < 1:
        raise ValueError(f"SOLVER.STEPS {steps} must be numbers of iterations, from 1")
    rate, momentum, clip = cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.CLIP_GRADIENTS
    if rate <= 0:
        raise ValueError(f"SOLVER.BASE_LR is {rate}; a learning rate must be above 0, such as {abs(rate) or 0.001}")
    if not 0 <= momentum < 1:
        raise ValueError(f"SOLVER.MOMENTUM is {momentum}; it must be 0 or more, and below 1, such as 0.9")
    if cfg.SOLVER.NESTEROV and not momentum:
        raise ValueError("SOLVER.NESTEROV is True, and SOLVER.MOMENTUM is 0; write NESTEROV: False, or a MOMENTUM")
    end = cfg.SOLVER.BASE_LR_END
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR" and end > rate:
        raise ValueError(
            f"SOLVER.BASE_LR_END is {end}, where the cosine ends, and SOLVER.BASE_LR {rate}, where it begins; write a "
            f"smaller BASE_LR_END, such as 0.0"
        )
    for key in ("CLIP_VALUE", "NORM_TYPE"):
        if clip.ENABLED and clip[key] <= 0:
            raise ValueError(f"SOLVER.CLIP_GRADIENTS.{key} is {clip[key]}; it must be above 0")


def check_pixels(cfg: CfgNode) -> None:
    """Raise ValueError for a MODEL.PIXEL_STD that images cannot be divided by."""
    std = list(cfg.MODEL.PIXEL_STD)
    if min(std, default=0) <= 0:
        raise ValueError(
            f"MODEL.PIXEL_STD is {std}, and images are divided by it; write numbers above 0, or 1.0 for none"
        )


def check_batches(cfg: CfgNode) -> None:
    """Raise ValueError for a batch that cannot be divided, or a precision that the CPU does not train in.

    For the loops of :mod:`resnet_backbone.engine`; Detectron2 has its own.
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


def _check_parts(cfg: CfgNode) -> None:
    for key in _PARTS:
        if not 0 <= value_of(cfg, key) <= 1:
            raise ValueError(f"{key} is {value_of(cfg, key)}; it must lie between 0 and 1")
    for key in _OVERLAPS:
        overlaps = list(value_of(cfg, key))
        if not all(0 <= overlap <= 1 for overlap in overlaps) or overlaps != sorted(overlaps):
            raise ValueError(f"{key} is {overlaps}; overlaps must lie between 0 and 1, and increase")
    node = cfg.MODEL.RETINANET
    if not 0 < node.PRIOR_PROB < 1:
        raise ValueError(f"MODEL.RETINANET.PRIOR_PROB is {node.PRIOR_PROB}; it must lie between 0 and 1")
    if node.FOCAL_LOSS_ALPHA > 1:
        raise ValueError(
            f"MODEL.RETINANET.FOCAL_LOSS_ALPHA is {node.FOCAL_LOSS_ALPHA}; it must lie between 0 and 1 (-1: none)"
        )
    for key in ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "MODEL.RETINANET.BBOX_REG_WEIGHTS"):
        if min(value_of(cfg, key), default=0) <= 0:
            raise ValueError(f"{key} is {list(value_of(cfg, key))}; weights must be above 0")


def _check_sizes(cfg: CfgNode) -> None:
    """Lengths in pixels: the shorter side is not longer than the longer one may be."""
    node = cfg.INPUT
    sizes = list(node.MIN_SIZE_TRAIN)
    if not sizes or min(sizes) < 0:
        raise ValueError(f"INPUT.MIN_SIZE_TRAIN is {sizes}; write lengths in pixels, such as [640, 800]")
    if node.MIN_SIZE_TRAIN_SAMPLING == "range" and (len(sizes) != 2 or sizes != sorted(sizes)):
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, and INPUT.MIN_SIZE_TRAIN_SAMPLING range draws from two, [least, most]"
        )
    for key, least in (("TRAIN", max(sizes)), ("TEST", node.MIN_SIZE_TEST)):
        if least > node[f"MAX_SIZE_{key}"]:
            raise ValueError(
                f"INPUT.MIN_SIZE_{key} is {sizes if key == 'TRAIN' else least}, for the shorter side, and "
                f"INPUT.MAX_SIZE_{key} {node[f'MAX_SIZE_{key}']}, for the longer one; write a MAX_SIZE_{key} of "
                f"{least} or more"
            )


def _check_retinanet_and_dropout(cfg: CfgNode) -> None:
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
