"""The detections of an image, from a detector to COCO's result records and their JSON file; masks as RLE."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor

from resnet_backbone.data.coco.masks import Rle
from resnet_backbone.files.atomic import replacing

_BLOCK = 200  # results that become text at a time; thousands would keep the garbage collector busy


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first, on the CPU."""

    boxes: Tensor  # float32, (N, 4), x0 y0 x1 y1 in pixels of the image, inside it
    scores: Tensor  # float32, (N,), 0 to 1
    labels: Tensor  # int64, (N,), 0 to K - 1
    masks: Tensor | None = None  # bool, (N, H, W), of the image's size; None from a detector without masks

    def __len__(self) -> int:
        return len(self.labels)

    def scored(self, threshold: float) -> Detections:
        """Return those with a score of ``threshold`` or more."""
        keep = self.scores >= threshold
        masks = None if self.masks is None else self.masks[keep]
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], masks)

    def to_dict(self, class_names: Sequence[str]) -> dict[str, list[Any]]:
        """Return ``{"boxes": [[x0, y0, x1, y1], ...], "labels": [name, ...], "scores": [...]}`` in plain values; with
        masks also ``"masks"``, COCO's compressed RLE."""
        found: dict[str, list[Any]] = {
            "boxes": self.boxes.tolist(),
            "labels": [class_names[label] for label in self.labels.tolist()],
            "scores": self.scores.tolist(),
        }
        if self.masks is not None:
            found["masks"] = encode_masks(self.masks)
        return found


class Predictor(Protocol):
    """A trained detector, ready to be called on images."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K names, in the order of the labels."""
        ...

    def __call__(self, image: Tensor) -> Detections:
        """Return what the evaluation of the same config finds in this image, by the same steps.

        Args:
            image: uint8, (3, H, W), RGB, of any size.

        Raises:
            ValueError: the image is something else.
        """
        ...


@dataclass(frozen=True)
class ImageResults:
    """The detections of one image until the end of an evaluation; records made of them take ten times the memory."""

    image_id: int  # the image's id in the ground truth
    boxes: Tensor  # float, (N, 4), x0 y0 x1 y1 in pixels of the original image; on the CPU like the others
    scores: Tensor  # float, (N,)
    labels: Tensor  # integer, (N,), contiguous, 0 to K - 1
    masks: Sequence[Rle] | None  # N masks of the original image's size in compressed RLE, or None

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
