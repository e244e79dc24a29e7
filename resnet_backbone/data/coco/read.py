"""A COCO-format JSON file, checked whole and kept as a few arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from resnet_backbone.data.coco.checks import Checked, Use, check_table
from resnet_backbone.data.coco.findings import Finding, report_findings
from resnet_backbone.data.coco.masks import MaskTable
from resnet_backbone.data.coco.table import read_table
from resnet_backbone.data.packed import PackedBytes
from resnet_backbone.files.text import paused_collector

_OF_LESS = ("nothing_to_train_on", "unlabelled_image", "unused_class", "rare_class", "unbalanced_classes")
_CONSEQUENCES = {
    "malformed_image": ("orphan_annotation", *_OF_LESS),
    "malformed_category": ("unknown_category", *_OF_LESS),
    "malformed_annotation": _OF_LESS,
    "malformed_box": _OF_LESS,
    "image_size": ("outside_box", "empty_box", "clipped_box", *_OF_LESS),
}


@dataclass(frozen=True)
class CocoAnnotations:
    """N images sorted by id, and their M annotations, those of image ``i`` at ``first[i]:first[i + 1]``."""

    category_ids: tuple[int, ...]  # as in the file, ascending; the position is the label
    class_names: tuple[str, ...]  # one a label
    image_ids: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N, 2), height and width in pixels
    file_names: PackedBytes  # N, UTF-8
    first: np.ndarray  # int64 (N + 1,)
    boxes: np.ndarray  # float32 (M, 4), x1 y1 x2 y2 in pixels, inside the image
    labels: np.ndarray  # int64 (M,), 0..K-1
    is_crowd: np.ndarray  # bool (M,)
    segmentations: PackedBytes | None  # M, JSON text


def read_coco_json(
    path: Path,
    *,
    training: bool,
    with_masks: bool,
    mask_format: Literal["bitmask", "polygon"] = "bitmask",
    keep_unlabelled: bool = False,
) -> CocoAnnotations:
    """Read, check and pack a COCO-format instance file.

    Everything that is wrong with it is found at once; :mod:`.findings` and datasets/README.md say what becomes of
    each kind: it ends here, or is left out, repaired or used as it is, and logged. ``training`` leaves out crowd
    regions as well, and then every image without an annotation, unless
    ``keep_unlabelled``. ``iscrowd`` may be missing and means 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not COCO-format JSON, an entry is malformed, or nothing is left to train on.
    """
    use = Use(training, with_masks, mask_format, keep_unlabelled)
    with paused_collector():
        masks = MaskTable(keep=True) if with_masks else None
        checked = _check(path, use, masks)
        report_findings(path, checked.findings)
        return _pack(checked)


def check_coco_json(
    path: Path, *, training: bool, with_masks: bool, mask_format: Literal["bitmask", "polygon"] = "bitmask"
) -> Checked:
    """Find what :func:`read_coco_json` would raise or log, and look at the masks even where they are not used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not COCO-format JSON.
    """
    with paused_collector():
        return _check(path, Use(training, with_masks, mask_format), MaskTable(keep=False))


def _check(path: Path, use: Use, masks: MaskTable | None) -> Checked:
    table, malformed = read_table(path, masks)
    checked = check_table(table, use)
    checked.findings[:] = _without_consequences([*malformed, *checked.findings])
    return checked


def _without_consequences(findings: list[Finding]) -> list[Finding]:
    """Leave out what was found only because a malformed entry is not there."""
    hidden = {key for finding in findings for key in _CONSEQUENCES.get(finding.key, ())}
    return [finding for finding in findings if finding.key not in hidden]


def _pack(checked: Checked) -> CocoAnnotations:
    table = checked.table
    image_order = np.argsort(table.image_ids, kind="stable")
    image_order = image_order[checked.used_images[image_order]]
    position = np.full(len(table.image_ids), -1)
    position[image_order] = np.arange(len(image_order))
    rows = np.flatnonzero(checked.used)
    own_images = position[checked.image_rows[rows]]
    by_image = np.argsort(own_images, kind="stable")
    rows = rows[by_image]
    per_image = np.bincount(own_images, minlength=len(image_order))
    masks = table.masks
    return CocoAnnotations(
        category_ids=tuple(sorted(table.category_ids.tolist())),
        class_names=checked.class_names,
        image_ids=table.image_ids[image_order],
        sizes=table.sizes[image_order],
        file_names=PackedBytes(table.file_names[row].encode() for row in image_order.tolist()),
        first=np.concatenate([[0], np.cumsum(per_image)]).astype(np.int64),
        boxes=checked.corners[rows],
        labels=checked.labels[rows],
        is_crowd=table.is_crowd[rows],
        segmentations=None if masks is None else PackedBytes(masks.text(row) for row in table.mask_rows[rows].tolist()),
    )
