"""What opening an image tells: whether a run can read it, its digest, and a small hash of its looks."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import ExifTags
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset

from resnet_backbone.data.image_files import ImageFiles
from resnet_backbone.data.images import open_image, read_interleaved

HASH_BITS = 256
_CELLS = (16, 17)  # rows and columns of a coarse picture; the hash says which of two neighbours in a row is lighter
_PLAIN = 4.0  # levels of 255; a coarse picture that varies less says nothing about its looks
_SAMPLED_SIDE = 256  # pixels; larger images are read at every second pixel, or fewer, for their looks
_MAX_WORKERS, _IMAGES_A_WORKER = 8, 32
_EXIF_ERRORS = (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error)


@dataclass(frozen=True)
class ImageFacts:
    """Of one image.

    Attributes:
        fault: why a run cannot use it; "" where it can, and only then the others are meant.
        readable: it can be read, in whatever size.
        mode: Pillow's, "RGB" for most.
        orientation: EXIF's, 1 for upright.
        upright: the annotation file has the size of the image turned upright.
        digest: of its pixels as RGB, in the frame of the annotation file.
        looks: uint8 (32,), the bits of the small hash.
        plain: it has too little in it to be recognised by its looks.
    """

    fault: str
    readable: bool = False
    mode: str = ""
    orientation: int = 1
    upright: bool = True
    digest: bytes = b""
    looks: np.ndarray = field(default_factory=lambda: np.zeros(HASH_BITS // 8, dtype=np.uint8))
    plain: bool = True


def read_image_facts(files: ImageFiles, workers: int | None = None) -> list[ImageFacts]:
    """Open every image.

    Args:
        files: N images.
        workers: processes beside this one; None for as many as the machine and the number of images suggest.

    Raises:
        OSError: a process was killed.
    """
    if workers is None:
        workers = min(_MAX_WORKERS, os.cpu_count() or 1, len(files) // _IMAGES_A_WORKER)
    loader = DataLoader(_Facts(files), batch_size=16, num_workers=workers, collate_fn=list)
    try:
        return [facts for batch in loader for facts in batch]
    except RuntimeError as error:
        raise OSError(f"reading the images of {files.folder} ended early: {error}") from error


class _Facts(Dataset[ImageFacts]):
    def __init__(self, files: ImageFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> ImageFacts:
        height, width = self.files.sizes[row].tolist()
        return image_facts(self.files, row, (height, width))


def image_facts(files: ImageFiles, row: int, size: tuple[int, int]) -> ImageFacts:
    """Open one image, whose (height, width) in pixels the annotation file states."""
    path = files.path(row)
    try:
        pixels = read_interleaved(path, size)
    except OSError as error:
        return ImageFacts(str(error))
    except ValueError as error:
        return ImageFacts(str(error), readable=True)
    with open_image(path) as image:
        stored, mode = image.size[::-1], image.mode
        try:
            found = image.getexif().get(ExifTags.Base.Orientation, 1)
        except _EXIF_ERRORS:
            found = 1
    orientation = found if isinstance(found, int) and 1 <= found <= 8 else 1
    upright = stored[::-1] if orientation >= 5 else stored
    digest = hashlib.blake2b(str(tuple(pixels.shape)).encode(), digest_size=16)
    digest.update(pixels.permute(1, 2, 0).contiguous().numpy().data)
    looks, plain = small_hash(pixels)
    return ImageFacts("", True, mode, orientation, upright == size, digest.digest(), looks, plain)


def small_hash(pixels: torch.Tensor) -> tuple[np.ndarray, bool]:
    """Return the hash of an image's looks, which another size, quality or brightness hardly changes.

    Args:
        pixels: uint8 (3, H, W).

    Returns:
        uint8 (32,), a "difference hash" of 256 bits, and whether the image is too plain for it to mean anything.
    """
    step = max(1, min(pixels.shape[1:]) // _SAMPLED_SIDE)
    gray = pixels[:, ::step, ::step].float().mean(dim=0)
    coarse = adaptive_avg_pool2d(gray[None, None], _CELLS)[0, 0].numpy()
    return np.packbits(coarse[:, 1:] > coarse[:, :-1]), bool(coarse.std() < _PLAIN)


def nearest_looks(looks: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find for each small hash the most similar one of others.

    Args:
        looks: uint8 (N, 32).
        others: uint8 (M, 32), M 1 or more.

    Returns:
        The bits that differ, int64 (N,), and the position in ``others``, int64 (N,).
    """
    mine, theirs = (np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1 for hashes in (looks, others))
    distances = np.full(len(mine), HASH_BITS + 1, dtype=np.int64)
    places = np.zeros(len(mine), dtype=np.int64)
    for start in range(0, len(theirs), 4096):
        for own in range(0, len(mine), 4096):  # products of 64 MiB
            block = slice(own, own + 4096)
            agreement = mine[block] @ theirs[start : start + 4096].T
            best = agreement.argmax(axis=1)
            differing = ((HASH_BITS - np.take_along_axis(agreement, best[:, None], 1)[:, 0]) / 2).astype(np.int64)
            closer = differing < distances[block]
            distances[block][closer] = differing[closer]
            places[block][closer] = best[closer] + start
    return distances, places
