"""The detections of an image as COCO's result records: encoding masks as RLE, and writing the JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from resnet_backbone.data.coco.masks import Rle
from resnet_backbone.files.atomic import replacing
from resnet_backbone.files.text import read_json

_BLOCK = 200  # results that become text at a time


def to_coco_results(
    image_id: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    category_ids: Sequence[int],
    masks: Tensor | Sequence[Rle] | None = None,
) -> list[dict[str, Any]]:
    """Turn the detections of one image into COCO result records.

    Args:
        image_id: the image's id in the ground truth.
        boxes: float, (N, 4), x0 y0 x1 y1 in pixels of the original image.
        scores: float, (N,).
        labels: integer, (N,), contiguous, 0 to K - 1.
        category_ids: the K ids of the annotation file, in the order of the labels.
        masks: bool, (N, H, W), of the original image's size; or what :func:`encode_masks` made of them.

    Returns:
        N records ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``, with ``"segmentation"`` where
        there are masks; plain Python values, ready for JSON.

    Raises:
        TypeError: masks are not bool.
        ValueError: shapes do not fit each other, or a label is outside 0 to K - 1.
    """
    _check_shapes(boxes, scores, labels, len(category_ids))
    corners = boxes.detach().double().cpu()
    xywh = corners.clone()
    xywh[:, 2:] -= corners[:, :2]
    records = [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for label, box, score in zip(labels.tolist(), xywh.tolist(), scores.tolist(), strict=True)
    ]
    if masks is not None:
        for record, rle in zip(records, _checked_rles(masks, len(boxes)), strict=True):
            record["segmentation"] = rle
    return records


@dataclass(frozen=True)
class ImageResults:
    """The detections of one image as they wait for the end of an evaluation; records take ten times the memory.

    The arguments and errors are those of :func:`to_coco_results`, whose records :meth:`records` gives.
    """

    image_id: int
    boxes: Tensor  # (N, 4), on the CPU like the others, and copies, so that they keep nothing else in memory
    scores: Tensor  # (N,)
    labels: Tensor  # (N,)
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
        """Check and copy the detections of one image; masks become RLE."""
        _check_shapes(boxes, scores, labels, num_classes)
        boxes, scores, labels = (values.detach().to("cpu", copy=True) for values in (boxes, scores, labels))
        return cls(image_id, boxes, scores, labels, None if masks is None else _checked_rles(masks, len(boxes)))

    def records(self, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """The records of this image."""
        return to_coco_results(self.image_id, self.boxes, self.scores, self.labels, category_ids, self.masks)


def _check_shapes(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int) -> None:
    count = len(boxes)
    if boxes.shape != (count, 4) or scores.shape != (count,) or labels.shape != (count,):
        raise ValueError(
            "expected boxes (N, 4), scores (N,) and labels (N,), got "
            f"{tuple(boxes.shape)}, {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    outside = [label for label in labels.tolist() if not 0 <= label < num_classes]
    if outside:
        raise ValueError(f"labels must be 0 to {num_classes - 1}, one for each category id; got {outside}")


def _checked_rles(masks: Tensor | Sequence[Rle], count: int) -> Sequence[Rle]:
    rles = encode_masks(masks) if isinstance(masks, Tensor) else masks
    if len(rles) != count:
        raise ValueError(f"expected masks of shape ({count}, height, width), one for each box, got {len(rles)}")
    return rles


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


def read_figures(path: Path) -> dict[str, dict[str, float | None]]:
    """Read ``inference/metrics.json``: ``{"bbox": {"AP": 37.1, ...}, ...}``, percent.

    Raises:
        ValueError: the file is not what an evaluation writes.
    """
    try:
        values = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; evaluate again with tools/train_net.py --eval-only") from error
    if not isinstance(values, dict) or not all(isinstance(part, dict) for part in values.values()):
        raise ValueError(f"{path} is not what tools/train_net.py writes; evaluate again with --eval-only")
    return values
