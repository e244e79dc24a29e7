"""Checks the masks in COCO ground truth and results, and makes compressed run lengths of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pycocotools import mask as coco_mask

from resnet_backbone.evaluation.run_lengths import MAX_PIXELS, find_broken
from resnet_backbone.files.json_file import brief

Record = dict[str, Any]
# A polygon is walked pixel by pixel, so one far-away point costs time and memory: none may lie further out than this.
_MAX_IMAGE_SIDES_AWAY = 10


def to_rle(segmentation: Any, image: Mapping[str, Any], where: str) -> Record:
    """COCO polygons, or run lengths as a list or compressed, as compressed run lengths.

    Raises:
        ValueError: anything else, points far outside of the image, or run lengths that do not fill it.
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
    _check_mask_size(segmentation["size"], height, width, where)
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


def _check_mask_size(size: Any, height: int, width: int, where: str) -> None:
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"{where}: mask of (height, width) {brief(size)} on an image of {[height, width]}")


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
    """Return the mask of a result, its form and size checked; its run lengths are for :func:`refuse_broken_masks`.

    Raises:
        ValueError: it is something else, or of another size than its image.
    """
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), str | bytes):
        raise ValueError(
            f"{where}: a result's segmentation is compressed run lengths "
            '{"size": [height, width], "counts": "..."}, as pycocotools.mask.encode writes'
        )
    height, width = _size(image)
    size = rle.get("size")
    if not isinstance(size, list | tuple) or tuple(size) != (height, width):
        found = tuple(size) if isinstance(size, list) else size
        raise ValueError(f"{where}: mask of (height, width) {brief(found)} on image {image['id']} of {height, width}")
    return dict(rle)


def refuse_broken_masks(results: Sequence[Record], first: int) -> None:
    """Raise ValueError where the mask of a checked result does not fill its image: COCO's code would hang or crash.

    ``first`` is the number of the first result, for the message.
    """
    masks = [result["segmentation"] for result in results]
    broken = find_broken([mask["counts"] for mask in masks], [mask["size"][0] * mask["size"][1] for mask in masks])
    if broken is not None:
        raise ValueError(f"result {first + broken[0]}: its mask {broken[1]}; write what pycocotools.mask.encode gives")
