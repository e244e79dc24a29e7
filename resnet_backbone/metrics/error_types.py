"""Types of detection errors (classification, localisation, duplicate, ...) and the AP each costs, as in TIDE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.data.coco.read import GroundTruth, IouType
from resnet_backbone.metrics.matching import area_under_curve, assign, best_first, group_by, overlaps, read_pair
from resnet_backbone.metrics.result_table import Results, ResultTable

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
TRUE_POSITIVE = -1  # beside the numbers of the kinds
NONE = -1  # no class, no object


@dataclass(frozen=True)
class ErrorBreakdown:
    """How often each of KINDS happens and what it costs. The costs do not add up to what is lost.

    The first five kinds count false positives by the class that was claimed, "missed" counts objects by their own.
    """

    iou: float
    background_iou: float
    ap: float  # at `iou`, percent, as COCO counts it: AP50 for 0.5; nan without any object
    hits: int  # detections that are right
    objects: int  # crowds not counted
    counts: Mapping[str, int]  # kind -> number of mistakes
    per_class: Mapping[str, Mapping[str, int]]  # class name -> kind -> number of mistakes
    costs: Mapping[str, float]  # kind -> points of AP gained by mending it alone; nan if then there is nothing to find


@dataclass(frozen=True)
class _Judged:
    """True and false positives in columns, (N,); of equal scores the earlier one counts first. Classes go from 0."""

    classes: np.ndarray  # integer
    scores: np.ndarray  # float
    kinds: np.ndarray  # integer: TRUE_POSITIVE, or a place in KINDS
    mended: np.ndarray  # integer: the class in which it becomes a hit once its kind is mended, or NONE: it is left out

    def mend(self, kind: int) -> _Judged:
        wrong = self.kinds == kind
        becomes_hit = wrong & (self.mended != NONE)
        stays = ~wrong | becomes_hit
        return _Judged(
            classes=np.where(becomes_hit, self.mended, self.classes)[stays],
            scores=self.scores[stays],
            kinds=np.where(becomes_hit, TRUE_POSITIVE, self.kinds)[stays],
            mended=self.mended[stays],
        )


def error_breakdown(
    ground_truth: Path | Mapping[str, Any] | GroundTruth,
    results: Results | ResultTable,
    *,
    iou: float = 0.5,
    background_iou: float = 0.1,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
) -> ErrorBreakdown:
    """Sort every mistake into one of six kinds, and say what AP would be without each.

    What hits is decided as COCO does it. Any other detection is of the first kind that fits, by the IoU with the
    object of its image that it overlaps most:

    - localisation: `background_iou` to `iou` with an object of its class. Mended it hits, if the object is still free.
    - classification: `iou` or more with one of another class. Mended it hits in that class, if the object is free.
    - duplicate: `iou` or more with one of its class that is hit already. Mended it is left out, as the next two are.
    - background: `background_iou` or less with everything.
    - both: what remains, another class and badly placed.
    - missed: an object that is not hit, and not what a detection of the first two kinds overlaps most. Mended it is
      not asked for.

    Where several of the first two kinds want the same free object, the highest score gets it; the others are left out.

    Crowds are no objects here, and a detection that COCO ignores because it lies in a crowd is no mistake. (TIDE's
    code counts such ones, and counts AP 0 for a class without objects, which COCO leaves out. On data without either,
    the two agree.)

    Args:
        ground_truth, results, iou_type: as for :func:`resnet_backbone.metrics.coco.evaluate_coco`.
        iou: from which IoU on a detection hits, at most 1.
        background_iou: up to which it has nothing to do with an object, above 0 and below `iou`.
        max_detections: how many of an image's best detections of a class count.

    Raises:
        FileNotFoundError, TypeError, ValueError: as evaluate_coco; ValueError for IoUs out of range, too.

    Source: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, 2020, arXiv 2008.08115.
    """
    if not 0 < background_iou < iou <= 1:
        raise ValueError(f"0 < background_iou < iou <= 1 must hold, got background_iou {background_iou} and iou {iou}")
    truth, results = read_pair(ground_truth, results, iou_type)
    found_in, there_in = group_by(results.images), group_by(truth.images)
    num_classes = len(truth.class_names)
    parts, objects, missed = [], np.zeros(num_classes, int), np.zeros(num_classes, int)
    for image in range(len(truth.image_ids)):
        there = there_in[image][~truth.is_crowd[there_in[image]]]
        found, is_hit, used = _hits(truth, there_in[image], results, found_in[image], iou, iou_type, max_detections)
        there_labels, found_labels, scores = truth.labels[there], results.labels[found], results.scores[found]
        same_class = found_labels[:, None] == there_labels
        kinds, meant = _kinds(overlaps(results, found, truth, there, iou_type), same_class, used, iou, background_iou)
        kinds[is_hit], meant[is_hit] = TRUE_POSITIVE, NONE
        winners = _winners(meant, scores, used)
        mended = np.full(len(found), NONE)
        mended[winners] = there_labels[meant[winners]]
        used[meant[winners]] = True
        parts.append((found_labels, scores, kinds, mended))
        objects += np.bincount(there_labels, minlength=num_classes)
        missed += np.bincount(there_labels[~used], minlength=num_classes)
    detections = _Judged(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    counts = [
        np.bincount(detections.classes[detections.kinds == kind], minlength=num_classes) for kind in range(MISSED)
    ]
    counts.append(missed)
    ap = _mean_ap(detections, objects, objects)
    mended_aps = [_mean_ap(detections.mend(kind), objects, objects) for kind in range(MISSED)]
    mended_aps.append(_mean_ap(detections, objects - missed, objects))
    return ErrorBreakdown(
        iou=iou,
        background_iou=background_iou,
        ap=ap,
        hits=int((detections.kinds == TRUE_POSITIVE).sum()),
        objects=int(objects.sum()),
        counts={kind: int(of_kind.sum()) for kind, of_kind in zip(KINDS, counts, strict=True)},
        per_class={
            name: {kind: int(of_kind[label]) for kind, of_kind in zip(KINDS, counts, strict=True)}
            for label, name in enumerate(truth.class_names)
        },
        costs={kind: float(np.maximum(mended - ap, 0)) for kind, mended in zip(KINDS, mended_aps, strict=True)},
    )


def _hits(
    truth: GroundTruth,
    annotations: np.ndarray,
    results: ResultTable,
    detections: np.ndarray,
    iou: float,
    iou_type: IouType,
    max_detections: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image's detections that count, by their rows, which of them hit, and which of its objects are hit; as COCO
    decides it. Objects are the annotations that are no crowds."""
    is_used = np.zeros(len(truth), bool)
    kept, is_hit = [np.zeros(0, int)], [np.zeros(0, bool)]
    annotations_of, found_of = group_by(truth.labels[annotations]), group_by(results.labels[detections])
    for label, places in found_of.items():
        found = best_first(results.scores, detections[places], max_detections)
        here = annotations[annotations_of[label]]
        crowd = truth.is_crowd[here]
        ious = overlaps(results, found, truth, here, iou_type)
        partner = assign(ious, np.array([iou]), crowd[None], crowd)[0, 0]
        hits = partner != NONE
        in_crowd = np.zeros(len(found), bool)
        in_crowd[hits] = crowd[partner[hits]]
        kept.append(found[~in_crowd])
        is_hit.append(hits[~in_crowd])
        is_used[here[partner[hits & ~in_crowd]]] = True
    return np.concatenate(kept), np.concatenate(is_hit), is_used[annotations[~truth.is_crowd[annotations]]]


def _kinds(
    ious: np.ndarray, same_class: np.ndarray, used: np.ndarray, iou: float, background_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """What each detection is if it is no hit, and for the first two kinds the object that it overlaps most, else NONE.

    Args:
        ious, same_class: (N, G), of each detection and each object of the image.
        used: (G,), which objects are hit.
    """
    if not len(used):
        return np.full(len(ious), BACKGROUND), np.full(len(ious), NONE)
    own, other = ious * same_class, ious * ~same_class
    best_own, best_other = own.max(axis=1), other.max(axis=1)
    conditions = {
        LOCALISATION: (background_iou <= best_own) & (best_own <= iou),
        CLASSIFICATION: best_other >= iou,
        DUPLICATE: (own * used).max(axis=1) >= iou,
        BACKGROUND: ious.max(axis=1) <= background_iou,
    }
    kinds = np.select(list(conditions.values()), list(conditions), default=BOTH)
    meant = np.where(kinds == LOCALISATION, own.argmax(axis=1), other.argmax(axis=1))
    return kinds, np.where(np.isin(kinds, [LOCALISATION, CLASSIFICATION]), meant, NONE)


def _winners(meant: np.ndarray, scores: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Of the detections that mean an object which is not hit, the best of each object: places, (M,)."""
    by_score = np.argsort(-scores, kind="stable")
    claims = by_score[meant[by_score] != NONE]
    claims = claims[~used[meant[claims]]]
    _, first = np.unique(meant[claims], return_index=True)
    return claims[first]


def _mean_ap(detections: _Judged, objects: np.ndarray, objects_before: np.ndarray) -> float:
    """Mean AP in percent over the classes that had objects before; nan if none had.

    A class that has lost all its objects counts 0 if it still has detections, else it is left out, as in TIDE.
    """
    values = []
    for label in np.flatnonzero(objects_before):
        mine = np.flatnonzero(detections.classes == label)
        ordered = mine[np.argsort(-detections.scores[mine], kind="stable")]
        places = np.flatnonzero(detections.kinds[ordered] == TRUE_POSITIVE)
        if objects[label] or len(mine):
            hits = np.arange(1.0, len(places) + 1)
            values.append(area_under_curve(hits[None], places[None] + 1, objects[label, None])[0])
    return 100 * float(np.mean(values)) if values else float("nan")
