"""Backbones of the torchvision engine, under the names that Detectron2's registry has them."""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode
from torch import Tensor
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from resnet_backbone.config import build_trunk
from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.config.combinations import pyramid_levels
from resnet_backbone.models.acceleration import Accelerated, accelerate
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import Weights


class FPNBackbone(Accelerated):
    """A trunk and a feature pyramid on top of it; the levels are named ``p2``, ``p3``, ... by log2 of their stride.

    Levels are added on top, as in Detectron2: for the RPN one, the last level sub-sampled by 2; for RetinaNet two, by
    new convolutions of stride 2 from the trunk's last feature map.

    Args:
        bottom_up: the trunk.
        in_features: names of its feature maps, whose strides double from one to the next.
        out_channels: channels of every level.
        convolved_top: add the two levels of RetinaNet, not the one of the RPN.

    Raises:
        ValueError: unknown features, or strides that do not double.
    """

    def __init__(
        self, bottom_up: Trunk, in_features: Sequence[str], out_channels: int, *, convolved_top: bool = False
    ) -> None:
        super().__init__()
        self.feature_info = pyramid_levels(
            bottom_up.feature_info, in_features, out_channels, convolved_top=convolved_top
        )
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.out_channels = out_channels
        channels = [bottom_up.feature_info[name].channels for name in in_features]
        top: ExtraFPNBlock = LastLevelMaxPool()
        if convolved_top:
            top = LastLevelP6P7(channels[-1], out_channels)
            top.use_P5 = False  # torchvision takes p5 where it has as many channels as the trunk's last feature map
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=top)
        self.size_divisibility = bottom_up.feature_info[in_features[-1]].stride

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W), H and W multiples of ``size_divisibility``, to the levels of ``feature_info``."""
        return self.accelerated(self._levels, x)

    def _levels(self, x: Tensor) -> dict[str, Tensor]:
        features = self.bottom_up.forward_features(x)
        levels = self.fpn({name: features[name] for name in self.in_features})
        return dict(zip(self.feature_info, levels.values(), strict=True))


def build_backbone(cfg: CfgNode, weights: Weights | None) -> FPNBackbone | Trunk:
    """Build what MODEL.BACKBONE.NAME says: a feature pyramid of one of two kinds, or the trunk alone (C4, C5, DC5)."""
    trunk = build_trunk(cfg, out_features=cfg.MODEL.RESNET_BACKBONE.OUT_FEATURES, weights=weights)
    name, node = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN
    backbone: FPNBackbone | Trunk = trunk
    if name != "build_imagenet_backbone":
        convolved_top = name == "build_imagenet_retinanet_fpn_backbone"
        backbone = FPNBackbone(trunk, node.IN_FEATURES, node.OUT_CHANNELS, convolved_top=convolved_top)
    accelerate(backbone, acceleration_of(cfg), needed=backbone.size_divisibility)
    return backbone
