"""What residual and plain networks have in common: a stem, stages of blocks, global pooling and a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.blocks import SHORTCUTS, Block, BlockStyle, Bottleneck, PlainBlock
from resnet_backbone.models.layers import NormActivation, check_images, freeze
from resnet_backbone.models.trunk import Trunk


class StagedTrunk(Trunk):
    """A network whose stages are attributes of the names in ``stage_names``, each applied to what the one before made.

    Attributes:
        postact: norm and ReLU at the end of the last stage of a pre-activated network, None in others.
    """

    postact: NormActivation | None

    def describe(self, arch: str, block: Block, style: BlockStyle, num_classes: int, in_channels: int) -> None:
        """Set the facts that a network tells of itself."""
        self.arch = arch
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stride_in_1x1 = style.stride_in_1x1
        self.shortcut = "" if block is PlainBlock else style.shortcut
        self.preactivation = style.preactivation
        self._norm = style.norm

    def finish(self, stage_names: Sequence[str], channels: int, freeze_at: int) -> None:
        """Add what follows the last stage, which has ``channels``, and freeze the first ``freeze_at`` stages."""
        self.stage_names = tuple(stage_names)
        self.postact = NormActivation(channels, self._norm) if self.preactivation else None
        if self.num_classes:
            self.linear = nn.Linear(channels, self.num_classes)
            nn.init.normal_(self.linear.weight, std=0.01)
            nn.init.zeros_(self.linear.bias)
        for name in self.stage_names[:freeze_at]:
            freeze(getattr(self, name))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        features = {}
        for name in self.stage_names:
            stage = getattr(self, name)
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


def check_residual_options(arch: str, block: Block, style: BlockStyle, stochastic_depth: float) -> None:
    """Raise ValueError for options that the blocks of ``arch`` do not have."""
    if style.shortcut not in SHORTCUTS:
        raise ValueError(f"unknown shortcut {style.shortcut!r}; write one of {', '.join(map(repr, SHORTCUTS))}")
    if style.stride_in_1x1 and block is not Bottleneck:
        raise ValueError(f"{arch} has no 1x1 convolution to carry the stride: write stride_in_1x1=False")
    if style.preactivation and not style.norm:
        raise ValueError(f"preactivation puts norms before convolutions, and norm is '': write norm='BN' for {arch}")
    if block is PlainBlock and (style.preactivation or stochastic_depth):
        raise ValueError(f"{arch} has no shortcuts: leave out preactivation and stochastic_depth")
