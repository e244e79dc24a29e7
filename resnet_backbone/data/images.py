"""Reading one image file, whatever its mode, in the frame that its boxes are in."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from resnet_backbone.data.jpeg import decode_plain_jpeg

logger = logging.getLogger(__name__)

_SWAPS_SIDES = (5, 6, 7, 8)
# EXIF orientation to the dimensions of (3, H, W) that are reversed, after a swap of the sides, to show the picture
# upright (EXIF 2.32, tag 0x0112); 1 is upright already.
_REVERSED = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}

# What Pillow's decoders raise on broken files beside OSError.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Read an image as RGB.

    Gray, palette, CMYK and the like are converted by Pillow; alpha is dropped, not blended over a color; 16-bit gray
    keeps its high byte, as Pillow does with 16-bit RGB. Of an animation the first frame is read.

    Args:
        path: an image file of any format that Pillow reads.
        size: (height, width) in pixels as the annotation file states it, which decides the frame that the boxes are in:
            the image with its EXIF orientation applied where that has this size, else the stored pixels where those
            have it. None applies the EXIF orientation.

    Returns:
        uint8 tensor of shape (3, H, W), 0..255, contiguous.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is truncated or not an image. (Damaged bytes inside a JPEG of full length go unnoticed.)
        ValueError: the image has another size than ``size``, or 32-bit pixels whose range is unknown.
    """
    return read_interleaved(path, size).contiguous()


def read_interleaved(path: str | Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Do what :func:`read_image` does, and leave the pixels as decoders write them, H x W x 3 in memory.

    The tensor has the same shape and values. Resizing it by torchvision takes half the time, and gives the same values.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            pixels = decode_plain_jpeg(image)
            if pixels is None:
                image.load()
            orientation = _orientation(image, path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except _DECODE_ERRORS as error:
        raise OSError(f"{path}: cannot be read as an image ({error}); replace the file or take it out") from error
    stored = image.size[::-1]
    upright = stored[::-1] if orientation in _SWAPS_SIDES else stored
    if size is not None and tuple(size) not in (upright, stored):
        turned = f", or {_text(stored)} without its EXIF orientation" if upright != stored else ""
        raise ValueError(
            f"{path}: the image is {_text(upright)}{turned}, but the annotation file says {_text(size)} "
            "(height x width); its boxes belong to another version of the image: correct height and width there, "
            "or replace the image"
        )
    if pixels is None:
        pixels = torch.from_numpy(_to_rgb(image, path)).permute(2, 0, 1)
    if orientation in _REVERSED and (size is None or tuple(size) == upright):
        swapped = pixels.transpose(1, 2) if orientation in _SWAPS_SIDES else pixels
        return swapped.flip(_REVERSED[orientation])
    return pixels


def _orientation(image: Image.Image, path: Path) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        logger.warning("%s: its EXIF block is damaged (%s); read without turning it", path, error)
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(
                f"{path}: 32-bit pixels (mode {image.mode}, {pixels.min()} to {pixels.max()}) have no agreed range; "
                "save the image with 8 or 16 bits a channel"
            )
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns about some transparent palettes that go straight to RGB
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise ValueError(
            f"{path}: mode {image.mode} cannot be shown as RGB ({error}); save the image as RGB"
        ) from error


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
