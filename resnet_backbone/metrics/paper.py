"""The figures that the ResNet paper prints, and what others reached since: read from ``paper.yaml``.

The paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from resnet_backbone.files.text import read_yaml


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper, on one test set."""

    table: int  # its number. Multiply-adds that are printed in the text or in Figure 3 stand with Table 1
    key: str  # unique in its table
    name: str  # as printed
    data: str = ""  # what it was trained -> measured on; "" in Table 1, which measures nothing
    # percent. "AP" (COCO's mean over IoU 0.50:0.05:0.95) and "AP50", or "mAP" of Pascal VOC, or "top1_error" and
    # "top5_error"; of localisation "top5_localization_error", and "gt_class_localization_error" where the class is
    # given; of the five runs of ResNet-110 and Highway-19 also "top1_error_mean" and "top1_error_std", and "top1_error"
    # is of the best
    figures: Mapping[str, float] = field(default_factory=dict)
    per_class: Mapping[str, float] = field(default_factory=dict)  # VOC class -> AP, percent
    network: str = ""  # of a detector, "VGG-16" or "ResNet-101"
    arch: str = ""  # of a classifier, its name in the registry; "" for an ensemble, and for what is only cited
    # of a classifier, the option of its shortcuts, "A", "B" or "C"; "" without shortcuts, or where it is not said
    shortcut: str = ""
    # of a classifier, "10-crop" (of 224 pixels), "fully convolutional, multi-scale" (the mean of the scores at
    # shorter sides of 224, 256, 384, 480 and 640), "single view" (the 32 x 32 pixels as they are), or "": not said; of
    # localisation "1-crop" or "dense"
    testing: str = ""
    multiply_adds: float | None = None  # billions, as printed; None where they are not
    parameters: float | None = None  # millions, likewise
    place: str = ""  # where it is printed, if not in the table

    @property
    def source(self) -> str:
        """Where it is printed."""
        return f"arXiv 1512.03385, {self.place or f'Table {self.table}'}"


@dataclass(frozen=True)
class ReferenceRow:
    """What somebody else reached: a figure to expect today, with the setting it holds for."""

    key: str  # unique
    network: str
    name: str  # detector and implementation
    data: str
    setting: str
    figures: Mapping[str, float]  # percent
    source: str


@dataclass(frozen=True)
class Gain:
    """What the second of two figures has over the first."""

    absolute: float  # percentage points
    relative: float | None  # percent of the first, None where that is 0


def gain(first: float, second: float) -> Gain:
    """Return what ``second`` has over ``first``, both in percent."""
    return Gain(second - first, 100 * (second - first) / first if first else None)


def paper_rows(table: int) -> tuple[PaperRow, ...]:
    """Return the rows of one table, in the paper's order.

    Raises:
        ValueError: a table of which nothing is kept here.
    """
    rows = tuple(row for row in _paper_rows() if row.table == table)
    if not rows:
        known = ", ".join(map(str, sorted({row.table for row in _paper_rows()})))
        raise ValueError(f"no rows of the paper's Table {table} are kept here, only of {known}")
    return rows


def paper_row(table: int, key: str) -> PaperRow:
    """Return one row by its key.

    Raises:
        ValueError: no such table or row.
    """
    rows = {row.key: row for row in paper_rows(table)}
    if key not in rows:
        raise ValueError(f"Table {table} has no row {key!r}; it has {', '.join(rows)}")
    return rows[key]


@cache
def references() -> Mapping[str, ReferenceRow]:
    """Return what others reached, by key."""
    return {row["key"]: ReferenceRow(**row) for row in _rows("references")}


def names_of_data(data: str) -> tuple[frozenset[str], str]:
    """Return the names of the data sets, in this package, that a detector of the paper was trained and measured on."""
    names = _read()["data_sets"][data]
    return frozenset(names["train"]), names["test"]


@cache
def _read() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("paper.yaml"))


def _rows(section: str) -> Iterator[dict[str, Any]]:
    for group in _read()[section]:
        shared = {key: value for key, value in group.items() if key != "rows"}
        yield from (shared | row for row in group["rows"])


@cache
def _paper_rows() -> tuple[PaperRow, ...]:
    classes = _read()["voc_classes"]
    rows = []
    for row in _rows("tables"):
        if "per_class" in row:
            row["per_class"] = dict(zip(classes, map(float, row["per_class"].split()), strict=True))
        rows.append(PaperRow(**row))
    return tuple(rows)
