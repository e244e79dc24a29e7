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
from fvcore.common.config import CfgNode

from resnet_backbone.config import add_backbone_keys, add_run_keys, merge_config
from resnet_backbone.config.files import value_of

REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}


def add_resnet_backbone_config(cfg: CfgNode) -> None:
    """Add MODEL.RESNET_BACKBONE and MODEL.ROI_BOX_HEAD.DROPOUT, with their defaults, to Detectron2's config, in place.

    Call it before ``merge_from_file``. A config that has the node already stays as it is.
    """
    if "RESNET_BACKBONE" not in cfg.MODEL:
        add_backbone_keys(cfg)


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
    merge_config(cfg, config_file, overrides, "Detectron2")
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
    solver = cfg.SOLVER
    if solver.ACCUMULATION_STEPS != 1:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {solver.ACCUMULATION_STEPS}, Detectron2 knows only 1; scale "
            f"SOLVER.IMS_PER_BATCH, BASE_LR, MAX_ITER and STEPS, or train with --engine torchvision"
        )
    if solver.CLIP_GRADIENTS.CLIP_TYPE not in ("value", "norm"):
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {solver.CLIP_GRADIENTS.CLIP_TYPE!r}, of which Detectron2 knows only "
            f"'value' or 'norm'"
        )
    if solver.AMP.DTYPE not in ("float16", "bfloat16"):
        raise ValueError(f"SOLVER.AMP.DTYPE is {solver.AMP.DTYPE!r}; write 'float16' or 'bfloat16'")
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError("MODEL.DEVICE is 'cuda', and torch finds no GPU that it can use; write MODEL.DEVICE cpu")
    if solver.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ValueError("SOLVER.AMP.ENABLED: Detectron2 trains in mixed precision on GPUs only; write False")
