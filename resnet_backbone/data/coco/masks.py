"""COCO segmentations (polygons, RLE as text or as a list): checking them, and drawing them as binary masks.

pycocotools trusts its input: RLE that does not fill the image leaves the mask uninitialised, or is written past its
end. So every segmentation is checked here first, and decoded by pycocotools after that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.findings import brief

Rle = dict[str, Any]  # {"size": [height, width], "counts": compressed RLE}

# A polygon is walked pixel by pixel, so one far-away point costs time and memory: none may lie further out than this.
_MAX_IMAGE_SIDES_AWAY = 10
_MAX_CHARACTERS = 7  # of one count in a compressed RLE: 34 bits and a sign


class BrokenRle(ValueError):
    """Compressed counts that are none: which one, and what it has."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(what)
        self.position = position


def decompress(texts: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Decompress the counts of N RLEs at once, since a call for each would take longer than an evaluation.

    Returns:
        All counts in a row, int64 (zeros first, then ones, in turn, down the columns), and at which of them each RLE
        begins, int64 (N,).

    Raises:
        BrokenRle: no counts at all, a character outside ``0`` to ``o``, an end within a number, or a count that is
            larger than any image.

    Source: ``rleFrString`` in pycocotools' ``maskApi.c``: five bits a character from 48 up, bit 6 says that more
    follow, the highest bit of the last character is the sign, and from the fourth count on the difference to the one
    two before is stored.
    """
    data = [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text for text in texts]
    for position, text in enumerate(data):
        if not text:
            raise BrokenRle(position, "has no counts")
    if not data:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    code = np.frombuffer(b"".join(data), np.uint8).astype(np.int64) - 48
    ends = np.cumsum([len(text) for text in data])  # where the characters of each RLE end

    def fault(wrong: np.ndarray, what: str) -> BrokenRle:
        return BrokenRle(int(np.searchsorted(ends, wrong[0], "right")), what)

    if (wrong := np.flatnonzero((code < 0) | (code > 63))).size:
        raise fault(wrong, f"has the byte {bytes([code[wrong[0]] + 48])!r}, which does not occur in compressed counts")
    is_last = (code & 0x20) == 0  # of its number
    if (wrong := ends[~is_last[ends - 1]] - 1).size:
        raise fault(wrong, "ends within a number")
    last = np.flatnonzero(is_last)
    lengths = np.diff(last, prepend=-1)
    if (wrong := last[lengths > _MAX_CHARACTERS]).size:
        raise fault(wrong, "has a count that is larger than any image")
    first = last - lengths + 1
    within = np.arange(len(code)) - np.repeat(first, lengths)
    counts = np.add.reduceat((code & 0x1F) << (5 * within), first)
    counts -= ((code[last] & 0x10) > 0) * (np.int64(1) << (5 * lengths))
    begins = np.searchsorted(last, np.concatenate([[0], ends[:-1]]))
    return _undo_differences(counts, begins), begins


def _undo_differences(counts: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """From the fourth count of an RLE on, add the one two before: sums over every other one, starting at the second."""
    numbers = np.diff(begins, append=len(counts))
    within = np.arange(len(counts)) - np.repeat(begins, numbers)
    added = counts.copy()
    for chosen in (within % 2 == 1, (within % 2 == 0) & (within > 0)):
        summed = np.cumsum(np.where(chosen, counts, 0))
        before = np.repeat(np.concatenate([[0], summed])[begins], numbers)
        added = np.where(chosen, summed - before, added)
    return added


def find_broken(texts: Sequence[str | bytes], pixels: Sequence[int]) -> tuple[int, str] | None:
    """Return the position of the first RLE that does not fill its image exactly, and what it does; None for none.

    Args:
        texts: compressed counts of N masks, as ``pycocotools.mask.encode`` writes them.
        pixels: height times width of the image of each.
    """
    try:
        counts, begins = decompress(texts)
    except BrokenRle as error:
        return error.position, str(error)
    if not len(begins):
        return None
    sums = np.add.reduceat(counts, begins)
    broken = np.flatnonzero((np.minimum.reduceat(counts, begins) < 0) | (sums != np.array(pixels, np.int64)))
    if not broken.size:
        return None
    position = int(broken[0])
    return position, f"adds up to {sums[position]} pixels, the image has {pixels[position]}"


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """What can be said about a segmentation without its image."""

    # the polygons of three points or more, or the RLE's size and counts; None where no polygon is left
    usable: list[Any] | Rle | None = None
    broken: int = 0  # polygons that were left out
    low: float = 0.0  # the least coordinate of a polygon in pixels; 0 for an RLE
    high: float = 0.0  # the greatest one
    size: tuple[int, int] | None = None  # of an RLE, (height, width); None for polygons
    pixels: int = 0  # sum of the RLE's counts
    malformed: str = ""  # what is wrong with it whatever the image; the rest says nothing then

    def fault(self, height: int, width: int) -> str:
        """Say what is wrong on an image of that size in pixels; nothing where all is well."""
        if self.malformed:
            return self.malformed
        if self.size is not None and self.size != (height, width):
            return f"the RLE has size {list(self.size)}, but its image is [{height}, {width}] (height, width)"
        if self.size is not None and self.pixels != height * width:
            return f"the RLE counts add up to {self.pixels}, but the image has {height * width} pixels"
        limit = _MAX_IMAGE_SIDES_AWAY * max(height, width)
        for value in (self.low, self.high):
            if abs(value) > limit:
                return (
                    f"a polygon holds {value!r}; expected x and y in pixels of an image of {height} x {width} "
                    f"(height x width)"
                )
        return ""


def summarise_segmentation(segmentation: Any) -> MaskSummary:
    """Check one ``segmentation`` value of a COCO file as far as that goes without its image.

    Polygons of fewer than three points or of an odd number of values are left out: pycocotools would read one of two
    points as a box. Source: ``load_coco_json`` of Detectron2 drops the same ones.

    Args:
        segmentation: a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, or ``{"size": [h, w], "counts": ...}``
            with compressed (text) or uncompressed (list of int) counts.

    Raises:
        ValueError: it is neither form, a coordinate is no finite number, or the counts are none.
    """
    if isinstance(segmentation, dict):
        return _summarise_rle(segmentation)
    if not isinstance(segmentation, list) or not set(map(type, segmentation)) <= {list}:
        raise ValueError(
            f"segmentation is {brief(segmentation)}; expected a list of polygons [[x1, y1, x2, y2, ...]] "
            'or an RLE {"size": [height, width], "counts": ...}'
        )
    low = high = 0.0
    for polygon in segmentation:
        if not polygon:
            continue
        _check_coordinates(polygon)
        low, high = min(low, min(polygon)), max(high, max(polygon))
    usable = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
    return MaskSummary(usable or None, len(segmentation) - len(usable), low, high)


def encode_segmentation(segmentation: Any, height: int, width: int) -> Rle:
    """Turn a segmentation that was checked against its image into a compressed RLE; polygons may be arrays, too."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw what :func:`encode_segmentation` takes: a uint8 array of shape (height, width), 1 inside the object."""
    return coco_mask.decode(encode_segmentation(segmentation, height, width))


def draw_masks(segmentations: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Draw N of what :func:`encode_segmentation` takes, bool (N, height, width)."""
    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        mask[:] = decode_segmentation(segmentation, height, width)
    return masks


def crop_polygons(polygons: Sequence[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
    """Draw polygons on a grid of ``size`` cells a side that is stretched over ``box``.

    Args:
        polygons: of one object, each ``[x1, y1, x2, y2, ...]`` in pixels, three points or more.
        box: (4,), x1 y1 x2 y2 in pixels.
        size: cells.

    Returns:
        A uint8 array of shape (size, size), 1 inside the object.

    Source: ``rasterize_polygons_within_box`` of Detectron2.
    """
    scale = [size / max(box[2] - box[0], 0.1), size / max(box[3] - box[1], 0.1)]
    cells = [((polygon.reshape(-1, 2) - box[:2]) * scale).reshape(-1) for polygon in polygons]
    return decode_segmentation(cells, size, size)


def _check_coordinates(polygon: list[Any]) -> None:
    if set(map(type, polygon)) <= {int, float}:
        try:
            if math.isfinite(sum(polygon)):
                return
        except OverflowError:  # an integer beyond all floats
            pass
    for value in polygon:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
            raise ValueError(f"a polygon holds {brief(value)}; expected x and y in pixels")
    if not math.isfinite(sum(polygon)):
        raise ValueError(f"a polygon holds {brief(polygon)}; expected x and y in pixels")


def _summarise_rle(rle: Rle) -> MaskSummary:
    if not {"size", "counts"} <= rle.keys():
        raise ValueError(f'an RLE segmentation needs "size" and "counts", found {brief(sorted(rle))}')
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list) or list(map(type, size)) != [int, int]:
        raise ValueError(f"the RLE has size {brief(size)}; expected [height, width] in pixels")
    kept = {"size": size, "counts": counts.decode("latin-1") if isinstance(counts, bytes) else counts}
    if isinstance(counts, str | bytes):
        try:
            counts = decompress([counts])[0].tolist()
        except BrokenRle as error:
            raise ValueError(f"the RLE {error}") from error
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
        raise ValueError(f"RLE counts are {brief(counts)}; expected a text or a list of integers from 0 up")
    return MaskSummary(kept, size=(size[0], size[1]), pixels=sum(counts))


USABLE, MENDED, EMPTY, MALFORMED = range(4)  # MENDED: without its broken polygons; EMPTY: all of them are broken


class MaskTable:
    """The segmentations of a file, in its order, checked, but for what needs the size of the image.

    Args:
        keep: keep the JSON text of what is usable.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self._summaries: list[MaskSummary] = []
        self._texts: list[bytes] = []

    def summarise(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Replace, in place, "segmentation" by its row here: for the ``object_hook`` of ``read_json``."""
        if "segmentation" not in entry:
            return entry
        text = b""
        try:
            summary = summarise_segmentation(entry["segmentation"])
        except ValueError as error:
            summary = MaskSummary(malformed=str(error))
        if self.keep and summary.usable is not None:
            text = json.dumps(summary.usable, separators=(",", ":")).encode()
        if self.keep:
            self._texts.append(text)
        # The polygons themselves are many times as large as their text.
        self._summaries.append(replace(summary, usable=None if summary.usable is None else []))
        entry["segmentation"] = len(self._summaries) - 1
        return entry

    def states(self, rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Return for each of ``rows``, int64 (M,), one of USABLE, MENDED, EMPTY and MALFORMED on images of ``sizes``,
        (M, 2), height and width in pixels."""
        states = np.zeros(len(rows), dtype=np.int64)
        for index, (row, size) in enumerate(zip(rows.tolist(), sizes.tolist(), strict=True)):
            summary = self._summaries[row]
            if summary.fault(*size):
                states[index] = MALFORMED
            elif summary.usable is None:
                states[index] = EMPTY
            else:
                states[index] = MENDED if summary.broken else USABLE
        return states

    def is_rle(self, rows: np.ndarray) -> np.ndarray:
        """Return a bool of shape (M,): true where the segmentation is an RLE."""
        return np.array([self._summaries[row].size is not None for row in rows.tolist()], dtype=bool)

    def fault(self, row: int, height: int, width: int) -> str:
        """See :meth:`MaskSummary.fault`."""
        return self._summaries[row].fault(height, width)

    def text(self, row: int) -> bytes:
        """Return the JSON text of what is usable."""
        return self._texts[row]
