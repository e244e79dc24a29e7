"""Residual networks and their plain counterparts for ImageNet.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), Table 1. Parameter names are
Detectron2's, so its checkpoints fit as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.blocks import Block, BlockStyle, Bottleneck, make_stage, survival_rates
from resnet_backbone.models.layers import ConvNormActivation
from resnet_backbone.models.staged import StagedTrunk, check_residual_options
from resnet_backbone.models.trunk import FeatureInfo, check_freeze_at, select_features

NO_MULTI_GRID = (1, 1, 1)


class BasicStem(nn.Module):
    """7x7 convolution with stride 2, then 3x3 max-pooling with stride 2."""

    out_channels = 64

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

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(in_channels, 64, 3, stride=2, norm=norm)
        self.conv2 = ConvNormActivation(64, 64, 3, norm=norm)
        self.conv3 = ConvNormActivation(64, 128, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.conv3(self.conv2(self.conv1(x))), kernel_size=3, stride=2, padding=1)


_STEMS: dict[str, type[BasicStem] | type[DeepLabStem]] = {"basic": BasicStem, "deeplab": DeepLabStem}


class ResNet(StagedTrunk):
    """A residual or plain network: stem, res2, res3, res4, res5, and the linear classifier.

    Args:
        arch: name in the registry.
        block: the building block; ``depths`` says how many of them res2 to res5 have.
        num_classes: 0 leaves out the head; stages after the last of ``out_features`` are then left out, too.
        out_features: some of ``stem res2 res3 res4 res5``; None is all of them.
        norm: ``BN``, ``FrozenBN``, ``SyncBN``, ``GN`` or ``""``.
        freeze_at: how many of stem, res2, ... to freeze, as in Detectron2 (2 = stem and res2).
        stride_in_1x1: see :class:`Bottleneck`; True only with bottlenecks.
        shortcut: option ``A``, ``B`` or ``C`` of the paper, see :class:`BlockStyle`; ``B`` in plain networks, too,
            which have none.
        preactivation: see :class:`BlockStyle`; the last stage then ends with a norm and a ReLU of its own.
        stochastic_depth: probability with which training drops the residual of the last block, falling linearly to the
            first; see :func:`survival_rates`.
        stem: ``basic``, the paper's, or ``deeplab``, three 3x3 convolutions that return 128 channels.
        res4_dilation: 2 keeps res4 at the stride of res3 and dilates every 3x3 convolution of it by 2; it needs
            ``res5_dilation=4``.
        res5_dilation: 2 or 4 keeps res5 at the stride of res4 and dilates every 3x3 convolution of it by as much. 2 is
            Detectron2's DC5.
        res5_multi_grid: one factor for each block of res5, which multiplies its dilation; (1, 1, 1), for any number of
            blocks, is none. A block of two 3x3 convolutions dilates both; shortcuts have nothing to dilate.
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
        shortcut: str = "B",
        preactivation: bool = False,
        stochastic_depth: float = 0.0,
        stem: str = "basic",
        res4_dilation: int = 1,
        res5_dilation: int = 1,
        res5_multi_grid: Sequence[int] = NO_MULTI_GRID,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if stem not in _STEMS:
            raise ValueError(f"unknown stem {stem!r}; write one of {', '.join(map(repr, _STEMS))}")
        _check_dilations(res4_dilation, res5_dilation)
        multi_grid = _multi_grid(arch, tuple(res5_multi_grid), depths[3])
        if stride_in_1x1 and block is not Bottleneck:
            raise ValueError(f"{arch} has no 1x1 convolution to carry the stride: write stride_in_1x1=False")
        style = BlockStyle(norm, stride_in_1x1, shortcut, preactivation)
        check_residual_options(arch, block, style, stochastic_depth)
        self.describe(arch, block, style, num_classes, in_channels)
        expansion = block.expansion
        res4_step, res5_step = (1 if dilation > 1 else 2 for dilation in (res4_dilation, res5_dilation))
        stages = {
            "stem": FeatureInfo(_STEMS[stem].out_channels, 4),
            "res2": FeatureInfo(64 * expansion, 4),
            "res3": FeatureInfo(128 * expansion, 8),
            "res4": FeatureInfo(256 * expansion, 8 * res4_step),
            "res5": FeatureInfo(512 * expansion, 8 * res4_step * res5_step),
        }
        check_freeze_at(freeze_at, tuple(stages))
        self.feature_info = select_features(stages, out_features, num_classes)
        last = next(reversed(self.feature_info))
        built = list(stages)[: list(stages).index(last) + 1]
        survivals = iter(survival_rates(sum(depths), stochastic_depth))

        def make(
            in_channels: int, channels: int, dilations: Sequence[int], stride: int, activated: bool = False
        ) -> nn.Sequential:
            return make_stage(
                block,
                in_channels,
                channels,
                style,
                stride=stride,
                dilations=dilations,
                survivals=[next(survivals) for _ in dilations],
                activated=activated,
            )

        self.stem = _STEMS[stem](in_channels, norm)
        if "res2" in built:
            self.res2 = make(self.stem.out_channels, 64, (1,) * depths[0], 1, activated=True)
        if "res3" in built:
            self.res3 = make(64 * expansion, 128, (1,) * depths[1], 2)
        if "res4" in built:
            self.res4 = make(128 * expansion, 256, (res4_dilation,) * depths[2], res4_step)
        if "res5" in built:
            self.res5 = make(256 * expansion, 512, [res5_dilation * factor for factor in multi_grid], res5_step)
        self.finish(built, stages[built[-1]].channels, freeze_at)


def _check_dilations(res4_dilation: int, res5_dilation: int) -> None:
    if res4_dilation not in (1, 2):
        raise ValueError(f"res4_dilation must be 1 or 2, got {res4_dilation!r}")
    if res5_dilation not in (1, 2, 4):
        raise ValueError(f"res5_dilation must be 1, 2 or 4, got {res5_dilation!r}")
    if res4_dilation == 2 and res5_dilation != 4:
        raise ValueError(f"after res4_dilation=2 write res5_dilation=4, to dilate res5 further; got {res5_dilation}")


def _multi_grid(arch: str, factors: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Return one factor for each of the ``depth`` blocks of res5."""
    if factors == NO_MULTI_GRID:
        return (1,) * depth
    if len(factors) != depth or not all(isinstance(factor, int) and factor >= 1 for factor in factors):
        raise ValueError(
            f"res5_multi_grid {factors} must be {depth} whole numbers of 1 or more, one for each block that {arch} has "
            f"in res5, as in {(1, 2, 4)[:depth]}, or {NO_MULTI_GRID} for none"
        )
    return factors
