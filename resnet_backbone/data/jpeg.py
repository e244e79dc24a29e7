"""The pixels of ordinary JPEG files, decoded straight into a tensor: those that Pillow gives."""

from __future__ import annotations

import os

import torch
from PIL import Image, ImageFile

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision 0.29 says that a later one will be without it
    decode_jpeg = None

_END_OF_IMAGE = b"\xff\xd9"
_MAX_FILE_BYTES = 1 << 28  # larger ones are for Pillow, which reads no more of a file than it needs


def decode_plain_jpeg(image: Image.Image) -> torch.Tensor | None:
    """Decode an image that Pillow has opened and not read, where both decoders are known to agree to the bit.

    Both are libjpeg-turbo. Pillow goes on where the decoder here stops, and says what is wrong.

    Args:
        image: of ``Image.open``; its file is open.

    Returns:
        uint8 tensor of shape (3, H, W), RGB, as stored; in memory H x W x 3. None where it is no gray or
        three-component JPEG file that ends as it should, libjpeg refuses it, or this torchvision has no decoder.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    if decode_jpeg is None or image.fp is None:
        return None
    if image.fp.seek(0, os.SEEK_END) > _MAX_FILE_BYTES:
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
