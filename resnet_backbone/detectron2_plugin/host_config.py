"""Keys of Detectron2's own ResNet: our builders do not read them, so they must not ask for another network."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import get_cfg
from fvcore.common.config import CfgNode

from resnet_backbone.config.files import value_of
from resnet_backbone.weights.architecture import has_bottlenecks

_DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}
_ARCHITECTURES = ("GeneralizedRCNN", "ProposalNetwork")
_HEADS = ("Res5ROIHeads", "ImageNetRes5ROIHeads", "StandardROIHeads", "ContextROIHeads", "CascadeROIHeads")
_CONTEXT_HEADS = {"StandardROIHeads": "ContextROIHeads", "Res5ROIHeads": "ImageNetRes5ROIHeads"}


def check_host_config(cfg: CfgNode) -> None:
    """Raise ValueError, with the line to write, where MODEL.RESNETS or the head asks for another network than is built.

    Only values that differ from Detectron2's defaults count: those somebody wrote.
    """
    node = cfg.MODEL.RESNET_BACKBONE
    defaults = get_cfg()
    ours = {
        "DEPTH": ("ARCH", _DEPTHS.get(node.ARCH)),
        "NORM": ("NORM", node.NORM),
        "RES5_DILATION": ("RES5_DILATION", node.RES5_DILATION),
    }
    if not node.ARCH.startswith("vgg"):
        for key, (our_key, value) in ours.items():
            theirs = cfg.MODEL.RESNETS[key]
            if theirs not in (defaults.MODEL.RESNETS[key], value):
                wanted = f"resnet{theirs}" if key == "DEPTH" else theirs
                harmless = defaults.MODEL.RESNETS[key] if value is None else value
                raise ValueError(
                    f"MODEL.RESNETS.{key} is {theirs!r} and MODEL.RESNET_BACKBONE.{our_key} is "
                    f"{getattr(node, our_key)!r}, which is what counts here; write MODEL.RESNET_BACKBONE.{our_key}: "
                    f"{wanted}, or MODEL.RESNETS.{key}: {harmless}"
                )
    for key in ("NUM_GROUPS", "WIDTH_PER_GROUP", "DEFORM_ON_PER_STAGE", "STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS"):
        theirs = cfg.MODEL.RESNETS[key]
        is_basic = key == "RES2_OUT_CHANNELS" and theirs == 64 and not has_bottlenecks(node.ARCH)  # as theirs must say
        if theirs != defaults.MODEL.RESNETS[key] and not is_basic:
            raise ValueError(
                f"MODEL.RESNETS.{key} is {theirs}: there are no ResNeXts, wide or deformable networks here; take it "
                f"out, or write MODEL.BACKBONE.NAME: build_resnet_backbone (or build_resnet_fpn_backbone)"
            )
    _check_deeplab_keys(cfg)
    check_context(cfg)


def check_context(cfg: CfgNode) -> None:
    """Raise ValueError, with the line to write, where the heads do not read MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if cfg.MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT and name not in _CONTEXT_HEADS.values():
        ours = f"MODEL.ROI_HEADS.NAME: {_CONTEXT_HEADS[name]}, or " if name in _CONTEXT_HEADS else ""
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT is True, and MODEL.ROI_HEADS.NAME {name} knows of none; write "
            f"{ours}GLOBAL_CONTEXT: False"
        )


def check_single_scale(cfg: CfgNode, out_features: Sequence[str]) -> None:
    """Raise ValueError where the heads of an R-CNN do not fit a trunk without a pyramid.

    They must read its last feature map, which would else be computed and never trained; and Detectron2's own res5 must
    be the one that the trunk would have.

    Args:
        cfg: of Detectron2, with the keys of ``add_resnet_backbone_config``.
        out_features: what the trunk returns, in network order.
    """
    model = cfg.MODEL
    has_heads = model.META_ARCHITECTURE == "GeneralizedRCNN"
    if (has_heads and model.ROI_HEADS.NAME not in _HEADS) or model.META_ARCHITECTURE not in _ARCHITECTURES:
        return  # of another project: who knows what it reads
    used = {*model.ROI_HEADS.IN_FEATURES} if has_heads else set()
    if model.PROPOSAL_GENERATOR.NAME != "PrecomputedProposals":
        used |= {*model.RPN.IN_FEATURES}
    if used - set(out_features) or out_features[-1] not in used:
        if any(name.startswith("p") and name != "pool5" for name in used):
            advice = "MODEL.BACKBONE.NAME: build_imagenet_fpn_backbone, which makes levels p2 to p6"
        else:
            advice = f"MODEL.RESNET_BACKBONE.OUT_FEATURES: {sorted(used)}, or other IN_FEATURES"
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES and MODEL.ROI_HEADS.IN_FEATURES read {sorted(used)}, the trunk returns "
            f"{list(out_features)}; write {advice}"
        )
    _check_res5_head(cfg)


def check_levels(cfg: CfgNode, levels: Sequence[str]) -> None:
    """Raise ValueError where RetinaNet reads a level that a pyramid of these ``levels`` does not have.

    Heads of R-CNNs are not looked at: MODEL.RPN has defaults of its own, also where a backbone is built alone.
    """
    absent = sorted(set(cfg.MODEL.RETINANET.IN_FEATURES) - set(levels))
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" and absent:
        raise ValueError(
            f"MODEL.RETINANET.IN_FEATURES reads {absent}, the pyramid of {cfg.MODEL.BACKBONE.NAME} has {list(levels)}; "
            f"write MODEL.BACKBONE.NAME: build_imagenet_retinanet_fpn_backbone, or IN_FEATURES of these"
        )


def _check_deeplab_keys(cfg: CfgNode) -> None:
    """Compare the keys of ``add_deeplab_config``, where the host has called it; its defaults are its own."""
    node, host = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL.RESNETS
    if node.ARCH.startswith("vgg"):
        return
    for key, our_key in (("STEM_TYPE", "STEM"), ("RES4_DILATION",) * 2, ("RES5_MULTI_GRID",) * 2):
        ours, theirs = (list(v) if isinstance(v, list | tuple) else v for v in (node[our_key], host.get(key)))
        if theirs is not None and theirs != ours:
            raise ValueError(
                f"MODEL.RESNETS.{key} is {theirs!r} and MODEL.RESNET_BACKBONE.{our_key} is {ours!r}, which is what "
                f"counts here; write MODEL.RESNET_BACKBONE.{our_key}: {theirs}, or MODEL.RESNETS.{key}: {ours}"
            )


def _check_res5_head(cfg: CfgNode) -> None:
    node = cfg.MODEL.RESNET_BACKBONE
    if cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" or cfg.MODEL.ROI_HEADS.NAME != "Res5ROIHeads":
        return
    if not has_bottlenecks(node.ARCH):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME Res5ROIHeads builds the bottlenecks of ResNet-50, which is wrong for {node.ARCH}; "
            + ("write ImageNetRes5ROIHeads" if not node.ARCH.startswith("vgg") else "write StandardROIHeads")
        )
    if value_of(cfg, "MODEL.RESNETS.NORM") != node.NORM:
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME Res5ROIHeads builds res5 with MODEL.RESNETS.NORM {cfg.MODEL.RESNETS.NORM!r}, the "
            f"trunk has MODEL.RESNET_BACKBONE.NORM {node.NORM!r}; write ImageNetRes5ROIHeads, or the same for both"
        )
