"""Matching detections to objects (true and false positives), and the precision-recall curves made of it."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import Params

from resnet_backbone.metrics.coco import ALL, IOU_50, IOU_75, LARGE, MEDIUM, SMALL, IouType
from resnet_backbone.metrics.coco_input import Record, read_ground_truth, read_results
from resnet_backbone.metrics.masks import mask_areas

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
    ground_truth: Path | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]] | Path,
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
    truth = read_ground_truth(ground_truth, iou_type)
    detections = group_by(read_results(results, truth, iou_type), "category_id")
    objects = group_by(truth["annotations"], "category_id")
    image_ids = tuple(sorted(image["id"] for image in truth["images"]))
    position = {image_id: index for index, image_id in enumerate(image_ids)}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = tuple(
        _match_class(names[key], objects[key], detections[key], position, iou_type, max_detections)
        for key in sorted(names)
    )
    return Matches(iou_type, image_ids, classes)


def group_by(records: Iterable[Record], key: str) -> dict[int, list[Record]]:
    """Annotations or results by "image_id" or "category_id"; an empty list for one that has none."""
    groups: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        groups[record[key]].append(record)
    return groups


def best_first(detections: Sequence[Record], max_detections: int) -> list[Record]:
    """One class's detections of one image, the best first, and no more than count."""
    return sorted(detections, key=lambda result: -result["score"])[:max_detections]


def overlaps(detections: Sequence[Record], objects: Sequence[Record], iou_type: IouType) -> np.ndarray:
    """IoU of every detection with every object, (D, G); with a crowd, the share of the detection that lies in it."""
    key = "bbox" if iou_type == "bbox" else "segmentation"
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    crowd = [int(annotation["iscrowd"]) for annotation in objects]
    return coco_mask.iou([result[key] for result in detections], [annotation[key] for annotation in objects], crowd)


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
    objects: Sequence[Record],
    detections: Sequence[Record],
    position: Mapping[int, int],
    iou_type: IouType,
    max_detections: int,
) -> ClassMatches:
    found_in = group_by(detections, "image_id")
    detections = [result for image_id in sorted(found_in) for result in best_first(found_in[image_id], max_detections)]
    images = np.array([position[result["image_id"]] for result in detections], np.int32)
    scores = np.array([result["score"] for result in detections], float)
    outside = _outside(_areas(detections, iou_type))
    outcomes = np.where(outside, IGNORED, FALSE_POSITIVE).astype(np.int8)[:, None].repeat(len(COCO.iouThrs), axis=1)
    num_objects = np.zeros((len(COCO.areaRng), len(position)), np.int32)
    for image_id, here in group_by(objects, "image_id").items():
        image = position[image_id]
        crowd = np.array([bool(annotation["iscrowd"]) for annotation in here])
        ignored = crowd | _outside(np.array([annotation["area"] for annotation in here], float))
        num_objects[:, image] = (~ignored).sum(axis=1)
        part = slice(*np.searchsorted(images, [image, image + 1]))
        partner = assign(overlaps(detections[part], here, iou_type), COCO.iouThrs, ignored, crowd)
        area, threshold, found = np.nonzero(partner >= 0)
        taken = ignored[area, partner[area, threshold, found]]
        outcomes[:, :, part][area, threshold, found] = np.where(taken, IGNORED, TRUE_POSITIVE)
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(name, scores[order], images[order], outcomes[:, :, order], num_objects)


def _areas(detections: Sequence[Record], iou_type: IouType) -> np.ndarray:
    if iou_type == "bbox":
        return np.array([result["bbox"][2] * result["bbox"][3] for result in detections], float)
    return np.array(mask_areas(result["segmentation"] for result in detections), float)


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
    return _per_image(matches_b, score) - _per_image(matches_a, score)


def most_different(matches_a: Matches, matches_b: Matches, count: int, *, score: float = 0.5) -> list[int]:
    """Ids of the images with the largest :func:`per_image_difference`, in either direction, the largest first.

    At most ``count``, fewer where fewer differ; of equal ones the smaller id comes first.
    """
    difference = per_image_difference(matches_a, matches_b, score=score)
    order = np.argsort(-np.abs(difference), kind="stable")[:count]
    return [matches_a.image_ids[index] for index in order if difference[index] != 0]


def _per_image(matches: Matches, score: float) -> np.ndarray:
    values = np.zeros(len(matches.image_ids))
    for found in matches.classes:
        shown = found.scores >= score
        # a true positive is 1 and a false positive -1
        values += np.bincount(found.images[shown], found.outcomes[ALL, IOU_50, shown], len(values))
    return values


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
    precision = np.stack([_curve(found, int(known[0])) for found in matches.classes])
    with_objects = precision[~np.isnan(precision[:, 0])]
    return PrecisionRecall(
        recall=np.array(COCO.recThrs),
        precision=precision,
        mean=with_objects.mean(axis=0) if len(with_objects) else np.full(len(COCO.recThrs), np.nan),
    )


def _curve(found: ClassMatches, threshold: int) -> np.ndarray:
    """Precision of one class at each recall level."""
    objects = found.num_objects[ALL].sum()
    if not objects:
        return np.full(len(COCO.recThrs), np.nan)
    outcomes = found.outcomes[ALL, threshold]
    hits = np.cumsum(outcomes == TRUE_POSITIVE)
    seen = np.cumsum(outcomes != IGNORED)
    best_from_here = np.maximum.accumulate((hits / (seen + np.spacing(1)))[::-1])[::-1]
    first = np.searchsorted(hits / objects, COCO.recThrs, side="left")
    return np.append(best_from_here, 0)[first]  # 0 where that recall is not reached
