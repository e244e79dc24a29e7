"""Detectron2's config tree with the keys of the backbones, and loading a file into it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
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
from fvcore.common.registry import Registry

from resnet_backbone.config import add_backbone_keys, add_run_keys, merge_config
from resnet_backbone.config.checks import check_detector, check_values, is_improved
from resnet_backbone.config.combinations import (
    BUILDERS,
    TRUNK_ALONE,
    check_combinations,
    check_last_is_read,
    check_read,
    trunk_facts,
)
from resnet_backbone.config.merge import check_with_origins
from resnet_backbone.config.reader import value_of
from resnet_backbone.config.schema import (
    DETECTRON2,
    DETECTRON2_KEYS,
    FLOAT32_PRECISION,
    TF32,
    TORCHVISION_ANCHORS,
    ConfigError,
)
from resnet_backbone.models.trunk import FeatureInfo
from resnet_backbone.weights.architecture import LAYOUTS, has_bottlenecks, has_res5

_GROUPS = {"NUM_GROUPS": "groups", "WIDTH_PER_GROUP": "width_per_group"}  # keys of MODEL.RESNETS, what Layout says
# The defaults of ``add_deeplab_config``, which other projects call for its schedule.
_OF_DEEPLAB = {"STEM_TYPE": "deeplab", "RES4_DILATION": 1, "RES5_MULTI_GRID": [1, 2, 4]}
_CONTEXT_HEADS = {"StandardROIHeads": "ContextROIHeads", "Res5ROIHeads": "ImageNetRes5ROIHeads"}


def check_host_config(cfg: CfgNode) -> None:
    """Raise ConfigError where MODEL.RESNETS or the head asks for another network than is built.

    Only values that differ from Detectron2's defaults count: those somebody wrote. With a head of DeepLab's, so do the
    defaults of ``add_deeplab_config``.
    """
    node, host = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL.RESNETS
    defaults = dict(get_cfg().MODEL.RESNETS)
    if "DeepLab" not in cfg.MODEL.SEM_SEG_HEAD.NAME:
        defaults |= _OF_DEEPLAB
    deformable = ("DEFORM_ON_PER_STAGE", "DEFORM_MODULATED", "DEFORM_NUM_GROUPS")
    both = {key: key for key in ("NORM", "RES5_DILATION", *deformable)}
    deeplab = {"STEM_TYPE": "STEM", "RES4_DILATION": "RES4_DILATION", "RES5_MULTI_GRID": "RES5_MULTI_GRID"}
    of_arch = {"DEPTH": "ARCH", **dict.fromkeys(_GROUPS, "ARCH")}
    for key, our_key in {**of_arch, **both, **deeplab}.items() if has_res5(node.ARCH) else ():
        ours, theirs = (list(v) if isinstance(v, list | tuple) else v for v in (node[our_key], host.get(key)))
        same = resnets_keys(node.ARCH).get(key) if key in of_arch else ours
        if theirs not in (None, defaults.get(key), same):
            like_host = (arch for arch in LAYOUTS if resnets_keys(arch) == {key: host[key] for key in of_arch})
            wanted = next(like_host, "(no network here has these groups)") if key in of_arch else theirs
            raise ConfigError(
                f"MODEL.RESNETS.{key} is {theirs!r} and MODEL.RESNET_BACKBONE.{our_key} is {ours!r}, which is what "
                f"counts here; write MODEL.RESNET_BACKBONE.{our_key}: {wanted}, or MODEL.RESNETS.{key}: "
                f"{defaults[key] if same is None else same}",
                *(f"MODEL.RESNETS.{key}", f"MODEL.RESNET_BACKBONE.{our_key}"),
            )
    for key in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"):
        # As theirs must say.
        is_basic = key == "RES2_OUT_CHANNELS" and host[key] == 64 and not has_bottlenecks(node.ARCH)
        of_deeplab = key == "STEM_OUT_CHANNELS" and host[key] == 128 and "STEM_TYPE" in host  # of its stem
        if host[key] != defaults[key] and not is_basic and not of_deeplab:
            raise ConfigError(
                f"MODEL.RESNETS.{key} is {host[key]}: no network here has it so; take it out, or write "
                f"MODEL.BACKBONE.NAME: build_resnet_backbone (or build_resnet_fpn_backbone)",
                *(f"MODEL.RESNETS.{key}", "MODEL.BACKBONE.NAME"),
            )
    check_context(cfg)


def resnets_keys(arch: str) -> dict[str, int]:
    """Return DEPTH, NUM_GROUPS and WIDTH_PER_GROUP of MODEL.RESNETS, with which Detectron2 would build ``arch``."""
    layout = LAYOUTS.get(arch)
    if layout is None or layout.kind not in ("basic", "bottleneck"):
        return {}
    depth = 2 + (3 if layout.kind == "bottleneck" else 2) * sum(layout.depths)
    return {"DEPTH": depth, **{key: getattr(layout, fact) for key, fact in _GROUPS.items()}}


def check_context(cfg: CfgNode) -> None:
    """Raise ConfigError, with the line to write, where the heads do not read MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if cfg.MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT and not _is_a(ROI_HEADS_REGISTRY, name, *_CONTEXT_HEADS.values()):
        ours = f"MODEL.ROI_HEADS.NAME: {_CONTEXT_HEADS[name]}, or " if name in _CONTEXT_HEADS else ""
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT is True, and MODEL.ROI_HEADS.NAME {name} knows of none; write "
            f"{ours}GLOBAL_CONTEXT: False",
            *("MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "MODEL.ROI_HEADS.NAME"),
        )


def check_levels(cfg: CfgNode, levels: Mapping[str, ShapeSpec]) -> None:
    """Raise ConfigError where RetinaNet does not fit the levels of a pyramid.

    Heads of R-CNNs are not looked at: MODEL.RPN has defaults of its own, also where a backbone is built alone.
    """
    if _is_a(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "RetinaNet"):
        key = "MODEL.RETINANET.IN_FEATURES"
        features = {name: FeatureInfo(level.channels, level.stride) for name, level in levels.items()}
        check_read(key, cfg.MODEL.RETINANET.IN_FEATURES, cfg, features, same_channels=True)


def check_single_scale(cfg: CfgNode, out_features: Sequence[str]) -> None:
    """Raise ConfigError where the heads of an R-CNN do not fit a trunk that returns these features, without a pyramid.

    They must read its last feature map, unless a builder of another project has put a pyramid around the trunk; and
    Detectron2's own res5, in its heads or in those that a project made from them, must be the one that the trunk has.
    """
    if cfg.MODEL.BACKBONE.NAME == TRUNK_ALONE:
        check_last_is_read(cfg, out_features)
    node, norm, name = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL.RESNETS.NORM, cfg.MODEL.ROI_HEADS.NAME
    if not _is_a(META_ARCH_REGISTRY, cfg.MODEL.META_ARCHITECTURE, "GeneralizedRCNN") or not _builds_stock_res5(name):
        return
    ours = "ImageNetRes5ROIHeads"
    if name != "Res5ROIHeads":
        ours = f"{name}._build_res5_block = {ours}._build_res5_block in the script that imports both"
    if not has_bottlenecks(node.ARCH):
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME {name} builds the bottlenecks of ResNet-50, which is wrong for {node.ARCH}; write "
            + (ours if has_res5(node.ARCH) else "StandardROIHeads"),
            "MODEL.ROI_HEADS.NAME",
        )
    layout = LAYOUTS[node.ARCH]
    other_groups = any(getattr(layout, fact) != cfg.MODEL.RESNETS[key] for key, fact in _GROUPS.items())
    if layout.is_d or node.DEFORM_ON_PER_STAGE[3] or other_groups:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME {name} builds plain bottlenecks as MODEL.RESNETS describes them, which is not "
            f"res5 of {node.ARCH} here; write {ours}",
            *("MODEL.ROI_HEADS.NAME", "MODEL.RESNET_BACKBONE.ARCH"),
        )
    if norm != node.NORM:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME {name} builds res5 with MODEL.RESNETS.NORM {norm!r}, the trunk has "
            f"MODEL.RESNET_BACKBONE.NORM {node.NORM!r}; write {ours}, or the same for both",
            *("MODEL.ROI_HEADS.NAME", "MODEL.RESNETS.NORM", "MODEL.RESNET_BACKBONE.NORM"),
        )


def _is_a(registry: Registry, name: str, *bases: str) -> bool:
    """Whether what is registered as ``name`` is one of ``bases``, or a class made from one, as other projects do."""
    found = registry.get(name) if name in registry else None
    return isinstance(found, type) and issubclass(found, tuple(registry.get(base) for base in bases))


def _builds_stock_res5(heads: str) -> bool:
    if not _is_a(ROI_HEADS_REGISTRY, heads, "Res5ROIHeads"):
        return False
    builders = [ROI_HEADS_REGISTRY.get(name)._build_res5_block for name in (heads, "Res5ROIHeads")]
    theirs, stock = (getattr(builder, "__func__", builder) for builder in builders)  # no class methods before v0.4
    return theirs is stock


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


def add_resnet_backbone_config(cfg: CfgNode) -> None:
    """Add the keys of the backbones and their heads, with their defaults, to Detectron2's config, in place.

    These are MODEL.RESNET_BACKBONE and, in MODEL.ROI_BOX_HEAD, DROPOUT and GLOBAL_CONTEXT. Call it before
    ``merge_from_file``. Keys that a config has already keep their values. The improvements at test time
    (TEST.BOX_REFINEMENT, MULTI_SCALE and ENSEMBLE) are for ``load_config`` alone: another project's tools would
    take these keys and not obey them; :class:`~resnet_backbone.detectron2_plugin.improvements.ImprovedRCNN` is for it.
    """
    add_backbone_keys(cfg)


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file (and its ``_BASE_`` files), then ``KEY VALUE`` pairs, over Detectron2's defaults and ours.

    MODEL.DEVICE is ``cpu`` where there is no GPU. Tags that run code, as in some of Detectron2's files, are refused.

    Raises:
        FileNotFoundError: no such config.
        ConfigError: an unknown key, a value of the wrong type or one that Detectron2 cannot obey.
    """
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    add_run_keys(cfg)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    origins = merge_config(cfg, config_file, overrides, DETECTRON2, DETECTRON2_KEYS)
    check_with_origins(cfg, origins, check_config)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Raise ConfigError for a name that Detectron2 does not know, or a key that its trainer cannot obey."""
    for key, registry in REGISTRIES.items():
        name = value_of(cfg, key)
        if name and name not in registry:
            known = sorted(known for known, _ in registry)
            near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or known
            other = " --engine torchvision does." if name == TORCHVISION_ANCHORS else ""
            raise ConfigError(
                f"{key} is {name!r}, which Detectron2 does not know; did you mean {', '.join(near)}?{other}", key
            )
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        parts = solver.NUM_DECAYS + 1
        steps = [math.ceil(solver.MAX_ITER * part / parts) for part in range(1, parts)]
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME WarmupStepWithFixedGammaLR fails after the last step, before the final "
            f"checkpoint: Detectron2's scheduler is out of its list then. Write WarmupMultiStepLR, and for the same "
            f"learning rates SOLVER.STEPS {steps}",
            *("SOLVER.LR_SCHEDULER_NAME", "SOLVER.NUM_DECAYS"),
        )
    check_values(cfg, DETECTRON2_KEYS, DETECTRON2)
    _check_lengths(cfg)
    check_detector(cfg)
    if cfg.MODEL.BACKBONE.NAME in BUILDERS:
        check_host_config(with_context_heads(cfg))
        check_combinations(cfg)
    if cfg.MODEL.BACKBONE.NAME == TRUNK_ALONE:
        check_single_scale(cfg, list(trunk_facts(cfg).features))
    _check_cascade(cfg)
    _check_run(cfg)
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
        raise ConfigError(
            "SOLVER.AMP.ENABLED: Detectron2 trains in mixed precision on GPUs only; write False", "SOLVER.AMP.ENABLED"
        )
    if cfg.TEST.AUG.ENABLED and cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ConfigError(
            f"TEST.AUG.ENABLED: Detectron2 augments tests of GeneralizedRCNN only, not of "
            f"{cfg.MODEL.META_ARCHITECTURE}; write False",
            "TEST.AUG.ENABLED",
        )
    if cfg.TEST.AUG.ENABLED and is_improved(cfg):
        raise ConfigError(
            "TEST.AUG.ENABLED augments the detector itself, without TEST.BOX_REFINEMENT, MULTI_SCALE and ENSEMBLE; "
            "write TEST.AUG.ENABLED False, or leave those out",
            "TEST.AUG.ENABLED",
        )


def with_context_heads(cfg: CfgNode) -> CfgNode:
    """Return the config of what is built: StandardROIHeads with MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT are ContextROIHeads.

    So that one config is for both engines. ``cfg`` stays as it is.
    """
    if cfg.MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT and cfg.MODEL.ROI_HEADS.NAME == "StandardROIHeads":
        cfg = cfg.clone()
        cfg.MODEL.ROI_HEADS.NAME = "ContextROIHeads"
    return cfg


def _check_lengths(cfg: CfgNode) -> None:
    """How many values a list has depends on other keys; boxes that turn have one more number than the others."""
    model = cfg.MODEL
    lengths = {"MODEL.PIXEL_STD": len(model.PIXEL_MEAN), "MODEL.RETINANET.BBOX_REG_WEIGHTS": 4, "INPUT.CROP.SIZE": 2}
    lengths |= {"INPUT.LARGE_SCALE_JITTER.SCALE": 2, "INPUT.COLOR_JITTER": 4}
    for part in ("RPN", "ROI_HEADS", "RETINANET"):
        lengths[f"MODEL.{part}.IOU_THRESHOLDS"] = len(model[part].IOU_LABELS) - 1
    if model.PROPOSAL_GENERATOR.NAME != "RRPN" and model.ROI_HEADS.NAME != "RROIHeads":
        lengths |= {"MODEL.RPN.BBOX_REG_WEIGHTS": 4, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4}
    for key, length in lengths.items():
        if len(value_of(cfg, key)) != length:
            raise ConfigError(f"{key} is {value_of(cfg, key)}; it must have {length} values", key)


def _check_run(cfg: CfgNode) -> None:
    """Keys of Detectron2's that another key undoes, or without which they do nothing."""
    precision, solver = cfg.get("FLOAT32_PRECISION", ""), cfg.SOLVER  # v0.6 does not have the former
    if precision and cfg.TF32 not in (TF32[0], FLOAT32_PRECISION[precision]):
        raise ConfigError(
            f"FLOAT32_PRECISION {precision} means TF32 {FLOAT32_PRECISION[precision]}, and TF32 is {cfg.TF32}: leave "
            f"one of the two out",
            *("FLOAT32_PRECISION", "TF32"),
        )
    if cfg.DATALOADER.REPEAT_THRESHOLD and cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        raise ConfigError(
            f"DATALOADER.REPEAT_THRESHOLD is {cfg.DATALOADER.REPEAT_THRESHOLD}, and DATALOADER.SAMPLER_TRAIN "
            f"{cfg.DATALOADER.SAMPLER_TRAIN} repeats no image for it; write RepeatFactorTrainingSampler, or 0.0",
            *("DATALOADER.REPEAT_THRESHOLD", "DATALOADER.SAMPLER_TRAIN"),
        )
    reference = solver.REFERENCE_WORLD_SIZE
    if reference < 0 or (reference and solver.IMS_PER_BATCH % reference):
        raise ConfigError(
            f"SOLVER.REFERENCE_WORLD_SIZE is {reference}; write the number of processes that SOLVER.IMS_PER_BATCH "
            f"{solver.IMS_PER_BATCH} is meant for, which divides it, or 0",
            *("SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.IMS_PER_BATCH"),
        )


def _check_cascade(cfg: CfgNode) -> None:
    heads, box, cascade = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_BOX_CASCADE_HEAD
    if heads.NAME != "CascadeROIHeads":
        return
    if not box.CLS_AGNOSTIC_BBOX_REG:
        raise ConfigError(
            "MODEL.ROI_HEADS.NAME CascadeROIHeads needs MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: True",
            *("MODEL.ROI_HEADS.NAME", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
        )
    if len(cascade.IOUS) != len(cascade.BBOX_REG_WEIGHTS):
        raise ConfigError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS has {len(cascade.IOUS)} stages, "
            f"MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS {len(cascade.BBOX_REG_WEIGHTS)}; write as many for both",
            *("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"),
        )
    if list(cascade.IOUS[:1]) != list(heads.IOU_THRESHOLDS):
        raise ConfigError(
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS {list(cascade.IOUS)} must begin with MODEL.ROI_HEADS.IOU_THRESHOLDS, "
            f"{list(heads.IOU_THRESHOLDS)}",
            *("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_HEADS.IOU_THRESHOLDS"),
        )
