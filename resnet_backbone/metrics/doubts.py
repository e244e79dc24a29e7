"""What makes figures doubtful though they can be computed: areas that do not fit boxes, results of another form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from resnet_backbone.files.text import brief
from resnet_backbone.metrics.masks import Record
from resnet_backbone.metrics.results import ResultTable

LARGEST_AREA = 1e10  # pixels; COCO's code ignores objects outside of 0 to this
SEVERAL = 5
USUAL = 0.01  # share of doubtful areas that occurs in good data: masks of several parts, thin ones
MISSED = 0.1  # share of the images with objects that a detector may leave without a result
NEARLY_ALL = 0.95
ROUNDING = 1.0  # pixels


@dataclass(frozen=True)
class DoubtfulAreas:
    """Objects whose "area" cannot be that of what their box encloses; crowds are not looked at."""

    rows: np.ndarray  # int64, of the objects and crowds that were given
    total: int  # objects
    ignored: int  # of the rows, whose area is negative or beyond LARGEST_AREA

    @property
    def warns(self) -> bool:
        return self.ignored > 0 or len(self.rows) > USUAL * self.total

    @property
    def note(self) -> str:
        """What becomes of it."""
        text = "COCO's code tells small, medium and large objects apart by area, so APs, APm, APl and ARs, ARm, ARl "
        text += "are not those of the objects"
        if self.ignored:
            text += f"; it ignores objects of negative area or one above 1e10, {self.ignored} here, in every figure"
        return text


def doubtful_areas(areas: np.ndarray, boxes: np.ndarray, is_crowd: np.ndarray) -> DoubtfulAreas:
    """Compare the "area" of objects with their boxes.

    Doubtful is an area that is negative, larger than the box by more than rounding, so small that it could not reach
    from one side of the box to the other, or the same for boxes of different sizes. Boxes without area are left out.

    Args:
        areas: (N,), pixels; nan where there is none.
        boxes: (N, 4), x y width height in pixels.
        is_crowd: bool, (N,).
    """
    sides = boxes[:, 2:]
    box_areas = sides.prod(axis=1)
    doubtful = (areas > 1.2 * (sides + 2 * ROUNDING).prod(axis=1)) | (areas < sides.max(axis=1, initial=0) / 4)
    doubtful &= box_areas > 0
    ignored = ~is_crowd & ((areas < 0) | (areas > LARGEST_AREA))
    measured = areas[~is_crowd]
    if len(measured) >= SEVERAL and np.ptp(measured) == 0:
        doubtful |= bool(box_areas[~is_crowd].max() > 1.5 * box_areas[~is_crowd].min())
    rows = np.flatnonzero(~is_crowd & doubtful | ignored)
    return DoubtfulAreas(rows, len(measured), int(ignored.sum()))


def doubtful_results(truth: Mapping[str, list[Record]], found: ResultTable) -> list[str]:
    """Say what suggests that results were not written as COCO takes them; none of it is certain."""
    if not len(found):
        return []
    objects = [record for record in truth["annotations"] if not record["iscrowd"]]
    doubts = []
    images = {record["image_id"] for record in objects}
    without = sorted(images.difference(found.image_ids.tolist()))
    if len(without) > MISSED * len(images):
        doubts.append(
            f"{len(without)} of the {len(images)} images with objects have no result, such as image {without[0]}; "
            f"their objects count as missed. Were the results written for all images?"
        )
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = {record["category_id"] for record in objects}
    absent = sorted(classes.difference(found.category_ids.tolist()))
    if absent and 2 * len(absent) >= len(classes):
        doubts.append(
            f"{len(absent)} of the {len(classes)} classes with objects have no result, such as "
            f"{brief(names[absent[0]])}; is category_id the id in the annotation file, not the label of the network?"
        )
    in_first_pixel = ((found.boxes >= -0.01) & (found.boxes <= 1.01)).all(axis=1)
    if in_first_pixel.size and in_first_pixel.mean() >= NEARLY_ALL:
        doubts.append(
            f"{in_first_pixel.sum()} of the {len(found.boxes)} boxes of the results lie within the first pixel; COCO's "
            f"bbox is in pixels: are they shares of the image, to be multiplied by its width and height?"
        )
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in truth["images"]}
    if len(found.boxes) and all(type(side) is int for size in sizes.values() for side in size):
        limits = np.array([sizes[image_id] for image_id in found.image_ids.tolist()], dtype=float) + ROUNDING
        far = (found.boxes[:, :2] + found.boxes[:, 2:] > limits).any(axis=1)
        ordered = (found.boxes[:, 2:] > found.boxes[:, :2]) & (found.boxes[:, 2:] <= limits)
        if far.sum() >= max(SEVERAL, MISSED * len(far)) and ordered.all(axis=1).mean() >= NEARLY_ALL:
            doubts.append(
                f"{far.sum()} of the {len(far)} boxes of the results reach out of their images, and nearly all would "
                f"fit as corners x1, y1, x2, y2; COCO's bbox is [x, y, width, height]: write [x1, y1, x2 - x1, y2 - y1]"
            )
    return doubts
