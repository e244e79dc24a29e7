"""The segmentations of a COCO file, summarised one by one while the file is parsed: as Python objects they need ten
times its size."""

from __future__ import annotations

import json
from array import array
from typing import Any

import numpy as np

from resnet_backbone.data.masks import MaskSummary, far_outside, summarise_segmentation

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
