"""COCO results as arrays: read and checked in blocks, and held in a tenth of the memory that records need."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.evaluation.coco_input import Record, checked_result, iterate_results, refuse_broken_masks
from resnet_backbone.files.json_file import naming

_BLOCK = 200  # results that are records at a time; thousands would keep the garbage collector busy
_NUMBERS = {int, float}


@dataclass(frozen=True)
class ResultTable:
    """N results, in the order in which they were given.

    Attributes:
        image_ids: int64, (N,).
        category_ids: int64, (N,).
        scores: float64, (N,).
        boxes: float64, (N, 4), x, y, width, height in pixels; (0, 4) where they were not asked for.
        counts: N compressed run lengths, of masks of the size of their images; empty where they were not asked for.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    counts: list[str | bytes]

    def __len__(self) -> int:
        return len(self.scores)

    def mask(self, row: int, images: Mapping[int, Record]) -> Record:
        """The compressed run lengths of one result; ``images`` are those of the ground truth by id."""
        image = images[int(self.image_ids[row])]
        return {"size": [image["height"], image["width"]], "counts": self.counts[row]}


def read_result_table(
    source: Path | Sequence[Mapping[str, Any]], ground_truth: Mapping[str, list[Record]], iou_types: Collection[str]
) -> ResultTable:
    """Read COCO results with boxes where ``iou_types`` has "bbox", and with masks where it has "segm".

    The checks are those of :func:`resnet_backbone.evaluation.coco_input.read_results`, with its messages.

    Raises:
        FileNotFoundError, TypeError, ValueError: as read_results.
    """
    with naming(source):
        return _read(source, ground_truth, iou_types)


def _read(
    source: Path | Sequence[Mapping[str, Any]], ground_truth: Mapping[str, list[Record]], iou_types: Collection[str]
) -> ResultTable:
    images = {image["id"]: image for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    results = iterate_results(source)
    blocks: list[ResultTable] = []
    count = 0
    while block := list(islice(results, _BLOCK)):
        blocks.append(_checked_block(block, count, images, category_ids, iou_types))
        count += len(block)
    blocks = blocks or [_to_table([], iou_types)]
    return ResultTable(
        image_ids=np.concatenate([block.image_ids for block in blocks]),
        category_ids=np.concatenate([block.category_ids for block in blocks]),
        scores=np.concatenate([block.scores for block in blocks]),
        boxes=np.concatenate([block.boxes for block in blocks]),
        counts=list(chain.from_iterable(block.counts for block in blocks)),
    )


def _checked_block(
    block: Sequence[Any],
    first: int,
    images: Mapping[int, Record],
    category_ids: Collection[int],
    iou_types: Collection[str],
) -> ResultTable:
    """The table of some results, the first of which has the number ``first``."""
    for iou_type in iou_types:
        if iou_type == "bbox" and _boxes_are_plain(block, images, category_ids):
            continue
        checked = (
            checked_result(result, index, images, category_ids, iou_type) for index, result in enumerate(block, first)
        )
        block = [{**result, **good} for result, good in zip(block, checked, strict=True)]
        if iou_type == "segm":
            refuse_broken_masks(block, first)
    return _to_table(block, iou_types)


def _boxes_are_plain(block: Sequence[Any], images: Mapping[int, Record], category_ids: Collection[int]) -> bool:
    """Whether each result is what JSON gives and right. One that is not may still be right, numbers of NumPy's, say."""
    if {type(result) for result in block} != {dict}:
        return False
    try:
        columns = map(itemgetter("image_id", "category_id", "score", "bbox"), block)
        result_images, result_categories, scores, boxes = zip(*columns, strict=True)
    except KeyError:
        return False
    if set(map(type, result_images)) | set(map(type, result_categories)) != {int}:
        return False
    if not (images.keys() >= set(result_images) and set(category_ids) >= set(result_categories)):
        return False
    if set(map(type, boxes)) != {list} or set(map(len, boxes)) != {4}:
        return False
    if not _NUMBERS >= set(map(type, scores)) | set(map(type, chain.from_iterable(boxes))):
        return False
    try:
        sizes, finite = np.array(boxes, dtype=float), all(map(math.isfinite, scores))
    except OverflowError:  # a whole number that no float holds
        return False
    return finite and bool(np.isfinite(sizes).all() and (sizes[:, 2:] >= 0).all())


def _to_table(block: Sequence[Record], iou_types: Collection[str]) -> ResultTable:
    boxes = [result["bbox"] for result in block] if "bbox" in iou_types else []
    return ResultTable(
        image_ids=np.array([result["image_id"] for result in block], dtype=np.int64),
        category_ids=np.array([result["category_id"] for result in block], dtype=np.int64),
        scores=np.array([result["score"] for result in block], dtype=float),
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        counts=[result["segmentation"]["counts"] for result in block] if "segm" in iou_types else [],
    )
