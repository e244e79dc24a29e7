"""Detectors of the torchvision engine for export: rewritten for one image so that they can be traced, and compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

from resnet_backbone.config.checks import is_improved
from resnet_backbone.data.images.read import read_image
from resnet_backbone.data.prepare.shapes import draw_image
from resnet_backbone.data.transforms import test_transforms
from resnet_backbone.engine.batches import reorder_channels
from resnet_backbone.engine.checkpoint import engine_of
from resnet_backbone.export.write import TOLERANCES, Agreement, Exportable, ExportedFile, Facts
from resnet_backbone.models.layers import fold_norms
from resnet_backbone.torchvision_plugin.checkpoint import load_trained
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import Detector
from resnet_backbone.torchvision_plugin.mask_heads import masks_of
from resnet_backbone.torchvision_plugin.retinanet import RetinaNet
from resnet_backbone.torchvision_plugin.roi_heads import MIN_SIDE
from resnet_backbone.weights.download import resolve

# Beyond these, two detections are not the same one.
_SAME_BOX = 1.0  # pixels
_SAME_SCORE = 0.01


class SingleImageDetector(nn.Module):
    """Base of both kinds. They compute what the detector does, in its order, on one image, with its own modules.

    Attributes:
        score_threshold: (), a buffer: it can be changed in the exported file. Detections have a higher score.
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
        keep = remove_small_boxes(boxes, MIN_SIDE)
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        keep = nms_by_class(boxes, scores, labels, self.num_classes, heads.nms_thresh)
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
            keep = nms_of_any_count(boxes, scores, rpn.nms_thresh)
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
            levels.append(detector.decode_level(logits, deltas, anchors, self.score_threshold, size))
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*levels, strict=True))
        keep = nms_by_class(boxes, scores, labels, self.num_classes, detector.nms_thresh)
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


def nms_of_any_count(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Return what ``torchvision.ops.nms`` keeps, for scores from 0 up.

    Of that function torch.export takes for granted that it keeps two boxes or more. Two empty boxes, which overlap
    nothing and come last, make it true.
    """
    boxes = torch.cat([boxes, boxes.new_zeros(2, 4)])
    scores = torch.cat([scores, scores.new_full((2,), -1.0)])
    return nms(boxes, scores, threshold)[:-2]


def nms_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, threshold: float) -> Tensor:
    """Return what ``torchvision.ops.batched_nms`` keeps, for labels from 0 to below ``num_classes``.

    The classes are moved apart, as there, but onto a square grid instead of along a diagonal: coordinates stay smaller
    and lose fewer digits.
    """
    side = math.isqrt(num_classes - 1) + 1
    ends = torch.cat([boxes.flatten(), boxes.new_zeros(1)])  # of no boxes, too
    cell = ends.max() - ends.min() + 1
    origin = torch.stack((labels % side, labels // side), dim=1).to(boxes.dtype) * cell
    return nms_of_any_count(boxes + origin.repeat(1, 2), scores, threshold)


# A file has float32, whatever the training had. Its norms are folded, and compared with those that are not.
_UNACCELERATED = [
    *("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "False"),
    *("MODEL.RESNET_BACKBONE.FOLD_NORMS", "False", "MODEL.RESNET_BACKBONE.MEMORY_FORMAT", "contiguous"),
    *("MODEL.RESNET_BACKBONE.PRECISION", "", "MODEL.RESNET_BACKBONE.COMPILE", ""),
]
_USUAL_SIDE = 480  # pixels, where the config leaves images as they are


def load_unaccelerated(config_file: str | Path, overrides: Sequence[str]) -> CfgNode:
    """Read a config for float32 on the CPU, without what accelerates a backbone.

    Raises:
        FileNotFoundError, ValueError: no such config, or one of what cannot be exported.
    """
    cfg = load_config(config_file, [*overrides, *_UNACCELERATED])
    if is_improved(cfg):
        raise ValueError(
            "TEST.BOX_REFINEMENT, TEST.MULTI_SCALE and TEST.ENSEMBLE run a detector several times and cannot be "
            "exported; to export it without, write TEST.BOX_REFINEMENT.ENABLED False TEST.MULTI_SCALE.ENABLED False "
            "TEST.ENSEMBLE []"
        )
    return cfg


def exportable_detector(config_file: str | Path, overrides: Sequence[str], images: Sequence[Path] = ()) -> Exportable:
    """Build a trained detector.

    Args:
        config_file: of its training.
        overrides: ``KEY VALUE`` pairs, one after another; MODEL.WEIGHTS, here or in the config, is its checkpoint.
        images: files to compare on, besides drawn ones.

    Raises:
        FileNotFoundError: no such config, or no such checkpoint.
        ValueError: a config or a checkpoint of the other engine, or of what cannot be exported.
        OSError: an image cannot be read.
    """
    cfg = load_unaccelerated(config_file, overrides)
    path = Path(resolve(cfg.MODEL.WEIGHTS))
    if path.is_file() and engine_of(path) != "torchvision":
        raise ValueError(
            f"{cfg.MODEL.WEIGHTS} is of Detectron2, which has its own tools/deploy/export_model.py; only detectors of "
            f"the torchvision engine are exported here"
        )
    cfg, detector, class_names = load_trained(cfg)
    return describe_detector(cfg, detector.eval(), class_names, [_resized(cfg, read_image(path)) for path in images])


def describe_detector(
    cfg: CfgNode, detector: Detector | RetinaNet, class_names: Sequence[str], images: Sequence[Tensor] = ()
) -> Exportable:
    """Describe a detector in eval mode; it stays as it is, the norms of what is exported are folded."""
    folded = copy.deepcopy(detector)
    fold_norms(folded)
    module: SingleImageDetector
    if isinstance(folded, RetinaNet):
        module = SingleImageRetinaNet(folded)
    else:
        module = SingleImageTwoStage(folded)
    stride = max(info.stride for info in detector.backbone.feature_info.values())
    to_compare = [*_drawn(cfg, 2 * stride), *images]
    part = detector if isinstance(detector, RetinaNet) else detector.roi_heads  # what has the score threshold
    score_threshold = float(part.score_thresh)

    def check(file: ExportedFile) -> Agreement:
        """Compare at the score threshold of the file, and for each image at one so low that many are compared."""
        agreement = Agreement(images=[tuple(image.shape) for image in to_compare])
        limit = cfg.TEST.DETECTIONS_PER_IMAGE

        def compare(image: Tensor, found: dict[str, Tensor], threshold: float) -> None:
            keep = found["scores"] > threshold
            expected = {name: found[name][keep] for name in facts.outputs}
            last = float(expected["scores"][-1]) if int(keep.sum()) == limit else threshold
            compare_detections(agreement, expected, dict(zip(facts.outputs, file(image), strict=True)), last)

        try:
            part.score_thresh = 0.0
            all_found = [_detect(detector, image) for image in to_compare]
        finally:
            part.score_thresh = score_threshold
        for image, found in zip(to_compare, all_found, strict=True):
            compare(image, found, score_threshold)
        for image, found in zip(to_compare, all_found, strict=True):
            threshold = low_threshold(found["scores"], limit)
            file.set_score_threshold(threshold)
            compare(image, found, threshold)
        return agreement

    facts = _facts(cfg, class_names, score_threshold, 2 * stride)
    return Exportable(
        module=module.eval(),
        input_name="image",
        example=torch.zeros(3, 2 * stride + 11, 3 * stride - 21, dtype=torch.uint8),
        axes={1: "height", 2: "width"},
        output_axes={0: "detections"},
        facts=facts,
        check=check,
    )


def _facts(cfg: CfgNode, class_names: Sequence[str], score_threshold: float, smallest_side: int) -> Facts:
    low, high = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    outputs = {
        "boxes": "float32 (R, 4), x0 y0 x1 y1 in pixels of the image that was fed",
        "labels": "int64 (R,), from 0, into class_names",
        "scores": "float32 (R,), from 0 to 1, best first",
    }
    if cfg.MODEL.MASK_ON:
        outputs["masks"] = "float32 (R, M, M), probabilities: stretch each over its box, and take 0.5 or more"
    resize = f"shorter side to {low} pixels, or less, so that the longer one has at most {high}"
    return Facts(
        task="segmentation" if cfg.MODEL.MASK_ON else "detection",
        architecture=f"{cfg.MODEL.META_ARCHITECTURE} {cfg.MODEL.RESNET_BACKBONE.ARCH}",
        source=Path(cfg.MODEL.WEIGHTS).name,
        input="image: uint8 (3, H, W)",
        channel_order=cfg.INPUT.FORMAT,
        mean=tuple(cfg.MODEL.PIXEL_MEAN),
        std=tuple(cfg.MODEL.PIXEL_STD),
        normalises=True,
        resize=f"{resize}; bilinear with antialiasing" if low else "",
        smallest_side=smallest_side,
        outputs=outputs,
        class_names=tuple(class_names),
        score_threshold=score_threshold,
    )


def _drawn(cfg: CfgNode, smallest_side: int) -> list[Tensor]:
    """Return pictures of shapes: of the size that the config tests with, of an unusual one, and the smallest."""
    side = max(cfg.INPUT.MIN_SIZE_TEST or _USUAL_SIDE, smallest_side)
    sizes = [(side, side * 4 // 3), (side * 5 // 4 + 1, side + 7), (smallest_side, smallest_side)]
    images = []
    for number, (height, width) in enumerate(sizes):
        # Drawn sizes are random, from 0.75 to 1.25 of what is asked for.
        pixels, _ = draw_image(np.random.default_rng(number), 2 * max(height, width))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[:, :height, :width].contiguous()
        images.append(reorder_channels(image, cfg.INPUT.FORMAT))
    return images


def _resized(cfg: CfgNode, image: Tensor) -> Tensor:
    """Do to an RGB image what the file asks of its users."""
    transforms = test_transforms(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    return reorder_channels(transforms(tv_tensors.Image(image)).as_subclass(Tensor), cfg.INPUT.FORMAT).contiguous()


def low_threshold(scores: Tensor, limit: int) -> float:
    """Return a score below many others and far from all.

    Args:
        scores: of one image, best first: all of its detections, or the ``limit`` best ones.
        limit: the threshold is not below the last one of so many.
    """
    lowest = float(scores[-1]) if len(scores) >= limit else 0.0
    above = torch.cat([scores.new_tensor([lowest]), scores.flip(0)])
    lower_half = above[: len(scores) // 2 + 2]
    gaps = lower_half.diff()
    if not len(gaps):
        return lowest
    widest = int(gaps.argmax())
    return float(lower_half[widest] + gaps[widest] / 2)


@torch.no_grad()
def _detect(detector: Detector | RetinaNet, image: Tensor) -> dict[str, Tensor]:
    """Return the detections, labels from 0, without empty boxes."""
    found = detector([image])[0]
    boxes = found["boxes"]
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return {name: value[keep] for name, value in found.items()}


def compare_detections(
    agreement: Agreement, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], threshold: float
) -> None:
    """Compare the detections of one image, each with the one of its label whose box is the nearest.

    Args:
        agreement: gets the result.
        expected: ``boxes`` (R, 4) in pixels, ``labels`` (R,), ``scores`` (R,), and where there are any ``masks``, best
            first.
        actual: likewise.
        threshold: a detection that close to this score may be missing on either side.
    """
    free = torch.ones(len(actual["labels"]), dtype=torch.bool)
    unmatched = []
    for index, (box, label, score) in enumerate(
        zip(expected["boxes"], expected["labels"], expected["scores"], strict=True)
    ):
        alike = free & (actual["labels"] == label) & ((actual["scores"] - score).abs() <= _SAME_SCORE)
        distances = (actual["boxes"] - box).abs().amax(dim=1).masked_fill(~alike, float("inf"))
        if not len(distances) or not distances.min() <= _SAME_BOX:
            unmatched.append(float(score))
            continue
        match = int(distances.argmin())
        free[match] = False
        agreement.detections += 1
        for name in expected.keys() - {"labels"}:
            agreement.add(name, float((actual[name][match] - expected[name][index]).abs().max()))
    unmatched += actual["scores"][free].tolist()
    missing = [score for score in unmatched if not abs(score - threshold) <= TOLERANCES["scores"]]
    agreement.unmatched += len(missing)
    agreement.detections += len(missing)
