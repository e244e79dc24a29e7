"""Backbones of the torchvision engine, under the names that Detectron2's registry has them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from resnet_backbone.config import build_trunk
from resnet_backbone.models.trunk import FeatureInfo, Trunk
from resnet_backbone.weights import Weights


class FPNBackbone(nn.Module):
    """A trunk and a feature pyramid on top of it; the levels are named ``p2``, ``p3``, ... by log2 of their stride.

    One more level, the last one sub-sampled by 2, is added for the RPN, as in Detectron2.

    Args:
        bottom_up: the trunk.
        in_features: names of its feature maps, whose strides double from one to the next.
        out_channels: channels of every level.

    Raises:
        ValueError: unknown features, or strides that do not double.
    """

    def __init__(self, bottom_up: Trunk, in_features: Sequence[str], out_channels: int) -> None:
        super().__init__()
        unknown = [name for name in in_features if name not in bottom_up.feature_info]
        if unknown or not in_features:
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES {list(in_features)} must be some of what the trunk returns "
                f"(MODEL.RESNET_BACKBONE.OUT_FEATURES): {list(bottom_up.feature_info)}"
            )
        last = next(reversed(bottom_up.feature_info))
        if last not in in_features:
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES {list(in_features)} leave {last} unused, which the trunk computes: "
                f"take it out of MODEL.RESNET_BACKBONE.OUT_FEATURES, too"
            )
        strides = [bottom_up.feature_info[name].stride for name in in_features]
        if any(fine * 2 != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"strides of MODEL.FPN.IN_FEATURES {list(in_features)} must double, got {strides}")
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        channels = [bottom_up.feature_info[name].channels for name in in_features]
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=LastLevelMaxPool())
        strides.append(strides[-1] * 2)
        self.feature_info = {f"p{int(math.log2(stride))}": FeatureInfo(out_channels, stride) for stride in strides}
        self.size_divisibility = strides[-2]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W), H and W multiples of ``size_divisibility``, to the levels of ``feature_info``."""
        features = self.bottom_up.forward_features(x)
        levels = self.fpn({name: features[name] for name in self.in_features})
        return dict(zip(self.feature_info, levels.values(), strict=True))


def build_backbone(cfg: CfgNode, weights: Weights | None) -> FPNBackbone | Trunk:
    """Build what MODEL.BACKBONE.NAME says: a feature pyramid, or the trunk alone (C4, C5, DC5)."""
    trunk = build_trunk(cfg, out_features=cfg.MODEL.RESNET_BACKBONE.OUT_FEATURES, weights=weights)
    if cfg.MODEL.BACKBONE.NAME == "build_imagenet_fpn_backbone":
        return FPNBackbone(trunk, cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS)
    return trunk
