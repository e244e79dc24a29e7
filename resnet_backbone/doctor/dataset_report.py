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

LONG_SIDE = 360  # pixels, of a picture
_REFUSED = (ValueError, TypeError, OSError)
_LABELS = {"stop": "STOPS", "drop": "drops", "fix": "repairs", "keep": "keeps"}
_BADGES = {
    "stop": ("bad", "stops"),
    "drop": ("warning", "left out"),
    "fix": ("warning", "repaired"),
    "keep": ("quiet", "kept"),
}


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
    """A data set and what was found in it."""

    what: SetToCheck
    findings: list[Finding] = field(default_factory=list)  # in the order of a run
    checked: Checked | None = None  # the annotation file; None where it cannot be read
    files: ImageFiles | None = None  # its images that are used and there; None where it cannot be read

    @property
    def num_images(self) -> int:
        """In the annotation file, with those that are not used."""
        return len(self.checked.used_images) if self.checked else 0

    @property
    def num_annotations(self) -> int:
        """In the annotation file, with those that are not used."""
        return len(self.checked.used) if self.checked else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.checked.class_names if self.checked else ()

    @property
    def objects(self) -> list[tuple[str, int]]:
        """Each class, and how many objects of it are used."""
        if self.checked is None:
            return []
        counts = np.bincount(self.checked.labels[self.checked.used], minlength=len(self.class_names))
        return list(zip(self.class_names, counts.tolist(), strict=True))

    def by_weight(self) -> list[Finding]:
        """The findings, those that stop a training first, warnings before what is usual."""
        return sorted(self.findings, key=lambda one: (one.action != "stop", not one.warns, ACTIONS.index(one.action)))

    def described(self) -> str:
        """A line about the data set."""
        line = f"{self.what.name} ({'to train on' if self.what.training else 'to evaluate'}): {self.what.json_path}"
        if self.checked is None:
            return line
        return (
            f"{line}, {self.num_images:,} images, {self.num_annotations:,} annotations, {len(self.class_names)} classes"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.what.name,
            "json": str(self.what.json_path),
            "images": str(self.what.image_folder),
            "training": self.what.training,
            "num_images": self.num_images,
            "num_annotations": self.num_annotations,
            "objects": [{"class": name, "objects": number} for name, number in self.objects],
            "findings": [finding.to_dict() for finding in self.by_weight()],
        }


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
            try:
                check_same_classes(one.what.name, one.class_names, readable[0][0].class_names)
            except ValueError as error:
                one.findings += find("other_classes", [str(error)], 1, Example)
    train = {one.what.name: files for one, files in readable if one.what.training}
    test = {one.what.name: files for one, files in readable if not one.what.training}
    in_order = sorted((one for one, _ in readable), key=lambda one: not one.what.training)
    for one, (_, findings) in zip(in_order, compare_images(train, test, deep=deep), strict=True):
        one.findings += findings
    return checked


def _check_file(what: SetToCheck) -> CheckedSet:
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
        return CheckedSet(what, find("unusable_file", [str(error)], 1, Example))
    table, rows = checked.table, np.flatnonzero(checked.used_images)
    names = [table.file_names[row] for row in rows]
    files = ImageFiles(what.image_folder, names, table.image_ids[rows], table.sizes[rows])
    found, missing = find_missing_images(files)
    return CheckedSet(what, [*checked.findings, *found], checked, files.without(missing))


class Photo(NamedTuple):
    """A picture of an example, or why there is none."""

    caption: str
    picture: Image.Image | None = None


class Entry(NamedTuple):
    """One finding on the page."""

    finding: Finding
    badge: str
    outcome: str
    photos: list[Photo]
    lines: list[str]  # examples without a picture


def dataset_page(verdict: str, sets: Sequence[CheckedSet]) -> str:
    """Return the page under the heading ``verdict`` as HTML; everything that comes from the data is escaped."""
    parts = [(one, [_entry(finding, one) for finding in one.by_weight()]) for one in sets]
    return render_page(__package__, "dataset_page.html.j2", verdict=verdict, sets=parts)


def _entry(finding: Finding, one: CheckedSet) -> Entry:
    photos, lines = [], []
    for example in finding.examples:
        if example.file_name is None or finding.key == "missing_image":
            lines.append(example.line())
            continue
        photos.append(_photo(one.what.image_folder / example.file_name, example.line(), example, one.checked))
        if example.twin is not None:
            photos.append(_photo(example.twin, str(example.twin)))
    return Entry(finding, *_BADGES[finding.action], photos, lines)


def _photo(path: Path, caption: str, example: Example | None = None, checked: Checked | None = None) -> Photo:
    """An image in the frame of its annotations where it has their size, else upright.

    On it are the box of the example, or, where an image is meant, all of its boxes that are used.
    """
    size, row = None, None
    if example is not None and checked is not None:
        row = next(iter(np.flatnonzero(checked.table.image_ids == example.image_id)), None)
    if checked is not None and row is not None:
        height, width = checked.table.sizes[row].tolist()
        size = (height, width)
    try:
        try:
            pixels = read_image(path, size)
        except ValueError:
            pixels = read_image(path)
    except (OSError, ValueError) as error:
        return Photo(caption if str(error) in caption else f"{caption}. No picture: {error}")
    corners, labels, texts = np.zeros((0, 4)), np.zeros(0, dtype=np.int64), []
    if example is not None and example.box is not None:
        x, y, box_width, box_height = example.box
        if np.isfinite(here := np.array([[x, y, x + box_width, y + box_height]])).all():
            corners, labels, texts = here, np.zeros(1, dtype=np.int64), ["here"]
    elif checked is not None and row is not None:
        own = checked.used & (checked.image_rows == row)
        corners, labels = checked.corners[own], checked.labels[own]
        texts = [checked.class_names[label] for label in labels]
    drawn = draw_objects(pixels, torch.from_numpy(corners), torch.from_numpy(labels), texts, max_size=LONG_SIDE)
    return Photo(caption, drawn)


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
            lines.append(one.described())
            for finding in one.by_weight():
                head, *rest = (finding.text() if finding.warns else finding.summary()).splitlines()
                lines += [f"  {_LABELS[finding.action]:<8}{head}", *(f"        {line}" for line in rest)]
            lines.append("")
        return "\n".join([*lines, self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON; tools/check_dataset.py documents the keys."""
        return {"stops": self.stops, "verdict": self.verdict(), "sets": [one.to_dict() for one in self.sets]}

    def write(self, folder: Path) -> None:
        """Write report.txt, report.json and index.html.

        Raises:
            OSError: the folder cannot be written.
        """
        write_text(folder / "report.txt", self.text() + "\n")
        write_text(folder / "report.json", json.dumps(self.to_dict(), indent=2) + "\n")
        write_text(folder / "index.html", dataset_page(self.verdict(), self.sets))
