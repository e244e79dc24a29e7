"""The improvements of the paper's Table 9 at test time: box refinement with voting, multi-scale testing, ensembles.

Written once for both engines, on what a detector of two stages can do (:class:`TwoStageDetector`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torchvision.ops import batched_nms, box_area, box_iou, clip_boxes_to_image, remove_small_boxes

from resnet_backbone.data.transforms import shortest_edge_size
from resnet_backbone.engine.checkpoint import engine_of, find_run
from resnet_backbone.metrics.results import Detections
from resnet_backbone.models.layers import precise

_CLASSIFIER_AREA = 224**2  # pixels: what the classifier was trained on
Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class BoxRefinement:
    """A second pass over the regressed boxes, then box voting."""

    nms_thresh: float  # of two boxes of a class that overlap more (IoU), the one with the lower score goes
    vote_thresh: float  # boxes of its class that overlap a kept box at least so much (IoU) share in its place


@dataclass(frozen=True)
class MultiScale:
    """Regions from several sizes of the image."""

    sizes: tuple[int, ...]  # lengths of the image's shorter side in pixels, ascending
    max_size: int  # limit of its longer side


@dataclass(frozen=True)
class Settings:
    """How vectors and predictions become detections."""

    score_thresh: float  # detections have scores above it, from 0 to 1
    nms_thresh: float  # IoU, where there is no refinement, which has a threshold of its own
    max_detections: int  # of an image
    min_side: float = 0.0  # predictions whose width or height (at the test size, pixels) is less are dropped
    first_label: int = 0  # the number of the first foreground class where overlaps are suppressed
    refinement: BoxRefinement | None = None  # None for none
    multi_scale: MultiScale | None = None  # None for the test size alone


def improvement_settings(cfg: CfgNode, *, min_side: float = 0.0, first_label: int = 0) -> Settings:
    """Read MODEL.ROI_HEADS and TEST of a checked config.

    ``min_side`` and ``first_label`` are those of the engine's own detector, so that its detections come out to the bit.
    """
    heads, refinement, multi_scale = cfg.MODEL.ROI_HEADS, cfg.TEST.BOX_REFINEMENT, cfg.TEST.MULTI_SCALE
    return Settings(
        score_thresh=heads.SCORE_THRESH_TEST,
        nms_thresh=heads.NMS_THRESH_TEST,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        min_side=min_side,
        first_label=first_label,
        refinement=BoxRefinement(refinement.NMS_THRESH, refinement.VOTE_THRESH) if refinement.ENABLED else None,
        multi_scale=MultiScale(tuple(multi_scale.SIZES), multi_scale.MAX_SIZE) if multi_scale.ENABLED else None,
    )


def scale_boxes(boxes: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """Return boxes (..., 4), XYXY of an image of ``from_size``, for the same image at ``to_size``."""
    if from_size == to_size:
        return boxes
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def select(probabilities: Tensor, boxes: Tensor, settings: Settings) -> Detections:
    """Take the predictions above the score threshold, apply NMS within each class, and vote where there is refinement.

    Probabilities are (R, K) of the foreground classes; boxes (R, K, 4), XYXY, clipped to the image.
    """
    rows, labels = torch.where(probabilities > settings.score_thresh)
    scores, candidates = probabilities[rows, labels], boxes[rows, labels]
    large = remove_small_boxes(candidates, settings.min_side)
    found = Detections(candidates[large], scores[large], labels[large])
    refinement = settings.refinement
    nms_thresh = settings.nms_thresh if refinement is None else refinement.nms_thresh
    # Boxes of different classes are kept apart by shifts in proportion to these numbers, which round the boxes.
    numbers = found.labels + settings.first_label
    keep = batched_nms(found.boxes, found.scores, numbers, nms_thresh)[: settings.max_detections]
    kept = Detections(found.boxes[keep], found.scores[keep], found.labels[keep])
    return kept if refinement is None else replace(kept, boxes=box_voting(kept, found, refinement.vote_thresh))


def box_voting(kept: Detections, voters: Detections, threshold: float) -> Tensor:
    """Return for each kept box the mean of the boxes of its class that overlap it, weighted by their scores.

    Args:
        kept: which boxes; each is one of the voters.
        voters: every prediction above the score threshold, those that NMS drops too.
        threshold: the IoU from which a box has a vote; a kept box always has one.

    Returns:
        (R, 4); the scores stay as they are.

    Source: Gidaris & Komodakis 2015 (arXiv 1505.01749), section 5, "Box voting".
    """
    votes = (box_iou(kept.boxes, voters.boxes) >= threshold) & (kept.labels[:, None] == voters.labels)
    weights = votes * precise(voters.scores)  # which mixed precision leaves alone
    total = weights.sum(dim=1, keepdim=True)
    # A box without area overlaps nothing, not even itself.
    return torch.where(total > 0, weights @ precise(voters.boxes) / total, precise(kept.boxes)).to(kept.boxes)


def resized(size: Size, short_edge: int, max_size: int) -> Size:
    """Return what an image of ``size`` becomes; 0 for ``short_edge`` keeps it."""
    return shortest_edge_size(*size, short_edge, max_size) if short_edge else size


def pyramid(size: Size, short_edges: Sequence[int], max_size: int) -> list[Size]:
    """Return the sizes of an image, ascending; those that ``max_size`` makes equal come once."""
    return list(dict.fromkeys(shortest_edge_size(*size, edge, max_size) for edge in short_edges))


def adjacent_scales(boxes: Tensor, size: Size, sizes: Sequence[Size]) -> Tensor:
    """Return for each box the one or two sizes that suit it, as indices (R, 1 or 2) into ``sizes``.

    The first is where the box has the number of pixels nearest to 224 x 224 (SPPnet); the second is the neighbour, next
    smaller or next larger, that comes nearer to it. Of two that are equally near, the smaller one. Where there is one
    size, it alone.

    Args:
        boxes: (R, 4), XYXY in pixels of the image at ``size``.
        size: see there.
        sizes: of the image, ascending, each once.

    Source: He et al. 2014, "Spatial Pyramid Pooling" (arXiv 1406.4729), section 4.1; Ren et al. 2015, "Object Detection
    Networks on Convolutional Feature Maps" (arXiv 1504.06066), "Maxout for Scale Selection".
    """
    areas = precise(box_area(boxes))
    factors = areas.new_tensor([h * w / (size[0] * size[1]) for h, w in sizes])
    distances = (areas[:, None] * factors - _CLASSIFIER_AREA).abs()
    best = distances.argmin(dim=1, keepdim=True)
    if len(sizes) == 1:
        return best
    outside = distances.new_full((len(boxes), 1), torch.inf)  # of the list: never the nearer neighbour
    padded = torch.cat([outside, distances, outside], dim=1)
    below, above = padded.gather(1, best), padded.gather(1, best + 2)
    return torch.cat([best, torch.where(below <= above, best - 1, best + 1)], dim=1)


@dataclass(frozen=True)
class Scale:
    """One image at one size, with its features computed."""

    size: Size  # of the resized image, without padding. Boxes "of this scale" are in its pixels
    features: Any  # whatever the detector that made it needs again; nobody else looks inside


class TwoStageDetector(Protocol):
    """A trained Faster R-CNN in eval mode, taken apart: image -> proposals -> vectors -> scores and boxes.

    Boxes are float32 (R, 4), XYXY in pixels, on the detector's device. R may be 0 in :meth:`region_vectors` and
    :meth:`predict`. Run in this order at one size, and followed by NMS, the parts must give to the bit what the
    engine's own detector gives.
    """

    test_size: Size  # INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST of this detector's own config

    def scale(self, image: Tensor, height: int, width: int) -> Scale:
        """Resize an original image, uint8 (3, H, W), RGB, as the engine's test transform does; compute its features."""
        ...

    def propose(self, scale: Scale) -> Tensor:
        """Return the proposals of the first stage, (R, 4) of this scale, best first."""
        ...

    def region_vectors(self, scale: Scale, boxes: Tensor) -> Tensor:
        """Run all that lies between the boxes, (R, 4) of this scale, and the two last layers, for vectors (R, C).

        That is cropping and the box head; with MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT also the vector of the whole image
        at this scale, behind each region's own.
        """
        ...

    def predict(self, vectors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Run the two last layers on vectors (R, C) that are of ``boxes`` (R, 4) of any one scale.

        Returns:
            Probabilities float32 (R, K) of the K foreground classes, out of a softmax over K + 1; and regressed boxes
            float32 (R, K, 4) in the pixels that ``boxes`` are in, not clipped. Where the regression is the same for
            all classes, its box is repeated.
        """
        ...


class ImprovedDetector:
    """Box refinement, multi-scale testing and an ensemble, each or all or none of them, around trained detectors.

    - **Ensemble**: the proposals of all detectors together, each from its own test size; of every proposal, the mean of
      the detectors' class probabilities and the mean of their regressed boxes.
    - **Multi-scale testing**: proposals still come from the test size. A region's vector is the elementwise maximum
      ("maxout") of its vectors at two adjacent sizes, which :func:`adjacent_scales` chooses.
    - **Box refinement**: each proposal's regressed box, that of its most probable foreground class where every class
      has one, is clipped and takes the proposal's place: new vector, new probabilities, new boxes. Old and new
      predictions together go through NMS within each class, and box voting.

    With none of them, the detections are those of the one detector itself, to the bit.

    Args:
        detectors: in eval mode, of the same classes in the same order. NMS works in the pixels of the
            first one's test size.
        settings: of the run, for all detectors.

    Raises:
        ValueError: no detector.

    Source: He et al. 2015 (arXiv 1512.03385), appendix B.
    """

    def __init__(self, detectors: Sequence[TwoStageDetector], settings: Settings) -> None:
        if not detectors:
            raise ValueError("no detector was given; expected one, or several for an ensemble")
        self.detectors = tuple(detectors)
        self.settings = settings

    def __call__(self, image: Tensor) -> Detections:
        """Detect in an original image, uint8 (3, H, W), RGB; the boxes are in its pixels, none of them empty."""
        original = (image.shape[-2], image.shape[-1])
        frame = resized(original, *self.detectors[0].test_size)
        views = [_View(detector, image, frame, self.settings) for detector in self.detectors]
        proposals = torch.cat([view.propose() for view in views])
        if not len(proposals):
            return Detections(proposals, proposals[:, 0], proposals[:, 0].long())
        found = select(*self._predict(views, proposals, frame), self.settings)
        boxes = clip_boxes_to_image(scale_boxes(found.boxes, frame, original), original)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Detections(boxes[keep], found.scores[keep], found.labels[keep])

    def _predict(self, views: Sequence[_View], proposals: Tensor, frame: Size) -> tuple[Tensor, Tensor]:
        """Return the probabilities (R, K) and the clipped boxes (R, K, 4) of all passes over the second stage."""
        probabilities, boxes = _mean_prediction(views, proposals)
        boxes = clip_boxes_to_image(boxes, frame)
        if self.settings.refinement is None:
            return probabilities, boxes
        best = probabilities.argmax(dim=1)
        refined = boxes[torch.arange(len(boxes), device=boxes.device), best]
        refined = refined[refined.isfinite().all(dim=1)]  # half precision may overflow: no place to pool from
        if not len(refined):
            return probabilities, boxes
        new_probabilities, new_boxes = _mean_prediction(views, refined)
        return torch.cat([probabilities, new_probabilities]), torch.cat([boxes, clip_boxes_to_image(new_boxes, frame)])


class _View:
    """What one detector sees of one image. Boxes come and go in pixels of ``frame``."""

    def __init__(self, detector: TwoStageDetector, image: Tensor, frame: Size, settings: Settings) -> None:
        self.detector = detector
        self.image = image
        self.frame = frame
        original = (image.shape[-2], image.shape[-1])
        self.test_size = resized(original, *detector.test_size)
        multi_scale = settings.multi_scale
        self.sizes = pyramid(original, multi_scale.sizes, multi_scale.max_size) if multi_scale else [self.test_size]
        self._scales: dict[Size, Scale] = {}

    def propose(self) -> Tensor:
        return scale_boxes(self.detector.propose(self._scale(self.test_size)), self.test_size, self.frame)

    def predict(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        return self.detector.predict(self._vectors(boxes), boxes)

    def _vectors(self, boxes: Tensor) -> Tensor:
        """Return vectors (R, C), the maximum over the scales that suit each box; R is 1 or more."""
        if len(self.sizes) == 1:
            return self._vectors_at(self.sizes[0], boxes)
        chosen = adjacent_scales(boxes, self.frame, self.sizes)
        merged = torch.empty(0)
        for index in chosen.unique().tolist():
            rows = torch.where((chosen == index).any(dim=1))[0]
            vectors = self._vectors_at(self.sizes[index], boxes[rows])
            if not len(merged):
                merged = vectors.new_full((len(boxes), vectors.shape[1]), -torch.inf)
            merged[rows] = torch.maximum(merged[rows], vectors)
        return merged

    def _vectors_at(self, size: Size, boxes: Tensor) -> Tensor:
        return self.detector.region_vectors(self._scale(size), scale_boxes(boxes, self.frame, size))

    def _scale(self, size: Size) -> Scale:
        if size not in self._scales:
            self._scales[size] = self.detector.scale(self.image, *size)
        return self._scales[size]


def _mean_prediction(views: Sequence[_View], boxes: Tensor) -> tuple[Tensor, Tensor]:
    probabilities, regressed = zip(*(view.predict(boxes) for view in views), strict=True)
    return torch.stack(probabilities).mean(dim=0), torch.stack(regressed).mean(dim=0)


Model = TypeVar("Model")


def load_ensemble(
    cfg: CfgNode,
    class_names: Sequence[str],
    engine: str,
    load: Callable[[Path, Sequence[str]], tuple[CfgNode, Model, tuple[str, ...]]],
) -> list[tuple[CfgNode, Model]]:
    """Load the other detectors of an ensemble, each with its config, from the runs that TEST.ENSEMBLE names.

    Each keeps its own channel order, pixel mean and test size; nothing else of TEST in its config counts.

    Args:
        cfg: of the run; checked.
        class_names: which the others must have learned, in this order.
        engine: of the run.
        load: reads a config file with overrides, and returns the config, the trained detector and its classes.

    Raises:
        FileNotFoundError: a folder has no ``config.yaml`` or no checkpoint.
        ValueError: one of the others is of another engine, of other classes, or its files do not fit each other.
    """
    members = []
    for name in cfg.TEST.ENSEMBLE:
        try:
            config_file, weights = find_run(name)
            found_engine = engine_of(weights)
            if found_engine != engine:
                raise ValueError(f"{weights} is of the {found_engine} engine; evaluate with --engine {found_engine}")
            overrides = ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", cfg.MODEL.DEVICE]
            member_cfg, model, learned = load(config_file, overrides)
            if learned != tuple(class_names):
                raise ValueError(f"it learned the classes {list(learned)}, this run has {list(class_names)}")
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"TEST.ENSEMBLE {name}: {error}") from error
        members.append((member_cfg, model))
    return members
