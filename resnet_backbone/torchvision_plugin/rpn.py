"""The region proposal network: torchvision's with Detectron2's anchors, losses and choice of feature maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection import anchor_utils as tv
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import Conv2dNormActivation

from resnet_backbone.config.schema import TORCHVISION_ANCHORS
from resnet_backbone.models.trunk import FeatureInfo


class AnchorGenerator(nn.Module):
    """Boxes of fixed sizes and aspect ratios, centred on every cell of every feature map.

    Unlike torchvision's, corners are not rounded, strides are given instead of guessed from the sizes at hand, and the
    anchors of a cell come size by size, not shape by shape.

    Args:
        sizes: for each level the side lengths in pixels; one list serves all levels.
        aspect_ratios: for each level height / width; one list serves all levels.
        strides: pixels per cell, for each level.
        offset: where in its cell the first anchor's centre lies, in cells, from 0 to 1.
        of_torchvision: be like torchvision's in these three. Feature maps are then those of an image whose sides are
            multiples of the first stride; a level of fewer cells than the stride says lies wider apart.

    Source: Detectron2, ``modeling/anchor_generator.py``.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float,
        *,
        of_torchvision: bool = False,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.offset = offset
        self.of_torchvision = of_torchvision
        sizes, aspect_ratios = (
            list(lists) * len(strides) if len(lists) == 1 else lists for lists in (sizes, aspect_ratios)
        )
        for level, (s, r) in enumerate(zip(sizes, aspect_ratios, strict=True)):
            self.register_buffer(f"cell_{level}", _cell_anchors(s, r, of_torchvision), persistent=False)

    def cells(self) -> list[Tensor]:
        """Return the anchors around the origin, for each level (A, 4), XYXY in pixels."""
        return [getattr(self, f"cell_{level}") for level in range(len(self.strides))]

    def num_anchors_per_location(self) -> list[int]:
        return [len(cell) for cell in self.cells()]

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return for each image the anchors of all levels, float32 (sum of H * W * A, 4), XYXY in pixels."""
        return [torch.cat(self.by_level(feature_maps))] * len(image_list.image_sizes)

    def by_level(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return for each level its anchors, float32 (H * W * A, 4), XYXY in pixels."""
        anchors = []
        image = [side * self.strides[0] for side in feature_maps[0].shape[-2:]]
        for cell, stride, feature in zip(self.cells(), self.strides, feature_maps, strict=True):
            height, width = feature.shape[-2:]
            down, right = (image[0] // height, image[1] // width) if self.of_torchvision else (stride, stride)
            x = (torch.arange(width, device=cell.device, dtype=torch.float32) + self.offset) * right
            y = (torch.arange(height, device=cell.device, dtype=torch.float32) + self.offset) * down
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1).reshape(-1, 1, 4)
            anchors.append((centres + cell).reshape(-1, 4))
        return anchors


def _cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float], of_torchvision: bool) -> Tensor:
    if of_torchvision:
        return tv.AnchorGenerator.generate_anchors(None, list(sizes), list(aspect_ratios))
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = (size**2 / ratio) ** 0.5
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors)


def build_anchors(cfg: CfgNode, levels: Sequence[FeatureInfo]) -> AnchorGenerator:
    """Build what MODEL.ANCHOR_GENERATOR describes, on these levels; each has the same number of anchors a cell."""
    node = cfg.MODEL.ANCHOR_GENERATOR
    strides = [level.stride for level in levels]
    of_torchvision = node.NAME == TORCHVISION_ANCHORS
    return AnchorGenerator(node.SIZES, node.ASPECT_RATIOS, strides, node.OFFSET, of_torchvision=of_torchvision)


class Float32RPNHead(RPNHead):
    """torchvision's head, whose outputs stay float32 under mixed precision: boxes need the digits.

    ``conv_dims`` are the channels of its 3x3 convolutions, -1 for as many as before: MODEL.RPN.CONV_DIMS.
    """

    def __init__(self, in_channels: int, num_anchors: int, conv_dims: Sequence[int]) -> None:
        widths = [in_channels]
        for dim in conv_dims:
            widths.append(widths[-1] if dim == -1 else dim)
        super().__init__(widths[-1], num_anchors, conv_depth=len(conv_dims))
        if len(set(widths)) > 1:  # of which torchvision's knows nothing
            layers = [Conv2dNormActivation(*pair, norm_layer=None) for pair in pairwise(widths)]
            self.conv = nn.Sequential(*layers)
            for layer in layers:
                nn.init.normal_(layer[0].weight, std=0.01)
                nn.init.zeros_(layer[0].bias)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [t.float() for t in logits], [t.float() for t in deltas]


class RPN(RegionProposalNetwork):
    """torchvision's RPN on the named feature maps, with an L1 or smooth-L1 box loss.

    Both losses are summed over the sampled anchors and divided by how many are sampled at most, as in Detectron2
    (``modeling/proposal_generator/rpn.py``).
    """

    def __init__(self, cfg: CfgNode, feature_info: Mapping[str, FeatureInfo]) -> None:
        node = cfg.MODEL.RPN
        levels = [feature_info[name] for name in node.IN_FEATURES]
        anchors = build_anchors(cfg, levels)
        super().__init__(
            anchors,
            Float32RPNHead(levels[0].channels, anchors.num_anchors_per_location()[0], node.CONV_DIMS),
            fg_iou_thresh=node.IOU_THRESHOLDS[1],
            bg_iou_thresh=node.IOU_THRESHOLDS[0],
            batch_size_per_image=node.BATCH_SIZE_PER_IMAGE,
            positive_fraction=node.POSITIVE_FRACTION,
            pre_nms_top_n={"training": node.PRE_NMS_TOPK_TRAIN, "testing": node.PRE_NMS_TOPK_TEST},
            post_nms_top_n={"training": node.POST_NMS_TOPK_TRAIN, "testing": node.POST_NMS_TOPK_TEST},
            nms_thresh=node.NMS_THRESH,
        )
        self.in_features = tuple(node.IN_FEATURES)
        self.batch_size_per_image = node.BATCH_SIZE_PER_IMAGE
        self.smooth_l1_beta = node.SMOOTH_L1_BETA
        self.cls_loss_weight = node.LOSS_WEIGHT
        self.box_loss_weight = node.LOSS_WEIGHT * node.BBOX_REG_LOSS_WEIGHT

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the proposals of each image, (R, 4) XYXY in pixels, and in training the two losses."""
        return super().forward(images, {name: features[name] for name in self.in_features}, targets)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        positive_masks, negative_masks = self.fg_bg_sampler(labels)
        positive = torch.where(torch.cat(positive_masks))[0]
        sampled = torch.cat([positive, torch.where(torch.cat(negative_masks))[0]])
        normaliser = self.batch_size_per_image * len(labels)
        box_loss = F.smooth_l1_loss(
            pred_bbox_deltas[positive],
            torch.cat(regression_targets)[positive],
            beta=self.smooth_l1_beta,
            reduction="sum",
        )
        objectness_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        return self.cls_loss_weight * objectness_loss / normaliser, self.box_loss_weight * box_loss / normaliser
