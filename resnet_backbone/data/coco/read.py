"""Reading COCO-format JSON into arrays: annotations to train on, and ground truth that detections are compared with."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.checks import Checked, Use, check_table
from resnet_backbone.data.coco.findings import Finding, refuse_findings, report_findings
from resnet_backbone.data.coco.masks import MaskTable, Rle, encode_segmentation
from resnet_backbone.data.coco.table import UNNAMED, CocoTable, read_table
from resnet_backbone.data.images.files import PackedBytes
from resnet_backbone.files.text import paused_collector

IouType = Literal["bbox", "segm"]
MAX_PIXELS = 1 << 31  # of one mask; COCO's code counts with 32 bits


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """N images and K classes in ascending order of their ids, and M annotations in the order of the file.

    Images and classes are told by their positions everywhere; ids are of files alone.
    """

    source: Path | None  # None: it was in memory
    image_ids: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N, 2), height and width in pixels; -1 where it is not known
    file_names: PackedBytes  # N, UTF-8
    category_ids: np.ndarray  # int64 (K,)
    class_names: tuple[str, ...]  # K
    images: np.ndarray  # int64 (M,), position of each annotation's image
    labels: np.ndarray  # int64 (M,), 0 to K - 1
    boxes: np.ndarray  # float64 (M, 4), x y width height in pixels
    is_crowd: np.ndarray  # bool (M,)
    stated_areas: np.ndarray  # float64 (M,), pixels; nan where the file has none
    segmentations: PackedBytes | None  # M, JSON text; None where masks were not asked for
    findings: Sequence[Finding] = field(default=(), repr=False)  # what is suspicious

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def image_positions(self) -> dict[int, int]:
        """By image id."""
        return {image_id: position for position, image_id in enumerate(self.image_ids.tolist())}

    @cached_property
    def label_of(self) -> dict[int, int]:
        """By category id."""
        return {category_id: label for label, category_id in enumerate(self.category_ids.tolist())}

    def file_name(self, image: int) -> str:
        """Return the name of an image's file, by its position.

        Raises:
            ValueError: there is none.
        """
        if (name := self.file_names[image].decode()) == UNNAMED:
            raise ValueError(f'image {self.image_ids[image]} has no "file_name"; add it')
        return name

    def size(self, image: int) -> tuple[int, int] | None:
        """Return height and width of an image in pixels; None where the file does not say it."""
        height, width = self.sizes[image].tolist()
        return None if min(height, width) < 0 else (height, width)

    @cached_property
    def masks(self) -> list[Rle]:
        """The M masks as compressed RLE."""
        texts = self.segmentations
        if texts is None:
            raise ValueError("the ground truth was read without masks")
        sizes = self.sizes[self.images].tolist()
        return [encode_segmentation(json.loads(texts[row]), *size) for row, size in enumerate(sizes)]

    def areas(self, iou_type: IouType) -> np.ndarray:
        """Return the areas by which COCO tells small objects from large, float64 (M,): that of the box, or the mask,
        where the file has none."""
        if iou_type == "bbox":
            measured = self.boxes[:, 2] * self.boxes[:, 3]
        else:
            measured = mask_areas(self.masks)
        return np.where(np.isnan(self.stated_areas), measured, self.stated_areas)


def mask_areas(rles: Sequence[Rle]) -> np.ndarray:
    """Return the pixels of each mask, one by one: with NumPy 2, pycocotools fails on more than 255 at once."""
    return np.array([float(coco_mask.area(rle)) for rle in rles], dtype=float)


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
    ground_truth: GroundTruth | None = None  # of a set that is evaluated: all annotations as they are


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
        checked = check_table(*read_table(path, masks, needs_annotations=training), use)
        report_findings(path, checked.findings)
        annotations = _pack(checked)
        return annotations if training else replace(annotations, ground_truth=_to_ground_truth(path, checked))


def read_ground_truth(
    source: Path | Mapping[str, Any], iou_types: Collection[str], *, needs_annotations: bool = True
) -> GroundTruth:
    """Read COCO ground truth to compare detections with; a mapping stays as it is.

    Annotations may be without ids, "iscrowd" (0 is meant) and "area" (that of the mask is taken where masks are
    compared, else the box's), images without file names and, for boxes, without sizes.

    Args:
        source: the JSON file, or its content.
        iou_types: "bbox", "segm" or both.
        needs_annotations: False lets the list be absent, as in the files of a challenge's test sets.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no COCO ground truth that can be scored; the message tells all that is wrong.
    """
    name = source if isinstance(source, Path) else "ground truth"
    with paused_collector():
        masks = MaskTable(keep=True) if "segm" in iou_types else None
        table, malformed = read_table(source, masks, reads_images=False, needs_annotations=needs_annotations)
        if masks is not None:
            _check_sizes(table, name)
        checked = check_table(table, malformed, Use(training=False, with_masks=masks is not None))
        refuse_findings(name, [found for found in checked.findings if found.kind.refused], "the evaluation")
        return _to_ground_truth(source, checked)


def check_coco_json(
    path: Path, *, training: bool, with_masks: bool, mask_format: Literal["bitmask", "polygon"] = "bitmask"
) -> Checked:
    """Find what :func:`read_coco_json` would raise or log, and look at the masks even where they are not used.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not COCO-format JSON.
    """
    with paused_collector():
        read = read_table(path, MaskTable(keep=False), needs_annotations=training)
        return check_table(*read, Use(training, with_masks, mask_format))


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


def _to_ground_truth(source: Path | Mapping[str, Any], checked: Checked) -> GroundTruth:
    """What was read to be evaluated, with its masks where it was read with masks; nothing stops it."""
    table = checked.table
    order = np.argsort(table.image_ids, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order))
    masks = table.masks
    return GroundTruth(
        source=source if isinstance(source, Path) else None,
        image_ids=table.image_ids[order],
        sizes=table.sizes[order],
        file_names=PackedBytes(table.file_names[row].encode() for row in order.tolist()),
        category_ids=np.sort(table.category_ids),
        class_names=checked.class_names,
        images=position[checked.image_rows],
        labels=checked.labels,
        boxes=table.boxes,
        is_crowd=table.is_crowd,
        stated_areas=table.areas,
        segmentations=None if masks is None else PackedBytes(map(masks.text, table.mask_rows.tolist())),
        findings=tuple(found for found in checked.findings if found.key == "doubtful_area" and found.warns),
    )


def _check_sizes(table: CocoTable, source: object) -> None:
    """Raise ValueError unless every image has a size that masks can have."""
    wrong = (table.sizes < 1).any(axis=1) | (table.sizes.astype(float).prod(axis=1) >= MAX_PIXELS)
    for row in np.flatnonzero(wrong):
        height, width = table.sizes[row].tolist()
        found = "no height and width" if -1 in (height, width) else f"height {height} and width {width}"
        raise ValueError(
            f'{source}: image {table.image_ids[row]} has {found}, which iou_type "segm" needs: write them in pixels'
        )
