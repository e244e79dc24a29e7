"""Boxes, masks and labels drawn on images, and pictures of predictions beside ground truth."""

from __future__ import annotations

import colorsys
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from resnet_backbone.metrics.results import Detections

logger = logging.getLogger(__name__)

SHORTEST_LONG_SIDE = 640  # pixels; smaller images are enlarged to this, so that labels can be read
GAP = 8  # pixels between two panels, and between the cells of the grid
MASK_OPACITY = 0.45
PAPER, INK = (255, 255, 255), (32, 33, 36)
NUM_PICTURES = 8  # of a data set
PICTURE_SCORE = 0.5  # detections below it are not drawn
GRID_PAIRS = 12
GRID_CELL = (960, 400)  # width and height in pixels of one pair in the grid

T = TypeVar("T")

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]  # x0, y0, x1, y1


def check_image(image: Tensor) -> None:
    """Raise ValueError unless the image is uint8 of shape (3, H, W)."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image of uint8 and shape (3, H, W), got {image.dtype} and {tuple(image.shape)}")


def check_objects(
    image: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor | None, num_classes: int, what: str
) -> None:
    """Raise ValueError where the image is none, shapes do not fit, a box is not finite, or a label has no class."""
    check_image(image)
    count = len(boxes)
    if boxes.shape != (count, 4) or labels.shape != (count,):
        raise ValueError(
            f"{what}: expected boxes (N, 4) and labels (N,), got {tuple(boxes.shape)}, {tuple(labels.shape)}"
        )
    if not boxes.isfinite().all():
        raise ValueError(f"{what}: boxes must be finite, got {boxes[~boxes.isfinite().all(1)].tolist()}")
    if outside := [label for label in labels.tolist() if not 0 <= label < num_classes]:
        raise ValueError(f"{what}: labels must be 0 to {num_classes - 1}, one for each class name; got {outside}")
    if masks is not None and (masks.dtype != torch.bool or masks.shape != (count, *image.shape[1:])):
        raise ValueError(
            f"{what}: expected masks of bool and shape {(count, *image.shape[1:])}, "
            f"got {masks.dtype} and {tuple(masks.shape)}"
        )


def class_color(label: int) -> Color:
    """Steps of the golden ratio around the color wheel: neighbors are far apart. Every eight classes, darker."""
    golden_ratio = 0.618034
    hue = (0.02 + label * golden_ratio) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, (1.0, 0.82, 0.66)[label // 8 % 3])
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    texts: Sequence[str],
    masks: Tensor | None = None,
    max_size: int | None = None,
) -> Image.Image:
    """Draw masks, boxes and a text at each box. A small image is enlarged, so that the texts can be read.

    Args:
        image: uint8, (3, H, W), RGB.
        boxes: (N, 4), x0 y0 x1 y1 in pixels of the image, best first: the best lie on top, and their texts where they
            are read best. What lies outside is cut off.
        labels: integer, (N,); a class has the same color in every picture.
        texts: N; PIL's own font has Latin letters only.
        masks: bool, (N, H, W): their pixels are mixed with the color of the class.
        max_size: the longer side of the picture in pixels at most; None sets no limit.
    """
    pixels = image.permute(1, 2, 0).cpu().numpy()
    colors = [class_color(label) for label in labels.tolist()]
    if masks is not None:
        blended = pixels.copy()
        for mask, color in reversed(list(zip(masks.cpu().numpy(), colors, strict=True))):
            blended[mask] = ((1 - MASK_OPACITY) * pixels[mask] + MASK_OPACITY * np.array(color)).round()
        pixels = blended
    scene = Image.fromarray(pixels)
    zoom = max(1.0, SHORTEST_LONG_SIDE / max(scene.size))
    if max_size is not None:
        zoom = min(zoom, max_size / max(scene.size))
    width, height = (max(1, round(side * zoom)) for side in scene.size)
    if zoom != 1:
        scene = scene.resize((width, height), Image.Resampling.BICUBIC if zoom > 1 else Image.Resampling.LANCZOS)
    unit = max(width, height) / 100
    line = max(2, round(0.35 * unit))
    font = ImageFont.load_default(size=max(12, round(2.2 * unit)))
    draw = ImageDraw.Draw(scene)
    corners = [_cut(box, zoom, width, height) for box in boxes.tolist()]
    for box, color in reversed(list(zip(corners, colors, strict=True))):
        draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=INK, width=line + 2)
        draw.rectangle(box, outline=color, width=line)
    taken: list[Rectangle] = []
    for box, color, text in zip(corners, colors, texts, strict=True):
        plate = _place(draw.textbbox((0, 0), text, font=font), box, line, taken, width, height)
        taken.append(plate)
        draw.rectangle(plate, fill=color)
        is_light = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2] > 125  # Rec. 709 luma
        place = (plate[0] + line, (plate[1] + plate[3]) / 2)
        draw.text(place, text, fill=INK if is_light else PAPER, font=font, anchor="lm")
    return scene


def draw_detections(
    image: Tensor, found: Detections, class_names: Sequence[str], max_size: int | None = None
) -> Image.Image:
    """Draw boxes, masks, and names with scores on an image.

    Args:
        image: uint8, (3, H, W), RGB. A small one is enlarged, so that labels can be read.
        found: all of it is drawn.
        class_names: the K classes.
        max_size: the longer side of the picture in pixels at most; None sets no limit.

    Raises:
        ValueError: shapes do not fit each other, a box is not finite, or a label has no class name.
    """
    check_objects(image, found.boxes, found.labels, found.masks, len(class_names), "detections")
    texts = texts_of(class_names, found.labels, found.scores)
    return draw_objects(image, found.boxes, found.labels, texts, found.masks, max_size)


def _cut(box: Sequence[float], zoom: float, width: int, height: int) -> Rectangle:
    """The box in enlarged pixels, inside the picture."""
    xs = sorted(min(max(x * zoom, 0), width - 1) for x in (box[0], box[2]))
    ys = sorted(min(max(y * zoom, 0), height - 1) for y in (box[1], box[3]))
    return xs[0], ys[0], xs[1], ys[1]


def _place(
    text_box: Rectangle, box: Rectangle, line: int, taken: list[Rectangle], width: int, height: int
) -> Rectangle:
    """Where the label goes: above the box, inside it at the top, or below it, whichever covers no other label first."""
    plate_width, plate_height = text_box[2] + 2 * line, text_box[3] + line
    x = min(max(box[0], 0), max(0, width - plate_width))
    candidates = [box[1] - plate_height, box[1], box[3], box[3] - plate_height]
    plates = [(x, y, x + plate_width, y + plate_height) for y in candidates if 0 <= y <= height - plate_height]
    free = [plate for plate in plates if not any(_overlap(plate, other) for other in taken)]
    return (free or plates or [(x, 0, x + plate_width, plate_height)])[0]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_panel(
    title: str, image: Tensor, boxes: Tensor, labels: Tensor, texts: Sequence[str], masks: Tensor | None = None
) -> Image.Image:
    """Draw as :func:`draw_objects`, below a strip with the title in letters that fit its width."""
    scene = draw_objects(image, boxes, labels, texts, masks)
    font_size = max(14, round(0.028 * max(scene.size)))
    while font_size > 8 and ImageFont.load_default(size=font_size).getlength(title) > scene.width - font_size:
        font_size -= 1
    strip = 2 * font_size
    panel = Image.new("RGB", (scene.width, scene.height + strip), INK)
    panel.paste(scene, (0, strip))
    font = ImageFont.load_default(size=font_size)
    ImageDraw.Draw(panel).text((font_size / 2, strip / 2), title, fill=PAPER, font=font, anchor="lm")
    return panel


@dataclass(frozen=True)
class PictureSample:
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


def draw_pair(sample: PictureSample, class_names: Sequence[str]) -> Tensor:
    """Draw the ground truth on the left and the detections on the right, those that score ``PICTURE_SCORE`` or more.

    Returns:
        uint8, (3, H', W'), RGB.

    Raises:
        ValueError: the image is not uint8 of shape (3, H, W), shapes do not fit each other, a box is not finite, or a
            label has no class name.
    """
    image, labels, scores = sample.image, sample.labels, sample.scores
    check_objects(image, sample.gt_boxes, sample.gt_labels, sample.gt_masks, len(class_names), "ground truth")
    check_objects(image, sample.boxes, labels, sample.masks, len(class_names), "detections")
    if scores.shape != labels.shape:
        raise ValueError(
            f"expected one score for each of the {len(labels)} detections, got shape {tuple(scores.shape)}"
        )

    best_first = scores.argsort(descending=True, stable=True)
    shown = best_first[scores[best_first] >= PICTURE_SCORE]
    count = len(sample.gt_boxes)
    left = draw_panel(
        f"Ground truth: {count} object{'s' * (count != 1)}",
        image,
        sample.gt_boxes,
        sample.gt_labels,
        [class_names[label] for label in sample.gt_labels.tolist()],
        sample.gt_masks,
    )
    right = draw_panel(
        f"Predictions: {len(shown)} with score {PICTURE_SCORE:.2f} or more",
        image,
        sample.boxes[shown],
        labels[shown],
        texts_of(class_names, labels[shown], scores[shown]),
        None if sample.masks is None else sample.masks[shown],
    )
    pair = Image.new("RGB", (left.width + GAP + right.width, left.height), PAPER)
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + GAP, 0))
    return torch.from_numpy(np.array(pair)).permute(2, 0, 1).contiguous()


def texts_of(class_names: Sequence[str], labels: Tensor, scores: Tensor) -> list[str]:
    """Return ``cat 0.93``, the class and score of each of N detections."""
    return [f"{class_names[label]} {score:.2f}" for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]


def save_comparison_pictures(folder: Path, samples: Sequence[PictureSample], class_names: Sequence[str]) -> list[Path]:
    """Write one PNG for every sample, as :func:`draw_pair` draws it, and ``grid.png`` with the first twelve.

    Returns:
        The files in the order of the samples, ``000_<name>.png`` and so on, and ``grid.png`` last.

    Raises:
        ValueError: there are no samples, or as :func:`draw_pair`.
    """
    if not samples:
        raise ValueError("there are no samples to draw; give at least one")
    pairs = (draw_pair(sample, class_names).permute(1, 2, 0).numpy() for sample in samples)
    named = ((sample.name, Image.fromarray(pair)) for sample, pair in zip(samples, pairs, strict=True))
    paths = save_pictures(folder, named, GRID_PAIRS, GRID_CELL)
    logger.info("wrote %d pictures and grid.png to %s", len(samples), folder)
    return paths


def save_pictures(
    folder: Path, pictures: Iterable[tuple[str, Image.Image]], in_grid: int, cell: tuple[int, int]
) -> list[Path]:
    """Write one PNG for every picture, of which there is at least one, and ``grid.png``.

    Args:
        folder: is made if it must be.
        pictures: each with the name, or path, of what it shows.
        in_grid: so many of them, the first, are in the grid.
        cell: width and height in pixels of each in the grid.

    Returns:
        The files in the order of the pictures, ``000_<name>.png`` and so on, and ``grid.png`` last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, cells = [], []
    for index, (name, picture) in enumerate(pictures):
        paths.append(folder / f"{index:03d}_{re.sub('[^A-Za-z0-9_-]+', '_', Path(name).stem)}.png")
        picture.save(paths[-1])
        if index < in_grid:
            cells.append(ImageOps.contain(picture, cell, Image.Resampling.LANCZOS))
    _tile(cells).save(folder / "grid.png")
    return [*paths, folder / "grid.png"]


def _tile(cells: list[Image.Image]) -> Image.Image:
    """Put pictures in two columns (one, if there are no more than two), each in the middle of its cell, on white."""
    columns = 2 if len(cells) > 2 else 1
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    cell_width = max(cell.width for cell in cells)
    row_heights = [max(cell.height for cell in row) for row in rows]
    size = (columns * cell_width + (columns + 1) * GAP, sum(row_heights) + (len(rows) + 1) * GAP)
    grid = Image.new("RGB", size, PAPER)
    top = GAP
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, cell in enumerate(row):
            x = GAP + column * (cell_width + GAP) + (cell_width - cell.width) // 2
            grid.paste(cell, (x, top + (row_height - cell.height) // 2))
        top += row_height + GAP
    return grid
