"""RetinaNet: torchvision's, with Detectron2's losses, order of post-processing and anchors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
import torchvision.models.detection.retinanet as tv
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import Conv2dNormActivation, batched_nms, box_iou, clip_boxes_to_image, sigmoid_focal_loss

from resnet_backbone.engine.processes import mean_over_processes
from resnet_backbone.models.layers import norm_layer
from resnet_backbone.models.trunk import FeatureInfo
from resnet_backbone.torchvision_plugin.rpn import build_anchors

_MOMENTUM = 0.9  # of the running number of positive anchors
_INITIAL_NORMALIZER = 100.0


class Float32Head(tv.RetinaNetHead):
    """torchvision's head, with what MODEL.RETINANET says; its outputs stay float32 under mixed precision.

    As in Detectron2, and unlike torchvision's, a convolution with a norm behind it has a bias all the same.
    """

    def __init__(self, in_channels: int, num_anchors: int, node: CfgNode) -> None:
        super().__init__(in_channels, num_anchors, node.NUM_CLASSES)
        self.classification_head = tv.RetinaNetClassificationHead(
            in_channels, num_anchors, node.NUM_CLASSES, node.PRIOR_PROB
        )
        if (node.NORM, node.NUM_CONVS) == ("", 4):  # torchvision's own
            return
        for head in (self.classification_head, self.regression_head):
            layers = [
                Conv2dNormActivation(in_channels, in_channels, norm_layer=norm_layer(node.NORM), bias=True)
                for _ in range(node.NUM_CONVS)
            ]
            head.conv = nn.Sequential(*layers)
            for layer in layers:
                nn.init.normal_(layer[0].weight, std=0.01)
                nn.init.zeros_(layer[0].bias)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in super().forward(x).items()}


class RetinaNet(tv.RetinaNet):
    """A one-stage detector: class scores and box deltas for every anchor.

    It is called as :class:`~resnet_backbone.torchvision_plugin.detector.Detector` is. Against torchvision's, as in
    Detectron2: losses are divided by a running mean of the number of positive anchors, not by each image's own number;
    boxes are cut at the image's edge after NMS, not before it, but with CLIP_BEFORE_NMS. Unlike Detectron2, the running
    mean is one for all processes and part of the checkpoint, so that a resumed run is the one that never stopped.

    Args:
        cfg: reads MODEL.RETINANET, ANCHOR_GENERATOR and TEST.DETECTIONS_PER_IMAGE.
        backbone: a feature pyramid, all of whose levels are used.
        feature_info: of the levels.
        transform: normalises and pads the images.

    Source: Lin et al. 2017 (arXiv 1708.02002); Detectron2, ``modeling/meta_arch/retinanet.py``.
    """

    def __init__(
        self, cfg: CfgNode, backbone: nn.Module, feature_info: Mapping[str, FeatureInfo], transform: nn.Module
    ) -> None:
        node = cfg.MODEL.RETINANET
        levels = list(feature_info.values())
        anchors = build_anchors(cfg, levels)
        background, foreground = node.IOU_THRESHOLDS
        head = Float32Head(levels[0].channels, anchors.num_anchors_per_location()[0], node)
        super().__init__(
            backbone,
            node.NUM_CLASSES,
            head=head,
            proposal_matcher=Matcher(foreground, background, allow_low_quality_matches=True),
            score_thresh=node.SCORE_THRESH_TEST,
            nms_thresh=node.NMS_THRESH_TEST,
            detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
            topk_candidates=node.TOPK_CANDIDATES_TEST,
        )
        self.anchor_generator = anchors
        self.transform = transform
        self.box_coder = BoxCoder(tuple(node.BBOX_REG_WEIGHTS))
        self.clip_before_nms = node.CLIP_BEFORE_NMS
        self.alpha = node.FOCAL_LOSS_ALPHA
        self.gamma = node.FOCAL_LOSS_GAMMA
        self.smooth_l1_beta = node.SMOOTH_L1_LOSS_BETA
        self.loss_normalizer: Tensor
        self.register_buffer("loss_normalizer", torch.tensor(_INITIAL_NORMALIZER))

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return ``loss_cls`` (focal) and ``loss_box_reg`` (smooth L1), sums over all images' anchors, normalised."""
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        matches = torch.stack([self._match(t["boxes"], a) for t, a in zip(targets, anchors, strict=True)])
        positive, valid = matches >= 0, matches != Matcher.BETWEEN_THRESHOLDS
        classes = torch.zeros_like(logits)
        box_loss = deltas.sum() * 0  # a loss also where no anchor is positive
        for row, target, anchor, delta, match, own in zip(
            classes, targets, anchors, deltas, matches, positive, strict=True
        ):
            row[own, target["labels"][match[own]]] = 1
            truth = self.box_coder.encode_single(target["boxes"][match[own]], anchor[own])
            box_loss = box_loss + F.smooth_l1_loss(delta[own], truth, beta=self.smooth_l1_beta, reduction="sum")
        count = mean_over_processes(positive.sum().clamp(min=1).to(self.loss_normalizer))
        self.loss_normalizer.mul_(_MOMENTUM).add_((1 - _MOMENTUM) * count)
        normalizer = self.loss_normalizer.clone()
        class_loss = sigmoid_focal_loss(logits[valid], classes[valid], self.alpha, self.gamma, reduction="sum")
        return {"loss_cls": class_loss / normalizer, "loss_box_reg": box_loss / normalizer}

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return for each anchor the box that it is of, -1 for the background, or -2 for neither."""
        if not len(boxes):
            return torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
        return self.proposal_matcher(box_iou(boxes, anchors))

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Turn the outputs, for each level (N, anchors, K or 4), into detections of each image, best first."""
        detections = []
        for index, image_shape in enumerate(image_shapes):
            levels = zip(head_outputs["cls_logits"], head_outputs["bbox_regression"], anchors[index], strict=True)
            parts = [
                self.decode_level(logits[index], deltas[index], anchor, self.score_thresh, image_shape)
                for logits, deltas, anchor in levels
            ]
            boxes, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
            boxes = clip_boxes_to_image(boxes[keep], image_shape)
            detections.append({"boxes": boxes, "scores": scores[keep], "labels": labels[keep]})
        return detections

    def decode_level(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        score_threshold: float | Tensor,
        image_shape: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels, from 0, of the best candidates of one level, (anchors, K or 4)."""
        scores = logits.sigmoid()
        candidates = torch.nonzero(scores > score_threshold)
        scores = scores[candidates[:, 0], candidates[:, 1]]
        scores, best = scores.topk(torch.sym_min(self.topk_candidates, scores.shape[0]))
        places, labels = candidates[best].unbind(dim=1)
        boxes = self.box_coder.decode_single(deltas[places], anchors[places])
        return clip_boxes_to_image(boxes, image_shape) if self.clip_before_nms else boxes, scores, labels
