"""COCO segmentations (polygons, compressed and uncompressed RLE) to binary masks.

pycocotools trusts its input: run lengths that do not fill the image leave the mask uninitialised or write past its end.
So every segmentation is checked here first, and decoded by pycocotools after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

# A polygon is walked pixel by pixel, so one far-away point costs time and memory: none may lie further out than this.
_MAX_IMAGE_SIDES_AWAY = 10


def usable_segmentation(segmentation: Any, height: int, width: int, where: str) -> Any | None:
    """Check one ``segmentation`` value of a COCO file.

    Args:
        segmentation: a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, or ``{"size": [h, w], "counts": ...}``
            with compressed (str) or uncompressed (list of int) counts.
        height: of the image, pixels.
        width: of the image, pixels.
        where: how errors name the annotation.

    Returns:
        The segmentation, without polygons of fewer than three points (pycocotools would read one of two points as a
        box); None when no polygon is left. Source: ``load_coco_json`` of Detectron2 drops the same ones.

    Raises:
        ValueError: it is neither form, a point is not a number or lies far outside, the size of an RLE is not the
            image's, or its counts do not fill the image exactly.
    """
    if isinstance(segmentation, dict):
        _check_rle(segmentation, height, width, where)
        return segmentation
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError(
            f"{where}: segmentation is {_brief(segmentation)}; expected a list of polygons [[x1, y1, x2, y2, ...]] "
            'or an RLE {"size": [height, width], "counts": ...}'
        )
    limit = _MAX_IMAGE_SIDES_AWAY * max(height, width)
    for polygon in segmentation:
        for value in polygon:
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= limit:
                raise ValueError(
                    f"{where}: a polygon holds {value!r}; expected x and y in pixels of an image of "
                    f"{height} x {width} (height x width)"
                )
    return [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0] or None


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw what :func:`usable_segmentation` returned: a uint8 array of shape (height, width), 1 inside the object."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco_mask.decode(rle)


def crop_polygons(polygons: Sequence[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
    """Draw polygons on a grid of ``size`` cells a side that is stretched over ``box``.

    Args:
        polygons: of one object, each ``[x1, y1, x2, y2, ...]`` in pixels, three points or more.
        box: (4,), x1 y1 x2 y2 in pixels.
        size: cells.

    Returns:
        A uint8 array of shape (size, size), 1 inside the object.

    Source: ``rasterize_polygons_within_box`` of Detectron2.
    """
    scale = [size / max(box[2] - box[0], 0.1), size / max(box[3] - box[1], 0.1)]
    cells = [((polygon.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for polygon in polygons]
    return decode_segmentation(cells, size, size)


def decompress_counts(text: str) -> list[int]:
    """Run lengths of a compressed RLE: zeros first, then ones, in turn, down the columns.

    Source: ``rleFrString`` in pycocotools' ``maskApi.c``: five bits a character from 48 up, bit 6 says that more
    follow, and from the fourth run on the difference to the run two before is stored.

    Raises:
        ValueError: a character outside ``0`` to ``o``, or an end within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"character {character!r} does not occur in a compressed RLE")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the compressed RLE ends within a number")
    return counts


def _check_rle(rle: dict[str, Any], height: int, width: int, where: str) -> None:
    if not {"size", "counts"} <= rle.keys():
        raise ValueError(f'{where}: an RLE segmentation needs "size" and "counts", found {sorted(rle)}')
    if rle["size"] != [height, width]:
        raise ValueError(
            f"{where}: the RLE has size {rle['size']}, but its image is [{height}, {width}] (height, width)"
        )
    counts = rle["counts"]
    if isinstance(counts, str):
        try:
            counts = decompress_counts(counts)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not isinstance(counts, list) or not all(type(run) is int and run >= 0 for run in counts):
        raise ValueError(f"{where}: RLE counts are {_brief(counts)}; expected a string or a list of integers from 0 up")
    if sum(counts) != height * width:
        raise ValueError(f"{where}: the RLE counts add up to {sum(counts)}, but the image has {height * width} pixels")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
