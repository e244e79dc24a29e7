"""The trunk that a config describes, and checks of values that are valid one by one and make no detector together."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch.overrides import TorchFunctionMode

from resnet_backbone.config.schema import DEFAULT_ANCHORS, TORCHVISION_ANCHORS, ConfigError
from resnet_backbone.models.acceleration import CUDA_GRAPH_MODES
from resnet_backbone.models.registry import create_model, list_models
from resnet_backbone.models.trunk import FeatureInfo, OptionError, Trunk
from resnet_backbone.weights import Weights, WeightsError, load_weights
from resnet_backbone.weights.architecture import has_bottlenecks, has_res5
from resnet_backbone.weights.catalog import TIMM

logger = logging.getLogger(__name__)

_TRUNK = "MODEL.RESNET_BACKBONE"
# Where the options of ``create_model`` stand that are not in that section.
_OPTION_KEYS = {"freeze_at": "MODEL.BACKBONE.FREEZE_AT", "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1"}


def pyramid_strides(feature_info: dict[str, FeatureInfo], in_features: Sequence[str]) -> list[int]:
    """Return the strides of MODEL.FPN.IN_FEATURES.

    Raises:
        ConfigError: features that the trunk does not return, a last one that nothing would use, or strides that do not
            double from one to the next.
    """
    unknown = [name for name in in_features if name not in feature_info]
    if unknown or not in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {list(in_features)} must be some of what the trunk returns "
            f"(MODEL.RESNET_BACKBONE.OUT_FEATURES): {list(feature_info)}",
            *("MODEL.FPN.IN_FEATURES", "MODEL.RESNET_BACKBONE.OUT_FEATURES"),
        )
    last = next(reversed(feature_info))
    if last not in in_features:
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {list(in_features)} leave {last} unused, which the trunk computes: "
            f"take it out of MODEL.RESNET_BACKBONE.OUT_FEATURES, too",
            *("MODEL.FPN.IN_FEATURES", "MODEL.RESNET_BACKBONE.OUT_FEATURES"),
        )
    strides = [feature_info[name].stride for name in in_features]
    if any(fine * 2 != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise ConfigError(
            f"strides of MODEL.FPN.IN_FEATURES {list(in_features)} must double, got {strides}", "MODEL.FPN.IN_FEATURES"
        )
    return strides


def pyramid_levels(
    feature_info: dict[str, FeatureInfo], in_features: Sequence[str], out_channels: int, *, convolved_top: bool
) -> dict[str, FeatureInfo]:
    """Return the levels of a pyramid, ``p<n>`` of stride ``2 ** n``: one for each feature map, and those on top.

    Those are one for the RPN, or with ``convolved_top`` two for RetinaNet, FCOS. Raises: see :func:`pyramid_strides`.
    """
    strides = pyramid_strides(feature_info, in_features)
    strides += [strides[-1] * 2**n for n in range(1, 3 if convolved_top else 2)]
    return {f"p{stride.bit_length() - 1}": FeatureInfo(out_channels, stride) for stride in strides}


def build_trunk(
    cfg: CfgNode,
    *,
    out_features: Sequence[str],
    num_classes: int = 0,
    weights: Weights | None = None,
    freeze_at: int | None = None,
) -> Trunk:
    """Build the classifier that ``cfg.MODEL`` describes, filled with ``weights`` if there are any.

    Args:
        cfg: reads MODEL.RESNET_BACKBONE, BACKBONE.FREEZE_AT, RESNETS.STRIDE_IN_1X1 and the length of PIXEL_MEAN.
        out_features: feature maps to return.
        num_classes: 0 for a trunk; VGG's fc6 and fc7 exist with the head only.
        weights: ImageNet weights of the architecture.
        freeze_at: in place of MODEL.BACKBONE.FREEZE_AT; 0 for stages that become a head, which it does not count.

    Raises:
        ConfigError: options or weights that do not fit the architecture.
    """
    node = cfg.MODEL.RESNET_BACKBONE
    if node.ARCH not in list_models() and not node.ARCH.startswith(TIMM):
        raise ConfigError(
            f"{_TRUNK}.ARCH {node.ARCH!r} must be one of {', '.join(list_models())}, or {TIMM}NAME", f"{_TRUNK}.ARCH"
        )
    try:
        trunk = create_model(
            node.ARCH,
            num_classes=num_classes,
            out_features=out_features,
            norm=node.NORM,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT if freeze_at is None else freeze_at,
            stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1 if has_bottlenecks(node.ARCH) else False,
            shortcut=node.SHORTCUT or None,
            stem=node.STEM,
            res4_dilation=node.RES4_DILATION,
            res5_dilation=node.RES5_DILATION,
            res5_multi_grid=node.RES5_MULTI_GRID,
            deform_on_per_stage=node.DEFORM_ON_PER_STAGE,
            deform_modulated=node.DEFORM_MODULATED,
            deform_num_groups=node.DEFORM_NUM_GROUPS,
            in_channels=len(cfg.MODEL.PIXEL_MEAN),
        )
    except WeightsError as error:
        raise ConfigError(f"{_TRUNK}.ARCH {node.ARCH}: {error}", f"{_TRUNK}.ARCH") from error
    except OptionError as error:
        keys = {option: _OPTION_KEYS.get(option, f"{_TRUNK}.{option.upper()}") for option in error.options}
        names = ", ".join(f"{option} is {key}" for option, key in keys.items())
        raise ConfigError(f"{_TRUNK}.ARCH {node.ARCH}: {error} ({names})", f"{_TRUNK}.ARCH", *keys.values()) from error
    if weights is not None:
        logger.info("loaded %s", load_weights(trunk, weights).summary())
    return trunk


Features = dict[str, FeatureInfo]


class TrunkFacts(NamedTuple):
    """Of a trunk: its feature maps in network order, the stages that it consists of, what it needs of image sizes."""

    features: Features
    stages: tuple[str, ...]
    size_divisibility: int
    tells_stages_apart: bool


def trunk_facts(cfg: CfgNode, out_features: Sequence[str] | None = None) -> TrunkFacts:
    """Return the facts of the trunk that ``build_trunk`` would build, with ``out_features`` if they are given.

    Raises ConfigError where that does.
    """
    model = cfg.MODEL
    node = dict(model.RESNET_BACKBONE)
    if out_features is not None:
        node["OUT_FEATURES"] = list(out_features)
    read = {
        "RESNET_BACKBONE": node,
        "BACKBONE": {"FREEZE_AT": model.BACKBONE.FREEZE_AT},
        "RESNETS": {"STRIDE_IN_1X1": model.RESNETS.STRIDE_IN_1X1},
        "PIXEL_MEAN": list(model.PIXEL_MEAN),
    }
    return _facts(json.dumps(read))


@lru_cache(maxsize=64)
def _facts(model: str) -> TrunkFacts:
    cfg = CfgNode({"MODEL": json.loads(model)})
    node = cfg.MODEL.RESNET_BACKBONE
    with torch.device("meta"), nullcontext() if node.ARCH.startswith(TIMM) else _SkipInit():
        trunk = build_trunk(cfg, out_features=node.OUT_FEATURES)
    return TrunkFacts(dict(trunk.feature_info), trunk.stage_names, trunk.size_divisibility, trunk.tells_stages_apart)


class _SkipInit(TorchFunctionMode):
    """Skips what fills tensors: on the meta device it would change nothing, but import much of torch for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if args and (name == "sub" or (name.endswith("_") and not name.endswith("__"))):
            return args[0]
        return func(*args, **(kwargs or {}))


TRUNK_ALONE = "build_imagenet_backbone"
RPN_PYRAMID = "build_imagenet_fpn_backbone"
RETINANET_PYRAMID = "build_imagenet_retinanet_fpn_backbone"
FCOS_PYRAMID = "build_imagenet_fcos_fpn_backbone"
CONVOLVED_TOP = (RETINANET_PYRAMID, FCOS_PYRAMID)
BUILDERS = (TRUNK_ALONE, RPN_PYRAMID, *CONVOLVED_TOP)
_RES5_HEADS = ("ImageNetRes5ROIHeads", "Res5ROIHeads")
_BOX_HEADS = ("StandardROIHeads", "ContextROIHeads", "CascadeROIHeads")  # with MODEL.ROI_BOX_HEAD.NAME
_WITH_RPN = ("GeneralizedRCNN", "ProposalNetwork", "PanopticFPN")
_WITH_HEADS = ("GeneralizedRCNN", "PanopticFPN")
_ANCHORS = "MODEL.ANCHOR_GENERATOR"


def check_combinations(cfg: CfgNode) -> None:
    """Raise ConfigError where trunk, pyramid, anchors and heads do not fit each other, on either engine.

    Backbones, and heads, of other projects are not looked at: nobody knows what they read.
    """
    model = cfg.MODEL
    if model.BACKBONE.NAME not in BUILDERS:
        return
    trunk = trunk_facts(cfg)
    features = backbone_features(cfg, trunk)
    _check_stages(cfg, trunk)
    _check_acceleration(cfg, trunk, features)
    if model.META_ARCHITECTURE in _WITH_RPN and model.PROPOSAL_GENERATOR.NAME == "RPN":
        check_read("MODEL.RPN.IN_FEATURES", model.RPN.IN_FEATURES, cfg, features, same_channels=True)
        _check_anchors(cfg, "MODEL.RPN.IN_FEATURES", model.RPN.IN_FEATURES)
        if 0 in model.RPN.CONV_DIMS:
            raise ConfigError(
                f"MODEL.RPN.CONV_DIMS is {list(model.RPN.CONV_DIMS)}; write channels, or -1 for as many as before",
                "MODEL.RPN.CONV_DIMS",
            )
    if model.META_ARCHITECTURE in _WITH_HEADS:
        _check_heads(cfg, features)
    if model.BACKBONE.NAME == TRUNK_ALONE:
        check_last_is_read(cfg, list(features))
    if model.META_ARCHITECTURE == "RetinaNet":
        check_read("MODEL.RETINANET.IN_FEATURES", model.RETINANET.IN_FEATURES, cfg, features, same_channels=True)
        _check_anchors(cfg, "MODEL.RETINANET.IN_FEATURES", model.RETINANET.IN_FEATURES)
    if model.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor") and model.SEM_SEG_HEAD.NAME == "SemSegFPNHead":
        key = "MODEL.SEM_SEG_HEAD.IN_FEATURES"
        check_read(key, model.SEM_SEG_HEAD.IN_FEATURES, cfg, features, same_channels=False)


def backbone_features(cfg: CfgNode, trunk: TrunkFacts) -> Features:
    """Return what MODEL.BACKBONE.NAME, one of :data:`BUILDERS`, returns on ``trunk``.

    Raises:
        ConfigError: MODEL.FPN.IN_FEATURES that make no pyramid.
    """
    if cfg.MODEL.BACKBONE.NAME == TRUNK_ALONE:
        return trunk.features
    convolved_top = cfg.MODEL.BACKBONE.NAME in CONVOLVED_TOP
    node = cfg.MODEL.FPN
    try:
        return pyramid_levels(trunk.features, node.IN_FEATURES, node.OUT_CHANNELS, convolved_top=convolved_top)
    except ConfigError as error:
        dilation = cfg.MODEL.RESNET_BACKBONE.RES5_DILATION
        if dilation == 1:
            raise
        raise ConfigError(
            f"{error}; with a pyramid write MODEL.RESNET_BACKBONE.RES5_DILATION: 1, not {dilation}",
            *error.keys,
            "MODEL.RESNET_BACKBONE.RES5_DILATION",
        ) from error


def check_read(key: str, names: Sequence[str], cfg: CfgNode, features: Features, *, same_channels: bool) -> None:
    """Raise ConfigError where a head does not find the feature maps that the config ``key`` says it reads."""
    names, builder = list(names), cfg.MODEL.BACKBONE.NAME
    absent = [name for name in names if name not in features]
    made_from = "MODEL.RESNET_BACKBONE.OUT_FEATURES" if builder == TRUNK_ALONE else "MODEL.FPN.IN_FEATURES"
    if absent or not names:
        if builder == TRUNK_ALONE:
            of_pyramid = any(map(_is_level, absent))
            wanted = RETINANET_PYRAMID if key.startswith("MODEL.RETINANET") else RPN_PYRAMID
            advice = (
                f"MODEL.BACKBONE.NAME: {wanted}, which makes levels p2, p3, ..."
                if of_pyramid
                else "others, or MODEL.RESNET_BACKBONE.OUT_FEATURES that have them"
            )
        elif "p7" in absent and builder == RPN_PYRAMID:
            advice = f"MODEL.BACKBONE.NAME: {RETINANET_PYRAMID}, which makes p3 to p7"
        else:
            advice = f"some of these (made from MODEL.FPN.IN_FEATURES {list(cfg.MODEL.FPN.IN_FEATURES)})"
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} reads {key} {names}, which must be some of what "
            f"MODEL.BACKBONE.NAME {builder} returns, {list(features)}; write {advice}",
            "MODEL.META_ARCHITECTURE",
            key,
            "MODEL.BACKBONE.NAME",
            made_from,
        )
    if len(set(names)) < len(names):
        raise ConfigError(f"{key} {names} names a feature map twice; write each once", key)
    if same_channels and len({features[name].channels for name in names}) > 1:
        channels = ", ".join(f"{name} {features[name].channels}" for name in names)
        raise ConfigError(
            f"{key} {names} must have the same channels, found {channels}; write one of them, or MODEL.BACKBONE.NAME: "
            f"{RPN_PYRAMID}",
            *(key, "MODEL.BACKBONE.NAME"),
        )


def _check_anchors(cfg: CfgNode, key: str, names: Sequence[str]) -> None:
    """As many lists of sizes and shapes as there are levels, or one for all; as many anchors on each."""
    node = cfg.MODEL.ANCHOR_GENERATOR
    if node.NAME not in (DEFAULT_ANCHORS, TORCHVISION_ANCHORS):
        return
    levels = len(names)
    for name in ("SIZES", "ASPECT_RATIOS"):
        lists = [list(values) for values in node[name]]
        if len(lists) not in (1, levels):
            raise ConfigError(
                f"{_ANCHORS}.{name} has {len(lists)} lists for {levels} levels, {key} {list(names)}: write 1 or "
                f"{levels}",
                *(f"{_ANCHORS}.{name}", key),
            )
        if not all(lists) or not all(value > 0 for values in lists for value in values):
            raise ConfigError(
                f"{_ANCHORS}.{name} {lists} must hold numbers above 0 for each level", f"{_ANCHORS}.{name}"
            )
    sizes, ratios = (list(node[name]) * (levels // len(node[name])) for name in ("SIZES", "ASPECT_RATIOS"))
    counts = [len(a) * len(b) for a, b in zip(sizes, ratios, strict=True)]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"{_ANCHORS}.SIZES and {_ANCHORS}.ASPECT_RATIOS make {counts} anchors a cell on {list(names)}; every level "
            f"of {key} needs the same number of anchors",
            *(f"{_ANCHORS}.SIZES", f"{_ANCHORS}.ASPECT_RATIOS", key),
        )


def _check_heads(cfg: CfgNode, features: Features) -> None:
    heads, arch = cfg.MODEL.ROI_HEADS, cfg.MODEL.RESNET_BACKBONE.ARCH
    if heads.NAME not in (*_RES5_HEADS, *_BOX_HEADS):
        return
    names = list(heads.IN_FEATURES)
    if heads.NAME == "ImageNetRes5ROIHeads" and (not has_res5(arch) or names != ["res4"]):
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME ImageNetRes5ROIHeads runs res5 on crops of res4: it needs a ResNet of "
            f"our own (not MODEL.RESNET_BACKBONE.ARCH {arch}) and MODEL.ROI_HEADS.IN_FEATURES: [res4], found {names}; "
            f"for others write StandardROIHeads",
            *("MODEL.ROI_HEADS.NAME", "MODEL.RESNET_BACKBONE.ARCH", "MODEL.ROI_HEADS.IN_FEATURES"),
        )
    check_read("MODEL.ROI_HEADS.IN_FEATURES", names, cfg, features, same_channels=True)
    strides = [features[name].stride for name in names]
    if any(2 * fine != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise ConfigError(
            f"strides of MODEL.ROI_HEADS.IN_FEATURES {names} must double from level to level, got {strides}",
            "MODEL.ROI_HEADS.IN_FEATURES",
        )
    if heads.NAME == "ImageNetRes5ROIHeads":
        trunk_facts(cfg, ["res5"])
    elif heads.NAME in _BOX_HEADS:
        _check_box_head(cfg, features[names[0]].channels)


def _check_box_head(cfg: CfgNode, channels: int) -> None:
    heads, box, arch = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.RESNET_BACKBONE.ARCH
    if not box.NAME:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME {heads.NAME} needs MODEL.ROI_BOX_HEAD.NAME: FastRCNNConvFCHead or VGGBoxHead",
            *("MODEL.ROI_HEADS.NAME", "MODEL.ROI_BOX_HEAD.NAME"),
        )
    if box.NAME == "VGGBoxHead" and (not arch.startswith("vgg") or box.POOLER_RESOLUTION != 7 or channels != 512):
        raise ConfigError(
            f"MODEL.ROI_BOX_HEAD.NAME VGGBoxHead runs fc6 and fc7 on 7x7 crops of conv5: it needs a VGG (not "
            f"MODEL.RESNET_BACKBONE.ARCH {arch}), MODEL.ROI_HEADS.IN_FEATURES: [conv5] (found "
            f"{list(heads.IN_FEATURES)}) and MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION: 7 (found {box.POOLER_RESOLUTION})",
            *(
                "MODEL.ROI_BOX_HEAD.NAME",
                "MODEL.RESNET_BACKBONE.ARCH",
                "MODEL.ROI_HEADS.IN_FEATURES",
                "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
            ),
        )
    if box.NAME == "FastRCNNConvFCHead" and box.NUM_FC + box.NUM_CONV < 1:
        raise ConfigError(
            "MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead has no layers: MODEL.ROI_BOX_HEAD.NUM_FC or NUM_CONV must be 1 "
            f"or more, got {box.NUM_FC} and {box.NUM_CONV}",
            *("MODEL.ROI_BOX_HEAD.NAME", "MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_BOX_HEAD.NUM_CONV"),
        )


def check_last_is_read(cfg: CfgNode, features: Sequence[str]) -> None:
    """Raise ConfigError where the heads of an R-CNN do not read the last of a trunk's feature maps, without a pyramid.

    It would be computed and never trained. Heads of other projects are not looked at.
    """
    model = cfg.MODEL
    has_heads = model.META_ARCHITECTURE == "GeneralizedRCNN"
    if not has_heads and model.META_ARCHITECTURE != "ProposalNetwork":
        return
    if has_heads and model.ROI_HEADS.NAME not in (*_RES5_HEADS, *_BOX_HEADS):
        return
    used = {*model.ROI_HEADS.IN_FEATURES} if has_heads else set()
    if model.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":
        used |= {*model.RPN.IN_FEATURES}
    features = list(features)
    if used <= set(features) and features[-1] in used:
        return
    advice = f"MODEL.RESNET_BACKBONE.OUT_FEATURES: {sorted(used)}, or other IN_FEATURES"
    if any(map(_is_level, used)):
        advice = f"MODEL.BACKBONE.NAME: {RPN_PYRAMID}, which makes levels p2 to p6"
    unread = "" if features[-1] in used else f", of which {features[-1]} would be computed and never trained"
    raise ConfigError(
        f"MODEL.RPN.IN_FEATURES and MODEL.ROI_HEADS.IN_FEATURES read {sorted(used)}, the trunk returns {features}"
        f"{unread}; write {advice}",
        *("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES", "MODEL.RESNET_BACKBONE.OUT_FEATURES"),
    )


def _is_level(name: str) -> bool:
    """Whether a feature map is called as the levels of a pyramid are."""
    return name.startswith("p") and name != "pool5"


def _check_stages(cfg: CfgNode, trunk: TrunkFacts) -> None:
    node, model = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL
    has_head = model.META_ARCHITECTURE == "GeneralizedRCNN" and model.ROI_HEADS.NAME == "ImageNetRes5ROIHeads"
    deformed = [f"res{number}" for number, is_on in enumerate(node.DEFORM_ON_PER_STAGE, 2) if is_on]
    dilated = ["res5"] if node.RES5_DILATION > 1 else []
    for key, stages, off in (("RES5_DILATION", dilated, 1), ("DEFORM_ON_PER_STAGE", deformed, [False] * 4)):
        left_out = [name for name in stages if name not in trunk.stages and not (has_head and name == "res5")]
        if left_out:
            raise ConfigError(
                f"{_TRUNK}.{key} is {node[key]}, and {_TRUNK}.OUT_FEATURES {list(node.OUT_FEATURES)} leave "
                f"{', '.join(left_out)} out; write {key}: {off}, or OUT_FEATURES: [{left_out[-1]}]",
                *(f"{_TRUNK}.{key}", f"{_TRUNK}.OUT_FEATURES"),
            )
    if cfg.SOLVER.LAYER_DECAY < 1 and not trunk.tells_stages_apart:
        raise ConfigError(
            f"SOLVER.LAYER_DECAY is {cfg.SOLVER.LAYER_DECAY}, from stage to stage, and timm does not tell those of "
            f"{_TRUNK}.ARCH {node.ARCH} apart; write 1.0",
            *("SOLVER.LAYER_DECAY", f"{_TRUNK}.ARCH"),
        )


def _check_acceleration(cfg: CfgNode, trunk: TrunkFacts, features: Features) -> None:
    node, key = cfg.MODEL.RESNET_BACKBONE, _TRUNK
    unknown = [name for name in node.CHECKPOINT_STAGES if name not in trunk.stages]
    if unknown:
        raise ConfigError(
            f"{key}.CHECKPOINT_STAGES {unknown} must be stages of this trunk: {', '.join(trunk.stages)}",
            f"{key}.CHECKPOINT_STAGES",
        )
    if node.CHECKPOINT_STAGES and node.COMPILE:
        raise ConfigError(
            f"{key}.CHECKPOINT_STAGES {list(node.CHECKPOINT_STAGES)}: torch.compile decides by itself what is computed "
            f"again; write [], or {key}.COMPILE ''",
            *(f"{key}.CHECKPOINT_STAGES", f"{key}.COMPILE"),
        )
    if node.COMPILE in CUDA_GRAPH_MODES and cfg.SOLVER.ACCUMULATION_STEPS > 1:
        raise ConfigError(
            f"{key}.COMPILE {node.COMPILE} records CUDA graphs, each pass of which writes its gradients over those of "
            f"the pass before, and SOLVER.ACCUMULATION_STEPS {cfg.SOLVER.ACCUMULATION_STEPS} adds them up; write "
            f"{key}.COMPILE default, or SOLVER.ACCUMULATION_STEPS 1",
            *(f"{key}.COMPILE", "SOLVER.ACCUMULATION_STEPS"),
        )
    needed = trunk.size_divisibility
    if cfg.MODEL.BACKBONE.NAME != TRUNK_ALONE and node.PAD_TO % needed:
        raise ConfigError(
            f"{key}.PAD_TO is {node.PAD_TO}; this pyramid needs a multiple of {needed}, or 0", f"{key}.PAD_TO"
        )
