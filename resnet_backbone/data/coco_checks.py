"""The checks of a COCO-format file that need nothing but the file, on arrays: a million boxes take seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from resnet_backbone.data.box_checks import check_boxes, repeated_annotations
from resnet_backbone.data.class_checks import check_balance, check_categories, check_known_categories
from resnet_backbone.data.coco_table import CocoTable
from resnet_backbone.data.findings import Finding, as_scored, find
from resnet_backbone.data.mask_checks import check_masks
from resnet_backbone.data.table_examples import annotation_example, image_example, repeated

MANY_CROWDS = 0.3  # share of annotations; VOC has 0.2 of them (difficult), COCO 0.01


@dataclass(frozen=True)
class Use:
    """What a file is read for.

    Attributes:
        training: True to train on it, False to evaluate.
        with_masks: masks are used, too.
        mask_format: INPUT.MASK_FORMAT.
        keep_unlabelled: images without a box are trained on, too.
    """

    training: bool
    with_masks: bool = False
    mask_format: Literal["bitmask", "polygon"] = "bitmask"
    keep_unlabelled: bool = False


@dataclass(frozen=True)
class Checked:
    """A table of K categories, N images and M annotations, what was found in it, and what of it is used."""

    table: CocoTable
    findings: list[Finding]
    class_names: tuple[str, ...]  # K, in ascending order of the category ids
    image_rows: np.ndarray  # int64 (M,), the row of each annotation's image
    labels: np.ndarray  # int64 (M,), 0..K-1
    corners: np.ndarray  # float32 (M, 4), x1 y1 x2 y2 in pixels, inside the image
    used: np.ndarray  # bool (M,)
    used_images: np.ndarray  # bool (N,)


def check_table(table: CocoTable, use: Use) -> Checked:
    """Check what :func:`~resnet_backbone.data.coco_table.read_table` returned."""
    category_ids, first = np.unique(table.category_ids, return_index=True)
    class_names = tuple(table.category_names[row] for row in first)
    image_rows = _rows(table.image_ids, table.of_image)
    labels = _rows(category_ids, table.of_category)
    findings = [
        *_check_images(table),
        *check_categories(table),
        *_check_image_ids(table, image_rows),
        *check_known_categories(table, labels),
    ]
    known = (image_rows >= 0) & (labels >= 0)
    in_use = known & ~table.is_crowd if use.training else known
    boxes = check_boxes(table, image_rows, known, in_use)
    used = in_use & boxes.usable
    masks, lost = check_masks(
        table, image_rows, used, in_use=use.with_masks, polygons_only=use.mask_format == "polygon"
    )
    used &= ~lost
    crowds = np.flatnonzero(table.is_crowd & known)
    findings += [
        *boxes.findings,
        *masks,
        *_check_crowds(table, crowds),
        *_check_annotation_ids(table),
        *repeated_annotations(table, image_rows, labels, used),
    ]
    used_images = np.bincount(image_rows[used], minlength=len(table.image_ids)) > 0
    findings += _check_labelled(table, used_images, use)
    if use.training:
        findings += check_balance(class_names, labels[used])
    else:
        findings = as_scored(findings)
    if use.keep_unlabelled or not use.training:
        used_images = np.ones_like(used_images)
    return Checked(table, findings, class_names, image_rows, labels, boxes.corners, used, used_images)


def _rows(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The position in ``ids`` of each of ``wanted``; -1 where it is not there."""
    if not len(ids):
        return np.full(len(wanted), -1)
    order = np.argsort(ids, kind="stable")
    places = order[np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)]
    return np.where(ids[places] == wanted, places, -1)


def _check_images(table: CocoTable) -> list[Finding]:
    total = len(table.image_ids)
    heights, widths = table.sizes.T
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**61)  # pixels from which Pillow refuses
    absurd = (heights <= 0) | (widths <= 0) | (heights.astype(np.float64) * widths > limit)
    by_name: dict[str, int] = {}
    again = [row for row, name in enumerate(table.file_names) if by_name.setdefault(name, row) != row]

    def size(row: int) -> str:
        height, width = table.sizes[row]
        return f"has height {height} and width {width}; expected pixels, {limit} at most"

    def repeats(row: int) -> str:
        first = int(np.argmax(table.image_ids == table.image_ids[row]))
        return f"repeats id {table.image_ids[row]} of {table.file_names[first]}"

    def same_file(row: int) -> str:
        first = by_name[table.file_names[row]]
        return f"is the file of images[{table.image_index[first]}], id {table.image_ids[first]}, too"

    return [
        *find("image_size", np.flatnonzero(absurd), total, image_example(table, size)),
        *find("repeated_image_id", repeated(table.image_ids), total, image_example(table, repeats)),
        *find("repeated_file", again, total, image_example(table, same_file)),
    ]


def _check_image_ids(table: CocoTable, image_rows: np.ndarray) -> list[Finding]:
    def orphan(row: int) -> str:
        return f"is of image_id {table.of_image[row]}, which is not in images"

    orphans = np.flatnonzero(image_rows < 0)
    return find("orphan_annotation", orphans, len(image_rows), annotation_example(table, orphan))


def _check_crowds(table: CocoTable, crowds: np.ndarray) -> list[Finding]:
    total = len(table.is_crowd)
    many = len(crowds) >= MANY_CROWDS * total
    note = "iscrowd 1 is for regions of many objects that are not told apart; single objects have 0" if many else ""
    return find("crowd", crowds, total, annotation_example(table), warns=many, note=note)


def _check_annotation_ids(table: CocoTable) -> list[Finding]:
    with_id, total = np.flatnonzero(table.has_id), len(table.has_id)
    again = with_id[repeated(table.annotation_ids[with_id])]
    return [
        *find("missing_annotation_id", np.flatnonzero(~table.has_id), total, annotation_example(table)),
        *find("repeated_annotation_id", again, total, annotation_example(table)),
    ]


def _check_labelled(table: CocoTable, used_images: np.ndarray, use: Use) -> list[Finding]:
    """Images without a box that is used."""
    without, total = np.flatnonzero(~used_images), len(used_images)
    example = image_example(table)
    if use.training and not used_images.any():
        note = f"none of its {total} images has a usable box; there is nothing to train on"
        if len(table.is_crowd) and table.is_crowd.all():
            note += ": all annotations are crowds (iscrowd 1), and single objects have iscrowd 0"
        return find("nothing_to_train_on", without, total, example, note=note)
    if use.training and use.keep_unlabelled:
        return []
    return find("unlabelled_image", without, total, example)
