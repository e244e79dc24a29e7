"""Checks of a COCO-format file that need nothing but the file: boxes, areas, masks, categories, ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from resnet_backbone.data.coco.findings import Example, Finding, brief, find, for_evaluation
from resnet_backbone.data.coco.masks import EMPTY, MALFORMED, MENDED
from resnet_backbone.data.coco.table import CocoTable, annotation_example, image_example, repeated

TINY = 8  # pixels, the side of a square of the box's area
ROUNDING = 1.0  # pixels
MANY, SEVERAL = 0.1, 5  # share and number of boxes that reach out before their form is doubted
NEARLY_ALL = 0.95  # share of boxes that must have the form that is suspected
SLACK = 0.01  # of shares of the image, which may be rounded or reach out a little
LARGE = 32  # pixels, the side of an image on which no box lies within the first pixel
LARGEST_AREA = 1e10  # pixels; COCO's code ignores objects outside of 0 to this
USUAL = 0.01  # share of doubtful areas that occurs in good data: masks of several parts, thin ones
RARE = 10  # objects of a class
UNBALANCED = 100  # objects of the most frequent class for each of another
MANY_CROWDS = 0.3  # share of annotations; VOC has 0.2 of them (difficult), COCO 0.01


_OF_LESS = ("nothing_to_train_on", "unlabelled_image", "unused_class", "rare_class", "unbalanced_classes")
# What is found only because entries of these kinds were left out.
_CONSEQUENCES = {
    "malformed_image": ("orphan_annotation", *_OF_LESS),
    "malformed_category": ("unknown_category", *_OF_LESS),
    "malformed_annotation": _OF_LESS,
    "malformed_box": _OF_LESS,
    "image_size": ("outside_box", "empty_box", "clipped_box", *_OF_LESS),
}


@dataclass(frozen=True)
class Use:
    """What a file is read for."""

    training: bool  # True to train on it, False to evaluate
    with_masks: bool = False  # masks are used, too
    mask_format: Literal["bitmask", "polygon"] = "bitmask"  # INPUT.MASK_FORMAT
    keep_unlabelled: bool = False  # images without a box are trained on, too


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


def check_table(table: CocoTable, malformed: list[Finding], use: Use) -> Checked:
    """Check what :func:`~resnet_backbone.data.coco.table.read_table` returned."""
    category_ids, first = np.unique(table.category_ids, return_index=True)
    class_names = tuple(table.category_names[row] for row in first)
    image_rows = _rows(table.image_ids, table.of_image)
    labels = _rows(category_ids, table.of_category)
    total, example = len(labels), annotation_example(table)

    def orphan(row: int) -> str:
        return f"is of image_id {table.of_image[row]}, which is not in images"

    findings = [
        *_check_images(table),
        *_check_categories(table),
        *find("orphan_annotation", np.flatnonzero(image_rows < 0), total, annotation_example(table, orphan)),
        *_check_known_categories(table, labels),
    ]
    known = (image_rows >= 0) & (labels >= 0)
    in_use = known & ~table.is_crowd if use.training else known
    box_findings, corners, usable = _check_boxes(table, image_rows, known, in_use)
    used = in_use & usable
    masks, lost = _check_masks(
        table,
        image_rows,
        used if use.training else in_use,
        in_use=use.with_masks,
        polygons_only=use.mask_format == "polygon",
    )
    used &= ~lost
    crowds = np.flatnonzero(table.is_crowd & known)
    many = len(crowds) >= MANY_CROWDS * total
    note = "iscrowd 1 is for regions of many objects that are not told apart; single objects have 0" if many else ""
    with_id = np.flatnonzero(table.has_id)
    again = with_id[repeated(table.annotation_ids[with_id])]
    findings += [
        *box_findings,
        *_check_areas(table, training=use.training),
        *masks,
        *find("crowd", crowds, total, example, warns=many, note=note),
        *find("missing_annotation_id", np.flatnonzero(~table.has_id), total, example),
        *find("repeated_annotation_id", again, total, example),
        *_repeated_annotations(table, image_rows, labels, used),
    ]
    used_images = np.bincount(image_rows[used], minlength=len(table.image_ids)) > 0
    findings += _check_labelled(table, used_images, use)
    if use.training:
        findings += _check_balance(class_names, labels[used])
    else:
        findings = for_evaluation(findings)
    if use.keep_unlabelled or not use.training:
        used_images = np.ones_like(used_images)
    findings = [*malformed, *findings]
    hidden = {key for finding in findings for key in _CONSEQUENCES.get(finding.key, ())}
    findings = [finding for finding in findings if finding.key not in hidden]
    return Checked(table, findings, class_names, image_rows, labels, corners, used, used_images)


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


def _check_boxes(
    table: CocoTable, image_rows: np.ndarray, known: np.ndarray, in_use: np.ndarray
) -> tuple[list[Finding], np.ndarray, np.ndarray]:
    """Return the findings, the corners inside the images, float32 (M, 4), and which of them enclose an area, (M,).

    ``known``, (M,), is false where image or category is unknown.
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
    far = int((in_use & cut & (overhang > ROUNDING)).sum())
    many = far >= SEVERAL and far >= MANY * total
    note = f"{far} reach out by more than a pixel" + ("; are they x, y of the corner, width, height?" if many else "")
    findings += found("clipped_box", cut, warns=many, note=note)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    tiny = usable & (areas < TINY**2)
    findings += found("tiny_box", tiny, warns=bool(2 * (in_use & tiny).sum() > total))
    return findings, corners, usable


def _repeated_annotations(
    table: CocoTable, image_rows: np.ndarray, labels: np.ndarray, used: np.ndarray
) -> list[Finding]:
    """Annotations, among the used ones, that have image, category and box of an earlier one."""
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
    far = overhang[known] > ROUNDING
    as_corners = (boxes[:, 2:] > boxes[:, :2]) & (boxes[:, :2] >= -ROUNDING) & (boxes[:, 2:] <= sizes + ROUNDING)
    if far.sum() >= max(SEVERAL, MANY * len(boxes)) and as_corners.all(axis=1).mean() >= NEARLY_ALL:
        return find("corner_boxes", rows[far], len(boxes), example)
    in_first_pixel = ((boxes >= -SLACK) & (boxes <= 1 + SLACK)).all(axis=1)
    broken = (boxes != np.round(boxes)).any(axis=1)
    if in_first_pixel.mean() >= NEARLY_ALL and broken[in_first_pixel].any() and sizes.min() >= LARGE:
        return find("normalised_boxes", rows[in_first_pixel], len(boxes), example)
    return []


def _check_areas(table: CocoTable, *, training: bool) -> list[Finding]:
    """Doubtful is an area that is negative, larger than the box by more than rounding, so small that it could not reach
    from one side of the box to the other, or the same for boxes of different sizes. Boxes without area are left out.
    """
    malformed = np.isinf(table.areas)
    example = annotation_example(table, lambda row: 'has an "area" that is no finite number')
    findings = find("malformed_area", np.flatnonzero(malformed), len(malformed), example)
    areas, sides = np.where(malformed, np.nan, table.areas), table.boxes[:, 2:]
    with np.errstate(over="ignore"):
        enclosed, roomy = sides.prod(axis=1), 1.2 * (sides + 2 * ROUNDING).prod(axis=1)
    doubtful = (areas > roomy) | (areas < sides.max(axis=1, initial=0) / 4)
    doubtful &= enclosed > 0
    single = ~table.is_crowd
    ignored = single & ((areas < 0) | (areas > LARGEST_AREA))
    total = int(single.sum())
    if total >= SEVERAL and np.ptp(areas[single]) == 0:
        doubtful |= bool(enclosed[single].max() > 1.5 * enclosed[single].min())
    rows = np.flatnonzero(single & doubtful | ignored)
    note = "COCO's code tells small, medium and large objects apart by area: APs, APm, APl, ARs, ARm and ARl are wrong"
    if ignored.any():
        note += f"; it ignores objects of negative area or one above 1e10, {ignored.sum()} here, in every figure"
    warns = not training and bool(ignored.any() or len(rows) > USUAL * total)

    def text(row: int) -> str:
        return f"has area {table.areas[row]:g}, its bbox is {table.boxes[row].tolist()}"

    return findings + find("doubtful_area", rows, total, annotation_example(table, text), warns=warns, note=note)


def _check_categories(table: CocoTable) -> list[Finding]:
    ids, names = table.category_ids, table.category_names
    first: dict[str, int] = {}
    again = [row for row, name in enumerate(names) if ids[first.setdefault(name, row)] != ids[row]]
    folded = [" ".join(name.split()).casefold() for name in names]
    nearly: dict[str, int] = {}
    similar = [row for row, name in enumerate(folded) if not name or names[nearly.setdefault(name, row)] != names[row]]

    def example(text: Callable[[int], str]) -> Callable[[int], Example]:
        return lambda row: Example(f"categories[{row}] {text(row)}")

    def near(row: int) -> str:
        of = f", as id {ids[nearly[folded[row]]]} has {brief(names[nearly[folded[row]]])}" if folded[row] else ""
        return f"has the name {brief(names[row])}{of}"

    return [
        *find("repeated_category_id", repeated(ids), len(ids), example(lambda row: f"repeats id {ids[row]}")),
        *find(
            "repeated_category_name", again, len(ids),
            example(lambda row: f"has the name {brief(names[row])} of id {ids[first[names[row]]]}"),
        ),
        *find("similar_category_name", similar, len(ids), example(near)),
    ]  # fmt: skip


def _check_known_categories(table: CocoTable, labels: np.ndarray) -> list[Finding]:
    known, used = set(table.category_ids.tolist()), set(table.of_category.tolist())
    listed = brief(sorted(known))
    return find(
        "unknown_category", np.flatnonzero(labels < 0), len(labels),
        annotation_example(table, lambda row: f"has category_id {table.of_category[row]}, which is not in categories "
                           f"({listed})"),
        note=_off_by_one(known, used),
    )  # fmt: skip


def _check_balance(class_names: tuple[str, ...], labels: np.ndarray) -> list[Finding]:
    counts = np.bincount(labels, minlength=len(class_names))
    most = int(counts.max(initial=0))
    if not most:
        return []

    def example(label: int) -> Example:
        return Example(f"{brief(class_names[label])}: {counts[label]}")

    ascending = np.argsort(counts, kind="stable")
    of, total = counts[ascending], len(class_names)
    note = f"{brief(class_names[int(np.argmax(counts))])} has {most} objects."
    rare = ascending[(of > 0) & (of < RARE)]
    rarest = "the rarest: " + ", ".join(f"{brief(class_names[label])} {counts[label]}" for label in rare[:5])
    return [
        *find("unused_class", ascending[of == 0], total, example),
        *find("rare_class", rare, total, example, note=rarest),
        *find("unbalanced_classes", ascending[(of > 0) & (of * UNBALANCED < most)], total, example, note=note),
    ]


def _off_by_one(known: set[int], used: set[int]) -> str:
    if used <= known or not known:
        return ""
    if min(used) == 0 and {key + 1 for key in used} <= known:
        return "They count from 0, the list counts from 1: add 1 to the category_id of every annotation."
    if min(known) == 0 and {key - 1 for key in used} <= known:
        return "They count from 1, the list counts from 0: take 1 from the category_id of every annotation."
    return ""


def _check_masks(
    table: CocoTable, image_rows: np.ndarray, used: np.ndarray, *, in_use: bool, polygons_only: bool
) -> tuple[list[Finding], np.ndarray]:
    """Return the findings, and which annotations have no polygon left and cannot be used, bool (M,).

    Where masks are not ``in_use``, it only tells what there is to know, and nothing where no annotation has one.
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
    states = masks.states(own, table.sizes[image_rows[rows]])

    def fault(row: int) -> str:
        height, width = table.sizes[image_rows[row]].tolist()
        return f": {masks.fault(int(table.mask_rows[row]), height, width)}"

    findings += find("malformed_mask", rows[states == MALFORMED], total, annotation_example(table, fault), **otherwise)
    findings += find("no_polygon", rows[states == EMPTY], total, example, **otherwise)
    findings += find("broken_polygon", rows[states == MENDED], total, example, **otherwise)
    if in_use and polygons_only:
        findings += find("run_lengths", rows[masks.is_rle(own)], total, example)
    if in_use:
        lost[rows[states == EMPTY]] = True
    return findings, lost
