"""The detections of one image, the interface of both engines' predictors, and drawing what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from resnet_backbone.metrics.drawing import check_objects, draw_objects, texts_of
from resnet_backbone.metrics.results import encode_masks


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
        """Return ``{"boxes": [[x0, y0, x1, y1], ...], "labels": [name, ...], "scores": [...]}`` in plain values.

        With masks also ``"masks"``, COCO's compressed RLE.
        """
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


def draw_detections(
    image: Tensor, found: Detections, class_names: Sequence[str], max_size: int | None = None
) -> Image.Image:
    """Draw boxes, masks, and names with scores on an image.

    Args:
        image: uint8, (3, H, W), RGB. A small one is enlarged, so that labels can be read.
        found: all of it is drawn.
        class_names: the K classes.
        max_size: the longer side of the picture in pixels at most; None sets no limit.

    Raises:
        ValueError: shapes do not fit each other, a box is not finite, or a label has no class name.
    """
    check_objects(image, found.boxes, found.labels, found.masks, len(class_names), "detections")
    texts = texts_of(class_names, found.labels, found.scores)
    return draw_objects(image, found.boxes, found.labels, texts, found.masks, max_size)
