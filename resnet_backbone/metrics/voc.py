"""Average precision of Pascal VOC and ILSVRC DET, files for VOC's server, and scoring results of any data set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from resnet_backbone.data.catalog import VocRule
from resnet_backbone.data.coco.read import GroundTruth, IouType
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.coco import (
    CocoMetrics,
    class_table,
    evaluate_coco_types,
    figures_for_json,
    percent,
    suspicious_results,
)
from resnet_backbone.metrics.matching import group_by, read_pair
from resnet_backbone.metrics.result_table import Results, ResultTable, to_result_table
from resnet_backbone.metrics.results import ImageResults, write_results

logger = logging.getLogger(__name__)

# Competition 4: trained on anything but VOC's test images, such as ImageNet.
SUBMISSION_FOLDER = Path("results/VOC2012/Main")
_SUBMISSION_FILE = "comp4_det_test_{}.txt"


@dataclass(frozen=True)
class VocMetrics:
    """Pascal VOC's or ILSVRC's figures in percent (0 to 100); nan where there is nothing to find."""

    mAP: float  # mean over the classes that the ground truth has
    per_class: Mapping[str, float]  # class name -> AP, in the order of the category ids
    iou: float  # the least overlap with an object that counts
    eleven_points: bool  # VOC 2007's way; else the area under the curve, that of VOC 2010 and later
    ilsvrc: bool = False  # whether detections found objects by ILSVRC's rule

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """For JSON: ``{"voc": {"mAP": 73.2, "AP-aeroplane": 76.5, ...}}``; nan becomes None."""
        return {"voc": figures_for_json({"mAP": self.mAP}, self.per_class)}

    def table(self) -> str:
        """Readable text: the mean, then the AP of every class in three columns. Percent; "-" for nan."""
        how = "11 points (VOC 2007)" if self.eleven_points else "area under the curve (VOC 2010 and later)"
        rule = f"ILSVRC DET, IoU {self.iou:g} and less" if self.ilsvrc else f"Pascal VOC, IoU {self.iou:g}"
        head = f"{rule}, {how}, percent: mAP {percent(self.mAP)}"
        return f"{head}\n\n{class_table(self.per_class)}"


def evaluate_voc(
    ground_truth: Path | Mapping[str, Any] | GroundTruth,
    results: Results | ResultTable,
    *,
    iou: float = 0.5,
    eleven_points: bool,
    ilsvrc: bool = False,
) -> VocMetrics:
    """Compare detections with ground truth as Pascal VOC does, or ILSVRC DET.

    The detections of a class, the best score of all images first (equal scores in the order of the results), are each
    held against the object of their class and image that they overlap most. An IoU of ``iou`` or more makes the first
    detection of an object right and every further one wrong. One that falls on a difficult object counts neither way,
    and difficult objects need not be found. All detections count, however many an image has.

    VOC's code adds 1 to widths and heights, as its corners are numbers of pixels with the last one included.
    ``voc_to_coco`` puts that 1 into the boxes, so their plain IoU here is VOC's.

    By ILSVRC's rule a detection takes, of the objects that no better one has taken, the one that it overlaps most, and
    an object of w x h pixels needs an IoU of ``min(iou, wh / ((w + 10)(h + 10)))`` alone: 5 pixels on each side. No
    object is difficult. Its list of images whose classes do not count is not known here: R-CNN's val1 and val2 have
    none of them.

    Args:
        ground_truth: COCO annotations, as a dict or the path of the JSON file; ``iscrowd: 1`` is VOC's ``difficult``.
        results: COCO results with ``"bbox"``, as a list or the path of the JSON file.
        iou: the least intersection over union, above 0 and at most 1.
        eleven_points: True averages the precision at the recalls 0, 0.1, ..., 1, as VOC 2007 does; False takes the area
            under the curve, as VOC 2010 and later do, and ILSVRC.
        ilsvrc: whether detections find objects by ILSVRC's rule.

    Returns:
        AP of every class and their mean, in percent.

    Raises:
        FileNotFoundError: a file is not there.
        TypeError: the results are no list.
        ValueError: malformed files, ground truth without an annotation, or ``iou`` out of range.

    Source: ``VOCevaldet.m`` and ``VOCap.m`` of the development kits of 2007 and 2012, ``eval_detection.m`` of
    ILSVRC 2014's (which zhoubolei/CAM has at be21644, evaluation/). Detectron2's ``voc_eval`` differs
    where an IoU is exactly ``iou`` (wrong there) and where a recall is exactly 0.3, 0.6 or 0.7, which rounding puts
    below these levels there.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be above 0 and at most 1, got {iou}")
    truth, found = read_pair(ground_truth, results, "bbox")
    if not len(truth):
        raise ValueError("the ground truth has no annotation, so there is nothing to compare with; is it a test set?")
    for doubt in suspicious_results(truth, found):
        logger.warning("%s", doubt)
    objects, detections = group_by(truth.labels), group_by(found.labels)
    per_class = {
        name: _average_precision(
            truth, objects[label], found, detections[label], iou=iou, eleven_points=eleven_points, ilsvrc=ilsvrc
        )
        for label, name in enumerate(truth.class_names)
    }
    known = [ap for ap in per_class.values() if not np.isnan(ap)]
    return VocMetrics(
        mAP=float(np.mean(known)) if known else float("nan"),
        per_class=per_class,
        iou=iou,
        eleven_points=eleven_points,
        ilsvrc=ilsvrc,
    )


def write_voc_submission(
    images: Path | Mapping[str, Any] | GroundTruth, results: Results | ResultTable, folder: Path
) -> list[Path]:
    """Write detections as VOC's evaluation server takes them: ``results/VOC2012/Main/comp4_det_test_<class>.txt``.

    A line is ``<image> <score> <xmin> <ymin> <xmax> <ymax>``, the image by its file name without suffix, corners in
    pixels counted from 1 with the last one included. A class without detections gets an empty file.

    Args:
        images: COCO file with images and categories, as a dict or its path; annotations are not looked at.
        results: COCO results with ``"bbox"``, as a list or the path of the JSON file.
        folder: gets ``results/``; pack that with ``tar -czf results.tgz results`` and upload it.

    Returns:
        The files, in the order of the categories.

    Raises:
        FileNotFoundError, TypeError, ValueError: as :func:`evaluate_voc`, or two images of the same name, or a class
            whose name cannot be part of a file's.
    """
    truth, found = read_pair(images, results, "bbox")
    names = [Path(truth.file_name(image)).stem for image in range(len(truth.image_ids))]
    if len(set(names)) < len(names):
        raise ValueError("two images have the same file name but for folder and suffix; the server tells them by it")
    for name in truth.class_names:
        if any(mark in name for mark in "/\\\0"):
            raise ValueError(f"the class {name!r} cannot be part of a file's name; take out / and \\")
    rows = group_by(found.labels)
    paths = []
    for label, name in enumerate(truth.class_names):
        lines = []
        for row in rows[label].tolist():
            x, y, width, height = found.boxes[row].tolist()
            line = f"{found.scores[row]:.6f} {x + 1:.3f} {y + 1:.3f} {x + width:.3f} {y + height:.3f}"
            lines.append(f"{names[found.images[row]]} {line}\n")
        paths.append(folder / SUBMISSION_FOLDER / _SUBMISSION_FILE.format(name))
        write_text(paths[-1], "".join(lines))
    return paths


def _average_precision(
    truth: GroundTruth,
    objects: np.ndarray,
    found: ResultTable,
    detections: np.ndarray,
    *,
    iou: float,
    eleven_points: bool,
    ilsvrc: bool,
) -> float:
    """AP of one class, given by its rows, in percent, nan without an object that is not difficult."""
    difficult = truth.is_crowd[objects] & (not ilsvrc)
    positives = int((~difficult).sum())
    if positives == 0:
        return float("nan")
    detections = detections[np.argsort(-found.scores[detections], kind="stable")]
    overlap, nearest = _nearest_objects(truth, objects, found, detections, iou if ilsvrc else None)
    on_object = overlap >= iou
    counted = ~on_object | ~difficult[nearest]
    first = np.zeros(len(nearest), dtype=bool)
    places = np.flatnonzero(on_object)
    first[places[np.unique(nearest[places], return_index=True)[1]]] = True
    right = on_object & counted & first
    hits = np.cumsum(right[counted])
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # the best precision at this recall or a higher one
    if not eleven_points:
        return float(100 * envelope[right[counted]].sum() / positives)
    # In whole numbers, as 3 of 10 would miss the level 0.1 + 0.1 + 0.1.
    levels = [envelope[10 * hits >= tenth * positives] for tenth in range(11)]
    return float(100 * sum(level[0] for level in levels if level.size) / 11)


def _nearest_objects(
    truth: GroundTruth, objects: np.ndarray, found: ResultTable, detections: np.ndarray, ilsvrc_iou: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection its largest IoU with an object of its image (0 without one), and that object's place.

    With an ``ilsvrc_iou`` in place of it 1 with the object that it takes by ILSVRC's rule, 0 where it takes none.
    """
    overlap = np.zeros(len(detections))
    nearest = np.zeros(len(detections), dtype=np.int64)
    there_in = group_by(truth.images[objects])
    for image, places in group_by(found.images[detections]).items():
        there = there_in[image]
        if len(there):
            boxes = found.boxes[detections[places]], truth.boxes[objects[there]]
            ious = coco_mask.iou(*boxes, [0] * len(there))
            if ilsvrc_iou is not None:
                ious = _taken_by_ilsvrc(ious, boxes[1], ilsvrc_iou)
            overlap[places], nearest[places] = ious.max(axis=1), there[ious.argmax(axis=1)]
    return overlap, nearest


def _taken_by_ilsvrc(ious: np.ndarray, boxes: np.ndarray, iou: float) -> np.ndarray:
    """Where a detection takes an object 1, else 0, (D, G); of the IoUs the best detection's are first."""
    width, height = boxes[:, 2:].T
    left = np.where(ious >= np.minimum(iou, width * height / ((width + 10) * (height + 10))), ious, 0)
    taken = np.zeros_like(left)
    for place, row in enumerate(left):
        if row.max() > 0:
            taken[place, row.argmax()] = 1
            left[:, row.argmax()] = 0
    return taken


def score_images(
    images: Iterable[ImageResults],
    category_ids: Sequence[int],
    truth: GroundTruth,
    path: Path,
    iou_types: Sequence[IouType],
    *,
    voc_rule: VocRule | None,
) -> CocoMetrics | None:
    """Write the detections of a test set as COCO results, score them, and log the table.

    Args:
        images: what was found in each, in any order.
        category_ids: those of the detector's labels.
        truth: without annotations, as in a challenge's test set, there is nothing to score.
        path: gets the results. The submission of a VOC test set without annotations is written beside it.
        iou_types: "bbox", and "segm" where the detector has masks.
        voc_rule: by which mAP is taken as well, see ``evaluate_voc``; None takes COCO's figures alone.

    Returns:
        COCO's figures, and VOC's of a VOC data set; None without annotations.
    """
    in_order = sorted(images, key=lambda image: image.image_id)
    write_results(path, chain.from_iterable(image.records(category_ids) for image in in_order))
    return score_results(truth, to_result_table(in_order, category_ids, truth), path, iou_types, voc_rule=voc_rule)


def score_results(
    truth: GroundTruth,
    found: ResultTable,
    path: Path,
    iou_types: Sequence[IouType],
    *,
    voc_rule: VocRule | None,
) -> CocoMetrics | None:
    """Do what :func:`score_images` does with detections that were written to ``path``."""
    if not len(truth):
        logger.info("%s has no annotations, so there are no figures; wrote %s", truth.source, path)
        if voc_rule in ("VOC 2007", "VOC 2010"):
            write_voc_submission(truth, found, path.parent)
            logger.info(
                "for VOC's evaluation server: %s; pack it with tar -czf results.tgz -C %s results",
                path.parent / SUBMISSION_FOLDER,
                path.parent,
            )
        return None
    first, *others = evaluate_coco_types(truth, found, iou_types)
    voc = None
    if voc_rule is not None:
        voc = evaluate_voc(truth, found, eleven_points=voc_rule == "VOC 2007", ilsvrc=voc_rule == "ILSVRC")
    metrics = replace(first, masks=others[0] if others else None, voc=voc)
    logger.info("AP in percent on %s\n%s", truth.source, metrics.table())
    logger.info("wrote %s", path)
    return metrics
