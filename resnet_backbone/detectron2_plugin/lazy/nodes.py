"""Nodes of a lazy config: descriptions of trunks, pyramids and heads, which Detectron2's ``instantiate`` builds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
from detectron2.config import LazyCall, LazyConfig
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig

from resnet_backbone.detectron2_plugin.backbone import build_fpn, build_retinanet_fpn
from resnet_backbone.detectron2_plugin.lazy.build import build_res5, build_trunk_backbone, feature_channels
from resnet_backbone.detectron2_plugin.lazy.input import PLACES
from resnet_backbone.detectron2_plugin.roi_heads import VGGBoxHead

_TRUNK_OPTIONS = ("norm", "freeze_at", "stride_in_1x1", "res4_dilation", "res5_dilation", "res5_multi_grid")


def stock_config(name: str) -> DictConfig:
    """Load a config that comes with Detectron2, from its package or its checkout.

    Args:
        name: path below Detectron2's configs, such as ``"common/models/mask_rcnn_fpn.py"``.

    Raises:
        FileNotFoundError: there is no such config.
    """
    package = Path(detectron2.__file__).parent
    for folder in (package / "model_zoo" / "configs", package.parent / "configs"):
        if (folder / name).is_file():
            return LazyConfig.load(str(folder / name))
    raise FileNotFoundError(f"Detectron2 at {package} has no config {name}; write a path below its configs/ folder")


def trunk_node(
    arch: str,
    out_features: Sequence[str],
    *,
    norm: str = "FrozenBN",
    freeze_at: int = 2,
    stride_in_1x1: bool = False,
    stem: str = "basic",
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: Sequence[int] = (1, 1, 1),
    in_channels: int = 3,
    strict_weights: bool = True,
) -> DictConfig:
    """Return the node of :func:`build_trunk_backbone`, to stand at ``model.backbone`` or its ``bottom_up``.

    When the model is built, the node compares the config's input with the weights, as the yaml builders do. It looks
    at ``train.init_checkpoint``, ``model`` and ``dataloader`` of the config that it is in.
    """
    return LazyCall(build_trunk_backbone)(
        arch=arch,
        out_features=list(out_features),
        norm=norm,
        freeze_at=freeze_at,
        stride_in_1x1=stride_in_1x1,
        stem=stem,
        res4_dilation=res4_dilation,
        res5_dilation=res5_dilation,
        res5_multi_grid=list(res5_multi_grid),
        in_channels=in_channels,
        strict_weights=strict_weights,
        weights="${oc.select:train.init_checkpoint,null}",
        input_found={place: f"${{oc.select:{place},null}}" for place in PLACES},
    )


def fpn_node(bottom_up: DictConfig, *, out_channels: int = 256, norm: str = "", fuse_type: str = "sum") -> DictConfig:
    """Return the node of a pyramid ``p2`` to ``p6`` on all feature maps of a :func:`trunk_node`."""
    return _pyramid_node(build_fpn, bottom_up, out_channels, norm, fuse_type)


def retinanet_fpn_node(
    bottom_up: DictConfig, *, out_channels: int = 256, norm: str = "", fuse_type: str = "sum"
) -> DictConfig:
    """Return the node of a pyramid ``p3`` to ``p7`` on all feature maps of a :func:`trunk_node`."""
    return _pyramid_node(build_retinanet_fpn, bottom_up, out_channels, norm, fuse_type)


def rpn_channels_node() -> DictConfig:
    """Return the node for ``model.proposal_generator.head.in_channels`` where the RPN reads the trunk itself."""
    return LazyCall(feature_channels)(arch="${....backbone.arch}", feature="${...in_features[0]}")


def res5_node() -> DictConfig:
    """Return the node for ``model.roi_heads.res5`` of a C4 model: res5 of the trunk at ``model.backbone``."""
    followed = ("arch", *_TRUNK_OPTIONS, "strict_weights")
    return LazyCall(build_res5)(
        **{option: f"${{...backbone.{option}}}" for option in followed},
        out_channels=LazyCall(feature_channels)(arch="${..arch}", feature="res5"),
    )


def vgg_box_head_node(dropout: float = 0.0) -> DictConfig:
    """Return the node for ``model.roi_heads.box_head``: fc6 and fc7 of the VGG at ``model.backbone``, on its conv5."""
    size = "${...box_pooler.output_size}"
    return LazyCall(VGGBoxHead)(
        arch="${...backbone.arch}",
        input_shape=LazyCall(ShapeSpec)(
            channels=LazyCall(feature_channels)(arch="${...arch}", feature="${....box_in_features[0]}"),
            height=size,
            width=size,
        ),
        dropout=dropout,
        strict_weights="${...backbone.strict_weights}",
    )


def _pyramid_node(build: Any, bottom_up: DictConfig, out_channels: int, norm: str, fuse_type: str) -> DictConfig:
    return LazyCall(build)(
        bottom_up=bottom_up,
        in_features="${.bottom_up.out_features}",
        out_channels=out_channels,
        norm=norm,
        fuse_type=fuse_type,
    )
