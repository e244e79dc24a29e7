"""The second stage run as the paper's Table 9 does: on several detectors, several scales, and twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from resnet_backbone.improvements.boxes import Detections, carry, clip, select
from resnet_backbone.improvements.scales import adjacent_scales, pyramid, resized
from resnet_backbone.improvements.settings import Settings
from resnet_backbone.improvements.two_stage import Scale, TwoStageDetector


class ImprovedDetector:
    """Box refinement, multi-scale testing and an ensemble, each or all or none of them, around trained detectors.

    - **Ensemble**: the proposals of all detectors together, each from its own test size; of every proposal, the mean of
      the detectors' class probabilities and the mean of their regressed boxes.
    - **Multi-scale testing**: proposals still come from the test size. A region's vector is the elementwise maximum
      ("maxout") of its vectors at two adjacent sizes, which ``scales.adjacent_scales`` chooses.
    - **Box refinement**: each proposal's regressed box, that of its most probable foreground class where every class
      has one, is clipped and takes the proposal's place: new vector, new probabilities, new boxes. Old and new
      predictions together go through the suppression of overlaps within each class, and box voting.

    With none of them, the detections are those of the one detector itself, to the bit.

    Args:
        detectors: in eval mode, of the same classes in the same order. Overlaps are suppressed in the pixels of the
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
        boxes = clip(carry(found.boxes, frame, original), original)
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        return Detections(boxes[keep], found.scores[keep], found.labels[keep])

    def _predict(self, views: Sequence[_View], proposals: Tensor, frame: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the probabilities (R, K) and the clipped boxes (R, K, 4) of all passes over the second stage."""
        probabilities, boxes = _mean_prediction(views, proposals)
        boxes = clip(boxes, frame)
        if self.settings.refinement is None:
            return probabilities, boxes
        best = probabilities.argmax(dim=1)
        refined = boxes[torch.arange(len(boxes), device=boxes.device), best]
        refined = refined[refined.isfinite().all(dim=1)]  # half precision may overflow: no place to pool from
        if not len(refined):
            return probabilities, boxes
        new_probabilities, new_boxes = _mean_prediction(views, refined)
        return torch.cat([probabilities, new_probabilities]), torch.cat([boxes, clip(new_boxes, frame)])


class _View:
    """What one detector sees of one image. Boxes come and go in pixels of ``frame``, (height, width)."""

    def __init__(self, detector: TwoStageDetector, image: Tensor, frame: tuple[int, int], settings: Settings) -> None:
        self.detector = detector
        self.image = image
        self.frame = frame
        original = (image.shape[-2], image.shape[-1])
        self.test_size = resized(original, *detector.test_size)
        multi_scale = settings.multi_scale
        sizes = [self.test_size]
        self.sizes = sizes if multi_scale is None else pyramid(original, multi_scale.sizes, multi_scale.max_size)
        self._scales: dict[tuple[int, int], Scale] = {}

    def propose(self) -> Tensor:
        return self._carry(self.detector.propose(self._scale(self.test_size)), self.test_size, self.frame)

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

    def _vectors_at(self, size: tuple[int, int], boxes: Tensor) -> Tensor:
        return self.detector.region_vectors(self._scale(size), self._carry(boxes, self.frame, size))

    def _scale(self, size: tuple[int, int]) -> Scale:
        if size not in self._scales:
            self._scales[size] = self.detector.scale(self.image, *size)
        return self._scales[size]

    @staticmethod
    def _carry(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
        return boxes if from_size == to_size else carry(boxes, from_size, to_size)


def _mean_prediction(views: Sequence[_View], boxes: Tensor) -> tuple[Tensor, Tensor]:
    predictions = [view.predict(boxes) for view in views]
    if len(predictions) == 1:
        return predictions[0]
    probabilities, regressed = zip(*predictions, strict=True)
    return torch.stack(probabilities).mean(dim=0), torch.stack(regressed).mean(dim=0)
