"""The report of tools/check_dataset.py: all checks of a config's data sets, as text, JSON and HTML with pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from resnet_backbone.data.catalog import check_dataset_files, check_same_classes, get_dataset
from resnet_backbone.data.coco.checks import Checked
from resnet_backbone.data.coco.findings import ACTIONS, Example, Finding, find
from resnet_backbone.data.coco.read import check_coco_json
from resnet_backbone.data.images.checks import compare_images
from resnet_backbone.data.images.files import ImageFiles, find_missing_images
from resnet_backbone.data.images.read import read_image
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.drawing import draw_objects
from resnet_backbone.metrics.page import render_page

_REFUSED = (ValueError, TypeError, OSError)


@dataclass(frozen=True)
class SetToCheck:
    """A data set, and what a run does with it."""

    name: str
    json_path: Path
    image_folder: Path
    training: bool  # False: it is evaluated
    with_masks: bool = False
    mask_format: Literal["bitmask", "polygon"] = "bitmask"


@dataclass
class CheckedSet:
    """A data set and what was found in it.

    Attributes:
        what: was checked.
        findings: in the order of a run.
        checked: the annotation file; None where it cannot be read.
        files: its images that are used and there; None where it cannot be read.
        classes: names, and how many objects of each are used.
        num_images: in the annotation file, with those that are not used.
        num_annotations: in the annotation file, with those that are not used.
    """

    what: SetToCheck
    findings: list[Finding] = field(default_factory=list)
    checked: Checked | None = None
    files: ImageFiles | None = None
    classes: list[tuple[str, int]] = field(default_factory=list)
    num_images: int = 0
    num_annotations: int = 0


def sets_of(cfg: CfgNode) -> list[SetToCheck]:
    """Return what DATASETS.TRAIN and DATASETS.TEST name, in this order.

    Args:
        cfg: reads DATASETS, MODEL.MASK_ON and INPUT.MASK_FORMAT.

    Raises:
        ValueError: an unknown name, or none at all.
        FileNotFoundError: a file or folder is missing; the message says how to get it.
    """
    sets = []
    for key, names in (("TRAIN", cfg.DATASETS.TRAIN), ("TEST", cfg.DATASETS.TEST)):
        if isinstance(names, str):
            raise ValueError(f'DATASETS.{key} is the text {names!r}; write a list of names: ["{names}"]')
        for name in names:
            spec = get_dataset(name, cfg.DATASETS.OWN)
            check_dataset_files(spec)
            masks = (cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT)
            sets.append(SetToCheck(name, spec.json_path, spec.image_folder, key == "TRAIN", *masks))
    if not sets:
        raise ValueError("DATASETS.TRAIN and DATASETS.TEST are empty: there is nothing to check")
    return sets


def check_sets(sets: Sequence[SetToCheck], *, deep: bool) -> list[CheckedSet]:
    """Check data sets as a run does before it starts.

    Args:
        sets: those to train on first.
        deep: open every image, as DATASETS.CHECK_IMAGES does.

    Raises:
        OSError: a process that reads images was killed.
    """
    checked = [_check_file(what) for what in sets]
    readable = [(one, one.files) for one in checked if one.files is not None]
    for one, _ in readable:
        if not any(finding.action == "stop" for finding in one.findings):  # where a run gets no further
            _compare_classes(one, readable[0][0])
    train = {one.what.name: files for one, files in readable if one.what.training}
    test = {one.what.name: files for one, files in readable if not one.what.training}
    in_order = sorted((one for one, _ in readable), key=lambda one: not one.what.training)
    for one, (_, findings) in zip(in_order, compare_images(train, test, deep=deep), strict=True):
        one.findings += findings
    return checked


def _check_file(what: SetToCheck) -> CheckedSet:
    one = CheckedSet(what)
    try:
        if not what.image_folder.is_dir():
            raise FileNotFoundError(f"{what.image_folder}: no such image folder")
        checked = check_coco_json(
            what.json_path,
            training=what.training,
            with_masks=what.with_masks,
            mask_format=what.mask_format if what.training else "bitmask",
        )
    except _REFUSED as error:
        one.findings = _refusal("unusable_file", error)
        return one
    one.checked = checked
    one.findings = list(checked.findings)
    one.num_images, one.num_annotations = len(checked.used_images), len(checked.used)
    counts = np.bincount(checked.labels[checked.used], minlength=len(checked.class_names))
    one.classes = list(zip(checked.class_names, counts.tolist(), strict=True))
    files = _files(checked, what.image_folder)
    found, missing = find_missing_images(files)
    one.findings += found
    one.files = files.without(missing)
    return one


def _compare_classes(one: CheckedSet, first: CheckedSet) -> None:
    try:
        check_same_classes(one.what.name, [name for name, _ in one.classes], [name for name, _ in first.classes])
    except ValueError as error:
        one.findings += _refusal("other_classes", error)


def _refusal(key: str, error: Exception) -> list[Finding]:
    return find(key, [str(error)], 1, Example)


def _files(checked: Checked, folder: Path) -> ImageFiles:
    table, rows = checked.table, np.flatnonzero(checked.used_images)
    return ImageFiles(folder, [table.file_names[row] for row in rows], table.image_ids[rows], table.sizes[rows])


LONG_SIDE = 360  # pixels, of a picture
_BADGES = {"stop": "bad", "drop": "warning", "fix": "warning", "keep": "quiet"}
_OUTCOMES = {"stop": "stops", "drop": "left out", "fix": "repaired", "keep": "kept"}


class Photo(NamedTuple):
    """A picture of an example, or why there is none."""

    caption: str
    picture: Image.Image | None = None


class _Boxes(NamedTuple):
    """What is drawn on an image."""

    corners: torch.Tensor = torch.zeros(0, 4)  # (N, 4), x1 y1 x2 y2 in pixels
    labels: torch.Tensor = torch.zeros(0, dtype=torch.int64)  # (N,)
    texts: Sequence[str] = ()  # N


class Entry(NamedTuple):
    """One finding on the page."""

    finding: Finding
    badge: str
    outcome: str
    photos: list[Photo]
    lines: list[str]  # examples without a picture


def dataset_page(verdict: str, sets: Sequence[tuple[str, CheckedSet, Sequence[Finding]]]) -> str:
    """Return the page as HTML; everything that comes from the data is escaped.

    Args:
        verdict: the heading.
        sets: a line about each data set, the set, and its findings in order.
    """
    parts = [(line, one, [_entry(finding, one) for finding in found]) for line, one, found in sets]
    return render_page(__package__, "dataset_page.html.j2", verdict=verdict, sets=parts)


def _entry(finding: Finding, one: CheckedSet) -> Entry:
    photos, lines = [], []
    for example in finding.examples:
        if example.file_name is None or finding.key == "missing_image":
            lines.append(example.line())
            continue
        path = one.what.image_folder / example.file_name
        photos.append(_photo(path, _size(example, one), _boxes(example, one), example.line()))
        if example.twin is not None:
            photos.append(_photo(example.twin, None, _Boxes(), str(example.twin)))
    return Entry(finding, _BADGES[finding.action], _OUTCOMES[finding.action], photos, lines)


def _rows(example: Example, one: CheckedSet) -> np.ndarray:
    """The images of the set's table that have the example's id."""
    if one.checked is None:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(one.checked.table.image_ids == example.image_id)


def _size(example: Example, one: CheckedSet) -> tuple[int, int] | None:
    """Height and width of the annotation file, which say in which frame its boxes are."""
    rows = _rows(example, one)
    if one.checked is None or not len(rows):
        return None
    height, width = one.checked.table.sizes[rows[0]].tolist()
    return height, width


def _boxes(example: Example, one: CheckedSet) -> _Boxes:
    """The box that is meant; where an image is meant, all of its boxes that are used."""
    if example.box is not None:
        x, y, width, height = example.box
        corners = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
        return _Boxes(corners, torch.zeros(1, dtype=torch.int64), ("here",)) if corners.isfinite().all() else _Boxes()
    checked, rows = one.checked, _rows(example, one)
    if checked is None or not len(rows):
        return _Boxes()
    own = checked.used & (checked.image_rows == rows[0])
    labels = torch.from_numpy(checked.labels[own])
    return _Boxes(torch.from_numpy(checked.corners[own]), labels, [checked.class_names[label] for label in labels])


def _photo(path: Path, size: tuple[int, int] | None, boxes: _Boxes, caption: str) -> Photo:
    """An image in the frame of its annotations where it has their size, else upright."""
    try:
        try:
            pixels = read_image(path, size)
        except ValueError:
            pixels = read_image(path)
    except (OSError, ValueError) as error:
        return Photo(caption if str(error) in caption else f"{caption}. No picture: {error}")
    drawn = draw_objects(pixels, boxes.corners, boxes.labels, boxes.texts, max_size=LONG_SIDE)
    return Photo(caption, drawn)


_LABELS = {"stop": "STOPS", "drop": "drops", "fix": "repairs", "keep": "keeps"}


@dataclass(frozen=True)
class DatasetReport:
    """Of all data sets of a run."""

    sets: Sequence[CheckedSet]

    @property
    def stops(self) -> int:
        """How many kinds of mistakes a training would stop at."""
        return sum(finding.action == "stop" for one in self.sets for finding in one.findings)

    def verdict(self) -> str:
        """Return one sentence."""
        if self.stops:
            return f"Training would stop: {self.stops} kind{'s' * (self.stops > 1)} of mistakes must be corrected"
        smells = sum(finding.warns for one in self.sets for finding in one.findings)
        if smells:
            return f"Training would start; {smells} finding{'s' * (smells > 1)} should be looked at"
        return "Training would start; nothing suspicious was found"

    def text(self) -> str:
        """Return lines to read: set by set, what stops first, one line where it is usual; then the verdict."""
        lines = []
        for one in self.sets:
            lines += [described(one)]
            for finding in by_weight(one.findings):
                head, *rest = (finding.text() if finding.warns else finding.summary()).splitlines()
                lines += [f"  {_LABELS[finding.action]:<8}{head}", *(f"        {line}" for line in rest)]
            lines.append("")
        return "\n".join([*lines, self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; tools/check_dataset.py documents the keys."""
        return {"stops": self.stops, "verdict": self.verdict(), "sets": [_set_to_dict(one) for one in self.sets]}

    def write(self, folder: Path) -> None:
        """Write report.txt, report.json and index.html.

        Raises:
            OSError: the folder cannot be written.
        """
        write_text(folder / "report.txt", self.text() + "\n")
        write_text(folder / "report.json", json.dumps(self.to_dict(), indent=2) + "\n")
        sets = [(described(one), one, by_weight(one.findings)) for one in self.sets]
        write_text(folder / "index.html", dataset_page(self.verdict(), sets))


def described(one: CheckedSet) -> str:
    """Return a line about a data set."""
    use = "to train on" if one.what.training else "to evaluate"
    if one.files is None:
        return f"{one.what.name} ({use}): {one.what.json_path}"
    return (
        f"{one.what.name} ({use}): {one.what.json_path}, {one.num_images:,} images, "
        f"{one.num_annotations:,} annotations, {len(one.classes)} classes"
    )


def by_weight(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, those that stop a training first, warnings before what is usual."""
    return sorted(
        findings, key=lambda finding: (finding.action != "stop", not finding.warns, ACTIONS.index(finding.action))
    )


def _set_to_dict(one: CheckedSet) -> dict[str, Any]:
    return {
        "name": one.what.name,
        "json": str(one.what.json_path),
        "images": str(one.what.image_folder),
        "training": one.what.training,
        "num_images": one.num_images,
        "num_annotations": one.num_annotations,
        "objects": [{"class": name, "objects": number} for name, number in one.classes],
        "findings": [finding.to_dict() for finding in by_weight(one.findings)],
    }
