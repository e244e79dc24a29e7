"""Checking compressed run lengths: COCO's own code trusts them, and hangs or writes past its memory on wrong ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_PIXELS = 1 << 31  # of one mask; COCO's code counts with 32 bits
_MAX_CHARACTERS = 7  # of one run, five bits each


def find_broken(counts: Sequence[str | bytes], pixels: Sequence[int]) -> tuple[int, str] | None:
    """Find the first of some masks whose run lengths do not fill its image exactly.

    All of them are decoded at once, since a call for each would take longer than the evaluation.

    Args:
        counts: compressed run lengths of N masks, as ``pycocotools.mask.encode`` writes them.
        pixels: height times width of the image of each.

    Returns:
        Its position and what is wrong with it; None where all are whole.

    Source: ``rleFrString`` in pycocotools' ``maskApi.c``: five bits a character from 48 up, bit 6 says that more
    follow, and from the fourth run on the difference to the run two before is stored.
    """
    data = [_ascii(text) for text in counts]
    for position, text in enumerate(data):
        if not text:
            return position, "has no run lengths, or characters that do not occur in them"
    if not data:
        return None
    code = np.frombuffer(b"".join(data), np.uint8).astype(np.int64) - 48
    after = np.cumsum([len(text) for text in data])  # where each mask's characters end
    is_last = (code & 0x20) == 0  # of its run
    last = np.flatnonzero(is_last)
    wrong = (code < 0) | (code > 63)
    wrong[after[~is_last[after - 1]] - 1] = True
    lengths = np.diff(last, prepend=-1)
    wrong[last[lengths > _MAX_CHARACTERS]] = True
    if wrong.any():
        return int(np.searchsorted(after, np.flatnonzero(wrong)[0], "right")), "is no compressed run-length text"
    first = last - lengths + 1  # characters at which the runs begin
    within = np.arange(len(code)) - np.repeat(first, lengths)
    runs = np.add.reduceat((code & 0x1F) << (5 * within), first)
    runs -= ((code[last] & 0x10) > 0) * (np.int64(1) << (5 * lengths))
    begins = np.searchsorted(last, np.concatenate([[0], after[:-1]]))  # runs at which the masks begin
    runs = _undo_differences(runs, begins)
    sums = np.add.reduceat(runs, begins)
    broken = (np.minimum.reduceat(runs, begins) < 0) | (sums != np.array(pixels, np.int64))
    if not broken.any():
        return None
    position = int(np.flatnonzero(broken)[0])
    return position, f"adds up to {sums[position]} pixels, the image has {pixels[position]}"


def _ascii(text: str | bytes) -> bytes:
    if isinstance(text, bytes):
        return text
    return text.encode("ascii") if text.isascii() else b""


def _undo_differences(runs: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """From the fourth run of a mask on, add the run two before: sums over every other run, starting with the second."""
    counts = np.diff(begins, append=len(runs))
    within = np.arange(len(runs)) - np.repeat(begins, counts)
    whole = runs.copy()
    for chosen in (within % 2 == 1, (within % 2 == 0) & (within > 0)):
        summed = np.cumsum(np.where(chosen, runs, 0))
        before = np.repeat(np.concatenate([[0], summed])[begins], counts)
        whole = np.where(chosen, summed - before, whole)
    return whole
