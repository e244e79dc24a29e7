"""The pixels that a network was trained on: colour order, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CHANNEL_ORDERS = ("RGB", "BGR")
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class InputFormat:
    """How an image becomes the input of a network: ``(image - mean) / std``, for each channel.

    Attributes:
        channel_order: ``"RGB"`` or ``"BGR"``.
        mean: one value for each of the three channels, in ``channel_order``, for images in 0..255.
        std: likewise, greater than 0.

    ``mean`` and ``std`` are Detectron2's ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` as they stand.

    Raises:
        ValueError: another channel order, not three finite values, a std that is not positive, or a mean outside of
            0..255. A mean and std on the 0..1 scale, easily taken for these, are refused too.
    """

    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _floats("mean", self.mean))
        object.__setattr__(self, "std", _floats("std", self.std))
        if self.channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order is {self.channel_order!r}; write one of {CHANNEL_ORDERS}")
        if min(self.mean) < 0 or max(self.mean) > 255:
            raise ValueError(f"mean {self.mean} must lie in 0..255")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be greater than 0")
        if max(self.std) < 1 and 0 < max(self.mean) <= 1:
            raise ValueError(
                f"mean {self.mean} and std {self.std} are for images in 0..1; multiply both by 255 for images in 0..255"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON, YAML and weight files."""
        return {"channel_order": self.channel_order, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputFormat:
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: keys that are missing or unknown, or values that the class refuses.
        """
        expected = {"channel_order", "mean", "std"}
        if set(values) != expected:
            raise ValueError(f"an input format has the keys {sorted(expected)}, found {sorted(values)}")
        return cls(values["channel_order"], values["mean"], values["std"])


def _floats(name: str, values: Sequence[float]) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{name} must be three numbers, got {values!r}")
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise ValueError(f"{name} must be three numbers, got {values!r}")
    numbers = tuple(float(value) for value in values)
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be three finite numbers, got {values!r}")
    return numbers


@dataclass(frozen=True)
class TestTransform:
    """What is done to an image before a classifier's accuracy is measured: resize, then a centre crop.

    Attributes:
        resize: length of the shorter side, in pixels.
        crop: side of the square, in pixels, at most ``resize``.
        interpolation: of the resize, ``"bilinear"`` or ``"bicubic"``, both with antialiasing.

    Raises:
        ValueError: other values.
    """

    __test__ = False  # pytest takes a class of this name for tests

    resize: int
    crop: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be 1 or more pixels, and at most resize, {self.resize}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}")


TORCHVISION_RGB = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision and timm: ``255 * (0.485, 0.456, 0.406)`` and ``255 * (0.229, 0.224, 0.225)``."""

MSRA_BGR = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
"""MSRA's ResNets in Detectron2: the std is absorbed in the first convolution."""

VGG_FEATURES_RGB = InputFormat("RGB", (255 * 0.48235, 255 * 0.45882, 255 * 0.40784), (1.0, 1.0, 1.0))
"""torchvision's ``VGG16_Weights.IMAGENET1K_FEATURES``: mean (123, 117, 104) up to rounding, std 1."""
