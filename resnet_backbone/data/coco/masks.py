"""COCO segmentations (polygons, compressed and uncompressed RLE) as binary masks, and as a table of a file.

pycocotools trusts its input: run lengths that do not fill the image leave the mask uninitialised or write past its end.
So every segmentation is checked here first, and decoded by pycocotools after that.

times its size.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.findings import brief

# A polygon is walked pixel by pixel, so one far-away point costs time and memory: none may lie further out than this.
_MAX_IMAGE_SIDES_AWAY = 10
_MAX_CHARACTERS = 7  # of a run length in a compressed RLE: 34 bits and a sign


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """What can be said about a segmentation without its image.

    Attributes:
        usable: the polygons of three points or more, or the RLE's size and counts; None where no polygon is left.
        broken: polygons that were left out.
        low: the least coordinate of a polygon in pixels; 0 for an RLE.
        high: the greatest one.
        size: of an RLE, (height, width); None for polygons.
        pixels: sum of the RLE's counts.
    """

    usable: list[Any] | dict[str, Any] | None
    broken: int = 0
    low: float = 0.0
    high: float = 0.0
    size: tuple[int, int] | None = None
    pixels: int = 0

    def fault(self, height: int, width: int) -> str:
        """Say what does not fit an image of that size in pixels; nothing where all does."""
        if self.size is not None and self.size != (height, width):
            return f"the RLE has size {list(self.size)}, but its image is [{height}, {width}] (height, width)"
        if self.size is not None and self.pixels != height * width:
            return f"the RLE counts add up to {self.pixels}, but the image has {height * width} pixels"
        limit = far_outside(height, width)
        for value in (self.low, self.high):
            if abs(value) > limit:
                return (
                    f"a polygon holds {value!r}; expected x and y in pixels of an image of {height} x {width} "
                    f"(height x width)"
                )
        return ""


def far_outside(height: Any, width: Any) -> Any:
    """Return the pixels that no coordinate may exceed on images of that size; for numbers or arrays."""
    return _MAX_IMAGE_SIDES_AWAY * np.maximum(height, width)


def summarise_segmentation(segmentation: Any) -> MaskSummary:
    """Check one ``segmentation`` value of a COCO file as far as that goes without its image.

    Polygons of fewer than three points or of an odd number of values are left out: pycocotools would read one of two
    points as a box. Source: ``load_coco_json`` of Detectron2 drops the same ones.

    Args:
        segmentation: a list of polygons ``[x1, y1, x2, y2, ...]`` in pixels, or ``{"size": [h, w], "counts": ...}``
            with compressed (str) or uncompressed (list of int) counts.

    Raises:
        ValueError: it is neither form, a coordinate is no finite number, or the counts are no run lengths.
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


def usable_segmentation(segmentation: Any, height: int, width: int, where: str) -> Any | None:
    """Check one ``segmentation`` value of a COCO file against its image.

    Args:
        segmentation: as :func:`summarise_segmentation` takes it.
        height: of the image, pixels.
        width: of the image, pixels.
        where: how errors name the annotation.

    Returns:
        The segmentation without broken polygons; None when no polygon is left.

    Raises:
        ValueError: it is malformed, a point lies far outside, the size of an RLE is not the image's, or its counts do
            not fill the image exactly.
    """
    try:
        summary = summarise_segmentation(segmentation)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if fault := summary.fault(height, width):
        raise ValueError(f"{where}: {fault}")
    return summary.usable


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw what :func:`usable_segmentation` returned: a uint8 array of shape (height, width), 1 inside the object.

    Polygons may be arrays, too.
    """
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco_mask.decode(rle)


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


def decompress_counts(text: str) -> list[int]:
    """Run lengths of a compressed RLE: zeros first, then ones, in turn, down the columns.

    Source: ``rleFrString`` in pycocotools' ``maskApi.c``: five bits a character from 48 up, bit 6 says that more
    follow, the highest bit of the last character is the sign, and from the fourth run on the difference to the run two
    before is stored.

    Raises:
        ValueError: a character outside ``0`` to ``o``, an end within a number, or a run longer than any image.
    """
    if not text:
        return []
    bits = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64) - 48
    if (strange := np.flatnonzero((bits < 0) | (bits > 63))).size:
        raise ValueError(f"character {text[strange[0]]!r} does not occur in a compressed RLE")
    ends = np.flatnonzero(bits < 32)
    if not ends.size or ends[-1] != len(bits) - 1:
        raise ValueError("the compressed RLE ends within a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise ValueError("the compressed RLE holds a run longer than any image")
    places = np.arange(len(bits)) - np.repeat(starts, lengths)
    counts = np.add.reduceat((bits & 31) << (5 * places), starts)
    counts -= np.where(bits[ends] & 16, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    if counts.max() > 1 << 5 * _MAX_CHARACTERS:
        raise ValueError("the compressed RLE holds a run longer than any image")
    return counts.tolist()


def _check_coordinates(polygon: list[Any]) -> None:
    if set(map(type, polygon)) <= {int, float}:
        try:
            if math.isfinite(sum(polygon)):
                return
        except OverflowError:  # an integer beyond all floats
            pass
    for value in polygon:
        if type(value) not in (int, float) or not abs(value) < 1e18:
            raise ValueError(f"a polygon holds {brief(value)}; expected x and y in pixels")
    raise ValueError(f"a polygon holds {brief(polygon)}; expected x and y in pixels")


def _summarise_rle(rle: dict[str, Any]) -> MaskSummary:
    if not {"size", "counts"} <= rle.keys():
        raise ValueError(f'an RLE segmentation needs "size" and "counts", found {brief(sorted(rle))}')
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list) or list(map(type, size)) != [int, int]:
        raise ValueError(f"the RLE has size {brief(size)}; expected [height, width] in pixels")
    if isinstance(counts, str):
        counts = decompress_counts(counts)
    if not isinstance(counts, list) or not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
        raise ValueError(f"RLE counts are {brief(counts)}; expected a string or a list of integers from 0 up")
    kept = {"size": size, "counts": rle["counts"]}
    return MaskSummary(kept, size=(size[0], size[1]), pixels=sum(counts))


_POLYGONS, _RLE, _NOTHING_LEFT, _MALFORMED = range(4)


class MaskTable:
    """Rows of facts about segmentations, in the order of the file.

    Args:
        keep: keep the JSON text of what is usable.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self._forms = array("b")
        self._broken = array("q")
        self._reach = array("d")  # least and greatest coordinate
        self._rle = array("d")  # height, width, sum of the counts
        self._texts: list[bytes] = []
        self._faults: dict[int, str] = {}

    def summarise(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Replace, in place, "segmentation" by the row of its facts: for the ``object_hook`` of ``read_json``."""
        if "segmentation" in entry:
            entry["segmentation"] = self._add(entry["segmentation"])
        return entry

    def without_polygon(self, rows: np.ndarray) -> np.ndarray:
        """Return a bool of shape (M,) for ``rows``, int64 (M,): true where no usable polygon is left."""
        return np.frombuffer(self._forms, np.int8)[rows] == _NOTHING_LEFT

    def broken(self, rows: np.ndarray) -> np.ndarray:
        """Return for each of ``rows`` how many of its polygons are left out, int64 (M,)."""
        return np.frombuffer(self._broken, np.int64)[rows]

    def run_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return a bool of shape (M,): true where the segmentation is an RLE."""
        return np.frombuffer(self._forms, np.int8)[rows] == _RLE

    def malformed(self, rows: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return a bool of shape (M,): true where :meth:`fault` has something to say.

        Args:
            rows: int64 (M,).
            heights: of the images, pixels, (M,).
            widths: of the images, pixels, (M,).
        """
        forms = np.frombuffer(self._forms, np.int8)[rows]
        reach = np.abs(np.frombuffer(self._reach).reshape(-1, 2)[rows]).max(axis=1, initial=0)
        rle = np.frombuffer(self._rle).reshape(-1, 3)[rows]
        unfit = (rle[:, 0] != heights) | (rle[:, 1] != widths) | (rle[:, 2] != heights * widths.astype(np.float64))
        return (forms == _MALFORMED) | (reach > far_outside(heights, widths)) | ((forms == _RLE) & unfit)

    def fault(self, row: int, height: int, width: int) -> str:
        """Say what is wrong with a segmentation on an image of that size in pixels; nothing where all is well."""
        if row in self._faults:
            return self._faults[row]
        size_and_pixels = [int(value) for value in self._rle[3 * row : 3 * row + 3]]
        low, high = self._reach[2 * row : 2 * row + 2]
        size = (size_and_pixels[0], size_and_pixels[1]) if self._forms[row] == _RLE else None
        return MaskSummary(None, 0, low, high, size, size_and_pixels[2]).fault(height, width)

    def text(self, row: int) -> bytes:
        """Return the JSON text of what is usable."""
        return self._texts[row]

    def _add(self, segmentation: Any) -> int:
        row = len(self._forms)
        try:
            summary = summarise_segmentation(segmentation)
        except ValueError as error:
            self._faults[row] = str(error)
            summary = MaskSummary(None)
            form = _MALFORMED
        else:
            form = _NOTHING_LEFT if summary.usable is None else _POLYGONS if summary.size is None else _RLE
        self._forms.append(form)
        self._broken.append(summary.broken)
        self._reach.extend((summary.low, summary.high))
        self._rle.extend(_as_floats(*(summary.size or (0, 0)), summary.pixels))
        if self.keep:
            usable = summary.usable
            self._texts.append(b"" if usable is None else json.dumps(usable, separators=(",", ":")).encode())
        return row


def _as_floats(*values: int) -> list[float]:
    """Sizes beyond all floats are no image's, whatever they are."""
    return [float(value) if abs(value) < 1 << 53 else -1.0 for value in values]
