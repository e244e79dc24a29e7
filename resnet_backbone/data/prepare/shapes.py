"""The generated "shapes" data set in COCO format, and the objects of such a set as images with one label each.

Five classes, each of its own outline and hue, on dull backgrounds; textures, sizes and places are random. It needs no
download, and a small detector learns it from scratch in minutes.
"""

from __future__ import annotations

import colorsys
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from torchvision.transforms.v2 import functional as F

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.files.atomic import write_text
from resnet_backbone.files.text import read_json

logger = logging.getLogger(__name__)


def draw_texture(rng: np.random.Generator, height: int, width: int, hue: float | None = None) -> np.ndarray:
    """A texture of a random kind between two random colors, with grain.

    Args:
        rng: decides everything.
        height, width: pixels.
        hue: from 0 to 1 around the color circle; the colors are then strong and near it. None gives dull colors.

    Returns:
        float32 (height, width, 3), 0..255.
    """
    pattern = _PATTERNS[int(rng.integers(len(_PATTERNS)))](rng, height, width).astype(np.float32)
    first, second = (_dull(rng) if hue is None else _strong(rng, hue) for _ in range(2))
    noise = _noise(rng, height // 2 + 1, width // 2 + 1)
    grain = cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.float32) - 127.5
    grain *= np.float32(rng.uniform(0, 0.15))
    channels = [grain + (start + pattern * (end - start)) for start, end in zip(first, second, strict=True)]
    return cv2.merge(channels).clip(0, 255)


def _dull(rng: np.random.Generator) -> np.ndarray:
    return (rng.uniform(50, 205) + rng.uniform(-15, 15, 3)).astype(np.float32)


def _strong(rng: np.random.Generator, hue: float) -> np.ndarray:
    hsv = (hue + rng.uniform(-0.05, 0.05)) % 1, rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv), dtype=np.float32)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width), dtype=np.uint8)


def _uniform(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return np.full((height, width), rng.uniform())


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    ramp = _ramp(rng, height, width)
    return (ramp - ramp.min()) / (np.ptp(ramp) + 1e-9)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return (_ramp(rng, height, width) / rng.uniform(6, 40) % 1 < rng.uniform(0.3, 0.7)).astype(np.float64)


def _checks(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    side = int(rng.integers(6, 32))
    y, x = np.mgrid[:height, :width] + rng.integers(0, side, (2, 1, 1))
    return ((x // side + y // side) % 2).astype(np.float64)


def _clouds(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cells = int(rng.integers(3, 24))
    coarse = _noise(rng, cells, cells)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR_EXACT) / 255.0


def _ramp(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Distance in pixels along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * np.arange(width) + np.sin(angle) * np.arange(height)[:, None]


_PATTERNS = (_uniform, _gradient, _stripes, _checks, _clouds)


_VERSION = 1  # raised when the same seed gives other files
_SUPERSAMPLING = 4
_MIN_VISIBLE = 0.3  # of the whole shape, what is outside the image included
_JPEG_QUALITY = 92
_SPLITS = ("train", "val")

# Target area of a shape in square pixels; COCO's limits are 32**2 and 96**2.
_AREAS = {"small": (16**2, 30**2), "medium": (36**2, 88**2), "large": (102**2, 125**2)}
_AREA_ODDS = (0.25, 0.5, 0.25)
_MAX_IMAGE_FRACTION = 0.4


def generate_shapes(
    folder: str | Path, num_train: int = 600, num_val: int = 100, image_size: int = 256, seed: int = 0
) -> bool:
    """Write ``annotations/{train,val}.json`` and ``{train,val}/*.jpg`` below ``folder``.

    The same arguments give the same bytes (with the same OpenCV); image ``i`` of a split does not depend on how many
    there are. Does nothing where the set is there with these settings.

    Args:
        folder: created where needed.
        num_train: images to train on.
        num_val: images to evaluate on, of other random numbers.
        image_size: pixels; each side of each image is drawn from 0.75 to 1.25 of it.
        seed: from 0 up.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: a number is out of range.
        FileExistsError: the folder holds a set with other settings.
    """
    if min(num_train, num_val) < 1 or image_size < 64 or seed < 0:
        raise ValueError(
            f"found num_train {num_train}, num_val {num_val}, image_size {image_size}, seed {seed}; expected at least "
            "one image in each split, an image size of 64 pixels or more, and a seed from 0 up"
        )
    numbers = dict(zip(_SPLITS, (num_train, num_val), strict=True))
    common = {"description": "generated shapes, resnet_backbone", "version": _VERSION}
    sizes = {"image_size": image_size, "seed": seed}
    settings = {split: {**common, "split": split, "images": number, **sizes} for split, number in numbers.items()}

    def draw(rng: np.random.Generator, split: str) -> tuple[np.ndarray, Objects]:
        return draw_image(rng, image_size)

    return write_generated(folder, settings, SHAPE_NAMES, draw, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])


def _regular(corners: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star() -> np.ndarray:
    corners = _regular(10)
    corners[1::2] *= 0.45
    return corners


def _cross() -> np.ndarray:
    a, b = 0.94, 0.34  # arm length and half its width; a**2 + b**2 = 1
    x, y = np.array([(a, -b), (a, b), (b, b)]).T  # three of the twelve corners; the others are turned by 90 degrees
    quarters = [(x, y), (-y, x), (-x, -y), (y, -x)]
    return np.concatenate([np.stack(quarter, axis=1) for quarter in quarters]) / math.hypot(a, b)


# Corners of the shapes around (0, 0), float64 (P, 2), the furthest 1 away.
SHAPES = {"circle": _regular(96), "square": _regular(4), "triangle": _regular(3), "star": _star(), "cross": _cross()}
SHAPE_NAMES = tuple(SHAPES)


Objects = list[tuple[int, np.ndarray]]  # label from 0, and what is visible of the object, bool (H, W)
Draw = Callable[[np.random.Generator, str], tuple[np.ndarray, Objects]]  # split -> uint8 (H, W, 3) BGR, objects


def write_generated(
    folder: str | Path,
    settings: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str],
    draw: Draw,
    jpeg: Sequence[int],
) -> bool:
    """Write ``annotations/SPLIT.json`` and ``SPLIT/*.jpg`` for each split, unless they are there with these settings.

    Args:
        folder: created where needed.
        settings: of each split; stands in its JSON file as ``info``. ``seed`` and ``images``, their number, decide what
            is drawn: image ``i`` has random numbers of its own.
        class_names: category ``i + 1`` has name ``i``.
        draw: makes an image and its objects from the random numbers and the split.
        jpeg: parameters of ``cv2.imencode``.

    Returns:
        Whether anything was written.

    Raises:
        FileExistsError: the folder holds a set with other settings.
    """
    folder = Path(folder)
    present = [_is_present(folder, split, info) for split, info in settings.items()]
    for number, (split, there) in enumerate(zip(settings, present, strict=True)):
        if not there:
            _write_split(folder, split, number, settings[split], class_names, draw, jpeg)
    return not all(present)


def _is_present(folder: Path, split: str, info: Mapping[str, Any]) -> bool:
    path = folder / "annotations" / f"{split}.json"
    if not path.exists():
        return False
    document = read_json(path)
    if document.get("info") != info:
        raise FileExistsError(
            f"{path} was made with {document.get('info')}, not {info}; delete {folder} or choose another"
        )
    return all((folder / split / image["file_name"]).is_file() for image in document["images"])


def _write_split(
    folder: Path,
    split: str,
    number: int,
    info: Mapping[str, Any],
    class_names: Sequence[str],
    draw: Draw,
    jpeg: Sequence[int],
) -> None:
    (folder / split).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(info["images"]):
        pixels, objects = draw(np.random.default_rng([info["seed"], number, index]), split)
        file_name = f"{index + 1:06d}.jpg"
        encoded = cv2.imencode(".jpg", pixels, jpeg)[1]
        (folder / split / file_name).write_bytes(encoded.tobytes())
        images.append({"id": index + 1, "file_name": file_name, "height": pixels.shape[0], "width": pixels.shape[1]})
        for label, mask in objects:
            annotations.append(_annotation(len(annotations) + 1, index + 1, label, mask))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    document = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    write_text(folder / "annotations" / f"{split}.json", json.dumps(document))


def _annotation(annotation_id: int, image_id: int, label: int, mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": float(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }


def draw_image(rng: np.random.Generator, image_size: int) -> tuple[np.ndarray, Objects]:
    """Draw one picture.

    A shape that would hide more than 70 % of an earlier one, or would itself lie that far outside, is not drawn at all:
    every shape in the picture is annotated.

    Returns:
        Pixels, uint8 (H, W, 3), and for each shape its label (0..4) and what is visible of it, bool (H, W).
    """
    height, width = (int(side) for side in rng.integers(round(0.75 * image_size), round(1.25 * image_size) + 1, 2))
    pixels = draw_texture(rng, height, width)
    labels: list[int] = []
    visible: list[np.ndarray] = []
    full_areas: list[float] = []
    for _ in range(int(rng.integers(2, 7))):
        label = int(rng.integers(len(SHAPE_NAMES)))
        coverage, area = _draw_shape(rng, SHAPE_NAMES[label], height, width)
        mask = coverage >= 0.5
        masks = [*(earlier & ~mask for earlier in visible), mask]
        areas = [*full_areas, area]
        if any(np.count_nonzero(m) < _MIN_VISIBLE * full for m, full in zip(masks, areas, strict=True)):
            continue
        x, y, w, h = cv2.boundingRect((coverage > 0).astype(np.uint8))
        part = (slice(y, y + h), slice(x, x + w))
        rows, columns = mask[part].shape
        texture = draw_texture(rng, rows, columns, hue=label / len(SHAPE_NAMES))
        pixels[part] += coverage[part][..., None] * (texture - pixels[part])
        labels, visible, full_areas = [*labels, label], masks, areas
    return np.rint(pixels).astype(np.uint8), list(zip(labels, visible, strict=True))


def _draw_shape(rng: np.random.Generator, name: str, height: int, width: int) -> tuple[np.ndarray, float]:
    """How much of each pixel the shape covers, float32 (H, W), 0..1; and its whole area in square pixels."""
    low, high = _AREAS[rng.choice(list(_AREAS), p=_AREA_ODDS)]
    area = min(rng.uniform(math.sqrt(low), math.sqrt(high)) ** 2, _MAX_IMAGE_FRACTION * height * width)
    unit = SHAPES[name]
    radius = math.sqrt(area / float(cv2.contourArea(unit.astype(np.float32))))
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    reach = 0.7 * radius  # a corner may leave the image, the middle may not
    center = [rng.uniform(min(reach, side / 2), max(side - reach, side / 2)) for side in (width, height)]
    corners = unit * radius @ np.array([[cos, sin], [-sin, cos]]) + center

    canvas = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    # OpenCV's integer points are pixel centers, ours are corners of the pixel grid; 4 bits of fraction.
    points = np.rint((corners * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(canvas, [points], 255, shift=4)
    coverage = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return coverage, area


def write_crops(json_path: str | Path, image_folder: str | Path, output: str | Path, *, margin: float = 0.15) -> int:
    """Write a square around every object as ``output/CLASS/IMAGE_NUMBER.png``, for training a classifier on it.

    A square is as long as the longer side of the box, with a margin; where it reaches out of the image, it is moved
    inside, and made smaller where the image is. Crowds are left out.

    Args:
        json_path: COCO-format annotations.
        image_folder: of their images.
        output: is replaced, at once and when all crops are written.
        margin: around the box, as a part of its longer side, on each side.

    Returns:
        How many crops were written.

    Raises:
        FileNotFoundError, ValueError: annotations or images that are missing or malformed, or a negative margin.
    """
    if margin < 0:
        raise ValueError(f"margin {margin} must be 0 or more")
    dataset = CocoDataset(json_path, image_folder)
    output = Path(output)
    unfinished = output.with_name(f".{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for name in dataset.class_names:
        (unfinished / name).mkdir(parents=True)
    count = 0
    for index in range(len(dataset)):
        image, target = dataset[index]
        for number, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)):
            left, top, side = _square(box, margin, tuple(image.shape[-2:]))
            crop = F.to_pil_image(F.crop(image, top, left, side, side))
            crop.save(unfinished / dataset.class_names[label] / f"{dataset.image_path(index).stem}_{number}.png")
            count += 1
    shutil.rmtree(output, ignore_errors=True)
    unfinished.replace(output)
    logger.info("%s: %d crops of %d classes", output, count, dataset.num_classes)
    return count


def _square(box: list[float], margin: float, size: tuple[int, ...]) -> tuple[int, int, int]:
    """Return left, top and side, in pixels, of the square around a box x1 y1 x2 y2 in an image (height, width)."""
    x1, y1, x2, y2 = box
    side = min(max(1, round(max(x2 - x1, y2 - y1) * (1 + 2 * margin))), *size)
    left = min(max(0, round((x1 + x2 - side) / 2)), size[1] - side)
    top = min(max(0, round((y1 + y2 - side) / 2)), size[0] - side)
    return left, top, side
