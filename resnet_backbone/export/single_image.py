"""Detectors for one image, written so that torch.export can follow them: no lists, no branch on what was found."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

from resnet_backbone.torchvision_plugin.detector import Detector
from resnet_backbone.torchvision_plugin.mask_heads import masks_of
from resnet_backbone.torchvision_plugin.retinanet import RetinaNet

_MIN_SIDE = 1e-2  # pixels: what torchvision's RoIHeads drop


class SingleImageDetector(nn.Module):
    """Base of both kinds. They compute what the detector does, in its order, on one image.

    Args:
        detector: in eval mode; its parts are shared, not copied.
        score_threshold: detections have a higher score.

    Attributes:
        score_threshold: (), a buffer: it can be changed in the exported file.
    """

    def __init__(self, score_threshold: float) -> None:
        super().__init__()
        self.score_threshold: Tensor
        self.register_buffer("score_threshold", torch.tensor(float(score_threshold)))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect in an image, uint8 (3, H, W), in the channel order that the detector was trained on.

        Returns:
            boxes (R, 4), XYXY in pixels of this image; labels (R,), int64 from 0; scores (R,), from 0 to 1, best first;
            of Mask R-CNN also masks (R, M, M), the probabilities inside each box.
        """
        raise NotImplementedError


class SingleImageTwoStage(SingleImageDetector):
    """Faster R-CNN and Mask R-CNN."""

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.roi_heads.score_thresh)
        self.detector = detector
        self.num_classes = detector.roi_heads.box_predictor.cls_score.out_features - 1

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        heads = self.detector.roi_heads
        size = (image.shape[1], image.shape[2])
        features = self.detector.backbone(preprocess(self.detector.transform, image))
        proposals = self._propose(features, size)
        _, vectors = heads.region_vectors(features, [proposals], [size])
        logits, deltas = heads.box_predictor(vectors)
        class_scores = F.softmax(logits, -1)[:, 1:]
        class_boxes = heads.box_coder.decode_single(deltas, proposals).unflatten(1, (self.num_classes + 1, 4))[:, 1:]
        places, labels = torch.nonzero(class_scores > self.score_threshold).unbind(dim=1)
        boxes, scores = clip_boxes_to_image(class_boxes[places, labels], size), class_scores[places, labels]
        keep = remove_small_boxes(boxes, _MIN_SIDE)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = suppress_by_class(boxes, scores, labels, self.num_classes, heads.nms_thresh)
        keep = keep[best(scores[keep], heads.detections_per_img)]
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        if heads.mask_head is None:
            return boxes, labels, scores
        logits = heads.mask_head(heads.mask_regions(features, [boxes], [size]))
        return boxes, labels, scores, masks_of(logits, labels + 1).sigmoid()

    def _propose(self, features: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        rpn = self.detector.rpn
        maps = [features[name] for name in rpn.in_features]
        all_boxes, all_scores = [], []
        for logits, deltas, anchors in zip(*rpn.head(maps), rpn.anchor_generator.by_level(maps), strict=True):
            scores = logits[0].permute(1, 2, 0).flatten()
            deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            top = best(scores, rpn.pre_nms_top_n())
            boxes = clip_boxes_to_image(rpn.box_coder.decode_single(deltas[top], anchors[top]), size)
            large = remove_small_boxes(boxes, rpn.min_size)
            boxes, scores = boxes[large], scores[top][large].sigmoid()
            keep = suppress(boxes, scores, rpn.nms_thresh)
            all_boxes.append(boxes[keep])
            all_scores.append(scores[keep])
        return torch.cat(all_boxes)[best(torch.cat(all_scores), rpn.post_nms_top_n())]


class SingleImageRetinaNet(SingleImageDetector):
    """RetinaNet. A box that lies outside of the image, and so is empty, is left out."""

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__(detector.score_thresh)
        self.detector = detector
        self.num_classes = detector.head.classification_head.num_classes

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        size = (image.shape[1], image.shape[2])
        maps = list(detector.backbone(preprocess(detector.transform, image)).values())
        levels = []
        for feature, anchors in zip(maps, detector.anchor_generator.by_level(maps), strict=True):
            outputs = detector.head([feature])
            logits, deltas = outputs["cls_logits"][0], outputs["bbox_regression"][0]
            levels.append(detector.decode_level(logits, deltas, anchors, self.score_threshold))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
        keep = suppress_by_class(boxes, scores, labels, self.num_classes, detector.nms_thresh)
        keep = keep[best(scores[keep], detector.detections_per_img)]
        boxes, scores, labels = clip_boxes_to_image(boxes[keep], size), scores[keep], labels[keep]
        keep = torch.where((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))[0]
        return boxes[keep], labels[keep], scores[keep]


def preprocess(transform: Any, image: Tensor) -> Tensor:
    """Return (1, 3, H, W): what :class:`~resnet_backbone.torchvision_plugin.detector.Preprocess` makes of one image."""
    divisor = transform.size_divisibility
    image = (image - transform.pixel_mean) / transform.pixel_std
    return F.pad(image, (0, -image.shape[2] % divisor, 0, -image.shape[1] % divisor))[None]


def best(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest of the scores (N,), best first; of all where there are fewer."""
    return scores.topk(torch.sym_min(count, scores.shape[0])).indices


def suppress(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return what ``torchvision.ops.nms`` keeps, for scores from 0 up.

    Of that function torch.export takes for granted that it keeps two boxes or more. Two empty boxes, which overlap
    nothing and come last, make it true.
    """
    boxes = torch.cat([boxes, boxes.new_zeros(2, 4)])
    scores = torch.cat([scores, scores.new_full((2,), -1.0)])
    return nms(boxes, scores, threshold)[:-2]


def suppress_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, threshold: float) -> Tensor:
    """Return what ``torchvision.ops.batched_nms`` keeps, for labels from 0 to below ``num_classes``.

    The classes are moved apart, as there, but onto a square grid instead of along a diagonal: coordinates stay smaller
    and lose fewer digits.
    """
    side = math.isqrt(num_classes - 1) + 1
    ends = torch.cat([boxes.flatten(), boxes.new_zeros(1)])  # of no boxes, too
    cell = ends.max() - ends.min() + 1
    origin = torch.stack((labels % side, labels // side), dim=1).to(boxes.dtype) * cell
    return suppress(boxes + origin.repeat(1, 2), scores, threshold)
