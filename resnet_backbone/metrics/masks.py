"""Masks in COCO's RLE (run-length encoding): checking those of ground truth and results, and encoding polygons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from resnet_backbone.files.text import brief

MAX_PIXELS = 1 << 31  # of one mask; COCO's code counts with 32 bits
_MAX_CHARACTERS = 7  # of one run, five bits each


def find_broken(counts: Sequence[str | bytes], pixels: Sequence[int]) -> tuple[int, str] | None:
    """Find the first of some masks whose RLE does not fill its image exactly.

    All of them are decoded at once, since a call for each would take longer than the evaluation.

    Args:
        counts: compressed RLE counts of N masks, as ``pycocotools.mask.encode`` writes them.
        pixels: height times width of the image of each.

    Returns:
        Its position and what is wrong with it; None where all are whole.

    Source: ``rleFrString`` in pycocotools' ``maskApi.c``: five bits a character from 48 up, bit 6 says that more
    follow, and from the fourth run on the difference to the run two before is stored.
    """
    data = [_ascii(text) for text in counts]
    for position, text in enumerate(data):
        if not text:
            return position, "has no run lengths, or characters that do not occur in them"
    if not data:
        return None
    code = np.frombuffer(b"".join(data), np.uint8).astype(np.int64) - 48
    after = np.cumsum([len(text) for text in data])  # where each mask's characters end
    is_last = (code & 0x20) == 0  # of its run
    last = np.flatnonzero(is_last)
    wrong = (code < 0) | (code > 63)
    wrong[after[~is_last[after - 1]] - 1] = True
    lengths = np.diff(last, prepend=-1)
    wrong[last[lengths > _MAX_CHARACTERS]] = True
    if wrong.any():
        return int(np.searchsorted(after, np.flatnonzero(wrong)[0], "right")), "is no compressed run-length text"
    first = last - lengths + 1  # characters at which the runs begin
    within = np.arange(len(code)) - np.repeat(first, lengths)
    runs = np.add.reduceat((code & 0x1F) << (5 * within), first)
    runs -= ((code[last] & 0x10) > 0) * (np.int64(1) << (5 * lengths))
    begins = np.searchsorted(last, np.concatenate([[0], after[:-1]]))  # runs at which the masks begin
    runs = _undo_differences(runs, begins)
    sums = np.add.reduceat(runs, begins)
    broken = (np.minimum.reduceat(runs, begins) < 0) | (sums != np.array(pixels, np.int64))
    if not broken.any():
        return None
    position = int(np.flatnonzero(broken)[0])
    return position, f"adds up to {sums[position]} pixels, the image has {pixels[position]}"


def _ascii(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    return text.encode("ascii") if text.isascii() else b""


def _undo_differences(runs: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """From the fourth run of a mask on, add the run two before: sums over every other run, starting with the second."""
    counts = np.diff(begins, append=len(runs))
    within = np.arange(len(runs)) - np.repeat(begins, counts)
    whole = runs.copy()
    for chosen in (within % 2 == 1, (within % 2 == 0) & (within > 0)):
        summed = np.cumsum(np.where(chosen, runs, 0))
        before = np.repeat(np.concatenate([[0], summed])[begins], counts)
        whole = np.where(chosen, summed - before, whole)
    return whole


Record = dict[str, Any]
# A polygon is walked pixel by pixel, so one far-away point costs time and memory: none may lie further out than this.
_MAX_IMAGE_SIDES_AWAY = 10


def to_rle(segmentation: Any, image: Mapping[str, Any], where: str) -> Record:
    """COCO polygons, or RLE (a list or compressed), as compressed RLE.

    Raises:
        ValueError: anything else, points far outside of the image, or RLE that does not fill it.
    """
    height, width = _size(image)
    if not segmentation:
        raise ValueError(f'{where} has no segmentation, which iou_type "segm" needs; measure iou_type "bbox" instead')
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, height, width, where)
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        raise ValueError(
            f'{where}: a segmentation is a list of polygons or {{"size": [height, width], "counts": ...}}, '
            f"got {brief(segmentation)}"
        )
    _check_mask_size(segmentation["size"], image, where)
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(type(run) is int and 0 <= run <= height * width for run in counts) or sum(counts) != height * width:
            raise ValueError(f"{where}: the run lengths do not add up to the {height * width} pixels of the image")
        return coco_mask.frPyObjects(segmentation, height, width)
    if not isinstance(counts, str | bytes):
        raise ValueError(f"{where}: run lengths are a list or a text, got {brief(counts)}")
    if broken := find_broken([counts], [height * width]):
        raise ValueError(f"{where}: its mask {broken[1]}")
    return {"size": [height, width], "counts": counts}


def _check_polygon(polygon: Any, height: int, width: int, where: str) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"{where}: a polygon is [x0, y0, x1, y1, ...] with at least three points")
    limit = _MAX_IMAGE_SIDES_AWAY * max(height, width)
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= limit:
            raise ValueError(
                f"{where}: a polygon holds {brief(value)}; expected x and y in pixels of an image of "
                f"{height} x {width} (height x width)"
            )


def _check_mask_size(size: Any, image: Mapping[str, Any], where: str) -> None:
    expected = list(_size(image))
    if not isinstance(size, list | tuple) or list(size) != expected:
        raise ValueError(f"{where}: mask of [height, width] {brief(size)} on image {image['id']} of {expected}")


def mask_areas(rles: Iterable[Record]) -> list[float]:
    """Pixels of each mask, one by one: with NumPy 2, pycocotools fails on more than 255 at once."""
    return [float(coco_mask.area(rle)) for rle in rles]


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    if "height" not in image or "width" not in image:
        raise ValueError(f'image {image["id"]} has no height and width, which iou_type "segm" needs; add them')
    height, width = image["height"], image["width"]
    if type(height) is not int or type(width) is not int or min(height, width) < 1 or height * width >= MAX_PIXELS:
        raise ValueError(
            f"image {image['id']} has height {brief(height)} and width {brief(width)}; expected whole numbers of pixels"
        )
    return height, width


def checked_rle(rle: Any, image: Mapping[str, Any], where: str) -> Record:
    """Return the mask of a result, its form and size checked; its RLE is for :func:`refuse_broken_masks`.

    Raises:
        ValueError: it is something else, or of another size than its image.
    """
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), str | bytes):
        raise ValueError(
            f"{where}: a result's segmentation is compressed run lengths "
            '{"size": [height, width], "counts": "..."}, as pycocotools.mask.encode writes'
        )
    _check_mask_size(rle.get("size"), image, where)
    return dict(rle)


def refuse_broken_masks(results: Sequence[Record], first: int) -> None:
    """Raise ValueError where the mask of a checked result does not fill its image: COCO's code would hang or crash.

    ``first`` is the number of the first result, for the message.
    """
    masks = [result["segmentation"] for result in results]
    broken = find_broken([mask["counts"] for mask in masks], [mask["size"][0] * mask["size"][1] for mask in masks])
    if broken is not None:
        raise ValueError(f"result {first + broken[0]}: its mask {broken[1]}; write what pycocotools.mask.encode gives")
