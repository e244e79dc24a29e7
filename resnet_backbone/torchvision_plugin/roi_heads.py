"""The second stage: torchvision's RoIHeads with Detectron2's losses, a box head of one of three kinds, and masks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import clip_boxes_to_image, roi_align, roi_pool
from torchvision.ops.boxes import box_area

from resnet_backbone.config import build_trunk
from resnet_backbone.models.layers import norm_layer
from resnet_backbone.models.trunk import FeatureInfo
from resnet_backbone.torchvision_plugin.mask_heads import MaskHead, build_mask_head, mask_loss, masks_of
from resnet_backbone.weights import Weights
from resnet_backbone.weights.catalog import IMAGENET_CLASSES

MIN_SIDE = 0.01  # pixels: torchvision's RoIHeads drop boxes whose width or height is less


class ROIPooler(nn.Module):
    """Crop each box from the feature map whose scale suits it; ``features`` and ``strides`` are finest first.

    Args:
        resolution: side of the crops, in cells.
        sampling_ratio: samples per cell side; 0 adapts to the box.
        pooler_type: ``ROIAlignV2`` (half-pixel aligned), ``ROIAlign`` or ``ROIPool``.

    Source: Detectron2, ``modeling/poolers.py``; the level of a box is equation 1 of FPN (arXiv 1612.03144).
    """

    def __init__(
        self, features: Sequence[str], strides: Sequence[int], resolution: int, sampling_ratio: int, pooler_type: str
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.strides = tuple(strides)
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.pooler_type = pooler_type
        self.min_level = int(math.log2(strides[0]))
        self.max_level = int(math.log2(strides[-1]))

    def forward(
        self, feature_maps: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Return (sum of R, C, resolution, resolution) for the boxes (R, 4), XYXY in pixels, of each image."""
        maps = [feature_maps[name] for name in self.features]
        rois = torch.cat([torch.cat([b.new_full((b.shape[0], 1), i), b], dim=1) for i, b in enumerate(boxes)])
        if len(maps) == 1:
            return self._pool(maps[0], rois, self.strides[0])
        levels = self._levels(rois[:, 1:])
        output = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], self.resolution, self.resolution)
        for level, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = torch.where(levels == level)[0]
            output.index_put_((chosen,), self._pool(feature, rois[chosen], stride))
        return output

    def _levels(self, boxes: Tensor) -> Tensor:
        size = box_area(boxes).sqrt()
        level = torch.floor(4 + torch.log2(size / 224 + 1e-8))
        return level.clamp(self.min_level, self.max_level).long() - self.min_level

    def _pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        # In float32 also under mixed precision: bfloat16 would round the boxes to whole pixels and worse.
        with torch.autocast(feature.device.type, enabled=False):
            if self.pooler_type == "ROIPool":
                pooled = roi_pool(feature.float(), rois, self.resolution, 1 / stride)
            else:
                aligned = self.pooler_type == "ROIAlignV2"
                pooled = roi_align(feature.float(), rois, self.resolution, 1 / stride, self.sampling_ratio, aligned)
        return pooled.to(feature.dtype)


class BoxHead(nn.Module):
    """From crops (R, C, resolution, resolution) to vectors (R, out_channels), in two parts."""

    out_channels: int

    def forward(self, x: Tensor) -> Tensor:
        return self.to_vectors(self.to_regions(x))

    def to_regions(self, x: Tensor) -> Tensor:
        """What a mask head can share."""
        return x

    @abstractmethod
    def to_vectors(self, x: Tensor) -> Tensor:
        """From regions to vectors (R, out_channels)."""


class FastRCNNConvFCHead(BoxHead):
    """New layers on a feature pyramid's crops; its initialisation is Detectron2's.

    NUM_CONV convolutions of CONV_DIM channels, NORM behind each, then NUM_FC fully connected layers of FC_DIM units.
    """

    def __init__(self, in_channels: int, box: CfgNode) -> None:
        super().__init__()
        self.convs = MaskRCNNHeads(in_channels, [box.CONV_DIM] * box.NUM_CONV, 1, norm_layer=norm_layer(box.NORM))
        layers: list[nn.Module] = [nn.Flatten()]
        size = (box.CONV_DIM if box.NUM_CONV else in_channels) * box.POOLER_RESOLUTION**2
        for _ in range(box.NUM_FC):
            linear = nn.Linear(size, box.FC_DIM)
            nn.init.kaiming_uniform_(linear.weight, a=1)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.ReLU()]
            size = box.FC_DIM
        self.layers = nn.Sequential(*layers)
        self.out_channels = size

    def to_vectors(self, x: Tensor) -> Tensor:
        return self.layers(self.convs(x))


class Res5BoxHead(BoxHead):
    """The trunk's own res5 on crops of res4, then the mean over the cells ("C4"). A mask head shares res5.

    Source: He et al. 2015, appendix A, "Networks on Conv feature maps".
    """

    def __init__(self, res5: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.res5 = res5
        self.out_channels = out_channels

    def to_regions(self, x: Tensor) -> Tensor:
        return self.res5(x)

    def to_vectors(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class VGGBoxHead(BoxHead):
    """fc6 and fc7 of the ImageNet classifier on 7x7 crops of conv5, dropout after each.

    Source: Girshick 2015, "Fast R-CNN" (arXiv 1504.08083), section 2.2.
    """

    out_channels = 4096

    def __init__(self, fc6: nn.Module, fc7: nn.Module, dropout: float) -> None:
        super().__init__()
        self.fc6 = fc6
        self.fc7 = fc7
        self.dropout = dropout

    def to_vectors(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu_(layer(x)), self.dropout, self.training)
        return x


class BoxPredictor(nn.Module):
    """Class logits (R, num_classes + 1), background first, and box deltas (R, 4 * (num_classes + 1)), float32.

    With ``agnostic`` these are the same for all classes, and its layer has 4 outputs; a single class has its own.
    """

    def __init__(self, in_channels: int, num_classes: int, *, agnostic: bool = False) -> None:
        super().__init__()
        self.repeats = num_classes + 1 if agnostic and num_classes > 1 else 1
        self.cls_score = nn.Linear(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * (num_classes + 1) // self.repeats)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        nn.init.zeros_(self.cls_score.bias)
        nn.init.zeros_(self.bbox_pred.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x).float(), self.bbox_pred(x).float().repeat(1, self.repeats)


class ROIHeads(RoIHeads):
    """torchvision's RoIHeads with an L1 or smooth-L1 box loss, on Detectron2's pooler.

    With a mask head, and a pooler of its own for it (none where it shares the box head's regions), also masks.

    With MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT the whole image, without padding, is one more region of the same pooler (of a
    pyramid it takes the level that the pooler gives to a box of that size, mostly the coarsest) and of the same box
    head; its vector stands behind that of each region of the image, so that the last layers take vectors of twice the
    length. Source: He et al. 2015 (arXiv 1512.03385), appendix B, "Global context".
    """

    def __init__(
        self,
        cfg: CfgNode,
        feature_info: Mapping[str, FeatureInfo],
        box_head: BoxHead,
        mask_head: MaskHead | None = None,
        mask_roi_pool: ROIPooler | None = None,
    ) -> None:
        heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
        length = box_head.out_channels * (2 if box.GLOBAL_CONTEXT else 1)
        super().__init__(
            _build_pooler(cfg, feature_info, box),
            box_head,
            BoxPredictor(length, heads.NUM_CLASSES, agnostic=box.CLS_AGNOSTIC_BBOX_REG),
            fg_iou_thresh=heads.IOU_THRESHOLDS[0],
            bg_iou_thresh=heads.IOU_THRESHOLDS[0],
            batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
            positive_fraction=heads.POSITIVE_FRACTION,
            bbox_reg_weights=tuple(box.BBOX_REG_WEIGHTS),
            score_thresh=heads.SCORE_THRESH_TEST,
            nms_thresh=heads.NMS_THRESH_TEST,
            detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
            mask_roi_pool=mask_roi_pool,
            mask_head=mask_head,
        )
        self.global_context = box.GLOBAL_CONTEXT
        self.smooth_l1_beta = box.SMOOTH_L1_BETA
        self.box_loss_weight = box.BBOX_REG_LOSS_WEIGHT

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Any]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections (boxes, labels from 1, scores, masks) in eval mode, the losses in training mode."""
        if self.training:
            proposals, matches, labels, regression_targets = self.select_training_samples(proposals, targets)
        regions, vectors = self.region_vectors(features, proposals, image_shapes)
        logits, deltas = self.box_predictor(vectors)
        if self.training:
            losses = self._losses(logits, deltas, torch.cat(labels), torch.cat(regression_targets))
            if self.mask_head is not None and targets is not None:
                losses["loss_mask"] = self._mask_loss(
                    features, regions, proposals, image_shapes, labels, matches, targets
                )
            return [], losses
        boxes, scores, classes = self.postprocess_detections(logits, deltas, proposals, image_shapes)
        found = [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(boxes, scores, classes, strict=True)]
        if self.mask_head is not None:
            mask_logits = self.mask_head(self.mask_regions(features, boxes, image_shapes))
            masks = masks_of(mask_logits, torch.cat(classes)).sigmoid().split([len(b) for b in boxes])
            found = [{**detections, "masks": m} for detections, m in zip(found, masks, strict=True)]
        return found, {}

    def region_vectors(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Return of the boxes (R, 4), XYXY in pixels, of each image what the box head makes of them.

        Returns:
            Its regions (sum of R, ...), which a mask head can share, and what the last layers take: vectors
            (sum of R, C), with global context behind each one that of its image, (sum of R, 2 C).
        """
        crops = self.box_roi_pool(features, boxes, image_shapes)
        if not self.global_context:
            regions = self.box_head.to_regions(crops)
            return regions, self.box_head.to_vectors(regions)
        everything = boxes[0].new_tensor([[0, 0, math.inf, math.inf]])
        images = [clip_boxes_to_image(everything, size) for size in image_shapes]
        # In one batch with the regions, for norms that take its statistics.
        regions = self.box_head.to_regions(torch.cat([crops, self.box_roi_pool(features, images, image_shapes)]))
        vectors = self.box_head.to_vectors(regions)
        count = crops.shape[0]
        of_images = vectors[count:].split(1)
        context = torch.cat([v.expand(b.shape[0], -1) for v, b in zip(of_images, boxes, strict=True)])
        return regions[:count], torch.cat([vectors[:count], context], dim=1)

    def mask_regions(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        if self.mask_roi_pool is not None:
            return self.mask_roi_pool(features, boxes, image_shapes)
        return self.box_head.to_regions(self.box_roi_pool(features, boxes, image_shapes))

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        regions: Tensor,
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        labels: list[Tensor],
        matches: list[Tensor],
        targets: list[dict[str, Any]],
    ) -> Tensor:
        """The loss of the foreground regions; on shared features it takes what the box head has computed already."""
        foreground = torch.cat(labels) > 0
        positive = [torch.where(label > 0)[0] for label in labels]
        boxes, labels, matches = (
            [t[keep] for t, keep in zip(each, positive, strict=True)] for each in (proposals, labels, matches)
        )
        if self.mask_roi_pool is None:
            chosen = regions[foreground]
        else:
            chosen = self.mask_regions(features, boxes, image_shapes)
        truth = [target["masks"] for target in targets]
        return mask_loss(self.mask_head(chosen), boxes, labels, matches, truth)

    def _losses(self, logits: Tensor, deltas: Tensor, labels: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Source: Detectron2, ``modeling/roi_heads/fast_rcnn.py``: both are divided by the number of samples."""
        positive = torch.where(labels > 0)[0]
        class_deltas = deltas.reshape(len(labels), deltas.shape[1] // 4, 4)[positive, labels[positive]]
        box_loss = F.smooth_l1_loss(class_deltas, targets[positive], beta=self.smooth_l1_beta, reduction="sum")
        return {
            "loss_classifier": F.cross_entropy(logits, labels),
            "loss_box_reg": self.box_loss_weight * box_loss / max(labels.numel(), 1),
        }


def build_roi_heads(cfg: CfgNode, feature_info: Mapping[str, FeatureInfo], weights: Weights | None) -> ROIHeads:
    """Build the second stage on a backbone's features; heads that are part of the classifier take its weights.

    Raises:
        ValueError: weights without the layers of the head.
    """
    in_channels = feature_info[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
    box_head = _build_box_head(cfg, in_channels, weights)
    if not cfg.MODEL.MASK_ON:
        return ROIHeads(cfg, feature_info, box_head)
    if isinstance(box_head, Res5BoxHead):
        return ROIHeads(cfg, feature_info, box_head, build_mask_head(cfg, box_head.out_channels))
    pooler = _build_pooler(cfg, feature_info, cfg.MODEL.ROI_MASK_HEAD)
    return ROIHeads(cfg, feature_info, box_head, build_mask_head(cfg, in_channels), pooler)


def _build_pooler(cfg: CfgNode, feature_info: Mapping[str, FeatureInfo], head: CfgNode) -> ROIPooler:
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    return ROIPooler(
        names,
        [feature_info[name].stride for name in names],
        head.POOLER_RESOLUTION,
        head.POOLER_SAMPLING_RATIO,
        head.POOLER_TYPE,
    )


def _build_box_head(cfg: CfgNode, in_channels: int, weights: Weights | None) -> BoxHead:
    arch, box = cfg.MODEL.RESNET_BACKBONE.ARCH, cfg.MODEL.ROI_BOX_HEAD
    if cfg.MODEL.ROI_HEADS.NAME == "ImageNetRes5ROIHeads":
        classifier = build_trunk(cfg, out_features=["res5"], weights=weights, freeze_at=0)
        return Res5BoxHead(classifier.get_submodule("res5"), classifier.feature_info["res5"].channels)
    if box.NAME == "VGGBoxHead":
        if weights is not None and weights.num_classes == 0:
            raise ValueError(
                f"MODEL.WEIGHTS {weights.source} holds no fc6 and fc7 for MODEL.ROI_BOX_HEAD.NAME VGGBoxHead; take "
                f"imagenet://{arch}/IMAGENET1K_V1, or new layers: NAME: FastRCNNConvFCHead, NUM_FC: 2"
            )
        num_classes = weights.num_classes if weights is not None else IMAGENET_CLASSES
        classifier = build_trunk(cfg, out_features=["pool5"], num_classes=num_classes, weights=weights)
        return VGGBoxHead(classifier.get_submodule("fc6"), classifier.get_submodule("fc7"), box.DROPOUT)
    return FastRCNNConvFCHead(in_channels, box)
