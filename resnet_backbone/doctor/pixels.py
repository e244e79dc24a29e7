"""The input that a detector really computes, measured and not read from its config; and pictures to measure with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from resnet_backbone.data.images.read import read_image
from resnet_backbone.weights import InputFormat

RESIZE, CROP = 256, 224  # pixels, as ImageNet's accuracy is measured
_TOLERANCE = 0.01  # of a mean or std, in grey levels
_RGB = "RGB"


@dataclass(frozen=True)
class MeasuredInput:
    """``(image - mean) / std``, as a detector computes it.

    Attributes:
        channel_order: which channel of the RGB image each input channel is made of, such as ``"BGR"``.
        mean: one value an input channel, in grey levels of 0 to 255.
        std: likewise.
    """

    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def differences(self, wanted: InputFormat) -> list[str]:
        """Say in which respects it is not what the weights were trained on; nothing where it is."""
        found = []
        if self.channel_order != wanted.channel_order:
            found.append(
                f"the channels are swapped: they arrive as {self.channel_order}, the weights want "
                f"{wanted.channel_order}"
            )
        if not _close(self.std, wanted.std):
            without = all(abs(value - 1) < _TOLERANCE for value in self.std)
            what = "there is no division by the std" if without else f"the std is {_text(self.std)}"
            found.append(f"{what}, the weights want {_text(wanted.std)}")
        if not _close(self.mean, wanted.mean):
            found.append(f"the mean is {_text(self.mean)}, the weights want {_text(wanted.mean)}")
        return found


def measure_input(prepare: Callable[[Tensor], Tensor]) -> MeasuredInput | None:
    """Find out by a random image what ``prepare`` does to each channel.

    Args:
        prepare: maps an RGB image, uint8 (3, H, W), to (1, C, H', W'), the image in the upper left corner.

    Returns:
        What it does; None where that is not one channel of the image, scaled and shifted.
    """
    image = torch.randint(0, 256, (3, CROP, CROP), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    prepared = prepare(image)[0, :, :CROP, :CROP].double().flatten(1)
    pixels = image.double().flatten(1)
    if prepared.shape[0] != len(pixels):
        return None
    order, means, stds = "", [], []
    for channel in prepared:
        fits = [_fit_line(source, channel) for source in pixels]
        best = min(range(len(fits)), key=lambda index: fits[index][2])
        scale, shift, rest = fits[best]
        if rest > 1e-4 or scale <= 0:
            return None
        order += _RGB[best]
        means.append(-shift / scale)
        stds.append(1 / scale)
    return MeasuredInput(order, tuple(means), tuple(stds))


def normalise(image: Tensor, input_format: InputFormat, size: tuple[int, int]) -> Tensor:
    """Turn an RGB image, uint8 (3, H, W), into (1, 3, *size) as the weights want it, padded below and right with 0."""
    pixels = image.flip(0) if input_format.channel_order == "BGR" else image
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (input_format.mean, input_format.std))
    height, width = image.shape[-2:]
    return F.pad((pixels - mean) / std, (0, size[1] - width, 0, size[0] - height)).unsqueeze(0)


def generated_image() -> Tensor:
    """Return a picture of coloured blots, uint8 (3, 224, 224), always the same."""
    blots = torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(blots, (CROP, CROP), mode="bicubic", align_corners=False)[0]
    return (smooth.clamp(0, 1) * 255).round().to(torch.uint8)


def read_cropped(path: str | Path) -> Tensor:
    """Read an image as RGB, uint8 (3, 224, 224): its shorter side resized to 256 pixels, and the centre of that.

    Raises:
        FileNotFoundError, OSError, ValueError: as :func:`read_image`.
    """
    return transforms.center_crop(transforms.resize(read_image(path), [RESIZE], antialias=True), [CROP, CROP])


def _fit_line(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Return slope and offset of the line that fits best, and which share of the variance of ``y`` it leaves."""
    dx, dy = x - x.mean(), y - y.mean()
    slope = (dx @ dy / (dx @ dx)).item()
    rest = dy - slope * dx
    return slope, (y.mean() - slope * x.mean()).item(), (rest @ rest / (dy @ dy).clamp(min=1e-12)).item()


def _close(found: tuple[float, ...], wanted: tuple[float, ...]) -> bool:
    return all(abs(a - b) < _TOLERANCE for a, b in zip(found, wanted, strict=True))


def _text(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:.3f}" for value in values) + "]"
