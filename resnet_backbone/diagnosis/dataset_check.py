"""All checks of the data sets of a run, without the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from fvcore.common.config import CfgNode

from resnet_backbone.data.catalog import check_dataset_files, check_same_classes, get_dataset
from resnet_backbone.data.coco_checks import Checked
from resnet_backbone.data.coco_json import check_coco_json
from resnet_backbone.data.coco_table import CocoTable
from resnet_backbone.data.findings import Example, Finding, find
from resnet_backbone.data.image_checks import compare_images
from resnet_backbone.data.image_files import ImageFiles, find_missing_images
from resnet_backbone.data.table_examples import annotation_example
from resnet_backbone.evaluation.coco import IouType
from resnet_backbone.evaluation.coco_input import read_ground_truth
from resnet_backbone.evaluation.doubts import doubtful_areas

_REFUSED = (ValueError, TypeError, OSError)
_IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm")


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
            _check_evaluation(one)
    train = {one.what.name: files for one, files in readable if one.what.training}
    test = {one.what.name: files for one, files in readable if not one.what.training}
    in_order = sorted((one for one, _ in readable), key=lambda one: not one.what.training)
    for one, (_, findings) in zip(in_order, compare_images(train, test, deep=deep), strict=True):
        one.findings += findings
    return checked


def _check_file(what: SetToCheck) -> CheckedSet:
    one = CheckedSet(what)
    with_masks = what.with_masks and what.training
    try:
        if not what.image_folder.is_dir():
            raise FileNotFoundError(f"{what.image_folder}: no such image folder")
        checked = check_coco_json(
            what.json_path, training=what.training, with_masks=with_masks, mask_format=what.mask_format
        )
    except _REFUSED as error:
        one.findings = _refusal("unusable_file", error)
        return one
    one.checked = checked
    one.findings = [*checked.findings, *_area_findings(checked.table, training=what.training)]
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


def _check_evaluation(one: CheckedSet) -> None:
    iou_types = () if one.what.training else _IOU_TYPES if one.what.with_masks else _IOU_TYPES[:1]
    for iou_type in iou_types:
        try:
            read_ground_truth(one.what.json_path, iou_type)
        except _REFUSED as error:
            one.findings += _refusal("not_evaluable", error)


def _area_findings(table: CocoTable, *, training: bool) -> list[Finding]:
    areas = doubtful_areas(table.areas, table.boxes, table.is_crowd)

    def text(row: int) -> str:
        return f"has area {table.areas[row]:g}, its bbox is {table.boxes[row].tolist()}"

    warns = areas.warns and not training
    example = annotation_example(table, text)
    return find("doubtful_area", areas.rows.tolist(), areas.total, example, warns=warns, note=areas.note)


def _refusal(key: str, error: Exception) -> list[Finding]:
    return find(key, [str(error)], 1, Example)


def _files(checked: Checked, folder: Path) -> ImageFiles:
    table, rows = checked.table, np.flatnonzero(checked.used_images)
    return ImageFiles(folder, [table.file_names[row] for row in rows], table.image_ids[rows], table.sizes[rows])
