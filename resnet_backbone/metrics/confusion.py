"""Which classes a detector takes for which: a confusion matrix of objects and detections."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.read import GroundTruth
from resnet_backbone.metrics.result_table import ResultTable


def confusion_matrix(truth: GroundTruth, found: ResultTable, *, score: float = 0.5, iou: float = 0.5) -> np.ndarray:
    """Count objects by their class and that of the detection on them, whatever it is.

    In each image pairs of an object and a detection are formed, those of the largest overlap of their boxes first, each
    in one pair at most. Detections on crowds alone are left out.

    Args:
        truth: K classes.
        found: detections in it; those below ``score`` are left out.
        score: from 0 to 1.
        iou: the least overlap of a pair, above 0.

    Returns:
        int64 (K + 1, K + 1): true classes by row, those that were found by column. In the last column are objects that
        no detection is on, in the last row detections on no object.
    """
    count = len(truth.class_names)
    matrix = np.zeros((count + 1, count + 1), dtype=np.int64)
    kept = np.flatnonzero(found.scores >= score)
    rows_of, found_of = _by_image(truth.images), _by_image(found.images[kept])
    for image in rows_of.keys() | found_of.keys():
        rows, mine = rows_of.get(image, np.empty(0, int)), kept[found_of.get(image, np.empty(0, int))]
        crowds = truth.is_crowd[rows]
        objects, crowds = rows[~crowds], rows[crowds]
        free_objects, free_found = dict.fromkeys(objects.tolist()), dict.fromkeys(mine.tolist())
        if len(objects) and len(mine):
            overlaps = coco_mask.iou(found.boxes[mine], truth.boxes[objects], [False] * len(objects))
            for place in np.argsort(-overlaps, axis=None, kind="stable"):
                one, other = np.unravel_index(place, overlaps.shape)
                if overlaps[one, other] < iou:
                    break
                if mine[one] in free_found and objects[other] in free_objects:
                    del free_found[mine[one]], free_objects[objects[other]]
                    matrix[truth.labels[objects[other]], found.labels[mine[one]]] += 1
        left = np.array(list(free_found), dtype=int)
        if len(crowds) and len(left):
            on_crowd = coco_mask.iou(found.boxes[left], truth.boxes[crowds], [True] * len(crowds)).max(axis=1) >= iou
            left = left[~on_crowd]
        matrix[:, count] += np.bincount(truth.labels[list(free_objects)], minlength=count + 1)
        matrix[count] += np.bincount(found.labels[left], minlength=count + 1)
    return matrix


def _by_image(images: np.ndarray) -> dict[int, np.ndarray]:
    order = np.argsort(images, kind="stable")
    numbers, starts = np.unique(images[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, starts[1:]), strict=True)) if len(images) else {}
