"""Matching detections to objects (true and false positives), and the precision-recall curves made of it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import Params

from resnet_backbone.data.coco.read import GroundTruth, IouType, read_ground_truth
from resnet_backbone.metrics.coco import ALL, IOU_50, IOU_75, LARGE, MEDIUM, SMALL
from resnet_backbone.metrics.result_table import Results, ResultTable, read_results

TRUE_POSITIVE, FALSE_POSITIVE, IGNORED = 1, -1, 0
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
COCO = Params("bbox")  # the ten IoUs, 101 recall levels and four ranges of area, the same for masks
ENTRIES_AT_ONCE = 4_000_000  # of samples x detections; bounds the memory of the bootstrap to some hundred MB


@dataclass(frozen=True)
class ClassMatches:
    """One class's detections of all images, highest score first, and how many objects of it each image has.

    Of equal scores the earlier image comes first, as in COCO's code.
    """

    name: str
    scores: np.ndarray  # float64, (D,)
    images: np.ndarray  # int32, (D,), position in Matches.image_ids
    # int8, (4 areas, 10 IoUs, D): TRUE_POSITIVE, FALSE_POSITIVE or IGNORED (crowds, objects of other sizes)
    outcomes: np.ndarray
    num_objects: np.ndarray  # int32, (4 areas, number of images)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """AP at each area and IoU, (S, 4, 10), 0 to 1, for S weightings (S, number of images) of the images.

        nan where an area has no object, or only in images of weight 0.
        """
        rows = max(1, ENTRIES_AT_ONCE // max(1, len(self.scores)))
        parts = [self._average_precision(weights[start : start + rows]) for start in range(0, len(weights), rows)]
        return np.concatenate(parts)

    def _average_precision(self, weights: np.ndarray) -> np.ndarray:
        objects = weights @ self.num_objects.T.astype(float)
        weight = weights[:, self.images]
        values = np.zeros((len(weights), *self.outcomes.shape[:2]))
        for area, outcomes in enumerate(self.outcomes):
            counted = outcomes != IGNORED
            seen_at_first_iou = np.cumsum(weight * counted[0], axis=1)
            for threshold in range(len(outcomes)):
                hits = np.flatnonzero(outcomes[threshold] == TRUE_POSITIVE)
                if not len(hits):
                    continue
                seen = seen_at_first_iou[:, hits]
                # From one IoU to another only few detections begin or cease to count; summing them alone saves time.
                changed = np.flatnonzero(counted[threshold] != counted[0])
                if len(changed):
                    change = np.where(counted[threshold, changed], 1, -1) * weight[:, changed]
                    change = np.pad(np.cumsum(change, axis=1), ((0, 0), (1, 0)))
                    seen += change[:, np.searchsorted(changed, hits, side="right")]
                values[:, area, threshold] = area_under_curve(
                    np.cumsum(weight[:, hits], axis=1), seen, objects[:, area]
                )
        values[objects == 0] = np.nan
        return values


@dataclass(frozen=True)
class Matches:
    """One run's detections, matched with the ground truth at COCO's ten IoUs and four ranges of size."""

    iou_type: IouType
    image_ids: tuple[int, ...]  # ascending
    classes: tuple[ClassMatches, ...]  # in the order of the category ids

    def metrics(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl and "AP-<class>" of every class, in percent; nan where there is no object."""
        sampled = self.sampled_metrics(np.ones((1, len(self.image_ids))))
        return {name: float(values[0]) for name, values in sampled.items()}

    def sampled_metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The figures of :meth:`metrics`, each (S,), for S weightings at once.

        Args:
            weights: how often each image counts, float (S, number of images), whole numbers of 0 or more. The figures
                are COCO's on a data set that holds each image so many times. (Where two detections of one image and
                class have the same score, their order there is a matter of chance.)
        """
        values = np.stack([found.average_precision(weights) for found in self.classes], axis=1)  # (S, classes, 4, 10)
        figures = {
            "AP": values[:, :, ALL],
            "AP50": values[:, :, ALL, IOU_50],
            "AP75": values[:, :, ALL, IOU_75],
            "APs": values[:, :, SMALL],
            "APm": values[:, :, MEDIUM],
            "APl": values[:, :, LARGE],
        }
        figures |= {f"AP-{found.name}": values[:, index, ALL] for index, found in enumerate(self.classes)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            return {name: 100 * np.nanmean(part.reshape(len(part), -1), axis=1) for name, part in figures.items()}


def match(
    ground_truth: Path | Mapping[str, Any] | GroundTruth,
    results: Results | ResultTable,
    *,
    iou_type: IouType = "bbox",
    max_detections: int = 100,
) -> Matches:
    """Match detections with ground truth as COCO does.

    Args:
        ground_truth, results, iou_type: as for :func:`resnet_backbone.metrics.coco.evaluate_coco`.
        max_detections: how many of an image's best detections of a class count, 1 or more. COCO takes 100.

    Raises:
        FileNotFoundError, TypeError, ValueError: as evaluate_coco.

    Source: pycocotools' COCOeval.evaluateImg, which keeps the same in a form that takes minutes and gigabytes.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f'iou_type must be "bbox" or "segm", got {iou_type!r}')
    if max_detections < 1:
        raise ValueError(f"max_detections must be 1 or more, got {max_detections}")
    truth, found = read_pair(ground_truth, results, iou_type)
    areas = truth.areas(iou_type), found.areas(iou_type)
    detections, objects = group_by(found.labels), group_by(truth.labels)
    classes = tuple(
        _match_class(name, truth, objects[label], found, detections[label], areas, iou_type, max_detections)
        for label, name in enumerate(truth.class_names)
    )
    return Matches(iou_type, tuple(truth.image_ids.tolist()), classes)


def read_pair(
    ground_truth: Path | Mapping[str, Any] | GroundTruth, results: Results | ResultTable, iou_type: IouType
) -> tuple[GroundTruth, ResultTable]:
    """Read what is compared, where it has not been read."""
    if not isinstance(ground_truth, GroundTruth):
        ground_truth = read_ground_truth(ground_truth, (iou_type,))
    return ground_truth, results if isinstance(results, ResultTable) else read_results(
        results, ground_truth, (iou_type,)
    )


def group_by(values: np.ndarray) -> dict[int, np.ndarray]:
    """Return the places of each of the ``values``, integers (N,), ascending; none of a value that does not occur."""
    order = np.argsort(values, kind="stable")
    found, starts = np.unique(values[order], return_index=True)
    places = np.split(order, starts[1:]) if len(found) else []
    return defaultdict(lambda: np.zeros(0, dtype=np.int64), zip(found.tolist(), places, strict=True))


def best_first(scores: np.ndarray, rows: np.ndarray, max_detections: int) -> np.ndarray:
    """Return the rows of one image's and class's detections, the best first, and no more than that many."""
    return rows[np.argsort(-scores[rows], kind="stable")][:max_detections]


def overlaps(
    found: ResultTable, detections: np.ndarray, truth: GroundTruth, objects: np.ndarray, iou_type: IouType
) -> np.ndarray:
    """Return the IoU of every detection with every object, (D, G), by their rows; with a crowd, the share of the
    detection that lies in it."""
    if not len(detections) or not len(objects):
        return np.zeros((len(detections), len(objects)))
    crowd = truth.is_crowd[objects].astype(int).tolist()
    if iou_type == "bbox":
        return coco_mask.iou(found.boxes[detections], truth.boxes[objects], crowd)
    return coco_mask.iou([found.masks[row] for row in detections], [truth.masks[row] for row in objects], crowd)


def assign(ious: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Give each detection of one image and class its object, by COCO's rule.

    From the best score down, a detection takes of the objects that are still free the one that it overlaps most, if by
    the threshold or more; one that is ignored only where no other is left. A crowd is never used up.

    Args:
        ious: (D, G), the best detection first.
        thresholds: (T,).
        ignored: bool, (A, G), for each range of areas.
        crowd: bool, (G,).

    Returns:
        Integer, (A, T, D): 0 to G - 1, or -1 for a detection without an object.
    """
    num_objects = ious.shape[1]
    partner = np.full((len(ignored), len(thresholds), len(ious)), -1)
    if not num_objects:
        return partner
    free = np.ones((len(ignored), len(thresholds), num_objects), bool)
    least = np.minimum(thresholds, 1 - 1e-10)[:, None]
    rank = np.argsort(np.argsort(ious, axis=1, kind="stable"), axis=1)  # of equal overlaps, COCO takes the last
    for index in np.flatnonzero(ious.max(axis=1) >= least.min()):
        preference = np.where(ignored, rank[index], rank[index] + num_objects)[:, None, :]
        preference = np.where(free & (ious[index] >= least), preference, -1)
        choice = preference.argmax(axis=2)
        found = preference.max(axis=2) >= 0
        partner[:, :, index] = np.where(found, choice, -1)
        area, threshold = np.nonzero(found & ~crowd[choice])
        free[area, threshold, choice[area, threshold]] = False
    return partner


def _match_class(
    name: str,
    truth: GroundTruth,
    objects: np.ndarray,
    found: ResultTable,
    detections: np.ndarray,
    areas: tuple[np.ndarray, np.ndarray],
    iou_type: IouType,
    max_detections: int,
) -> ClassMatches:
    """Match the rows ``detections`` with the rows ``objects``; ``areas`` are those of all objects and detections."""
    by_image = group_by(found.images[detections])
    best = [best_first(found.scores, detections[by_image[image]], max_detections) for image in sorted(by_image)]
    detections = np.concatenate([detections[:0], *best])
    images = found.images[detections].astype(np.int32)
    scores = found.scores[detections]
    outside = _outside(areas[1][detections])
    outcomes = np.where(outside, IGNORED, FALSE_POSITIVE).astype(np.int8)[:, None].repeat(len(COCO.iouThrs), axis=1)
    num_objects = np.zeros((len(COCO.areaRng), len(truth.image_ids)), np.int32)
    for image, places in group_by(truth.images[objects]).items():
        here = objects[places]
        crowd = truth.is_crowd[here]
        ignored = crowd | _outside(areas[0][here])
        num_objects[:, image] = (~ignored).sum(axis=1)
        part = slice(*np.searchsorted(images, [image, image + 1]))
        partner = assign(overlaps(found, detections[part], truth, here, iou_type), COCO.iouThrs, ignored, crowd)
        area, threshold, matched = np.nonzero(partner >= 0)
        taken = ignored[area, partner[area, threshold, matched]]
        outcomes[:, :, part][area, threshold, matched] = np.where(taken, IGNORED, TRUE_POSITIVE)
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(name, scores[order], images[order], outcomes[:, :, order], num_objects)


def _outside(areas: np.ndarray) -> np.ndarray:
    """Bool, (4, N): not in that range of areas."""
    low, high = np.array(COCO.areaRng, float).T[:, :, None]
    return (areas < low) | (areas > high)


def area_under_curve(hits: np.ndarray, seen: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Mean precision over COCO's recall levels, (S,).

    Precision falls from one hit to the next and no further hit lies between, so the hits alone decide.

    Args:
        hits, seen: (S, N), how many hits, and how many detections, there are up to and including each hit.
        objects: (S,).
    """
    precision = hits / (seen + np.spacing(1))
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = hits / np.maximum(objects, 1)[:, None]
    levels = np.searchsorted(COCO.recThrs, recall, side="right")  # that many levels are reached
    return (best_from_here * np.diff(levels, axis=1, prepend=0)).sum(axis=1) / len(COCO.recThrs)


def check_same_test(matches: Sequence[Matches]) -> None:
    """Raise ValueError unless all were matched with the same images, classes and objects, boxes or masks alike."""
    first = matches[0]
    for number, other in enumerate(matches[1:], start=2):
        if other.iou_type != first.iou_type:
            raise ValueError(f'run {number} was matched by "{other.iou_type}", the first by "{first.iou_type}"')
        if other.image_ids != first.image_ids:
            raise ValueError(
                f"run {number} was tested on {len(other.image_ids)} images, the first on {len(first.image_ids)}, and "
                "these are not the same ones; compare runs on the same images"
            )
        names, first_names = ([found.name for found in run.classes] for run in (other, first))
        if names != first_names:
            raise ValueError(f"run {number} knows the classes {names}, the first {first_names}")
        for mine, theirs in zip(other.classes, first.classes, strict=True):
            if not np.array_equal(mine.num_objects, theirs.num_objects):
                raise ValueError(f"run {number} has other objects of class {mine.name!r} than the first to find")


def per_image_difference(matches_a: Matches, matches_b: Matches, *, score: float = 0.5) -> np.ndarray:
    """By how many detections B is better than A on each image: float, (number of images,), in the order of image_ids.

    An image's value is the number of true positives minus the number of false positives, at IoU 0.5 among the
    detections that score ``score`` or more; the difference is B's value minus A's.

    Raises:
        ValueError: the runs were not tested on the same images, classes and objects.
    """
    check_same_test([matches_a, matches_b])
    (hits_a, wrong_a), (hits_b, wrong_b) = _hits_and_wrong(matches_a, score), _hits_and_wrong(matches_b, score)
    return (hits_b - wrong_b) - (hits_a - wrong_a)


def _hits_and_wrong(matches: Matches, score: float) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives of each image."""
    counts = np.zeros((2, len(matches.image_ids)))
    for found in matches.classes:
        for row, outcome in enumerate((TRUE_POSITIVE, FALSE_POSITIVE)):
            counted = (found.scores >= score) & (found.outcomes[ALL, IOU_50] == outcome)
            counts[row] += np.bincount(found.images[counted], minlength=counts.shape[1])
    return counts[0], counts[1]


def worst_and_best(matches: Matches, count: int, *, score: float = 0.5) -> list[int]:
    """Ids of half of ``count`` images with the most mistakes, the worst first, then of as many with the best results.

    Mistakes are false positives and missed objects at IoU 0.5 among the detections that score ``score`` or more; the
    best images have the most true positives above their mistakes. Images without objects and detections are left out.
    """
    objects = np.sum([found.num_objects[ALL] for found in matches.classes], axis=0)
    hits, wrong = _hits_and_wrong(matches, score)
    mistakes = wrong + objects - hits
    worst = [int(index) for index in np.argsort(-mistakes, kind="stable")[: count // 2] if mistakes[index] > 0]
    ranked = np.argsort(mistakes - hits, kind="stable")
    best = [int(index) for index in ranked if hits[index] > 0 and index not in worst]
    return [matches.image_ids[index] for index in [*worst, *best[: count - len(worst)]]]


def most_different(matches_a: Matches, matches_b: Matches, count: int, *, score: float = 0.5) -> list[int]:
    """Ids of the images with the largest :func:`per_image_difference`, in either direction, the largest first.

    At most ``count``, fewer where fewer differ; of equal ones the smaller id comes first.
    """
    difference = per_image_difference(matches_a, matches_b, score=score)
    order = np.argsort(-np.abs(difference), kind="stable")[:count]
    return [matches_a.image_ids[index] for index in order if difference[index] != 0]


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision at COCO's 101 recall levels, 0 to 1, for each class and as the mean over the classes with objects."""

    recall: np.ndarray  # (101,): 0, 0.01, ..., 1
    precision: np.ndarray  # (classes, 101); 0 where that recall is not reached, nan for a class without objects
    mean: np.ndarray  # (101,), over the classes; its own mean is the AP at that IoU, 0 to 1; nan without any object


def precision_recall(matches: Matches, iou: float = 0.5) -> PrecisionRecall:
    """The curve of objects of every size.

    Precision at a recall is the best that the detector has at that recall or a higher one, as COCO's AP takes it; so
    the curve never rises.

    Args:
        matches: a run's detections, from :func:`resnet_backbone.metrics.matching.match`.
        iou: one of COCO's ten, 0.5, 0.55, ..., 0.95.

    Raises:
        ValueError: another IoU.

    Source: pycocotools' COCOeval.accumulate, eval["precision"].
    """
    known = np.flatnonzero(np.isclose(COCO.iouThrs, iou))
    if not len(known):
        raise ValueError(f"iou must be one of COCO's, {', '.join(f'{value:g}' for value in COCO.iouThrs)}; got {iou}")
    precision = np.full((len(matches.classes), len(COCO.recThrs)), np.nan)
    for curve, found in zip(precision, matches.classes, strict=True):
        if objects := found.num_objects[ALL].sum():
            outcomes = found.outcomes[ALL, known[0]]
            hits, seen = np.cumsum(outcomes == TRUE_POSITIVE), np.cumsum(outcomes != IGNORED)
            best_from_here = np.maximum.accumulate((hits / (seen + np.spacing(1)))[::-1])[::-1]
            first = np.searchsorted(hits / objects, COCO.recThrs, side="left")
            curve[:] = np.append(best_from_here, 0)[first]  # 0 where that recall is not reached
    with_objects = precision[~np.isnan(precision[:, 0])]
    return PrecisionRecall(
        recall=np.array(COCO.recThrs),
        precision=precision,
        mean=with_objects.mean(axis=0) if len(with_objects) else np.full(len(COCO.recThrs), np.nan),
    )
