"""ImageNet's localisation error: the right class, with a box around one of its objects, among five guesses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.data.coco.read import GroundTruth
from resnet_backbone.metrics.classification import TOP
from resnet_backbone.metrics.matching import best_first, group_by, overlaps, read_pair
from resnet_backbone.metrics.result_table import Results, ResultTable


def localization_error(
    ground_truth: Path | Mapping[str, Any] | GroundTruth,
    results: Results | ResultTable,
    *,
    iou: float = 0.5,
) -> float:
    """Return the share of images, in percent, that no guess is right for.

    A guess is a class with a box. It is right where the image has that class and the IoU with any of its objects is
    ``iou`` or more. ImageNet's images have one class each; of an image of several, the share of them that is not found
    counts. One guess of the true class for each image gives the error on the given class, as in Table 13 of the paper.

    Args:
        ground_truth: COCO annotations, as a dict or the path of the JSON file, with objects in every image.
        results: COCO results with ``"bbox"``, as a list or the path of the JSON file; of each image the five with the
            best scores are its guesses (equal scores in the order of the results).
        iou: the least intersection over union, above 0 and at most 1.

    Raises:
        FileNotFoundError: a file is not there.
        TypeError: the results are no list.
        ValueError: malformed files, an image without an object, or ``iou`` out of range.

    Source: ``eval_clsloc.m`` and ``compute_overlap.m`` of ILSVRC 2014's development kit (which zhoubolei/CAM has at
    be21644, evaluation/), without its list of images that do not count.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be above 0 and at most 1, got {iou}")
    truth, found = read_pair(ground_truth, results, "bbox")
    objects, detections = group_by(truth.images), group_by(found.images)
    errors = []
    for image, image_id in enumerate(truth.image_ids.tolist()):
        there = objects[image]
        if not len(there):
            raise ValueError(f"image {image_id} ({truth.file_name(image)}) has no object; every image needs its class")
        rows = best_first(found.scores, detections[image], TOP)
        right = found.labels[rows][:, None] == truth.labels[there]
        right &= overlaps(found, rows, truth, there, "bbox") >= iou
        classes = truth.labels[there]
        errors.append(1 - len(np.unique(classes[right.any(axis=0)])) / len(np.unique(classes)))
    if not errors:
        raise ValueError("the ground truth has no image, so there is nothing to compare with")
    return float(100 * np.mean(errors))
