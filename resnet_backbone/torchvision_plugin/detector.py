"""From a config to a detector: the backbone, and torchvision's GeneralizedRCNN or RetinaNet around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from resnet_backbone.config import build_trunk
from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.config.combinations import CONVOLVED_TOP, FCOS_PYRAMID, RPN_PYRAMID, TRUNK_ALONE, pyramid_levels
from resnet_backbone.models.acceleration import Accelerated, accelerate, accelerate_heads
from resnet_backbone.models.layers import norm_layer
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.torchvision_plugin.retinanet import RetinaNet
from resnet_backbone.torchvision_plugin.roi_heads import build_roi_heads
from resnet_backbone.torchvision_plugin.rpn import RPN
from resnet_backbone.weights import Weights


class FPNBackbone(Accelerated):
    """A trunk and a feature pyramid on top of it; the levels are named ``p2``, ``p3``, ... by log2 of their stride.

    Levels are added on top, as in Detectron2: for the RPN one, the last level sub-sampled by 2; for RetinaNet two, by
    new convolutions of stride 2 from the trunk's last feature map; for FCOS from the last level.

    Args:
        bottom_up: the trunk.
        in_features: names of its feature maps, whose strides double from one to the next.
        out_channels: channels of every level.
        builder: of MODEL.BACKBONE.NAME, which says the levels on top.
        norm: behind each convolution but those of the levels on top, as for ``make_norm``.

    Raises:
        ValueError: unknown features, or strides that do not double.
    """

    def __init__(
        self,
        bottom_up: Trunk,
        in_features: Sequence[str],
        out_channels: int,
        *,
        builder: str = RPN_PYRAMID,
        norm: str = "",
    ) -> None:
        super().__init__()
        convolved_top, infos = builder in CONVOLVED_TOP, bottom_up.feature_info
        self.feature_info = pyramid_levels(infos, in_features, out_channels, convolved_top=convolved_top)
        self.bottom_up = bottom_up
        self.in_features = tuple(in_features)
        self.out_channels = out_channels
        channels = [infos[name].channels for name in in_features]
        top: ExtraFPNBlock = LastLevelMaxPool()
        if convolved_top:
            from_p5 = builder == FCOS_PYRAMID
            top = LastLevelP6P7(out_channels if from_p5 else channels[-1], out_channels)
            top.use_P5 = from_p5  # torchvision's own choice: where that has as many channels as the trunk's last
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra_blocks=top, norm_layer=norm_layer(norm))
        self.size_divisibility = bottom_up.size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, C, H, W), H and W multiples of ``size_divisibility``, to the levels of ``feature_info``."""
        return self.accelerated(self._levels, x)

    def _levels(self, x: Tensor) -> dict[str, Tensor]:
        features = self.bottom_up.forward_features(x)
        levels = self.fpn({name: features[name] for name in self.in_features})
        return dict(zip(self.feature_info, levels.values(), strict=True))


class Preprocess(nn.Module):
    """Normalise the images and pad them with zeros to one size; resizing is the data's work, as in Detectron2.

    Args:
        pixel_mean: per channel, in the order of the images, on the scale of 0 to 255.
        pixel_std: likewise.
        size_divisibility: the padded height and width are multiples of it; 1 pads to the largest image only.
    """

    def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float], size_divisibility: int) -> None:
        super().__init__()
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).reshape(-1, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Batch images (C, H, W), uint8 or float from 0 to 255; the targets pass as they are."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        divisor = self.size_divisibility
        height = math.ceil(max(h for h, _ in sizes) / divisor) * divisor
        width = math.ceil(max(w for _, w in sizes) / divisor) * divisor
        batch = self.pixel_mean.new_zeros(len(images), images[0].shape[0], height, width)
        for row, image, (h, w) in zip(batch, images, sizes, strict=True):
            row[:, :h, :w] = (image - self.pixel_mean) / self.pixel_std
        return ImageList(batch, sizes), targets

    def postprocess(
        self,
        detections: list[dict[str, Tensor]],
        image_sizes: list[tuple[int, int]],
        original_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Return the detections as they are: their boxes are in pixels of the images that came in."""
        return detections


class Detector(GeneralizedRCNN):
    """Faster R-CNN and Mask R-CNN. Labels count from 0; inside, as in torchvision, from 1, and 0 is the background."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        """Detect, or in training compute the losses.

        Args:
            images: (C, H, W) each, from 0 to 255 in the channel order of INPUT.FORMAT.
            targets: in training, for each ``boxes`` (N, 4), XYXY in pixels, ``labels`` (N,) from 0 and, for Mask R-CNN,
                ``masks``, see ``mask_heads.InstanceMasks``.

        Returns:
            In training a dict of losses; in eval mode for each image ``boxes`` (R, 4), ``labels`` (R,) from 0 and
            ``scores`` (R,) from 0 to 1, best first; of Mask R-CNN also ``masks`` (R, M, M), the probabilities inside
            each box, which ``mask_heads.paste_masks`` brings into the image.
        """
        if targets is not None:
            targets = [{**target, "labels": target["labels"] + 1} for target in targets]
        found = super().forward(images, targets)
        return found if self.training else [{**one, "labels": one["labels"] - 1} for one in found]


def build_detector(cfg: CfgNode, weights: Weights | None = None) -> Detector | RetinaNet:
    """Build the detector that a checked config describes, on the CPU; what is part of the classifier gets ``weights``.

    Raises:
        ValueError: parts that do not fit each other, or weights that do not fit the architecture.
    """
    backbone = build_backbone(cfg, weights)
    preprocess = build_preprocess(cfg, backbone)
    detector: Detector | RetinaNet
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        detector = RetinaNet(cfg, backbone, backbone.feature_info, preprocess)
    else:
        rpn = RPN(cfg, backbone.feature_info)
        detector = Detector(backbone, rpn, build_roi_heads(cfg, backbone.feature_info, weights), preprocess)
    accelerate_heads(detector, backbone.acceleration)
    return detector


def build_preprocess(cfg: CfgNode, backbone: FPNBackbone | Trunk) -> Preprocess:
    """Build what stands before ``backbone``."""
    needed = backbone.padding_alone if isinstance(backbone, Trunk) else backbone.size_divisibility
    return Preprocess(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, max(1, backbone.padded_to(needed)))


def build_backbone(cfg: CfgNode, weights: Weights | None) -> FPNBackbone | Trunk:
    """Build what MODEL.BACKBONE.NAME says: a feature pyramid of one of two kinds, or the trunk alone (C4, C5, DC5)."""
    trunk = build_trunk(cfg, out_features=cfg.MODEL.RESNET_BACKBONE.OUT_FEATURES, weights=weights)
    name, node = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN
    backbone: FPNBackbone | Trunk = trunk
    if name != TRUNK_ALONE:
        backbone = FPNBackbone(trunk, node.IN_FEATURES, node.OUT_CHANNELS, builder=name, norm=node.NORM)
    accelerate(backbone, acceleration_of(cfg), needed=backbone.size_divisibility)
    return backbone
