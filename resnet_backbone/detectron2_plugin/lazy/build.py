"""What the nodes of a lazy config call: functions of plain values."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from resnet_backbone.detectron2_plugin.backbone import TrunkBackbone, to_backbone
from resnet_backbone.detectron2_plugin.lazy.input import check_places
from resnet_backbone.detectron2_plugin.roi_heads import res5_of
from resnet_backbone.models.registry import create_model

logger = logging.getLogger(__name__)


def build_trunk_backbone(
    arch: str,
    out_features: Sequence[str],
    norm: str = "FrozenBN",
    freeze_at: int = 2,
    stride_in_1x1: bool = False,
    stem: str = "basic",
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: Sequence[int] = (1, 1, 1),
    in_channels: int = 3,
    strict_weights: bool = True,
    weights: str | None = None,
    input_found: Mapping[str, Any] | None = None,
) -> TrunkBackbone:
    """Build a trunk as a Detectron2 backbone, from plain values.

    Args:
        arch: one of ``resnet_backbone.list_models()``.
        out_features: feature maps to return.
        norm: ``FrozenBN``, ``BN``, ``SyncBN``, ``GN``, or ``""`` for VGG without batch norm.
        freeze_at: how many stages to freeze: 1 is the stem, 2 the stem and res2; VGG: conv1, conv2.
        stride_in_1x1: True for MSRA's weights.
        stem: ``basic`` or ``deeplab``.
        res4_dilation: see ``create_model``, as for the next two.
        res5_dilation: 2 for DC5.
        res5_multi_grid: factors on the dilation of the blocks of res5.
        in_channels: channels of the images.
        strict_weights: see :class:`~resnet_backbone.detectron2_plugin.weights.StrictModule`.
        weights: what the detector will be filled with, to be compared with its input; None where that is not known.
        input_found: places in the config, such as ``"model.pixel_mean"``, with the values there; None as a value is
            one that cannot be seen.

    Raises:
        ValueError: options that do not fit the architecture, or an input that is not the one of ``weights``.
        WeightsError: weights of another architecture.
    """
    trunk = create_model(
        arch,
        num_classes=0,
        out_features=list(out_features),
        norm=norm,
        freeze_at=freeze_at,
        stride_in_1x1=stride_in_1x1,
        stem=stem,
        res4_dilation=res4_dilation,
        res5_dilation=res5_dilation,
        res5_multi_grid=res5_multi_grid,
        in_channels=in_channels,
    )
    if weights:
        check_places(weights, arch, stride_in_1x1, input_found or {})
    elif weights is not None and (freeze_at > 0 or norm == "FrozenBN"):
        logger.warning(
            "train.init_checkpoint is empty, so layers stay random and never train: freeze_at is %d and norm is %r. To "
            "train from scratch write freeze_at=0 and norm='BN'",
            freeze_at,
            norm,
        )
    return to_backbone(trunk, strict_weights=strict_weights)


def build_res5(
    arch: str,
    norm: str,
    freeze_at: int,
    stride_in_1x1: bool,
    res4_dilation: int,
    res5_dilation: int,
    res5_multi_grid: Sequence[int],
    strict_weights: bool,
    out_channels: int,
) -> nn.Module:
    """Build res5 of a ResNet as the head of a C4 model, on crops of res4.

    Args:
        arch, ..., strict_weights: those of the trunk, see :func:`build_trunk_backbone`.
        out_channels: of res5; what the box predictor and the mask head of the config read.

    Raises:
        ValueError: no ResNet, or another number of channels than it has.
    """
    trunk = create_model(
        arch,
        num_classes=0,
        out_features=["res5"],
        norm=norm,
        freeze_at=freeze_at,
        stride_in_1x1=stride_in_1x1,
        res4_dilation=res4_dilation,
        res5_dilation=res5_dilation,
        res5_multi_grid=res5_multi_grid,
    )
    if out_channels != trunk.feature_info["res5"].channels:
        raise ValueError(
            f"out_channels is {out_channels}, res5 of {arch} has {trunk.feature_info['res5'].channels}; write "
            f"roi_heads.res5 = res5_node()"
        )
    return res5_of(trunk, strict_weights=strict_weights)


def feature_channels(arch: str, feature: str) -> int:
    """Return the channels of a feature map.

    Raises:
        ValueError: an unknown architecture, or one without the feature.
    """
    with torch.device("meta"):
        return create_model(arch, num_classes=0, out_features=[feature]).feature_info[feature].channels
