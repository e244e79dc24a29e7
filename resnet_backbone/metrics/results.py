"""Detections as COCO result records: masks as RLE, writing the JSON file, and reading it into arrays."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from resnet_backbone.files.atomic import replacing
from resnet_backbone.files.text import naming
from resnet_backbone.metrics.coco_input import Record, checked_result, iterate_results, refuse_broken_masks

_BLOCK = 200  # records written or read at a time; thousands would keep the garbage collector busy

Rle = dict[str, Any]  # {"size": [height, width], "counts": compressed RLE}


@dataclass(frozen=True)
class ImageResults:
    """The detections of one image until the end of an evaluation; the records made of them take ten times the memory.

    Attributes:
        image_id: the image's id in the ground truth.
        boxes: float, (N, 4), x0 y0 x1 y1 in pixels of the original image; on the CPU like the others.
        scores: float, (N,).
        labels: integer, (N,), contiguous, 0 to K - 1.
        masks: N masks of the original image's size in compressed RLE, or None.
    """

    image_id: int
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Sequence[Rle] | None

    @classmethod
    def hold(
        cls,
        image_id: int,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        num_classes: int,
        masks: Tensor | Sequence[Rle] | None = None,
    ) -> ImageResults:
        """Check and copy the detections of one image, so that they keep nothing else in memory.

        ``masks``, bool (N, H, W), become RLE; what :func:`encode_masks` made of them is taken as it is.

        Raises:
            TypeError: masks are not bool.
            ValueError: shapes do not fit each other, or a label is outside 0 to K - 1, ``num_classes`` being K.
        """
        count = len(boxes)
        if boxes.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
            raise ValueError(
                "expected boxes (N, 4), scores (N,) and labels (N,), got "
                f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}"
            )
        if outside := [label for label in labels.tolist() if not 0 <= label < num_classes]:
            raise ValueError(f"labels must be 0 to {num_classes - 1}, one for each category id; got {outside}")
        rles = encode_masks(masks) if isinstance(masks, Tensor) else masks
        if rles is not None and len(rles) != count:
            raise ValueError(f"expected masks of shape ({count}, height, width), one for each box, got {len(rles)}")
        boxes, scores, labels = (values.detach().to("cpu", copy=True) for values in (boxes, scores, labels))
        return cls(image_id, boxes, scores, labels, rles)

    def records(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return COCO's result records, ready for JSON.

        Args:
            category_ids: the K ids of the annotation file, in the order of the labels.

        Returns:
            N records ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``, with ``"segmentation"``
            where there are masks.
        """
        corners = self.boxes.double()
        xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        records = [
            {"image_id": self.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            for label, box, score in zip(self.labels.tolist(), xywh.tolist(), self.scores.tolist(), strict=True)
        ]
        if self.masks is not None:
            for record, rle in zip(records, self.masks, strict=True):
                record["segmentation"] = rle
        return records


def encode_masks(masks: Tensor) -> list[Rle]:
    """Turn masks, bool (N, H, W), into COCO's compressed RLE, ready for JSON.

    Raises:
        TypeError: masks are not bool.
        ValueError: masks are not of shape (N, H, W).
    """
    if masks.ndim != 3:
        raise ValueError(f"expected masks of shape (N, height, width), got {tuple(masks.shape)}")
    if not len(masks):
        return []
    if masks.dtype != torch.bool:
        raise TypeError(f"masks must be bool, got {masks.dtype}; threshold probabilities first: masks > 0.5")
    # COCO's RLE goes down the columns
    columns_first = np.asfortranarray(masks.detach().cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in coco_mask.encode(columns_first)]


def decode_masks(rles: Sequence[Rle], height: int, width: int) -> Tensor:
    """Turn the RLE of one image of ``height`` x ``width`` pixels back into masks, bool (N, H, W)."""
    if not rles:
        return torch.zeros(0, height, width, dtype=torch.bool)
    return torch.from_numpy(coco_mask.decode(list(rles)).transpose(2, 0, 1).astype(bool))


def write_results(path: Path, results: Iterable[Mapping[str, Any]]) -> None:
    """Write COCO results as a JSON list, every digit kept, as they come. The file is moved into place when complete.

    Raises:
        ValueError: a number is nan or infinite, which JSON cannot hold.
    """
    results = iter(results)
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write("[")
        separator = ""
        while block := list(islice(results, _BLOCK)):
            file.write(separator + json.dumps(block, allow_nan=False)[1:-1])
            separator = ", "
        file.write("]")


_NUMBERS = {int, float}


@dataclass(frozen=True)
class ResultTable:
    """N results, in the order in which they were given.

    Attributes:
        image_ids: int64, (N,).
        category_ids: int64, (N,).
        scores: float64, (N,).
        boxes: float64, (N, 4), x, y, width, height in pixels; (0, 4) where they were not asked for.
        counts: N compressed RLE counts, of masks of the size of their images; empty where they were not asked for.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    counts: list[str | bytes]

    def __len__(self) -> int:
        return len(self.scores)

    def mask(self, row: int, images: Mapping[int, Record]) -> Record:
        """The compressed RLE of one result; ``images`` are those of the ground truth by id."""
        image = images[int(self.image_ids[row])]
        return {"size": [image["height"], image["width"]], "counts": self.counts[row]}


def read_result_table(
    source: Path | Sequence[Mapping[str, Any]], ground_truth: Mapping[str, list[Record]], iou_types: Collection[str]
) -> ResultTable:
    """Read COCO results with boxes where ``iou_types`` has "bbox", and with masks where it has "segm".

    The checks are those of :func:`resnet_backbone.metrics.coco_input.read_results`, with its messages.

    Raises:
        FileNotFoundError, TypeError, ValueError: as read_results.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    blocks: list[ResultTable] = []
    count = 0
    with naming(source):
        results = iterate_results(source)
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
