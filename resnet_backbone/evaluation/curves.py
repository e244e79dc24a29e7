"""Precision at each recall: the curve whose mean height is the AP."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet_backbone.evaluation.coco import ALL
from resnet_backbone.evaluation.matching import COCO, HIT, IGNORED, ClassMatches, Matches


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision at COCO's 101 recall levels, 0 to 1, for each class and as the mean over the classes with objects."""

    iou: float
    class_names: tuple[str, ...]
    recall: np.ndarray  # (101,): 0, 0.01, ..., 1
    precision: np.ndarray  # (classes, 101); 0 where that recall is not reached, nan for a class without objects
    scores: np.ndarray  # (classes, 101): detections of this score or more reach that recall; nan where none do
    mean: np.ndarray  # (101,), over the classes; its own mean is the AP at that IoU, 0 to 1; nan without any object


def precision_recall(matches: Matches, iou: float = 0.5) -> PrecisionRecall:
    """The curve of objects of every size.

    Precision at a recall is the best that the detector has at that recall or a higher one, as COCO's AP takes it; so
    the curve never rises.

    Args:
        matches: a run's detections, from :func:`resnet_backbone.evaluation.matching.match`.
        iou: one of COCO's ten, 0.5, 0.55, ..., 0.95.

    Raises:
        ValueError: another IoU.

    Source: pycocotools' COCOeval.accumulate, eval["precision"] and eval["scores"].
    """
    known = np.flatnonzero(np.isclose(COCO.iouThrs, iou))
    if not len(known):
        raise ValueError(f"iou must be one of COCO's, {', '.join(f'{value:g}' for value in COCO.iouThrs)}; got {iou}")
    curves = [_curve(found, int(known[0])) for found in matches.classes]
    precision = np.stack([precision for precision, _ in curves])
    with_objects = precision[~np.isnan(precision[:, 0])]
    return PrecisionRecall(
        iou=float(COCO.iouThrs[known[0]]),
        class_names=tuple(found.name for found in matches.classes),
        recall=np.array(COCO.recThrs),
        precision=precision,
        scores=np.stack([scores for _, scores in curves]),
        mean=with_objects.mean(axis=0) if len(with_objects) else np.full(len(COCO.recThrs), np.nan),
    )


def _curve(found: ClassMatches, threshold: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and score of one class at each recall level."""
    precision, scores = np.full((2, len(COCO.recThrs)), np.nan)
    objects = found.num_objects[ALL].sum()
    if not objects:
        return precision, scores
    outcomes = found.outcomes[ALL, threshold]
    hits = np.cumsum(outcomes == HIT)
    seen = np.cumsum(outcomes != IGNORED)
    best_from_here = np.maximum.accumulate((hits / (seen + np.spacing(1)))[::-1])[::-1]
    first = np.searchsorted(hits / objects, COCO.recThrs, side="left")
    reached = first < len(outcomes)
    precision[:] = 0
    precision[reached] = best_from_here[first[reached]]
    scores[reached] = found.scores[first[reached]]
    return precision, scores
