"""How findings name images and annotations of a table."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from resnet_backbone.data.coco_table import CocoTable
from resnet_backbone.data.findings import Example

Text = Callable[[int], str]  # of a row, what is there


def image_example(table: CocoTable, text: Text | None = None) -> Callable[[int], Example]:
    """Return what describes the image of a row of ``table``."""

    def example(row: int) -> Example:
        name = table.file_names[row]
        shown = name if len(name) <= 200 else f"{name[:200]}..."
        said = f" {text(row)}" if text else ""
        return Example(f"images[{table.image_index[row]}] ({shown}){said}", int(table.image_ids[row]), name)

    return example


def annotation_example(table: CocoTable, text: Text | None = None) -> Callable[[int], Example]:
    """Return what describes the annotation of a row of ``table``; without ``text`` it tells the box."""

    def example(row: int) -> Example:
        x, y, width, height = table.boxes[row].tolist()
        said = text(row) if text else f"has bbox [{x:g}, {y:g}, {width:g}, {height:g}]"
        image_id = int(table.of_image[row])
        images = np.flatnonzero(table.image_ids == image_id)
        return Example(
            f"annotations[{table.index[row]}]{said}"
            if said.startswith(":")
            else f"annotations[{table.index[row]}] {said}",
            image_id,
            table.file_names[images[0]] if len(images) else None,
            int(table.annotation_ids[row]) if table.has_id[row] else None,
            (x, y, width, height),
        )

    return example


def repeated(values: np.ndarray) -> np.ndarray:
    """Return the positions, int64 and ascending, of the values that stood before in an array of shape (N,)."""
    order = np.argsort(values, kind="stable")
    return np.sort(order[1:][values[order[1:]] == values[order[:-1]]])
