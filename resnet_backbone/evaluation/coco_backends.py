"""The two packages that compare detections with ground truth, fed from arrays; both fill the same two arrays.

They are ``precision[IoU, recall level, class, area, detections]`` and ``recall[IoU, class, area, detections]``, the
classes in the order of their ids, and -1 where the ground truth has no object.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from resnet_backbone.evaluation.mask_input import Record, mask_areas
from resnet_backbone.evaluation.result_table import ResultTable

logger = logging.getLogger(__name__)


def run_faster(
    truth: Mapping[str, list[Record]], found: ResultTable, iou_type: str, max_detections: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Compare by faster-coco-eval, one class at a time.

    Classes do not depend on each other, and the images without an object or a detection of a class add nothing to it.
    All at once, what C++ keeps of every class in every image, and a dict of every detection, take a gigabyte on
    500,000 detections in 5,000 images.

    Args:
        truth: what ``read_ground_truth`` gave for this ``iou_type``.
        found: results with boxes or masks, as ``iou_type`` needs.
        iou_type: "bbox" or "segm".
        max_detections: three limits, ascending.
    """
    truth, found = _numbered(truth, found)
    objects = defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["category_id"]].append(annotation)
    images = {image["id"]: image for image in truth["images"]}
    order = np.argsort(found.category_ids, kind="stable")
    precision, recall = [], []
    for category in sorted(truth["categories"], key=lambda category: category["id"]):
        bounds = np.searchsorted(found.category_ids, [category["id"], category["id"] + 1], sorter=order)
        detections = _records(found, order[slice(*bounds)], images, iou_type)
        here = {record["image_id"] for record in (*objects[category["id"]], *detections)}
        shared = {"images": [images[key] for key in here], "categories": [category]}
        evaluator = faster_coco_eval.COCOeval_faster(
            faster_coco_eval.COCO({**shared, "annotations": objects[category["id"]]}),
            faster_coco_eval.COCO({**shared, "annotations": detections}),
            iouType=iou_type,
            print_function=logger.debug,
        )
        evaluator.params.maxDets = list(max_detections)
        evaluator.evaluate()
        evaluator.accumulate()
        precision.append(evaluator.eval["precision"])
        recall.append(evaluator.eval["recall"])
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


def run_pycocotools(
    truth: Mapping[str, list[Record]], found: ResultTable, iou_type: str, max_detections: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Compare by pycocotools; the arguments are those of :func:`run_faster`."""
    truth, found = _numbered(truth, found)
    images = {image["id"]: image for image in truth["images"]}
    detections = _records(found, np.arange(len(found)), images, iou_type)
    with _stdout_to_log():
        evaluator = pycocotools.cocoeval.COCOeval(
            _pycocotools_index(truth), _pycocotools_index({**truth, "annotations": detections}), iouType=iou_type
        )
        evaluator.params.maxDets = list(max_detections)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _numbered(truth: Mapping[str, list[Record]], found: ResultTable) -> tuple[dict[str, list[Record]], ResultTable]:
    """Copies in which images and categories are numbered from 1, in the order of their ids.

    faster-coco-eval holds ids as doubles, which do not tell ids beyond 2**53 apart.
    """
    image_ids = sorted(image["id"] for image in truth["images"])
    category_ids = sorted(category["id"] for category in truth["categories"])
    image_number = {key: number for number, key in enumerate(image_ids, start=1)}
    category_number = {key: number for number, key in enumerate(category_ids, start=1)}
    numbered = {
        "images": [{**image, "id": image_number[image["id"]]} for image in truth["images"]],
        "categories": [{**category, "id": category_number[category["id"]]} for category in truth["categories"]],
        "annotations": [
            {
                **annotation,
                "image_id": image_number[annotation["image_id"]],
                "category_id": category_number[annotation["category_id"]],
            }
            for annotation in truth["annotations"]
        ],
    }
    return numbered, replace(
        found,
        image_ids=np.searchsorted(image_ids, found.image_ids) + 1,
        category_ids=np.searchsorted(category_ids, found.category_ids) + 1,
    )


def _records(found: ResultTable, rows: np.ndarray, images: Mapping[int, Record], iou_type: str) -> list[Record]:
    """Some of the results as both packages' own ``loadRes`` makes them: numbered from 1, with their areas."""
    if iou_type == "bbox":
        key, boxes = "bbox", found.boxes[rows]
        measured, areas = boxes.tolist(), boxes[:, 2:].prod(axis=1).tolist()
    else:
        key, measured = "segmentation", [found.mask(row, images) for row in rows.tolist()]
        areas = mask_areas(measured)
    columns = (found.image_ids[rows].tolist(), found.category_ids[rows].tolist(), found.scores[rows].tolist())
    return [
        {"id": number, "image_id": image, "category_id": label, "score": score, key: value, "area": area, "iscrowd": 0}
        for number, (image, label, score, value, area) in enumerate(
            zip(*columns, measured, areas, strict=True), start=1
        )
    ]


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Keep the garbage collector from running over all that the process holds, again and again, as records are made.

    On 500,000 results it took 3 of 8 seconds. Nothing here refers to itself, so there is nothing for it to find.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _pycocotools_index(data: Mapping[str, list[Record]]) -> pycocotools.coco.COCO:
    index = pycocotools.coco.COCO()
    index.dataset = data
    index.createIndex()
    return index


@contextlib.contextmanager
def _stdout_to_log() -> Iterator[None]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield
    for line in printed.getvalue().splitlines():
        logger.debug("pycocotools: %s", line)
