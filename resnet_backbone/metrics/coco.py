"""COCO average precision of boxes and masks, by faster-coco-eval or by pycocotools, and its figures as text and JSON.

Both agree. They fill ``precision[IoU, recall level, class, area, detections]`` and ``recall[IoU, class, area,
detections]``, the classes in the order of their ids, and -1 where the ground truth has no object.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from tabulate import tabulate

from resnet_backbone.data.coco.findings import report_findings
from resnet_backbone.data.coco.read import GroundTruth, IouType, read_ground_truth
from resnet_backbone.files.text import brief, paused_collector
from resnet_backbone.metrics.result_table import Results, ResultTable, read_results

if TYPE_CHECKING:
    from resnet_backbone.metrics.voc import VocMetrics

logger = logging.getLogger(__name__)

Record = dict[str, Any]
Backend = Literal["faster", "pycocotools"]
_EVALUATORS: dict[str, tuple[Any, Any]] = {
    "faster": (faster_coco_eval.COCO, partial(faster_coco_eval.COCOeval_faster, print_function=logger.debug)),
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
}
_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's figures in percent (0 to 100), under Detectron2's names.

    A figure is nan where the ground truth holds nothing to measure it on: no small object, no object of that class.
    COCO's own code writes -1 there.
    """

    iou_type: str  # "bbox" or "segm"
    max_detections: int  # per image and class, the highest scores first
    AP: float  # mean over IoU 0.50:0.05:0.95 and over classes
    AP50: float
    AP75: float
    APs: float  # objects under 32 x 32 pixels
    APm: float
    APl: float  # objects over 96 x 96 pixels
    AR1: float  # mean recall over the same IoUs, with the best detection of each image and class
    AR10: float
    AR100: float  # with `max_detections` of them: "AR100" in JSON and tables for COCO's 100, else e.g. "AR300"
    ARs: float
    ARm: float
    ARl: float
    per_class: Mapping[str, float]  # class name -> AP, in the order of the category ids
    masks: CocoMetrics | None = None  # the "segm" figures of the same detections, where they have masks
    voc: VocMetrics | None = None  # Pascal VOC's figures of the same boxes, on its own data sets

    def by_type(self) -> dict[str, CocoMetrics]:
        """These figures, and those of the masks where there are any, by IoU type."""
        return {metrics.iou_type: metrics for metrics in (self, self.masks) if metrics is not None}

    def summary(self) -> dict[str, float]:
        """The twelve figures by name, in COCO's order."""
        return {f"AR{self.max_detections}" if name == "AR100" else name: getattr(self, name) for name in _FIGURES}

    def to_dict(self) -> dict[str, dict[str, float | None]]:
        """For JSON: ``{"bbox": {"AP": 37.1, ..., "AP-person": 52.0, ...}}``, "segm" and "voc" where there are such.

        nan becomes None, as JSON has no nan.
        """
        figures = {
            iou_type: figures_for_json(metrics.summary(), metrics.per_class)
            for iou_type, metrics in self.by_type().items()
        }
        return figures | (self.voc.to_dict() if self.voc else {})

    def scalars(self) -> dict[str, float]:
        """The figures over all classes by full name, ``bbox/AP`` or ``voc/mAP``, for the records of a run; no nan."""
        figures = {
            f"{iou_type}/{name}": value
            for iou_type, metrics in self.by_type().items()
            for name, value in metrics.summary().items()
        }
        if self.voc:
            figures["voc/mAP"] = self.voc.mAP
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def table(self) -> str:
        """Readable text: the twelve figures, then the AP of every class in three columns. Percent; "-" for nan."""
        tables = [metrics._own_table() for metrics in self.by_type().values()]
        return "\n\n".join(tables + ([self.voc.table()] if self.voc else []))

    def _own_table(self) -> str:
        figures = {name: percent(value) for name, value in self.summary().items()}
        head = _table([list(figures.values())], list(figures), ["right"] * len(figures))
        return f"{self.iou_type}, percent\n{head}\n\nAP per class\n{class_table(self.per_class)}"


def figures_for_json(summary: Mapping[str, float], per_class: Mapping[str, float]) -> dict[str, float | None]:
    """Return figures and "AP-<class>" of every class; nan becomes None."""
    values = {**summary, **{f"AP-{name}": ap for name, ap in per_class.items()}}
    return {key: None if math.isnan(value) else value for key, value in values.items()}


def class_table(per_class: Mapping[str, float]) -> str:
    """Return the AP of every class as text in three columns."""
    cells = [(name, percent(ap)) for name, ap in per_class.items()]
    columns = min(3, len(cells))
    rows = [sum(cells[start : start + columns], ()) for start in range(0, len(cells), columns)]
    return _table(rows, ["class", "AP"] * columns, ["left", "right"] * columns)


def _table(rows: Sequence[Sequence[str]], headers: list[str], alignment: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def percent(value: float) -> str:
    """Return a figure as text, "-" for nan."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def _accumulate(
    truth: GroundTruth, found: ResultTable, iou_type: IouType, max_detections: Sequence[int], backend: Backend
) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall, one class at a time.

    Classes do not depend on each other, and the images without an object or a detection of a class add nothing to it.
    All at once, what is kept of every class in every image, and a dict of every detection, take a gigabyte on 500,000
    detections in 5,000 images.
    """
    make_index, make_evaluator = _EVALUATORS[backend]
    object_areas, areas, sizes = truth.areas(iou_type), found.areas(iou_type), truth.sizes.tolist()
    precision, recall = [], []
    for label, name in enumerate(truth.class_names):
        objects = _records(truth, np.flatnonzero(truth.labels == label), object_areas, iou_type)
        detections = _records(found, np.flatnonzero(found.labels == label), areas, iou_type)
        numbers = sorted({record["image_id"] for record in (*objects, *detections)})
        images = [{"id": number, "height": sizes[number - 1][0], "width": sizes[number - 1][1]} for number in numbers]
        shared = {"images": images, "categories": [{"id": label + 1, "name": name}]}
        with _stdout_to_log():
            indices = make_index(), make_index()
            for index, annotations in zip(indices, (objects, detections), strict=True):
                index.dataset = {**shared, "annotations": annotations}
                index.createIndex()
            evaluator = make_evaluator(*indices, iouType=iou_type)
            evaluator.params.maxDets = list(max_detections)
            evaluator.evaluate()
            evaluator.accumulate()
        precision.append(evaluator.eval["precision"])
        recall.append(evaluator.eval["recall"])
    return np.concatenate(precision, axis=2), np.concatenate(recall, axis=1)


# The records of both packages. Images, classes and objects are numbered from 1: faster-coco-eval holds ids as doubles,
# which do not tell those beyond 2**53 apart, and both take an object of the id 0 for "no match".


def _records(table: GroundTruth | ResultTable, rows: np.ndarray, areas: np.ndarray, iou_type: IouType) -> list[Record]:
    """The rows of objects, or of detections, these as both packages' own ``loadRes`` makes them."""
    columns = {"image_id": table.images[rows] + 1, "category_id": table.labels[rows] + 1, "area": areas[rows]}
    if isinstance(table, GroundTruth):
        columns["iscrowd"] = table.is_crowd[rows].astype(int)
    else:
        columns |= {"score": table.scores[rows], "iscrowd": np.zeros(len(rows), dtype=int)}
    if iou_type == "bbox":
        keys, measured = (*columns, "bbox"), table.boxes[rows].tolist()
    else:
        keys, measured = (*columns, "segmentation"), [table.masks[row] for row in rows.tolist()]
    values = zip(*(column.tolist() for column in columns.values()), measured, strict=True)
    return [{"id": number, **dict(zip(keys, row, strict=True))} for number, row in enumerate(values, start=1)]


@contextlib.contextmanager
def _stdout_to_log() -> Iterator[None]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        yield
    for line in printed.getvalue().splitlines():
        logger.debug("pycocotools: %s", line)


IOU_50, IOU_75 = 0, 5
ALL, SMALL, MEDIUM, LARGE = 0, 1, 2, 3

# When results are doubtful though they can be scored.
SEVERAL = 5
MISSED = 0.1  # share of the images with objects that a detector may leave without a result
NEARLY_ALL = 0.95
ROUNDING = 1.0  # pixels


def evaluate_coco(
    ground_truth: Path | Mapping[str, Any] | GroundTruth,
    results: Results | ResultTable,
    *,
    iou_type: IouType = "bbox",
    backend: Backend = "faster",
    max_detections: int = 100,
) -> CocoMetrics:
    """Compare detections with ground truth as COCO does.

    Args:
        ground_truth: COCO annotations (images, annotations, categories), as a dict or the path of the JSON file; or
            what ``read_ground_truth`` made of them.
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
    ground_truth: Path | Mapping[str, Any] | GroundTruth,
    results: Results | ResultTable,
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
    if not isinstance(ground_truth, GroundTruth):
        ground_truth = read_ground_truth(ground_truth, iou_types)
        report_findings(ground_truth.source or "ground truth", ground_truth.findings)
    found = results if isinstance(results, ResultTable) else read_results(results, ground_truth, iou_types)
    if not len(found):
        logger.warning("no detections at all, so every AP is 0; is the detector trained, and are its weights loaded?")
    if len(ground_truth) and ground_truth.is_crowd.all():
        logger.warning("all annotations are crowds (iscrowd 1), which nothing has to find: there are no figures")
    for doubt in suspicious_results(ground_truth, found):
        logger.warning("%s%s", f"{ground_truth.source}: " if ground_truth.source else "", doubt)
    limits = (1, 10, max_detections)
    return [
        _metrics(ground_truth, iou_type, max_detections, *_accumulate(ground_truth, found, iou_type, limits, backend))
        for iou_type in iou_types
    ]


def suspicious_results(truth: GroundTruth, found: ResultTable) -> list[str]:
    """Say what suggests that results were not written as COCO takes them; none of it is certain."""
    if not len(found):
        return []
    single = ~truth.is_crowd
    doubts = []
    images = np.unique(truth.images[single])
    without = np.setdiff1d(images, found.images)
    if len(without) > MISSED * len(images):
        doubts.append(
            f"{len(without)} of the {len(images)} images with objects have no result, such as image "
            f"{truth.image_ids[without[0]]}; their objects count as missed. Were the results written for all images?"
        )
    classes = np.unique(truth.labels[single])
    absent = np.setdiff1d(classes, found.labels)
    if len(absent) and 2 * len(absent) >= len(classes):
        doubts.append(
            f"{len(absent)} of the {len(classes)} classes with objects have no result, such as "
            f"{brief(truth.class_names[absent[0]])}; is category_id the id in the annotation file, not the label of "
            f"the network?"
        )
    in_first_pixel = ((found.boxes >= -0.01) & (found.boxes <= 1.01)).all(axis=1)
    if in_first_pixel.size and in_first_pixel.mean() >= NEARLY_ALL:
        doubts.append(
            f"{in_first_pixel.sum()} of the {len(found.boxes)} boxes of the results lie within the first pixel; COCO's "
            f"bbox is in pixels: are they shares of the image, to be multiplied by its width and height?"
        )
    if len(found.boxes) and (truth.sizes >= 0).all():
        limits = truth.sizes[found.images, ::-1] + ROUNDING
        outside = (found.boxes[:, :2] + found.boxes[:, 2:] > limits).any(axis=1)
        ordered = (found.boxes[:, 2:] > found.boxes[:, :2]) & (found.boxes[:, 2:] <= limits)
        if outside.sum() >= max(SEVERAL, MISSED * len(outside)) and ordered.all(axis=1).mean() >= NEARLY_ALL:
            doubts.append(
                f"{outside.sum()} of the {len(outside)} boxes of the results reach out of their images, and nearly all "
                f"would fit as corners x1, y1, x2, y2; COCO's bbox is [x, y, width, height]: write [x1, y1, x2 - x1, "
                f"y2 - y1]"
            )
    return doubts


def _metrics(
    truth: GroundTruth,
    iou_type: IouType,
    max_detections: int,
    precision: np.ndarray,
    recall: np.ndarray,
) -> CocoMetrics:
    return CocoMetrics(
        iou_type=iou_type,
        max_detections=max_detections,
        AP=_mean(precision[:, :, :, ALL, -1]),
        AP50=_mean(precision[IOU_50, :, :, ALL, -1]),
        AP75=_mean(precision[IOU_75, :, :, ALL, -1]),
        APs=_mean(precision[:, :, :, SMALL, -1]),
        APm=_mean(precision[:, :, :, MEDIUM, -1]),
        APl=_mean(precision[:, :, :, LARGE, -1]),
        AR1=_mean(recall[:, :, ALL, 0]),
        AR10=_mean(recall[:, :, ALL, 1]),
        AR100=_mean(recall[:, :, ALL, 2]),
        ARs=_mean(recall[:, :, SMALL, -1]),
        ARm=_mean(recall[:, :, MEDIUM, -1]),
        ARl=_mean(recall[:, :, LARGE, -1]),
        per_class={name: _mean(precision[:, :, label, ALL, -1]) for label, name in enumerate(truth.class_names)},
    )


def _mean(values: np.ndarray) -> float:
    """Mean of a slice in percent. -1 marks "no ground truth"; nan where there is nothing else."""
    values = values[values > -1]
    return float(100 * values.mean()) if values.size else float("nan")
