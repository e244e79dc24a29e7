"""The blocks that residual and plain networks are built of, and a stage of them.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Figures 2 and 5. Parameter
names are Detectron2's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation


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


def make_stage(
    block: Block,
    in_channels: int,
    channels: int,
    dilations: Sequence[int],
    *,
    stride: int,
    norm: str,
    stride_in_1x1: bool,
) -> nn.Sequential:
    """Return one stage: a block for each of ``dilations``, the first of which carries ``stride``.

    Args:
        block: the kind of block.
        in_channels: channels that the first block reads.
        channels: of the 3x3 convolutions; the stage returns ``channels * block.expansion``.
        dilations: of the 3x3 convolutions, block by block.
        stride: 1 or 2.
        norm: as in :func:`~resnet_backbone.models.layers.make_norm`.
        stride_in_1x1: see :class:`Bottleneck`.
    """
    blocks = []
    for index, dilation in enumerate(dilations):
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
