"""An image as a network gets it, turned back into what people can look at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class SeenImage:
    """One image of a batch, after the transforms, padded to the batch; boxes and masks are in its pixels."""

    image_id: int | str
    name: str  # of the file
    pixels: Tensor  # uint8, (3, H, W), RGB, with the padding, which is of the mean color
    size: tuple[int, int]  # height and width without the padding; the image lies at the top left
    original_size: tuple[int, int]  # height and width of the file
    boxes: Tensor  # float32, (N, 4), x0 y0 x1 y1
    labels: Tensor  # int64, (N,), 0 to K - 1
    masks: Tensor | None  # bool, (N, H, W); None where the network learns none
    annotated: int  # boxes that the annotation file has for the image, crowd regions left out


class Sight(NamedTuple):
    """The images of a loader, one after another."""

    class_names: tuple[str, ...]
    images: Iterator[SeenImage]


def restore_pixels(batch: Tensor, mean: Sequence[float], std: Sequence[float], channel_order: str) -> Tensor:
    """Undo the normalisation of a batch.

    Args:
        batch: float, (N, 3, H, W), normalised.
        mean, std: in the order of its channels, for 0 to 255.
        channel_order: RGB or BGR.

    Returns:
        uint8, (N, 3, H, W), RGB.

    Raises:
        ValueError: ``channel_order`` is neither.
    """
    if channel_order not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT {channel_order} cannot be shown; expected RGB or BGR")
    pixels = batch.cpu() * torch.tensor(std).reshape(-1, 1, 1) + torch.tensor(mean).reshape(-1, 1, 1)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return pixels.flip(1) if channel_order == "BGR" else pixels


def pad_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Give masks (N, h, w) the size of the padded image, bool (N, height, width)."""
    padded = torch.zeros(len(masks), height, width, dtype=torch.bool)
    padded[:, : masks.shape[-2], : masks.shape[-1]] = masks.bool()
    return padded
