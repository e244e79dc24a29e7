"""Many byte strings in two arrays, so that a forked DataLoader worker shares them instead of copying them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class PackedBytes:
    """A read-only sequence of byte strings without one Python object each.

    Touching a Python object writes its reference count, so a list of a million objects is copied page by page into
    every forked worker; an array is not. Source: the serialized list of Detectron2 (``detectron2/data/common.py``).
    """

    def __init__(self, items: Iterable[bytes]) -> None:
        buffer = bytearray()
        ends = [0]
        for item in items:
            buffer += item
            ends.append(len(buffer))
        self._buffer = np.frombuffer(bytes(buffer), dtype=np.uint8)
        self._ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        return self._buffer[self._ends[index] : self._ends[index + 1]].tobytes()
