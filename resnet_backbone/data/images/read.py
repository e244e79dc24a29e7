"""Reading one image file, of any mode, in the orientation that its boxes are in."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 says that a later one will be without it
    decode_jpeg = None

logger = logging.getLogger(__name__)

_END_OF_IMAGE = b"\xff\xd9"
_MAX_FILE_BYTES = 1 << 28  # larger ones are for Pillow, which reads no more of a file than it needs
_SWAPS_SIDES = (5, 6, 7, 8)
# EXIF orientation to the dimensions of (3, H, W) that are reversed, after a swap of the sides, to show the picture
# upright (EXIF 2.32, tag 0x0112); 1 is upright already.
_REVERSED = {2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}

# Pixels alone: Pillow hands PostScript, whatever the name of its file, to a program that runs it.
_COMMON = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP")
FORMATS = (*_COMMON, "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "PCX", "SGI")


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Read an image as RGB.

    Gray, palette, CMYK and the like are converted by Pillow; alpha is dropped, not blended over a color; 16-bit gray
    keeps its high byte, as Pillow does with 16-bit RGB. Of an animation the first frame is read.

    Args:
        path: an image file of one of :data:`FORMATS`.
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
        with open_image(path) as image:
            pixels = decode_like_pillow(image)
            if pixels is None:
                image.load()
            orientation = exif_orientation(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except Exception as error:  # of a broken file Pillow's decoders raise nearly anything
        reason = str(error)[:300] or type(error).__name__
        raise OSError(f"{path}: cannot be read as an image ({reason}); replace the file or take it out") from error
    stored = image.size[::-1]
    upright = stored[::-1] if orientation in _SWAPS_SIDES else stored
    if size is not None and tuple(size) not in (upright, stored):
        found, kept, stated = (f"{height} x {width}" for height, width in (upright, stored, size))
        turned = f", or {kept} without its EXIF orientation" if upright != stored else ""
        raise ValueError(
            f"{path}: the image is {found}{turned}, but the annotation file says {stated} (height x width); its boxes "
            "belong to another version of the image: correct height and width there, or replace the image"
        )
    if pixels is None:
        pixels = torch.from_numpy(np.array(to_rgb(image, path))).permute(2, 0, 1)
    if orientation in _REVERSED and (size is None or tuple(size) == upright):
        swapped = pixels.transpose(1, 2) if orientation in _SWAPS_SIDES else pixels
        return swapped.flip(_REVERSED[orientation])
    return pixels


def decode_like_pillow(image: Image.Image) -> torch.Tensor | None:
    """Decode an image that Pillow has opened and not read, where both decoders are known to agree to the bit.

    Both are libjpeg-turbo. Pillow continues where the decoder here stops, and says what is wrong.

    Args:
        image: of ``Image.open``; its file is open.

    Returns:
        uint8 tensor of shape (3, H, W), RGB, as stored; in memory H x W x 3. None where it is no gray or
        three-component JPEG file that ends as it should, libjpeg refuses it, or this torchvision has no decoder.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    if decode_jpeg is None or image.fp is None or image.fp.seek(0, os.SEEK_END) > _MAX_FILE_BYTES:
        return None
    image.fp.seek(0)
    data = image.fp.read()
    if not data.endswith(_END_OF_IMAGE):
        return None
    try:
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    return pixels if pixels.shape == (3, image.height, image.width) else None


def open_image(path: str | Path | IO[bytes]) -> Image.Image:
    """Open an image file, given by path or opened itself, of one of :data:`FORMATS`, without decoding it.

    Raises:
        OSError and whatever else Pillow raises: it is no such image, or one of more pixels than Pillow allows.
    """
    if isinstance(path, str | Path) and Path(path).exists() and not Path(path).is_file():  # a pipe never ends
        raise OSError("no regular file, expected an image")
    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def exif_orientation(image: Image.Image) -> int:
    """Return how an opened image is stored: 1 for upright, also where its EXIF block is damaged or has another value.

    A damaged block is logged as a warning.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # of a broken file Pillow raises nearly anything
        name = getattr(image, "filename", "an image")
        logger.warning("%s: its EXIF block is damaged (%s); read without turning it", name, error)
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_size(path: Path) -> tuple[int, int]:
    """Return (height, width) in pixels of an image file as :func:`read_image` gives it, from its head alone.

    Raises:
        OSError: the file is not an image.
    """
    try:
        with open_image(path) as image:
            width, height = image.size[::-1] if exif_orientation(image) in _SWAPS_SIDES else image.size
    except Exception as error:  # of a broken file Pillow raises nearly anything
        raise OSError(f"{path}: cannot be read as an image ({str(error)[:300]}); replace it or take it out") from error
    return height, width


def to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Convert an image of any mode as :func:`read_image` does.

    Raises:
        ValueError: 32-bit pixels whose range is unknown, or a mode that has no colors.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(
                f"{path}: 32-bit pixels (mode {image.mode}, {pixels.min()} to {pixels.max()}) have no agreed range; "
                "save the image with 8 or 16 bits a channel"
            )
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    try:
        if image.mode == "P":
            image = image.convert("RGBA")  # Pillow warns about some transparent palettes that go straight to RGB
        return image.convert("RGB")
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: mode {image.mode} cannot be shown as RGB ({error}); save it as RGB") from error
