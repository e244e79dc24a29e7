"""The blocks that residual and plain networks are built of, and a stage of them.

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Figures 2 and 5; He et al.
2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027) for pre-activation; Huang et al. 2016, "Deep
Networks with Stochastic Depth" (arXiv 1603.09382). Parameter names are Detectron2's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation, NormActivation

SHORTCUTS = ("A", "B", "C")


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a network have in common.

    Attributes:
        norm: as in :func:`~resnet_backbone.models.layers.make_norm`.
        stride_in_1x1: see :class:`Bottleneck`.
        shortcut: the paper's options (section 4.1): ``A`` pads new channels with zeros, ``B`` projects where the
            dimensions change, ``C`` projects everywhere.
        preactivation: norm and ReLU stand before the convolutions, and nothing after the addition.
    """

    norm: str
    stride_in_1x1: bool = False
    shortcut: str = "B"
    preactivation: bool = False


class ZeroPadShortcut(nn.Module):
    """Shortcut option A: every ``stride``-th pixel, and zeros in the channels that are new. It has no parameters.

    The zeros are behind the copied channels. The buffer ``padding``, the number of new channels, is there for the state
    dict: without it the tensors of a residual network are those of the plain one, and do not tell the zeros' place.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = out_channels - in_channels
        self.stride = stride
        self.register_buffer("padding", torch.tensor(self.new_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class PlainBlock(nn.Module):
    """Two 3x3 convolutions without a shortcut: the paper's plain networks. Of the style it has the norm alone."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        style: BlockStyle,
        *,
        stride: int = 1,
        dilation: int = 1,
        survival: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        norm = style.norm
        self.conv1 = ConvNormActivation(in_channels, channels, 3, stride=stride, dilation=dilation, norm=norm)
        self.conv2 = ConvNormActivation(channels, channels, 3, dilation=dilation, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class ResidualBlock(nn.Module):
    """Base of the blocks with a shortcut: ``relu(shortcut(x) + residual(x))``.

    Pre-activated it is ``shortcut(x) + residual(relu(norm(x)))``, where a projection reads ``relu(norm(x))``, too, as
    in the authors' code (KaimingHe/resnet-1k-layers).

    Args:
        in_channels: channels of the input.
        channels: of the 3x3 convolutions; the block returns ``channels * expansion``.
        style: what it shares with the other blocks.
        stride: 1 or 2.
        dilation: of the 3x3 convolutions.
        survival: probability, above 0 and up to 1, with which the residual is kept for a mini-batch in training; in
            evaluation the residual is multiplied by it.
        activated: the input comes from a norm and a ReLU already, so that a pre-activated block needs none of its own.
    """

    expansion: int

    def __init__(
        self,
        in_channels: int,
        channels: int,
        style: BlockStyle,
        *,
        stride: int = 1,
        dilation: int = 1,
        survival: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__()
        self.preactivation = style.preactivation
        self.survival = survival
        self.shortcut = _make_shortcut(in_channels, channels * self.expansion, stride, style)
        own_activation = style.preactivation and not activated
        self.preact = NormActivation(in_channels, style.norm) if own_activation else None

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """Return the residual function of the block's input, or of what ``preact`` made of it."""

    def forward(self, x: Tensor) -> Tensor:
        activated = x if self.preact is None else self.preact(x)
        if self.training and self.survival < 1 and torch.rand(()) >= self.survival:
            identity = self._identity(x, activated)
            return identity if self.preactivation else F.relu(identity)
        residual = self.residual(activated)
        if not self.training and self.survival < 1:
            residual = residual * self.survival
        residual += self._identity(x, activated)
        return residual if self.preactivation else F.relu_(residual)

    def _identity(self, x: Tensor, activated: Tensor) -> Tensor:
        """Return what the shortcut makes of the input; a projection reads it activated."""
        if self.shortcut is None:
            return x
        return self.shortcut(activated if isinstance(self.shortcut, ConvNormActivation) else x)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, the first of which carries the stride, and the shortcut."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, style: BlockStyle, *, stride: int = 1, dilation: int = 1, **options: Any
    ) -> None:
        super().__init__(in_channels, channels, style, stride=stride, dilation=dilation, **options)
        norm = style.norm
        self.conv1 = ConvNormActivation(in_channels, channels, 3, stride=stride, dilation=dilation, norm=norm)
        self.conv2 = _last_convolution(channels, channels, 3, style, dilation)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Bottleneck(ResidualBlock):
    """1x1 reduce, 3x3, 1x1 expand, and the shortcut.

    The stride sits on the 3x3 convolution ("v1.5": torchvision, timm), with ``stride_in_1x1`` on the first 1x1 (the
    paper's released models). The choice does not show in the weights, yet it changes what they compute.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, style: BlockStyle, *, stride: int = 1, dilation: int = 1, **options: Any
    ) -> None:
        super().__init__(in_channels, channels, style, stride=stride, dilation=dilation, **options)
        norm = style.norm
        stride_1x1, stride_3x3 = (stride, 1) if style.stride_in_1x1 else (1, stride)
        self.conv1 = ConvNormActivation(in_channels, channels, 1, stride=stride_1x1, norm=norm)
        self.conv2 = ConvNormActivation(channels, channels, 3, stride=stride_3x3, dilation=dilation, norm=norm)
        self.conv3 = _last_convolution(channels, channels * self.expansion, 1, style)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


Block = type[PlainBlock] | type[BasicBlock] | type[Bottleneck]


def _last_convolution(
    in_channels: int, out_channels: int, kernel_size: int, style: BlockStyle, dilation: int = 1
) -> ConvNormActivation:
    """Return the convolution before the addition: with its norm, or bare in a pre-activated block."""
    norm = "" if style.preactivation else style.norm
    return ConvNormActivation(in_channels, out_channels, kernel_size, dilation=dilation, norm=norm, activation=False)


def _make_shortcut(in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> nn.Module | None:
    """Return what the shortcut does, None for the identity."""
    changes = stride != 1 or in_channels != out_channels
    if style.shortcut == "C" or (style.shortcut == "B" and changes):
        norm = "" if style.preactivation else style.norm
        return ConvNormActivation(in_channels, out_channels, 1, stride=stride, norm=norm, activation=False)
    return ZeroPadShortcut(in_channels, out_channels, stride) if changes else None


def survival_rates(num_blocks: int, stochastic_depth: float) -> list[float]:
    """Return the probability of each block to survive, falling linearly to ``1 - stochastic_depth`` in the last.

    Source: arXiv 1603.09382, equation 4; the paper's setting is ``stochastic_depth=0.5``.

    Raises:
        ValueError: not at least 0 and below 1.
    """
    if not 0 <= stochastic_depth < 1:
        raise ValueError(f"stochastic_depth={stochastic_depth} must be 0 or more, and below 1")
    return [1 - stochastic_depth * number / num_blocks for number in range(1, num_blocks + 1)]


def make_stage(
    block: Block,
    in_channels: int,
    channels: int,
    style: BlockStyle,
    *,
    stride: int,
    dilations: Sequence[int],
    survivals: Sequence[float],
    activated: bool = False,
) -> nn.Sequential:
    """Return one stage: a block for each of ``dilations`` and ``survivals``, the first of which carries ``stride``.

    Args:
        block: the kind of block.
        in_channels: channels that the first block reads.
        channels: of the 3x3 convolutions; the stage returns ``channels * block.expansion``.
        style: what the blocks share.
        stride: 1 or 2.
        dilations, survivals, activated: see :class:`ResidualBlock`; the last is of the first block.
    """
    blocks = []
    for index, (dilation, survival) in enumerate(zip(dilations, survivals, strict=True)):
        is_first = index == 0
        blocks.append(
            block(
                in_channels,
                channels,
                style,
                stride=stride if is_first else 1,
                dilation=dilation,
                survival=survival,
                activated=activated and is_first,
            )
        )
        in_channels = channels * block.expansion
    return nn.Sequential(*blocks)
