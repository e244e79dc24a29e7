"""Residual networks and their plain counterparts for ImageNet.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Table 1. Parameter names are
Detectron2's, so its checkpoints fit as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation, check_images, freeze
from resnet_backbone.models.trunk import FeatureInfo, Trunk, check_freeze_at, select_features


class Stem(nn.Module):
    """7x7 convolution with stride 2, then 3x3 max-pooling with stride 2."""

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(in_channels, 64, 7, stride=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class PlainBlock(nn.Module):
    """Two 3x3 convolutions without a shortcut: the paper's plain networks."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, dilation: int, norm: str, stride_in_1x1: bool
    ) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(in_channels, channels, 3, stride=stride, dilation=dilation, norm=norm)
        self.conv2 = ConvNormActivation(channels, channels, 3, dilation=dilation, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first of which carries the stride, and the shortcut."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, dilation: int, norm: str, stride_in_1x1: bool
    ) -> None:
        super().__init__()
        self.shortcut = _projection(in_channels, channels, stride, norm)
        self.conv1 = ConvNormActivation(in_channels, channels, 3, stride=stride, dilation=dilation, norm=norm)
        self.conv2 = ConvNormActivation(channels, channels, 3, dilation=dilation, norm=norm, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv2(self.conv1(x))
        residual += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual)


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand, and the shortcut.

    The stride sits on the 3x3 convolution ("v1.5": torchvision, timm), with ``stride_in_1x1`` on the first 1x1 (the
    paper's released models). The choice does not show in the weights, yet it changes what they compute.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, *, stride: int, dilation: int, norm: str, stride_in_1x1: bool
    ) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        out_channels = channels * self.expansion
        self.shortcut = _projection(in_channels, out_channels, stride, norm)
        self.conv1 = ConvNormActivation(in_channels, channels, 1, stride=stride_1x1, norm=norm)
        self.conv2 = ConvNormActivation(channels, channels, 3, stride=stride_3x3, dilation=dilation, norm=norm)
        self.conv3 = ConvNormActivation(channels, out_channels, 1, norm=norm, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv3(self.conv2(self.conv1(x)))
        residual += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(residual)


Block = type[PlainBlock] | type[BasicBlock] | type[Bottleneck]


def _projection(in_channels: int, out_channels: int, stride: int, norm: str) -> ConvNormActivation | None:
    """Return the 1x1 convolution of shortcut option B: only where the dimensions change."""
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvNormActivation(in_channels, out_channels, 1, stride=stride, norm=norm, activation=False)


def _make_stage(
    block: Block,
    in_channels: int,
    channels: int,
    depth: int,
    *,
    stride: int,
    dilation: int = 1,
    norm: str,
    stride_in_1x1: bool,
) -> nn.Sequential:
    blocks = []
    for index in range(depth):
        blocks.append(
            block(
                in_channels,
                channels,
                stride=stride if index == 0 else 1,
                dilation=dilation,
                norm=norm,
                stride_in_1x1=stride_in_1x1,
            )
        )
        in_channels = channels * block.expansion
    return nn.Sequential(*blocks)


class ResNet(Trunk):
    """A residual or plain network: stem, res2, res3, res4, res5, and the linear classifier.

    Args:
        arch: name in the registry.
        block: the building block; ``depths`` says how many of them res2 to res5 have.
        num_classes: 0 leaves out the head; stages after the last of ``out_features`` are then left out, too.
        out_features: some of ``stem res2 res3 res4 res5``; None is all of them.
        norm: ``BN``, ``FrozenBN``, ``SyncBN``, ``GN`` or ``""``.
        freeze_at: how many of stem, res2, ... to freeze, as in Detectron2 (2 = stem and res2).
        stride_in_1x1: see :class:`Bottleneck`; True only with bottlenecks.
        res5_dilation: 2 keeps res5 at stride 16 and dilates every 3x3 convolution of it by 2, as Detectron2's DC5 does.
        in_channels: channels of the images.

    Raises:
        ValueError: a value outside of what is said above.
    """

    def __init__(
        self,
        arch: str,
        block: Block,
        depths: tuple[int, int, int, int],
        *,
        num_classes: int = 1000,
        out_features: Sequence[str] | None = None,
        norm: str = "BN",
        freeze_at: int = 0,
        stride_in_1x1: bool = False,
        res5_dilation: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if res5_dilation not in (1, 2):
            raise ValueError(f"res5_dilation must be 1 or 2, got {res5_dilation}")
        if stride_in_1x1 and block is not Bottleneck:
            raise ValueError(f"{arch} has no 1x1 convolution to carry the stride: write stride_in_1x1=False")
        self.arch = arch
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stride_in_1x1 = stride_in_1x1
        expansion = block.expansion
        stages = {
            "stem": FeatureInfo(64, 4),
            "res2": FeatureInfo(64 * expansion, 4),
            "res3": FeatureInfo(128 * expansion, 8),
            "res4": FeatureInfo(256 * expansion, 16),
            "res5": FeatureInfo(512 * expansion, 32 // res5_dilation),
        }
        check_freeze_at(freeze_at, tuple(stages))
        self.feature_info = select_features(stages, out_features, num_classes)
        last = next(reversed(self.feature_info))
        built = list(stages)[: list(stages).index(last) + 1]

        self.stem = Stem(in_channels, norm)
        make_stage = partial(_make_stage, block, norm=norm, stride_in_1x1=stride_in_1x1)
        if "res2" in built:
            self.res2 = make_stage(64, 64, depths[0], stride=1)
        if "res3" in built:
            self.res3 = make_stage(64 * expansion, 128, depths[1], stride=2)
        if "res4" in built:
            self.res4 = make_stage(128 * expansion, 256, depths[2], stride=2)
        if "res5" in built:
            self.res5 = make_stage(256 * expansion, 512, depths[3], stride=2 // res5_dilation, dilation=res5_dilation)
        self.stage_names = tuple(built)
        if num_classes:
            self.linear = nn.Linear(512 * expansion, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)
        for name in built[:freeze_at]:
            freeze(getattr(self, name))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        features = {}
        for name in self.stage_names:
            x = getattr(self, name)(x)
            if name in self.feature_info:
                features[name] = x
        return features

    def forward_head(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
