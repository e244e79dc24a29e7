"""Detectron2's config tree with the keys of the backbones, and loading a file into it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator import RPN_HEAD_REGISTRY
from fvcore.common.config import CfgNode

from resnet_backbone.config import add_backbone_keys, add_run_keys, merge_config
from resnet_backbone.config.combinations import BUILDERS, TRUNK_ALONE, check_combinations
from resnet_backbone.config.files import value_of
from resnet_backbone.config.origins import naming_origins
from resnet_backbone.config.process import FLOAT32_PRECISION, TF32
from resnet_backbone.config.trunk_facts import trunk_facts
from resnet_backbone.config.values import check_least, check_values
from resnet_backbone.detectron2_plugin.host_config import check_host_config, check_single_scale
from resnet_backbone.improvements.settings import is_improved

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}

# Keys of which the trainer knows some values only; 1 and False are those that ask for nothing.
_ALLOWED: dict[str, tuple[object, ...]] = {
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.LOAD_PROPOSALS": (False,),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.ACCUMULATION_STEPS": (1,),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "TEST.EXPECTED_RESULTS": ([],),
}
_LEAST = {"SOLVER.BIAS_LR_FACTOR": 0, "SOLVER.WEIGHT_DECAY_BIAS": 0, "SOLVER.NUM_DECAYS": 1}
_BOX_WEIGHTS = ("MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS")


def add_resnet_backbone_config(cfg: CfgNode) -> None:
    """Add the keys of the backbones and their heads, with their defaults, to Detectron2's config, in place.

    These are MODEL.RESNET_BACKBONE and, in MODEL.ROI_BOX_HEAD, DROPOUT and GLOBAL_CONTEXT. Call it before
    ``merge_from_file``. Keys that a config has already keep their values. The improvements at test time
    (TEST.BOX_REFINEMENT, MULTI_SCALE and ENSEMBLE) are for ``load_config`` alone: another project's tools would
    take these keys and not obey them; :class:`~resnet_backbone.detectron2_plugin.improvements.ImprovedRCNN` is for it.
    """
    defaults = get_cfg()
    add_backbone_keys(defaults)
    node = cfg.MODEL.setdefault("RESNET_BACKBONE", type(cfg)())
    for key, value in defaults.MODEL.RESNET_BACKBONE.items():
        node.setdefault(key, value)
    for key in ("DROPOUT", "GLOBAL_CONTEXT"):
        cfg.MODEL.ROI_BOX_HEAD.setdefault(key, defaults.MODEL.ROI_BOX_HEAD[key])


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file (and its ``_BASE_`` files), then ``KEY VALUE`` pairs, over Detectron2's defaults and ours.

    MODEL.DEVICE is ``cpu`` where there is no GPU. Tags that run code, as in some of Detectron2's files, are refused.

    Raises:
        FileNotFoundError: no such config.
        ValueError: an unknown key, a value of the wrong type or one that Detectron2 cannot obey.
    """
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    add_run_keys(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    origins = merge_config(cfg, config_file, overrides, "Detectron2")
    with naming_origins(cfg, origins):
        check_config(cfg)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Raise ValueError for a name that Detectron2 does not know, or a key that its trainer cannot obey."""
    for key, registry in REGISTRIES.items():
        name = value_of(cfg, key)
        if name and name not in registry:
            known = sorted(known for known, _ in registry)
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known
            raise ValueError(f"{key} is {name!r}, which Detectron2 does not know; did you mean {', '.join(near)}?")
    check_values(cfg, _ALLOWED, _lengths(cfg), "Detectron2")
    check_least(cfg, _LEAST)
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR" and cfg.SOLVER.GAMMA == 0:
        raise ValueError("SOLVER.GAMMA is 0.0; with WarmupStepWithFixedGammaLR it must be above 0, such as 0.1")
    if cfg.MODEL.BACKBONE.NAME in BUILDERS:
        check_host_config(as_built(cfg))
        check_combinations(cfg)
    if cfg.MODEL.BACKBONE.NAME == TRUNK_ALONE:
        check_single_scale(cfg, list(trunk_facts(cfg).features))
    _check_cascade(cfg)
    _check_run(cfg)
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.ENABLED: Detectron2 trains in mixed precision on GPUs only; write False")
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ValueError(
            f"TEST.AUG.ENABLED: Detectron2 augments tests of GeneralizedRCNN only, not of "
            f"{cfg.MODEL.META_ARCHITECTURE}; write False"
        )
    if cfg.TEST.AUG.ENABLED and is_improved(cfg):
        raise ValueError(
            "TEST.AUG.ENABLED augments the detector itself, without TEST.BOX_REFINEMENT, MULTI_SCALE and ENSEMBLE; "
            "write TEST.AUG.ENABLED False, or leave those out"
        )


def as_built(cfg: CfgNode) -> CfgNode:
    """Return the config of what is built: StandardROIHeads with MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT are ContextROIHeads.

    So that one config is for both engines. ``cfg`` stays as it is.
    """
    if cfg.MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT and cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads":
        cfg = cfg.clone()
        cfg.MODEL.ROI_HEADS.NAME = "ContextROIHeads"
    return cfg


def _lengths(cfg: CfgNode) -> dict[str, int]:
    """How many values a key has; boxes that turn have one more than the others."""
    model = cfg.MODEL
    turned = model.PROPOSAL_GENERATOR.NAME == "RRPN" or model.ROI_HEADS.NAME == "RROIHeads"
    lengths = {
        "MODEL.PIXEL_STD": len(model.PIXEL_MEAN),
        "MODEL.RETINANET.BBOX_REG_WEIGHTS": 4,
        "INPUT.CROP.SIZE": 2,
        **{
            f"MODEL.{part}.IOU_THRESHOLDS": len(model[part].IOU_LABELS) - 1
            for part in ("RPN", "ROI_HEADS", "RETINANET")
        },
    }
    return lengths if turned else {**lengths, **dict.fromkeys(_BOX_WEIGHTS, 4)}


def _check_run(cfg: CfgNode) -> None:
    """Keys of Detectron2's that another key undoes, or without which they do nothing."""
    precision, solver = cfg.get("FLOAT32_PRECISION", ""), cfg.SOLVER  # v0.6 does not have the former
    if precision not in ("", *FLOAT32_PRECISION):
        raise ValueError(f"FLOAT32_PRECISION is {precision!r}; write one of {', '.join(FLOAT32_PRECISION)}, or ''")
    if precision and cfg.TF32 not in (TF32[0], FLOAT32_PRECISION[precision]):
        raise ValueError(
            f"FLOAT32_PRECISION {precision} means TF32 {FLOAT32_PRECISION[precision]}, and TF32 is {cfg.TF32}: leave "
            f"one of the two out"
        )
    if cfg.DATALOADER.REPEAT_THRESHOLD and cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        raise ValueError(
            f"DATALOADER.REPEAT_THRESHOLD is {cfg.DATALOADER.REPEAT_THRESHOLD}, and DATALOADER.SAMPLER_TRAIN "
            f"{cfg.DATALOADER.SAMPLER_TRAIN} repeats no image for it; write RepeatFactorTrainingSampler, or 0.0"
        )
    reference = solver.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference and solver.IMS_PER_BATCH % reference):
        raise ValueError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}; write the number of processes that SOLVER.IMS_PER_BATCH "
            f"{solver.IMS_PER_BATCH} is meant for, which divides it, or 0"
        )


def _check_cascade(cfg: CfgNode) -> None:
    heads, box, cascade = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_BOX_CASCADE_HEAD
    if heads.NAME != "CascadeROIHeads":
        return
    if not box.CLS_AGNOSTIC_BBOX_REG:
        raise ValueError("MODEL.ROI_HEADS.NAME CascadeROIHeads needs MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: True")
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS has {len(cascade.IOUS)} stages, "
            f"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS {len(cascade.BBOX_REG_WEIGHTS)}; write as many for both"
        )
    if list(cascade.IOUS[:1]) != list(heads.IOU_THRESHOLDS):
        raise ValueError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS {list(cascade.IOUS)} must begin with MODEL.ROI_HEADS.IOU_THRESHOLDS, "
            f"{list(heads.IOU_THRESHOLDS)}"
        )
