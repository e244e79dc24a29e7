"""The checks of the boxes of a COCO-format file, and their corners inside the images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resnet_backbone.data.coco_table import CocoTable
from resnet_backbone.data.findings import Finding, find
from resnet_backbone.data.table_examples import annotation_example

TINY = 8  # pixels, the side of a square of the box's area
FAR_OUT = 1.0  # pixels; less is rounding
MANY, SEVERAL = 0.1, 5  # share and number of boxes that reach out before their form is doubted
NEARLY_ALL = 0.95  # share of boxes that must have the form that is suspected
SLACK = 0.01  # of shares of the image, which may be rounded or reach out a little
LARGE = 32  # pixels, the side of an image on which no box lies within the first pixel


@dataclass(frozen=True)
class CheckedBoxes:
    """What was found, and for M annotations what is left."""

    findings: list[Finding]
    corners: np.ndarray  # float32 (M, 4), x1 y1 x2 y2 in pixels, inside the image
    usable: np.ndarray  # bool (M,), true where they enclose an area


def check_boxes(table: CocoTable, image_rows: np.ndarray, known: np.ndarray, in_use: np.ndarray) -> CheckedBoxes:
    """Check the boxes of a table.

    Args:
        table: of M annotations.
        image_rows: int64 (M,), the row of each annotation's image.
        known: bool (M,), false where image or category is unknown.
        in_use: bool (M,), which annotations are meant to be used.
    """
    sizes = np.zeros((len(known), 2))
    sizes[known] = table.sizes[image_rows[known], ::-1]  # width, height
    with np.errstate(over="ignore"):
        raw = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], axis=1)
    limits = np.concatenate([sizes, sizes], axis=1)
    corners = np.clip(raw, 0, np.maximum(limits, 0)).astype(np.float32)
    usable = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    negative = (table.boxes[:, 2:] < 0).any(axis=1)
    outside = ((raw[:, :2] >= sizes) | (raw[:, 2:] <= 0)).any(axis=1) & (table.boxes[:, 2:] > 0).all(axis=1)
    overhang = np.maximum(-raw, raw - limits).max(axis=1, initial=0)

    total = int(in_use.sum())
    example = annotation_example(table)

    def found(key: str, which: np.ndarray, *, warns: bool | None = None, note: str = "") -> list[Finding]:
        return find(key, np.flatnonzero(in_use & which), total, example, warns=warns, note=note)

    findings = _check_form(table, known, sizes, overhang)
    findings += found("negative_box", ~usable & negative)
    findings += found("outside_box", ~usable & ~negative & outside)
    findings += found("empty_box", ~usable & ~negative & ~outside)
    cut = usable & (overhang > 0)
    far = int((in_use & cut & (overhang > FAR_OUT)).sum())
    many = far >= SEVERAL and far >= MANY * total
    note = f"{far} reach out by more than a pixel" + ("; are they x, y of the corner, width, height?" if many else "")
    findings += found("clipped_box", cut, warns=many, note=note)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    tiny = usable & (areas < TINY**2)
    findings += found("tiny_box", tiny, warns=bool(2 * (in_use & tiny).sum() > total))
    return CheckedBoxes(findings, corners, usable)


def repeated_annotations(
    table: CocoTable, image_rows: np.ndarray, labels: np.ndarray, used: np.ndarray
) -> list[Finding]:
    """Find annotations, among the used ones, that have image, category and box of an earlier one."""
    rows = np.flatnonzero(used & ~table.is_crowd)
    facts = [image_rows[rows], labels[rows], *(table.boxes[rows] + 0.0).T.view(np.int64)]  # + 0.0: -0.0 is 0.0
    mixed = np.zeros(len(rows), dtype=np.uint64)
    for fact in facts:
        mixed = (mixed ^ fact.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    before, after = order[:-1], order[1:]
    same = mixed[before] == mixed[after]
    for fact in facts:
        same &= fact[before] == fact[after]
    return find("repeated_annotation", np.sort(rows[after[same]]), len(rows), annotation_example(table))


def _check_form(table: CocoTable, known: np.ndarray, sizes: np.ndarray, overhang: np.ndarray) -> list[Finding]:
    """Boxes that are corners, or shares of the image, as all of the file show together."""
    boxes, sizes, rows = table.boxes[known], sizes[known], np.flatnonzero(known)
    if not len(boxes):
        return []
    example = annotation_example(table)
    far = overhang[known] > FAR_OUT
    as_corners = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, :2] >= -FAR_OUT) & (boxes[:, 2:] <= sizes + FAR_OUT)
    if far.sum() >= max(SEVERAL, MANY * len(boxes)) and as_corners.all(axis=1).mean() >= NEARLY_ALL:
        return find("corner_boxes", rows[far], len(boxes), example)
    in_first_pixel = ((boxes >= -SLACK) & (boxes <= 1 + SLACK)).all(axis=1)
    broken = (boxes != np.round(boxes)).any(axis=1)
    if in_first_pixel.mean() >= NEARLY_ALL and broken[in_first_pixel].any() and sizes.min() >= LARGE:
        return find("normalised_boxes", rows[in_first_pixel], len(boxes), example)
    return []
