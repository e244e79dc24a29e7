"""What the improvements ask of a detector: each engine has an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Scale:
    """One image at one size, with its features computed.

    Attributes:
        size: height and width of the resized image in pixels, without padding. Boxes "of this scale" are in its pixels.
        features: whatever the detector that made it needs again; nobody else looks inside.
    """

    size: tuple[int, int]
    features: Any


class TwoStageDetector(Protocol):
    """A trained Faster R-CNN in eval mode, taken apart: image -> proposals -> vectors -> scores and boxes.

    Boxes are float32 (R, 4), XYXY in pixels, on the detector's device. R may be 0 in :meth:`region_vectors` and
    :meth:`predict`. Run in this order at one size, and followed by the suppression of overlaps, the parts must give to
    the bit what the engine's own detector gives.
    """

    @property
    def test_size(self) -> tuple[int, int]:
        """INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST of this detector's own config."""
        ...

    def scale(self, image: Tensor, height: int, width: int) -> Scale:
        """Resize an image as the engine's test transform does, and compute its features.

        Args:
            image: original, uint8 (3, H, W), RGB, on any device; the detector brings it into its own channel order.
            height, width: what to resize it to, pixels; may be H and W.

        Returns:
            Its ``size`` is ``(height, width)``.
        """
        ...

    def propose(self, scale: Scale) -> Tensor:
        """Return the proposals of the first stage, (R, 4) of this scale, best first."""
        ...

    def region_vectors(self, scale: Scale, boxes: Tensor) -> Tensor:
        """Run all that lies between the boxes, (R, 4) of this scale, and the two last layers, for vectors (R, C).

        That is cropping and the box head; with MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT also the vector of the whole image
        at this scale, behind each region's own.
        """
        ...

    def predict(self, vectors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Run the two last layers on vectors (R, C) that are of ``boxes`` (R, 4) of any one scale.

        Returns:
            Probabilities float32 (R, K) of the K foreground classes, out of a softmax over K + 1; and regressed boxes
            float32 (R, K, 4) in the pixels that ``boxes`` are in, not clipped. Where the regression is the same for
            all classes, its box is repeated.
        """
        ...
