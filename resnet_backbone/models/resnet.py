"""Residual networks and their plain counterparts, for ImageNet and for CIFAR-10: blocks, stems, and the networks.

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Figures 2 and 5, Table 1 and
section 4.2; He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027) for pre-activation; Huang
et al. 2016, "Deep Networks with Stochastic Depth" (arXiv 1603.09382); Xie et al. 2017 (arXiv 1611.05431) for ResNeXt;
He et al. 2019 (arXiv 1812.01187) for ResNet-D. Parameter names are Detectron2's, so its checkpoints fit as they are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation, DeformableConv, NormActivation, check_images, freeze
from resnet_backbone.models.trunk import FeatureInfo, OptionError, Trunk, check_freeze_at, select_features

SHORTCUTS = ("A", "B", "C")
NO_MULTI_GRID = (1, 1, 1)
NOT_DEFORMABLE = {"deform_on_per_stage": (False,) * 4, "deform_modulated": False, "deform_num_groups": 1}


@dataclass(frozen=True)
class BlockStyle:
    """What all blocks of a network have in common; see :func:`~resnet_backbone.models.registry.create_model`."""

    norm: str
    stride_in_1x1: bool = False
    shortcut: str = "B"
    preactivation: bool = False
    groups: int = 1  # of the 3x3 convolution of a bottleneck
    width_per_group: int = 64  # channels of each of them, in a block of 64 channels
    deform_modulated: bool = False
    deform_num_groups: int = 1


@dataclass(frozen=True)
class BlockShape:
    """What differs from block to block."""

    in_channels: int  # channels of the input
    channels: int  # of the 3x3 convolutions, see BlockStyle; the block returns channels * expansion
    stride: int = 1  # 1 or 2
    dilation: int = 1  # of the 3x3 convolutions
    # probability, above 0 and up to 1, with which the residual is kept for a mini-batch in training; in evaluation
    # the residual is multiplied by it
    survival: float = 1.0
    # the input comes from a norm and a ReLU already, so that a pre-activated block needs none of its own
    activated: bool = False
    deformable: bool = False  # the 3x3 convolution of a bottleneck


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


class AveragedShortcut(nn.Module):
    """Shortcut of ResNet-D: the mean of 2x2 pixels with ``stride``, then a 1x1 convolution.

    Without a stride it is the convolution alone; where dilation has taken the stride, ``keeps_size``, the means stay
    at full resolution. Source: timm, ``downsample_avg``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str, *, keeps_size: bool) -> None:
        super().__init__()
        self.stride, self.keeps_size = stride, keeps_size
        self.conv = ConvNormActivation(in_channels, out_channels, 1, norm=norm, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, self.stride, ceil_mode=True, count_include_pad=False)
        elif self.keeps_size:
            x = F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)
        return self.conv(x)


class PlainBlock(nn.Module):
    """Two 3x3 convolutions without a shortcut: the paper's plain networks. Of the style it has the norm alone."""

    expansion = 1

    def __init__(self, shape: BlockShape, style: BlockStyle) -> None:
        super().__init__()
        self.conv1 = _conv3x3(shape.in_channels, shape, style.norm, shape.stride)
        self.conv2 = _conv3x3(shape.channels, shape, style.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class ResidualBlock(nn.Module):
    """Base of the blocks with a shortcut: ``relu(shortcut(x) + residual(x))``.

    Pre-activated it is ``shortcut(x) + residual(relu(norm(x)))``, where a projection reads ``relu(norm(x))``, too, as
    in the authors' code (KaimingHe/resnet-1k-layers).
    """

    expansion: int

    def __init__(self, shape: BlockShape, style: BlockStyle) -> None:
        super().__init__()
        self.preactivation = style.preactivation
        self.survival = shape.survival
        self.shortcut = _make_shortcut(shape, shape.channels * self.expansion, style)
        own_activation = style.preactivation and not shape.activated
        self.preact = NormActivation(shape.in_channels, style.norm) if own_activation else None

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
        return self.shortcut(x if isinstance(self.shortcut, ZeroPadShortcut) else activated)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, the first of which carries the stride, and the shortcut."""

    expansion = 1

    def __init__(self, shape: BlockShape, style: BlockStyle) -> None:
        super().__init__(shape, style)
        self.conv1 = _conv3x3(shape.in_channels, shape, style.norm, shape.stride)
        self.conv2 = _conv3x3(shape.channels, shape, _last_norm(style), activation=False)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Bottleneck(ResidualBlock):
    """1x1 reduce, 3x3, 1x1 expand, and the shortcut; in ResNeXt the 3x3 has groups, in wide ResNets more channels.

    The stride sits on the 3x3 convolution ("v1.5": torchvision, timm), with ``stride_in_1x1`` on the first 1x1 (the
    paper's released models). The choice does not show in the weights, yet it changes what they compute. A deformable
    3x3 convolution reads the offsets of ``conv2_offset``, which starts at zero.
    """

    expansion = 4

    def __init__(self, shape: BlockShape, style: BlockStyle) -> None:
        super().__init__(shape, style)
        channels = shape.channels * style.width_per_group // 64 * style.groups
        out_channels = shape.channels * self.expansion
        stride_1x1, stride_3x3 = (shape.stride, 1) if style.stride_in_1x1 else (1, shape.stride)
        self.conv1 = ConvNormActivation(shape.in_channels, channels, 1, stride=stride_1x1, norm=style.norm)
        own: dict[str, Any] = {"stride": stride_3x3, "dilation": shape.dilation}
        self.conv2_offset, conv = None, DeformableConv if shape.deformable else ConvNormActivation
        if shape.deformable:
            number = (27 if style.deform_modulated else 18) * style.deform_num_groups
            self.conv2_offset = ConvNormActivation(channels, number, 3, **own, bias=True, activation=False)
            nn.init.zeros_(self.conv2_offset.weight)
            own["modulated"] = style.deform_modulated
        self.conv2 = conv(channels, channels, 3, **own, groups=style.groups, norm=style.norm)
        self.conv3 = ConvNormActivation(channels, out_channels, 1, norm=_last_norm(style), activation=False)

    def residual(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2(x) if self.conv2_offset is None else self.conv2(x, self.conv2_offset(x))
        return self.conv3(x)


Block = type[PlainBlock] | type[BasicBlock] | type[Bottleneck]


def _conv3x3(
    in_channels: int, shape: BlockShape, norm: str, stride: int = 1, *, activation: bool = True
) -> ConvNormActivation:
    return ConvNormActivation(
        in_channels, shape.channels, 3, stride=stride, dilation=shape.dilation, norm=norm, activation=activation
    )


def _last_norm(style: BlockStyle) -> str:
    """The norm of what is added: a pre-activated block has none there."""
    return "" if style.preactivation else style.norm


def _make_shortcut(shape: BlockShape, out_channels: int, style: BlockStyle) -> nn.Module | None:
    """What the shortcut does, None for the identity."""
    in_channels, stride = shape.in_channels, shape.stride
    changes = stride != 1 or in_channels != out_channels
    if style.shortcut == "C" or (style.shortcut == "B" and changes):
        return ConvNormActivation(in_channels, out_channels, 1, stride=stride, norm=_last_norm(style), activation=False)
    if style.shortcut == "D" and changes:
        norm, dilated = _last_norm(style), shape.dilation > 1
        return AveragedShortcut(in_channels, out_channels, stride, norm, keeps_size=dilated)
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


class BasicStem(nn.Module):
    """7x7 convolution with stride 2, then 3x3 max-pooling with stride 2."""

    out_channels = 64
    stride = 4

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(in_channels, 64, 7, stride=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class DeepLabStem(nn.Module):
    """Three 3x3 convolutions, the first with stride 2, then 3x3 max-pooling with stride 2.

    Source: Detectron2, ``projects/DeepLab/deeplab/resnet.py``. Its R-52.pkl and R-103.pkl are ResNet-50 and ResNet-101
    with this stem.
    """

    out_channels = 128
    stride = 4

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        width = self.out_channels // 2
        self.conv1 = ConvNormActivation(in_channels, width, 3, stride=2, norm=norm)
        self.conv2 = ConvNormActivation(width, width, 3, norm=norm)
        self.conv3 = ConvNormActivation(width, self.out_channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv3(self.conv2(self.conv1(x))), kernel_size=3, stride=2, padding=1)


class DeepStem(DeepLabStem):
    """ResNet-D's: as DeepLab's, half as wide."""

    out_channels = 64


class CifarStem(nn.Module):
    """One 3x3 convolution; it keeps the resolution."""

    out_channels = 16
    stride = 1

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(in_channels, 16, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x)


Stem = type[BasicStem] | type[DeepLabStem] | type[CifarStem]


class ResNet(Trunk):
    """A residual or plain network: stem, res2, res3, res4, res5, and the linear classifier.

    Args:
        arch: name in the registry.
        block: the building block.
        depths: how many blocks res2, res3, ... have.
        num_classes: 0 leaves out the head; stages after the last of ``out_features`` are then left out, too.
        out_features: some of ``stem res2 res3 res4 res5``; None is all of them.
        shortcut: ``B`` in plain networks, too, which have none; ``D`` in ResNet-D.
        groups, width_per_group: see :class:`~resnet_backbone.weights.architecture.Layout`.
        res4_dilation, res5_dilation, res5_multi_grid: a block of two 3x3 convolutions dilates both; shortcuts have
            nothing to dilate.
        **others: see :func:`~resnet_backbone.models.registry.create_model`.

    Attributes:
        postact: norm and ReLU at the end of the last stage of a pre-activated network, None in others.

    Raises:
        ValueError: a value outside of what is said there.
    """

    stems: ClassVar[Mapping[str, Stem]] = {"basic": BasicStem, "deeplab": DeepLabStem}
    width: ClassVar[int] = 64  # of the 3x3 convolutions of res2; each stage after it has twice as many

    def __init__(
        self,
        arch: str,
        block: Block,
        depths: Sequence[int],
        *,
        num_classes: int = 1000,
        out_features: Sequence[str] | None = None,
        norm: str = "BN",
        freeze_at: int = 0,
        stride_in_1x1: bool = False,
        shortcut: str = "B",
        preactivation: bool = False,
        stochastic_depth: float = 0.0,
        stem: str = "basic",
        res4_dilation: int = 1,
        res5_dilation: int = 1,
        res5_multi_grid: Sequence[int] = NO_MULTI_GRID,
        deform_on_per_stage: Sequence[bool] = (False,) * 4,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        groups: int = 1,
        width_per_group: int = 64,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in self.stems:
            raise ValueError(f"unknown stem {stem!r}; write one of {', '.join(map(repr, self.stems))}")
        _check_dilations(res4_dilation, res5_dilation)
        multi_grid = _multi_grid(arch, tuple(res5_multi_grid), sum(depths[3:]))
        deform = (deform_modulated, deform_num_groups)
        style = BlockStyle(norm, stride_in_1x1, shortcut, preactivation, groups, width_per_group, *deform)
        _check_style(arch, block, style, stochastic_depth)
        _check_deformable(arch, block, style, deform_on_per_stage)
        self.arch = arch
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stride_in_1x1 = stride_in_1x1
        self.shortcut = "" if block is PlainBlock else shortcut
        self.preactivation = preactivation

        steps = {"res2": 1, "res3": 2, "res4": 1 if res4_dilation > 1 else 2, "res5": 1 if res5_dilation > 1 else 2}
        info = {"stem": FeatureInfo(self.stems[stem].out_channels, self.stems[stem].stride)}
        widths = {name: self.width * 2**index for index, name in enumerate(steps)}
        deformable = dict(zip(steps, deform_on_per_stage, strict=True))
        survivals = {}
        rates = iter(survival_rates(sum(depths), stochastic_depth))
        for (name, step), depth in zip(steps.items(), depths, strict=False):
            info[name] = FeatureInfo(widths[name] * block.expansion, info[next(reversed(info))].stride * step)
            survivals[name] = [next(rates) for _ in range(depth)]
        check_freeze_at(freeze_at, tuple(info))
        self.feature_info = select_features(info, out_features, num_classes)
        last = next(reversed(self.feature_info))
        self.stage_names = tuple(info)[: list(info).index(last) + 1]

        def stage(name: str, before: str, dilations: Sequence[int]) -> nn.Sequential | None:
            """Return the blocks of a stage, the first of which carries its stride; None for a stage after the last."""
            if name not in self.stage_names:
                return None
            first = BlockShape(info[before].channels, widths[name], steps[name], activated=before == "stem")
            other = BlockShape(info[name].channels, widths[name])
            shapes = [first, *[other] * (len(dilations) - 1)]
            shapes = [replace(shape, deformable=deformable[name]) for shape in shapes]
            facts = zip(shapes, dilations, survivals[name], strict=True)
            return nn.Sequential(*(block(replace(shape, dilation=d, survival=s), style) for shape, d, s in facts))

        self.stem = self.stems[stem](in_channels, norm)
        self.res2 = stage("res2", "stem", [1] * depths[0])
        self.res3 = stage("res3", "res2", [1] * depths[1])
        self.res4 = stage("res4", "res3", [res4_dilation] * depths[2])
        self.res5 = stage("res5", "res4", [res5_dilation * factor for factor in multi_grid])
        self.postact = NormActivation(info[last].channels, norm) if preactivation else None
        if num_classes:
            self.linear = nn.Linear(info[last].channels, num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)
        for name in self.stage_names[:freeze_at]:
            freeze(self.get_submodule(name))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        stages = {"stem": self.stem, "res2": self.res2, "res3": self.res3, "res4": self.res4, "res5": self.res5}
        features = {}
        for name, stage in stages.items():
            if stage is None:
                break
            x = self.run_stage(name, stage, x, [stage])
            if self.postact is not None and name == self.stage_names[-1]:
                x = self.postact(x)
            if name in self.feature_info:
                features[name] = x
        return features

    def forward_head(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    def forward_dense_head(self, x: Tensor, window: int) -> Tensor:
        pooled = F.avg_pool2d(x, window, stride=1)
        return F.conv2d(pooled, self.linear.weight[:, :, None, None], self.linear.bias)


class ResNetD(ResNet):
    """ResNet-D: its own stem, and shortcut ``D``. Arguments are those of :class:`ResNet`."""

    stems = {"basic": DeepStem}


class CifarResNet(ResNet):
    """A residual or plain network of 6n + 2 layers for images of 32 x 32 pixels: a stem of one 3x3 convolution.

    Then come n blocks each in res2, res3 and res4, on maps of 32, 16 and 8 pixels with 16, 32 and 64 filters. Its
    blocks are ``BasicBlock`` or ``PlainBlock``, the paper's shortcut is option A; arguments as of :class:`ResNet`.
    """

    stems = {"basic": CifarStem}
    width = 16


def _check_style(arch: str, block: Block, style: BlockStyle, stochastic_depth: float) -> None:
    if style.stride_in_1x1 and block is not Bottleneck:
        raise OptionError(
            f"{arch} has no 1x1 convolution to carry the stride: write stride_in_1x1=False", "stride_in_1x1"
        )
    if style.shortcut not in (*SHORTCUTS, "D"):
        raise ValueError(f"unknown shortcut {style.shortcut!r}; write one of {', '.join(map(repr, SHORTCUTS))}")
    if style.preactivation and not style.norm:
        raise ValueError(f"preactivation puts norms before convolutions, and norm is '': write norm='BN' for {arch}")
    if block is PlainBlock and (style.preactivation or stochastic_depth):
        raise ValueError(f"{arch} has no shortcuts: leave out preactivation and stochastic_depth")


def _check_deformable(arch: str, block: Block, style: BlockStyle, on_per_stage: Sequence[bool]) -> None:
    wrong = ""
    if len(on_per_stage) != 4:
        wrong = f"deform_on_per_stage {list(on_per_stage)} must have 4 values, for res2 to res5"
    elif any(on_per_stage) and block is not Bottleneck:
        wrong = f"{arch} has no bottlenecks, whose 3x3 convolutions could be deformable: leave out deform_on_per_stage"
    elif not any(on_per_stage) and (style.deform_modulated or style.deform_num_groups != 1):
        wrong = "deform_modulated and deform_num_groups need True for a stage in deform_on_per_stage"
    elif style.deform_num_groups < 1 or 64 % style.deform_num_groups:
        wrong = f"deform_num_groups={style.deform_num_groups} must divide 64, as 1, 2 and 4 do"
    if wrong:
        raise OptionError(wrong, *NOT_DEFORMABLE)


def _check_dilations(res4_dilation: int, res5_dilation: int) -> None:
    if res4_dilation not in (1, 2):
        raise ValueError(f"res4_dilation must be 1 or 2, got {res4_dilation!r}")
    if res5_dilation not in (1, 2, 4):
        raise ValueError(f"res5_dilation must be 1, 2 or 4, got {res5_dilation!r}")
    if res4_dilation == 2 and res5_dilation != 4:
        raise OptionError(
            f"after res4_dilation=2 write res5_dilation=4, to dilate res5 further; got {res5_dilation}",
            *("res4_dilation", "res5_dilation"),
        )


def _multi_grid(arch: str, factors: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Return one factor for each of the ``depth`` blocks of res5."""
    if factors == NO_MULTI_GRID:
        return (1,) * depth
    if len(factors) != depth or not all(isinstance(factor, int) and factor >= 1 for factor in factors):
        raise OptionError(
            f"res5_multi_grid {factors} must be {depth} whole numbers of 1 or more, one for each block that {arch} has "
            f"in res5, as in {(1, 2, 4)[:depth]}, or {NO_MULTI_GRID} for none",
            "res5_multi_grid",
        )
    return factors
