"""COCO's validation set and a detector's results on it, made up: as many images, objects and detections, seeded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NUM_CLASSES = 80
OBJECTS_PER_IMAGE = 7.3  # val2017: 36,781 objects on 5,000 images
CROWD_SHARE = 0.012  # val2017: 446 of the 36,781
SIZES = (0.41, 0.34, 0.25)  # share of small, medium and large objects in COCO
SIDES = ((4.0, 32.0), (32.0, 96.0), (96.0, 400.0))  # of a square as large as the object, in pixels


def make_case(num_images: int, detections_per_image: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return COCO ground truth and COCO results with boxes, the images in ascending order of their ids.

    About half of the objects are found, with boxes that are off by a tenth of their size or so, half of them twice, and
    some under another class; the remaining detections lie anywhere. Scores tell the found ones from the others, if not
    well, and have four digits, so that some are equal.

    Args:
        num_images: 1 or more; a few have no objects.
        detections_per_image: 0 or more, the same for every image.
        seed: the same seed gives the same case.
    """
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(600_000, num_images, replace=False)) + 1
    category_ids = np.sort(rng.choice(90, NUM_CLASSES, replace=False)) + 1
    popularity = 1 / np.arange(1, NUM_CLASSES + 1)  # a person is in every second image, a toaster in few
    popularity /= popularity.sum()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in ids.tolist():
        width, height = (640, 480) if rng.random() < 0.7 else (480, 640)
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": width, "height": height})
        count = int(rng.geometric(1 / (1 + OBJECTS_PER_IMAGE))) - 1
        labels = rng.choice(NUM_CLASSES, count, p=popularity)
        boxes = _boxes(rng, count, width, height)
        crowd = rng.random(count) < CROWD_SHARE
        for label, box, iscrowd in zip(labels, boxes.round(2).tolist(), crowd.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(category_ids[label]),
                    "bbox": box,
                    "area": round(0.7 * box[2] * box[3], 4),  # the mask's, as in COCO
                    "iscrowd": int(iscrowd),
                }
            )
        results += _detections(rng, image_id, labels, boxes, category_ids, detections_per_image, (width, height))
    categories = [{"id": key, "name": f"class {key}"} for key in category_ids.tolist()]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def write_case(folder: Path, num_images: int, detections_per_image: int, seed: int = 0) -> tuple[Path, Path]:
    """Write a case as ``annotations.json`` and ``results.json`` and return the two paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "annotations.json", folder / "results.json")
    for path, content in zip(paths, make_case(num_images, detections_per_image, seed), strict=True):
        path.write_text(json.dumps(content), encoding="utf-8")
    return paths


def _boxes(rng: np.random.Generator, count: int, width: int, height: int) -> np.ndarray:
    """(count, 4), x, y, width, height in pixels, inside the image, with COCO's shares of small and large ones."""
    low, high = np.array(SIDES)[rng.choice(3, count, p=SIZES)].T
    side = np.exp(rng.uniform(np.log(low), np.log(high)))
    stretch = np.exp(rng.normal(0, 0.35, count))
    size = np.minimum(np.stack([side * stretch, side / stretch], 1), [width, height])
    corner = rng.random((count, 2)) * ([width, height] - size)
    return np.concatenate([corner, size], 1)


def _detections(
    rng: np.random.Generator,
    image_id: int,
    labels: np.ndarray,
    boxes: np.ndarray,
    category_ids: np.ndarray,
    count: int,
    image_size: tuple[int, int],
) -> list[dict[str, Any]]:
    found = np.flatnonzero(rng.random(len(labels)) < 0.55)
    found = np.concatenate([found, found[rng.random(len(found)) < 0.5]])[:count]
    others = count - len(found)
    near = boxes[found] + rng.normal(0, 0.08, (len(found), 4)) * np.tile(boxes[found, 2:], 2)
    near[:, 2:] = np.maximum(near[:, 2:], 1)
    wrong = rng.random(len(found)) < 0.1
    near_labels = np.where(wrong, rng.integers(0, NUM_CLASSES, len(found)), labels[found])
    present = labels if len(labels) else np.arange(NUM_CLASSES)
    elsewhere = np.where(rng.random(others) < 0.5, rng.choice(present, others), rng.integers(0, NUM_CLASSES, others))
    all_boxes = np.concatenate([near, _boxes(rng, others, *image_size)]).astype(np.float32)
    scores = np.concatenate([rng.beta(3, 2, len(found)), rng.beta(1, 5, others)]).round(4)
    best_first = np.argsort(-scores, kind="stable")
    all_labels = category_ids[np.concatenate([near_labels, elsewhere])]
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for category_id, box, score in zip(
            all_labels[best_first].tolist(),
            all_boxes[best_first].astype(float).tolist(),
            scores[best_first].tolist(),
            strict=True,
        )
    ]
