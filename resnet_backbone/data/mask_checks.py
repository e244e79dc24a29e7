"""The checks of the segmentations of a COCO-format file."""

from __future__ import annotations

from typing import Any

import numpy as np

from resnet_backbone.data.coco_table import CocoTable
from resnet_backbone.data.findings import Finding, find
from resnet_backbone.data.table_examples import annotation_example


def check_masks(
    table: CocoTable, image_rows: np.ndarray, used: np.ndarray, *, in_use: bool, polygons_only: bool
) -> tuple[list[Finding], np.ndarray]:
    """Check the segmentations of the annotations that are used.

    Args:
        table: of M annotations.
        image_rows: int64 (M,), the row of each annotation's image.
        used: bool (M,).
        in_use: masks are used. False only tells what there is to know, and nothing where no annotation has one.
        polygons_only: run lengths are refused.

    Returns:
        The findings, and a bool (M,): true where an annotation has no polygon left and cannot be used.
    """
    rows, masks = np.flatnonzero(used), table.masks
    lost = np.zeros(len(used), dtype=bool)
    missing = table.mask_rows[rows] < 0
    if masks is None or (not in_use and missing.all()):
        return [], lost
    total = len(rows)
    example = annotation_example(table)
    otherwise: dict[str, Any] = {} if in_use else {"action": "keep", "warns": False}
    findings = find(
        "no_mask", rows[missing], total,
        annotation_example(table, lambda row: 'has no "segmentation", which instance masks need; for boxes alone write '
                           "MODEL.MASK_ON: False"),
        **otherwise,
    )  # fmt: skip
    rows = rows[~missing]
    own = table.mask_rows[rows]
    heights, widths = table.sizes[image_rows[rows]].T
    faulty = masks.malformed(own, heights, widths)

    def fault(row: int) -> str:
        height, width = table.sizes[image_rows[row]].tolist()
        return f": {masks.fault(int(table.mask_rows[row]), height, width)}"

    empty = masks.without_polygon(own) & ~faulty
    mended = (masks.broken(own) > 0) & ~empty & ~faulty
    findings += find("malformed_mask", rows[faulty], total, annotation_example(table, fault), **otherwise)
    findings += find("no_polygon", rows[empty], total, example, **otherwise)
    findings += find("broken_polygon", rows[mended], total, example, **otherwise)
    if in_use and polygons_only:
        findings += find("run_lengths", rows[masks.run_lengths(own)], total, example)
    if in_use:
        lost[rows[empty]] = True
    return findings, lost
