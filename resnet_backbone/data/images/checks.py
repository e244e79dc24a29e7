"""Checks that open every image: of one set, and of training images that are also test images."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset

from resnet_backbone.data.coco.findings import Example, Finding, find
from resnet_backbone.data.images.files import ImageFiles, find_shared_files
from resnet_backbone.data.images.read import exif_orientation, open_image, read_interleaved

logger = logging.getLogger(__name__)

HASH_BITS = 256
NEAR_DUPLICATE_BITS = 40  # of 256 bits that differ, at most; unrelated photographs differ in 80 or more
_CELLS = (16, 17)  # rows and columns of a coarse picture; the hash says which of two neighbours in a row is lighter
_FEATURELESS = 4.0  # levels of 255; a coarse picture that varies less says nothing about its looks
_SAMPLED_SIDE = 256  # pixels; larger images are read at every second pixel, or fewer, for their looks
_MAX_WORKERS, _IMAGES_A_WORKER = 8, 32
_USUAL_MODES = ("RGB", "L")


@dataclass(frozen=True)
class ImageFacts:
    """Of one image."""

    fault: str  # why a run cannot use it; "" where it can, and only then the others are meant
    readable: bool = False  # it can be read, in whatever size
    mode: str = ""  # Pillow's, "RGB" for most
    orientation: int = 1  # EXIF's, 1 for upright
    upright: bool = True  # the annotation file has the size of the image turned upright
    digest: bytes = b""  # of its pixels as RGB, in the frame of the annotation file
    # uint8 (32,), see difference_hash
    looks: np.ndarray = field(default_factory=lambda: np.zeros(HASH_BITS // 8, dtype=np.uint8))
    featureless: bool = True  # it has too little in it to be recognised by its looks


_Opened = tuple[ImageFiles, list[ImageFacts]]


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
        path = self.files.path(row)
        height, width = self.files.sizes[row].tolist()
        try:
            pixels = read_interleaved(path, (height, width))
        except OSError as error:
            return ImageFacts(str(error))
        except ValueError as error:
            return ImageFacts(str(error), readable=True)
        with open_image(path) as image:
            stored, mode, orientation = image.size[::-1], image.mode, exif_orientation(image)
        upright = (stored[::-1] if orientation >= 5 else stored) == (height, width)
        digest = hashlib.blake2b(str(tuple(pixels.shape)).encode(), digest_size=16)
        digest.update(pixels.permute(1, 2, 0).contiguous().numpy().data)
        return ImageFacts("", True, mode, orientation, upright, digest.digest(), *difference_hash(pixels))


def difference_hash(pixels: torch.Tensor) -> tuple[np.ndarray, bool]:
    """Return the hash of what an image shows, which another size, quality or brightness hardly changes.

    Args:
        pixels: uint8 (3, H, W).

    Returns:
        uint8 (32,), the difference hash (dHash) of 256 bits, and whether the image has too little in it for it to mean
        anything.
    """
    step = max(1, min(pixels.shape[1:]) // _SAMPLED_SIDE)
    gray = pixels[:, ::step, ::step].float().mean(dim=0)
    coarse = adaptive_avg_pool2d(gray[None, None], _CELLS)[0, 0].numpy()
    return np.packbits(coarse[:, 1:] > coarse[:, :-1]), bool(coarse.std() < _FEATURELESS)


def nearest_hashes(hashes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find for each difference hash the most similar one of others.

    Args:
        hashes: uint8 (N, 32).
        others: uint8 (M, 32), M 1 or more.

    Returns:
        The bits that differ, int64 (N,), and the position in ``others``, int64 (N,).
    """
    mine, theirs = (np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1 for bits in (hashes, others))
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


def compare_images(
    train: Mapping[str, ImageFiles], test: Mapping[str, ImageFiles], *, deep: bool
) -> list[tuple[str, list[Finding]]]:
    """Check the image files of the sets of a run.

    Args:
        train: the sets to train on, by name.
        test: those to score.
        deep: open every image. False compares where they lie.

    Returns:
        The names of the sets, those to train on first, and what was found in each.

    Raises:
        OSError: a process that reads images was killed.
    """
    opened = [_open(name, files) for name, files in train.items()] if deep else []
    found = [(name, check_opened(*opened[index]) if deep else []) for index, name in enumerate(train)]
    for name, files in test.items():
        findings, shared = find_shared_files(train, files)
        if deep:
            of_test = _open(name, files)
            findings += [*check_opened(*of_test), *_find_known_content(opened, of_test, shared)]
        found.append((name, findings))
    return found


def _open(name: str, files: ImageFiles) -> _Opened:
    logger.info("%s: opening %d images", name, len(files))
    return files, read_image_facts(files)


def check_opened(files: ImageFiles, facts: Sequence[ImageFacts]) -> list[Finding]:
    """Check the images of one set, each of which was opened."""
    total = len(files)
    faulty = [row for row, fact in enumerate(facts) if fact.fault]
    usable = [row for row, fact in enumerate(facts) if not fact.fault]
    first: dict[bytes, int] = {}
    again = [row for row in usable if first.setdefault(facts[row].digest, row) != row]
    turned = [row for row in usable if facts[row].orientation > 1]
    unusual = [row for row in usable if facts[row].mode not in _USUAL_MODES]

    def fault(row: int) -> Example:
        return files.example(row, facts[row].fault)

    def orientation(row: int) -> Example:
        frame = "turned upright" if facts[row].upright else "left as stored"
        return files.example(row, f"orientation {facts[row].orientation}, {frame}")

    def mode(row: int) -> Example:
        return files.example(row, f"mode {facts[row].mode}")

    def same(row: int) -> Example:
        other = files.path(first[facts[row].digest])
        return files.example(row, f"has the pixels of {other.name}", other)

    stored = sum(not facts[row].upright for row in turned)
    note = f"{stored} are left as stored" if stored else ""
    return [
        *find("unreadable_image", [row for row in faulty if not facts[row].readable], total, fault),
        *find("other_size", [row for row in faulty if facts[row].readable], total, fault),
        *find("turned_image", turned, total, orientation, note=note),
        *find("unusual_mode", unusual, total, mode),
        *find("repeated_content", again, total, same),
    ]


def _find_known_content(train: Sequence[_Opened], test: _Opened, shared: Sequence[int]) -> list[Finding]:
    """Images to score that are trained on under another file, or look so."""
    files, facts = test
    usable = [(of.path(row), fact) for of, all_facts in train for row, fact in enumerate(all_facts) if not fact.fault]
    paths = {fact.digest: path for path, fact in usable}
    others = [row for row in sorted(set(range(len(files))) - set(shared)) if not facts[row].fault]
    equal = [row for row in others if facts[row].digest in paths]

    def same(row: int) -> Example:
        twin = paths[facts[row].digest]
        return files.example(row, f"has the pixels of {twin}", twin)

    findings = find("shared_content", equal, len(files), same)
    asked = [row for row in others if facts[row].digest not in paths and not facts[row].featureless]
    telling = [(path, fact.looks) for path, fact in usable if not fact.featureless]
    if not asked or not telling:
        return findings
    looks = np.stack([facts[row].looks for row in asked])
    distances, places = nearest_hashes(looks, np.stack([of_train for _, of_train in telling]))
    nearest = zip(asked, distances.tolist(), places.tolist(), strict=True)
    alike = {row: (telling[place][0], distance) for row, distance, place in nearest if distance <= NEAR_DUPLICATE_BITS}

    def similar(row: int) -> Example:
        twin, distance = alike[row]
        return files.example(row, f"looks like {twin} ({distance} of 256 bits differ)", twin)

    closest_first = sorted(alike, key=lambda row: alike[row][1])
    return findings + find("looks_same", closest_first, len(files), similar)
