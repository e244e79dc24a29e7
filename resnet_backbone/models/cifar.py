"""The networks of 6n + 2 layers for 32 x 32 pixels, residual and plain.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), section 4.2: one 3x3
convolution, then 2n layers each on maps of 32, 16 and 8 pixels with 16, 32 and 64 filters, global pooling, a linear
layer. Shortcuts are the identity, option A.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation
from resnet_backbone.models.resnet import (
    Block,
    BlockStyle,
    StagedTrunk,
    check_residual_options,
    make_stage,
    survival_rates,
)
from resnet_backbone.models.trunk import FeatureInfo, check_freeze_at, select_features

STAGES = {
    "stem": FeatureInfo(16, 1),
    "res2": FeatureInfo(16, 1),
    "res3": FeatureInfo(32, 2),
    "res4": FeatureInfo(64, 4),
}


class CifarStem(nn.Module):
    """One 3x3 convolution; it keeps the resolution."""

    def __init__(self, in_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNormActivation(in_channels, 16, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x)


class CifarResNet(StagedTrunk):
    """A residual or plain network for small images: stem, res2, res3, res4, and the linear classifier.

    Args:
        arch: name in the registry.
        block: ``BasicBlock`` or ``PlainBlock``.
        depth: blocks in each of res2, res3 and res4, the paper's n.
        num_classes: 0 leaves out the head; stages after the last of ``out_features`` are then left out, too.
        out_features: some of ``stem res2 res3 res4``; None is all of them.
        norm: ``BN``, ``FrozenBN``, ``SyncBN``, ``GN`` or ``""``.
        freeze_at: how many of stem, res2, ... to freeze.
        shortcut, preactivation, stochastic_depth: as in :class:`~resnet_backbone.models.resnet.ResNet`.
        in_channels: channels of the images.

    Raises:
        ValueError: a value outside of what is said above.
    """

    def __init__(
        self,
        arch: str,
        block: Block,
        depth: int,
        *,
        num_classes: int = 10,
        out_features: Sequence[str] | None = None,
        norm: str = "BN",
        freeze_at: int = 0,
        shortcut: str = "A",
        preactivation: bool = False,
        stochastic_depth: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        style = BlockStyle(norm, shortcut=shortcut, preactivation=preactivation)
        check_residual_options(arch, block, style, stochastic_depth)
        self.describe(arch, block, style, num_classes, in_channels)
        check_freeze_at(freeze_at, tuple(STAGES))
        self.feature_info = select_features(STAGES, out_features, num_classes)
        last = next(reversed(self.feature_info))
        built = list(STAGES)[: list(STAGES).index(last) + 1]
        rates = survival_rates(3 * depth, stochastic_depth)
        dilations = (1,) * depth

        self.stem = CifarStem(in_channels, norm)
        if "res2" in built:
            own = rates[:depth]
            self.res2 = make_stage(block, 16, 16, style, stride=1, dilations=dilations, survivals=own, activated=True)
        if "res3" in built:
            own = rates[depth : 2 * depth]
            self.res3 = make_stage(block, 16, 32, style, stride=2, dilations=dilations, survivals=own)
        if "res4" in built:
            own = rates[2 * depth :]
            self.res4 = make_stage(block, 32, 64, style, stride=2, dilations=dilations, survivals=own)
        self.finish(built, STAGES[last].channels, freeze_at)
