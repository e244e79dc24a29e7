"""A COCO-format file as columns of its well-formed entries, and how findings name the images and annotations of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from numbers import Integral, Real
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.data.coco.findings import Example, Finding, brief, find
from resnet_backbone.data.coco.masks import MaskTable
from resnet_backbone.files.text import read_json

_INT64 = range(-(2**63), 2**63)
EXACT = 1 << 53  # from here on a float stands for several integers
UNFIT = (KeyError, TypeError, ValueError, OverflowError)  # what entries of the usual types never raise below
UNNAMED = "(no file_name)"  # of images that are not read


@dataclass(frozen=True)
class CocoTable:
    """The well-formed entries of a file, in its order: K categories, N images and M annotations."""

    category_ids: np.ndarray  # int64 (K,)
    category_names: list[str]
    image_index: np.ndarray  # int64 (N,), position in the file
    image_ids: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N, 2), height and width in pixels; -1 where it is not known
    file_names: list[str]
    index: np.ndarray  # int64 (M,), position in the file
    annotation_ids: np.ndarray  # int64 (M,)
    has_id: np.ndarray  # bool (M,), false where there is no id that is an integer
    of_image: np.ndarray  # int64 (M,), an image's id
    of_category: np.ndarray  # int64 (M,), a category's id
    boxes: np.ndarray  # float64 (M, 4), x y width height
    is_crowd: np.ndarray  # bool (M,)
    areas: np.ndarray  # float64 (M,), as in the file, in pixels; nan where there is none, inf where it is no number
    mask_rows: np.ndarray  # int64 (M,), of ``masks``; -1 where there is no segmentation
    masks: MaskTable | None = None


class _Unfit(ValueError):
    """An entry that fits into no column: what it has and what is expected; ``key`` of an unusual finding."""

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


def read_table(
    source: Path | Mapping[str, Any],
    masks: MaskTable | None,
    *,
    reads_images: bool = True,
    needs_annotations: bool = True,
) -> tuple[CocoTable, list[Finding]]:
    """Read a COCO-format instance file, or take what it holds from memory, which stays as it is.

    Args:
        source: the JSON file, or its content. There, numbers may be NumPy's, and lists any sequences.
        masks: gets the segmentations, of all annotations; None leaves them unread.
        reads_images: False lets images be without file name and size.
        needs_annotations: False lets the list be absent, as in the files of a challenge's test sets.

    Returns:
        The well-formed entries, and what is wrong with the others, which are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or lacks one of COCO's lists.
    """
    hook = masks.summarise if masks else _empty_segmentation
    if isinstance(source, Path):
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such annotation file")
        document = _check_document(source, read_json(source, hook), needs_annotations)
    else:
        document = _check_document("ground truth", source, needs_annotations)
        document["annotations"] = [
            hook(dict(entry)) if isinstance(entry, Mapping) else entry for entry in document["annotations"]
        ]
    if not reads_images:
        needed = {"file_name": UNNAMED, "height": -1, "width": -1}
        document["images"] = [
            needed | {key: value for key, value in entry.items() if value is not None}
            if isinstance(entry, Mapping)
            else entry
            for entry in document["images"]
        ]
    findings: list[Finding] = []

    def sorted_out(name: str, check: Callable[[Any], Any], columns: Callable[[list[Any]], Any]) -> tuple[Any, Any]:
        entries = document[name]
        try:
            return np.arange(len(entries)), columns(entries)
        except UNFIT:
            good, found = _sort_out(entries, name, check)
        findings.extend(found)
        return np.array(list(good), dtype=np.int64), columns(list(good.values()))

    _, (category_ids, names) = sorted_out("categories", _check_category, _category_columns)
    image_index, (image_ids, sizes, file_names) = sorted_out("images", _check_image, _image_columns)
    index, columns = sorted_out("annotations", _check_annotation, _annotation_columns)
    table = CocoTable(category_ids, names, image_index, image_ids, sizes, file_names, index, *columns)
    return replace(table, masks=masks), findings


def _check_document(source: Path | str, document: Any, needs_annotations: bool) -> dict[str, list[Any]]:
    if not isinstance(document, Mapping):
        raise ValueError(f"{source}: expected a JSON object, found {type(document).__name__}; is it a results file?")
    lists: dict[str, Any] = {} if needs_annotations else {"annotations": []}
    lists |= {key: document[key] for key in ("images", "annotations", "categories") if key in document}
    for key in ("images", "annotations", "categories"):
        if key not in lists:
            raise ValueError(
                f'{source}: a COCO file needs a list "{key}", found keys {brief(sorted(map(str, document)))}'
            )
        if isinstance(lists[key], str | bytes) or not isinstance(lists[key], Sequence):
            raise ValueError(f'{source}: a COCO file needs a list "{key}", found {type(lists[key]).__name__}')
    for key in ("images", "categories"):
        if not lists[key]:
            raise ValueError(f'{source}: its list "{key}" is empty')
    return lists


def _empty_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in entry:
        entry["segmentation"] = None
    return entry


def _sort_out(
    entries: Sequence[Any], name: str, check: Callable[[Any], Any]
) -> tuple[dict[int, dict[str, Any]], list[Finding]]:
    """The well-formed entries by their position, of plain values, and what is wrong with the others."""
    good: dict[int, dict[str, Any]] = {}
    faults: dict[str, list[tuple[int, str]]] = {}
    usual = {"categories": "malformed_category", "images": "malformed_image", "annotations": "malformed_annotation"}
    for index, entry in enumerate(entries):
        try:
            good[index] = check(entry)
        except _Unfit as error:
            faults.setdefault(error.key or usual[name], []).append((index, str(error)))

    def example(fault: tuple[int, str]) -> Example:
        entry = entries[fault[0]]
        own = entry if isinstance(entry, Mapping) else {}
        file_name = own.get("file_name") if name == "images" else None
        return Example(
            f"{name}[{fault[0]}] {fault[1]}",
            image_id=_integer(own.get("id" if name == "images" else "image_id")),
            file_name=file_name if isinstance(file_name, str) else None,
            annotation_id=_integer(own.get("id")) if name == "annotations" else None,
        )

    return good, [found for key, where in faults.items() for found in find(key, where, len(entries), example)]


def _integer(value: Any) -> int | None:
    return value if type(value) is int and value in _INT64 else None


def _field(entry: Any, key: str) -> Any:
    if not isinstance(entry, Mapping):
        raise _Unfit(f"is {type(entry).__name__}; expected an object")
    if key not in entry:
        raise _Unfit(f'has no "{key}" (it has {brief(sorted(map(str, entry)))})')
    return entry[key]


def _integer_field(entry: Any, key: str) -> int:
    """An integer, or a number that is one: some tools write ids with a decimal point."""
    value = _field(entry, key)
    whole = isinstance(value, Integral) or (is_number(value) and value == int(value))
    if isinstance(value, bool) or not whole:
        raise _Unfit(f'has "{key}" {brief(value)} ({type(value).__name__}); expected int')
    if isinstance(value, float) and abs(value) >= EXACT:
        raise _Unfit(
            f'has "{key}" {brief(value)}, with a decimal point or an exponent, and such numbers do not tell ids beyond '
            f"2**53 apart: write integers"
        )
    if int(value) not in _INT64:
        raise _Unfit(f'has "{key}" {brief(value)}; expected an integer of 64 bits')
    return int(value)


def _text_field(entry: Any, key: str) -> str:
    value = _field(entry, key)
    if not isinstance(value, str):
        raise _Unfit(f'has "{key}" {brief(value)} ({type(value).__name__}); expected str')
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair can be written in JSON, and nowhere else
        raise _Unfit(f'has "{key}" {ascii(value[:60])}, which is no text') from None
    return value


def _check_category(entry: Any) -> dict[str, Any]:
    return {"id": _integer_field(entry, "id"), "name": _text_field(entry, "name")}


def _check_image(entry: Any) -> dict[str, Any]:
    numbers = {key: _integer_field(entry, key) for key in ("id", "height", "width")}
    name = _text_field(entry, "file_name")
    if not name or "\0" in name:
        raise _Unfit(f'has "file_name" {brief(name)}; expected the name of a file')
    return {**numbers, "file_name": name}


def _check_annotation(entry: Any) -> dict[str, Any]:
    ids = {key: _integer_field(entry, key) for key in ("image_id", "category_id")}
    if entry.get("iscrowd", 0) not in (0, 1):
        raise _Unfit(f"has iscrowd {brief(entry['iscrowd'])}; expected 0 or 1")
    box = _field(entry, "bbox")
    if isinstance(box, str | bytes) or not isinstance(box, Sequence):
        raise _Unfit(f'has "bbox" {brief(box)} ({type(box).__name__}); expected list')
    if len(box) != 4 or not all(map(is_number, box)):
        raise _Unfit(f"has bbox {brief(box)}; expected [x, y, width, height] in pixels", "malformed_box")
    return {**entry, **ids, "iscrowd": int(entry.get("iscrowd", 0)), "bbox": list(map(float, box))}


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, Python's or NumPy's; true and false are none."""
    if type(value) is float:
        return math.isfinite(value)
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _category_columns(entries: list[Any]) -> tuple[np.ndarray, list[str]]:
    return _integers(entries, "id"), _strings(entries, "name")


def _image_columns(entries: list[Any]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names = _strings(entries, "file_name")
    if "\0" in "".join(names) or not all(names):
        raise ValueError
    sizes = np.stack([_integers(entries, "height"), _integers(entries, "width")], axis=1)
    return _integers(entries, "id"), sizes, names


def _annotation_columns(entries: list[Any]) -> tuple[np.ndarray, ...]:
    of_image, of_category = _integers(entries, "image_id"), _integers(entries, "category_id")
    boxes = of_types(map(itemgetter("bbox"), entries), {list})
    if not set(map(len, boxes)) <= {4}:
        raise ValueError
    corners = np.array(of_types(chain.from_iterable(boxes), {int, float}), dtype=np.float64).reshape(-1, 4)
    if not np.isfinite(corners).all():
        raise ValueError
    crowds = np.array(of_types((entry.get("iscrowd", 0) for entry in entries), {int, float, bool}), dtype=np.float64)
    if not np.isin(crowds, (0, 1)).all():
        raise ValueError
    ids = [entry.get("id") for entry in entries]
    has_id = np.ones(len(ids), dtype=bool)
    if not set(map(type, ids)) <= {int} or (ids and (min(ids) not in _INT64 or max(ids) not in _INT64)):
        has_id = np.array([_integer(value) is not None for value in ids], dtype=bool)
        ids = [_integer(value) or 0 for value in ids]
    rows = [-1 if row is None else row for row in (entry.get("segmentation") for entry in entries)]
    return (
        np.array(ids, dtype=np.int64),
        has_id,
        of_image,
        of_category,
        corners,
        crowds == 1,
        _areas([entry.get("area") for entry in entries]),
        np.array(rows, dtype=np.int64),
    )


def _areas(values: list[Any]) -> np.ndarray:
    if not set(map(type, values)) <= {float} or not all(map(math.isfinite, values)):
        values = [math.nan if value is None else value if is_number(value) else math.inf for value in values]
    return np.array(values, dtype=np.float64)


def _integers(entries: list[Any], key: str) -> np.ndarray:
    return np.array(of_types(map(itemgetter(key), entries), {int}), dtype=np.int64)


def _strings(entries: list[Any], key: str) -> list[str]:
    found = of_types(map(itemgetter(key), entries), {str})
    "".join(found).encode()
    return found


def of_types(values: Iterable[Any], types: set[type]) -> list[Any]:
    """Return the values, of exactly these types; TypeError where one is not."""
    found = list(values)
    if not set(map(type, found)) <= types:
        raise TypeError
    return found


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
            f"annotations[{table.index[row]}]{'' if said.startswith(':') else ' '}{said}",
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
