"""COCO average precision of boxes and masks, by faster-coco-eval or by pycocotools, which agree."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from resnet_backbone.evaluation.coco_input import Record, read_ground_truth, read_results
from resnet_backbone.evaluation.metrics import CocoMetrics

logger = logging.getLogger(__name__)

IouType = Literal["bbox", "segm"]
Backend = Literal["faster", "pycocotools"]

# Both backends fill precision[IoU, recall level, class, area, detections] and recall[IoU, class, area, detections].
IOU_50, IOU_75 = 0, 5
ALL, SMALL, MEDIUM, LARGE = 0, 1, 2, 3


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
            ``"bbox": [x, y, width, height]`` in pixels, or with ``"segmentation"`` as compressed run lengths. None at
            all give AP 0 and a warning.
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
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f'iou_type must be "bbox" or "segm", got {iou_type!r}')
    if backend not in ("faster", "pycocotools"):
        raise ValueError(f'backend must be "faster" or "pycocotools", got {backend!r}')
    if max_detections < 10:
        raise ValueError(f"max_detections must be 10 or more, because AR10 is reported too; got {max_detections}")
    truth = read_ground_truth(ground_truth, iou_type)
    detections = read_results(results, truth, iou_type)
    if not detections:
        logger.warning("no detections at all, so every AP is 0; is the detector trained, and are its weights loaded?")
    run = _run_faster if backend == "faster" else _run_pycocotools
    precision, recall = run(truth, detections, iou_type, [1, 10, max_detections])
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


def _run_faster(
    truth: dict[str, list[Record]], detections: list[Record], iou_type: IouType, max_dets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    truth_api = faster_coco_eval.COCO(truth)
    evaluator = faster_coco_eval.COCOeval_faster(
        truth_api, truth_api.loadRes(detections), iouType=iou_type, print_function=logger.debug
    )
    evaluator.params.maxDets = max_dets
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _run_pycocotools(
    truth: dict[str, list[Record]], detections: list[Record], iou_type: IouType, max_dets: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    with _stdout_to_log():
        truth_api = _pycocotools_index(truth)
        # loadRes fails on an empty list
        found_api = truth_api.loadRes(detections) if detections else _pycocotools_index({**truth, "annotations": []})
        evaluator = pycocotools.cocoeval.COCOeval(truth_api, found_api, iouType=iou_type)
        evaluator.params.maxDets = max_dets
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"], evaluator.eval["recall"]


def _pycocotools_index(data: dict[str, list[Record]]) -> pycocotools.coco.COCO:
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


def _percent(values: np.ndarray) -> float:
    """Mean of a slice in percent. -1 marks "no ground truth"; nan where there is nothing else."""
    values = values[values > -1]
    return float(100 * values.mean()) if values.size else float("nan")
