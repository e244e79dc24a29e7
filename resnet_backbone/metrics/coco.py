"""COCO average precision of boxes and masks, by faster-coco-eval or by pycocotools, and what makes it doubtful.

Both agree. They fill ``precision[IoU, recall level, class, area, detections]`` and ``recall[IoU, class, area,
detections]``, the classes in the order of their ids, and -1 where the ground truth has no object.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from resnet_backbone.files.text import brief, naming, paused_collector, read_json
from resnet_backbone.metrics.coco_input import read_ground_truth
from resnet_backbone.metrics.masks import Record, mask_areas
from resnet_backbone.metrics.results import ResultTable, read_result_table
from resnet_backbone.metrics.summary import CocoMetrics

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


IouType = Literal["bbox", "segm"]
Backend = Literal["faster", "pycocotools"]

IOU_50, IOU_75 = 0, 5
ALL, SMALL, MEDIUM, LARGE = 0, 1, 2, 3

# When figures are doubtful though they can be computed.
LARGEST_AREA = 1e10  # pixels; COCO's code ignores objects outside of 0 to this
SEVERAL = 5
USUAL = 0.01  # share of doubtful areas that occurs in good data: masks of several parts, thin ones
MISSED = 0.1  # share of the images with objects that a detector may leave without a result
NEARLY_ALL = 0.95
ROUNDING = 1.0  # pixels


def evaluate_coco(
    ground_truth: Path | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]] | Path,
    *,
    iou_type: IouType = "bbox",
    backend: Backend = "faster",
    max_detections: int = 100,
) -> CocoMetrics:
    """Compare detections with ground truth as COCO does.

    Args:
        ground_truth: COCO annotations (images, annotations, categories), as a dict or the path of the JSON file.
        results: COCO results, as a list or the path of the JSON file: ``{"image_id", "category_id", "score"}`` with
            ``"bbox": [x, y, width, height]`` in pixels, or with ``"segmentation"`` as compressed RLE. None at
            all give AP 0 and a warning. A file is read piece by piece and held as arrays.
        iou_type: what is compared, the boxes or the masks.
        backend: "faster" is C++; "pycocotools" is the original, in Python.
        max_detections: how many of an image's best detections of a class count; 10 or more. COCO takes 100.

    Returns:
        The twelve figures and the AP of every class, in percent.

    Raises:
        FileNotFoundError: a file is not there.
        TypeError: the results are no list.
        ValueError: an unknown option, malformed ground truth, or results that do not fit it.

    Source: https://cocodataset.org/#detection-eval; names as in Detectron2's COCOEvaluator.
    """
    return evaluate_coco_types(ground_truth, results, (iou_type,), backend=backend, max_detections=max_detections)[0]


@paused_collector()
def evaluate_coco_types(
    ground_truth: Path | Mapping[str, Any],
    results: Sequence[Mapping[str, Any]] | Path,
    iou_types: Sequence[IouType],
    *,
    backend: Backend = "faster",
    max_detections: int = 100,
) -> list[CocoMetrics]:
    """Return the figures of :func:`evaluate_coco` for each of ``iou_types``, having read each file once.

    Args:
        iou_types: one or two; the results need the keys of all of them.
        ground_truth, results, backend, max_detections: as for evaluate_coco.

    Raises:
        FileNotFoundError, TypeError, ValueError: as evaluate_coco.
    """
    for iou_type in iou_types:
        if iou_type not in ("bbox", "segm"):
            raise ValueError(f'iou_type must be "bbox" or "segm", got {iou_type!r}')
    if backend not in ("faster", "pycocotools"):
        raise ValueError(f'backend must be "faster" or "pycocotools", got {backend!r}')
    if max_detections < 10:
        raise ValueError(f"max_detections must be 10 or more, because AR10 is reported too; got {max_detections}")
    data = read_json(ground_truth) if isinstance(ground_truth, Path) else ground_truth
    with naming(ground_truth):
        truths = {iou_type: read_ground_truth(data, iou_type) for iou_type in iou_types}
    del data
    found = read_result_table(results, truths[iou_types[0]], iou_types)
    if not len(found):
        logger.warning("no detections at all, so every AP is 0; is the detector trained, and are its weights loaded?")
    _warn_of_doubts(ground_truth, truths[iou_types[0]], found)
    run = run_faster if backend == "faster" else run_pycocotools
    return [
        _metrics(truth, iou_type, max_detections, *run(truth, found, iou_type, [1, 10, max_detections]))
        for iou_type, truth in truths.items()
    ]


def check_ground_truth(path: Path, iou_types: Sequence[IouType]) -> None:
    """Raise what an evaluation of these types would raise of its annotations, and warn of what it would warn of.

    Raises:
        FileNotFoundError, ValueError: as :func:`read_ground_truth`.
    """
    data = read_json(path)
    with naming(path):
        truths = [read_ground_truth(data, iou_type) for iou_type in iou_types]
    _warn_of_doubts(path, truths[0])


def _warn_of_doubts(
    ground_truth: Path | Mapping[str, Any], truth: Mapping[str, list[Record]], found: ResultTable | None = None
) -> None:
    notes = truth["annotations"]
    areas = doubtful_areas(
        np.array([note["area"] for note in notes], dtype=float),
        np.array([note["bbox"] for note in notes], dtype=float).reshape(-1, 4),
        np.array([note["iscrowd"] for note in notes], dtype=bool),
    )
    doubts = []
    if areas.warns:
        first = notes[areas.rows[0]]
        doubts.append(
            f"{len(areas.rows)} of {areas.total} objects have an area that does not fit their box (annotation number "
            f"{first['id']} of the file has area {first['area']:g}, its bbox is {first['bbox']}); {areas.note}. "
            f'Write the pixels of the mask, width x height of the box without masks, or leave "area" out'
        )
    if notes and not areas.total:
        doubts.append("all annotations are crowds (iscrowd 1), which nothing has to find: there are no figures")
    if found is not None:
        doubts += doubtful_results(truth, found)
    for doubt in doubts:
        logger.warning("%s%s", f"{ground_truth}: " if isinstance(ground_truth, Path) else "", doubt)


@dataclass(frozen=True)
class DoubtfulAreas:
    """Objects whose "area" cannot be that of what their box encloses; crowds are not looked at."""

    rows: np.ndarray  # int64, of the objects and crowds that were given
    total: int  # objects
    ignored: int  # of the rows, whose area is negative or beyond LARGEST_AREA

    @property
    def warns(self) -> bool:
        return self.ignored > 0 or len(self.rows) > USUAL * self.total

    @property
    def note(self) -> str:
        """What becomes of it."""
        text = "COCO's code tells small, medium and large objects apart by area, so APs, APm, APl and ARs, ARm, ARl "
        text += "are not those of the objects"
        if self.ignored:
            text += f"; it ignores objects of negative area or one above 1e10, {self.ignored} here, in every figure"
        return text


def doubtful_areas(areas: np.ndarray, boxes: np.ndarray, is_crowd: np.ndarray) -> DoubtfulAreas:
    """Compare the "area" of objects with their boxes.

    Doubtful is an area that is negative, larger than the box by more than rounding, so small that it could not reach
    from one side of the box to the other, or the same for boxes of different sizes. Boxes without area are left out.

    Args:
        areas: (N,), pixels; nan where there is none.
        boxes: (N, 4), x y width height in pixels.
        is_crowd: bool, (N,).
    """
    sides = boxes[:, 2:]
    box_areas = sides.prod(axis=1)
    doubtful = (areas > 1.2 * (sides + 2 * ROUNDING).prod(axis=1)) | (areas < sides.max(axis=1, initial=0) / 4)
    doubtful &= box_areas > 0
    ignored = ~is_crowd & ((areas < 0) | (areas > LARGEST_AREA))
    measured = areas[~is_crowd]
    if len(measured) >= SEVERAL and np.ptp(measured) == 0:
        doubtful |= bool(box_areas[~is_crowd].max() > 1.5 * box_areas[~is_crowd].min())
    rows = np.flatnonzero(~is_crowd & doubtful | ignored)
    return DoubtfulAreas(rows, len(measured), int(ignored.sum()))


def doubtful_results(truth: Mapping[str, list[Record]], found: ResultTable) -> list[str]:
    """Say what suggests that results were not written as COCO takes them; none of it is certain."""
    if not len(found):
        return []
    objects = [record for record in truth["annotations"] if not record["iscrowd"]]
    doubts = []
    images = {record["image_id"] for record in objects}
    without = sorted(images.difference(found.image_ids.tolist()))
    if len(without) > MISSED * len(images):
        doubts.append(
            f"{len(without)} of the {len(images)} images with objects have no result, such as image {without[0]}; "
            f"their objects count as missed. Were the results written for all images?"
        )
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = {record["category_id"] for record in objects}
    absent = sorted(classes.difference(found.category_ids.tolist()))
    if absent and 2 * len(absent) >= len(classes):
        doubts.append(
            f"{len(absent)} of the {len(classes)} classes with objects have no result, such as "
            f"{brief(names[absent[0]])}; is category_id the id in the annotation file, not the label of the network?"
        )
    in_first_pixel = ((found.boxes >= -0.01) & (found.boxes <= 1.01)).all(axis=1)
    if in_first_pixel.size and in_first_pixel.mean() >= NEARLY_ALL:
        doubts.append(
            f"{in_first_pixel.sum()} of the {len(found.boxes)} boxes of the results lie within the first pixel; COCO's "
            f"bbox is in pixels: are they shares of the image, to be multiplied by its width and height?"
        )
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in truth["images"]}
    if len(found.boxes) and all(type(side) is int for size in sizes.values() for side in size):
        limits = np.array([sizes[image_id] for image_id in found.image_ids.tolist()], dtype=float) + ROUNDING
        far = (found.boxes[:, :2] + found.boxes[:, 2:] > limits).any(axis=1)
        ordered = (found.boxes[:, 2:] > found.boxes[:, :2]) & (found.boxes[:, 2:] <= limits)
        if far.sum() >= max(SEVERAL, MISSED * len(far)) and ordered.all(axis=1).mean() >= NEARLY_ALL:
            doubts.append(
                f"{far.sum()} of the {len(far)} boxes of the results reach out of their images, and nearly all would "
                f"fit as corners x1, y1, x2, y2; COCO's bbox is [x, y, width, height]: write [x1, y1, x2 - x1, y2 - y1]"
            )
    return doubts


def _metrics(
    truth: Mapping[str, list[Record]],
    iou_type: IouType,
    max_detections: int,
    precision: np.ndarray,
    recall: np.ndarray,
) -> CocoMetrics:
    return CocoMetrics(
        iou_type=iou_type,
        max_detections=max_detections,
        AP=_percent(precision[:, :, :, ALL, -1]),
        AP50=_percent(precision[IOU_50, :, :, ALL, -1]),
        AP75=_percent(precision[IOU_75, :, :, ALL, -1]),
        APs=_percent(precision[:, :, :, SMALL, -1]),
        APm=_percent(precision[:, :, :, MEDIUM, -1]),
        APl=_percent(precision[:, :, :, LARGE, -1]),
        AR1=_percent(recall[:, :, ALL, 0]),
        AR10=_percent(recall[:, :, ALL, 1]),
        AR100=_percent(recall[:, :, ALL, 2]),
        ARs=_percent(recall[:, :, SMALL, -1]),
        ARm=_percent(recall[:, :, MEDIUM, -1]),
        ARl=_percent(recall[:, :, LARGE, -1]),
        per_class={
            category["name"]: _percent(precision[:, :, index, ALL, -1])
            for index, category in enumerate(sorted(truth["categories"], key=lambda category: category["id"]))
        },
    )


def _percent(values: np.ndarray) -> float:
    """Mean of a slice in percent. -1 marks "no ground truth"; nan where there is nothing else."""
    values = values[values > -1]
    return float(100 * values.mean()) if values.size else float("nan")
