"""The objects of a detection data set as images with one label each, in class folders."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import torchvision.transforms.v2.functional as F

from resnet_backbone.data.coco.dataset import CocoDataset

logger = logging.getLogger(__name__)


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
