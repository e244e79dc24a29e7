"""Pictures of what a detector found, beside what there was to find."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnet_backbone.evaluation.drawing import (
    GAP,
    PAPER,
    check_boxes,
    check_image,
    check_masks,
    draw_panel,
    fit,
    tile,
    tinted,
)

logger = logging.getLogger(__name__)

NUM_PICTURES = 8  # of a data set
PICTURE_SCORE = 0.5  # detections below it are not drawn
GRID_PAIRS = 12
GRID_CELL = (960, 400)  # width and height in pixels of one pair in the grid

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One image with its ground truth and its detections; boxes are x0 y0 x1 y1 in the image's pixels."""

    name: str  # ends up in the picture's file name
    image: Tensor  # uint8, (3, H, W), RGB
    gt_boxes: Tensor  # (N, 4)
    gt_labels: Tensor  # integer, (N,), 0 to K - 1
    boxes: Tensor  # (M, 4)
    labels: Tensor  # integer, (M,), 0 to K - 1
    scores: Tensor  # (M,), 0 to 1
    gt_masks: Tensor | None = None  # bool, (N, H, W)
    masks: Tensor | None = None  # bool, (M, H, W)


def evenly_spaced(items: Sequence[T]) -> Sequence[T]:
    """Return those of a data set to draw: at most ``NUM_PICTURES``, the first and the last among them."""
    count = min(len(items), NUM_PICTURES)
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def draw_pair(
    image: Tensor,
    gt_boxes: Tensor,
    gt_labels: Tensor,
    boxes: Tensor,
    labels: Tensor,
    scores: Tensor,
    class_names: Sequence[str],
    score_threshold: float = PICTURE_SCORE,
    gt_masks: Tensor | None = None,
    masks: Tensor | None = None,
) -> Tensor:
    """Draw the ground truth on the left and the detections on the right, each under a line that says which it is.

    Args:
        image: uint8, (3, H, W), RGB. A small one is enlarged.
        gt_boxes: (N, 4), x0 y0 x1 y1 in pixels; what lies outside the image is cut off.
        gt_labels: integer, (N,), an index into `class_names`.
        boxes: (M, 4), as `gt_boxes`.
        labels: integer, (M,).
        scores: (M,), 0 to 1; drawn with two decimals.
        class_names: the K classes. A class has the same color in every picture. PIL's own font draws
            them; it has Latin letters only.
        score_threshold: detections with a lower score are not drawn.
        gt_masks: bool, (N, H, W); tints what the objects cover. None draws boxes alone.
        masks: bool, (M, H, W), as `gt_masks`.

    Returns:
        uint8, (3, H', W'), RGB.

    Raises:
        ValueError: the image is not uint8 of shape (3, H, W), shapes do not fit each other, a box is not finite, or a
            label has no class name.
    """
    check_image(image)
    check_boxes(gt_boxes, gt_labels, len(class_names), "ground truth")
    check_boxes(boxes, labels, len(class_names), "detections")
    if scores.shape != labels.shape:
        raise ValueError(
            f"expected one score for each of the {len(labels)} detections, got shape {tuple(scores.shape)}"
        )

    check_masks(gt_masks, gt_labels, image, "ground truth")
    check_masks(masks, labels, image, "detections")

    best_first = scores.argsort(descending=True, stable=True)
    shown = best_first[scores[best_first] >= score_threshold]
    left = draw_panel(
        tinted(image, gt_masks, gt_labels),
        f"Ground truth: {_count(len(gt_boxes), 'object')}",
        gt_boxes,
        gt_labels,
        [class_names[label] for label in gt_labels.tolist()],
    )
    right = draw_panel(
        tinted(image, None if masks is None else masks[shown], labels[shown]),
        f"Predictions: {len(shown)} with score {score_threshold:.2f} or more",
        boxes[shown],
        labels[shown],
        [
            f"{class_names[k]} {score:.2f}"
            for k, score in zip(labels[shown].tolist(), scores[shown].tolist(), strict=True)
        ],
    )
    pair = Image.new("RGB", (left.width + GAP + right.width, left.height), PAPER)
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + GAP, 0))
    return torch.from_numpy(np.array(pair)).permute(2, 0, 1).contiguous()


def save_comparison_pictures(
    folder: Path, samples: Sequence[Sample], class_names: Sequence[str], score_threshold: float = PICTURE_SCORE
) -> list[Path]:
    """Write one PNG for every sample, as :func:`draw_pair` draws it, and ``grid.png`` with the first twelve.

    Returns:
        The files in the order of the samples, ``000_<name>.png`` and so on, and ``grid.png`` last.

    Raises:
        ValueError: there are no samples, or as :func:`draw_pair`.
    """
    if not samples:
        raise ValueError("there are no samples to draw; give at least one")
    folder.mkdir(parents=True, exist_ok=True)
    paths, cells = [], []
    for index, sample in enumerate(samples):
        drawn = draw_pair(
            sample.image,
            sample.gt_boxes,
            sample.gt_labels,
            sample.boxes,
            sample.labels,
            sample.scores,
            class_names,
            score_threshold,
            sample.gt_masks,
            sample.masks,
        )
        pair = Image.fromarray(drawn.permute(1, 2, 0).numpy())
        path = folder / f"{index:03d}_{re.sub('[^A-Za-z0-9_-]+', '_', Path(sample.name).stem)}.png"
        pair.save(path)
        paths.append(path)
        if index < GRID_PAIRS:
            cells.append(fit(pair, GRID_CELL))
    grid_path = folder / "grid.png"
    tile(cells).save(grid_path)
    logger.info("wrote %d pictures and grid.png to %s", len(paths), folder)
    return [*paths, grid_path]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
