"""How findings name images and annotations of a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.data.coco.findings import Example, Finding, brief, find
from resnet_backbone.data.coco.masks import MaskTable
from resnet_backbone.files.text import read_json

_INT64 = range(-(2**63), 2**63)
_UNFIT = (KeyError, TypeError, ValueError, OverflowError)  # what well-formed entries never raise below


@dataclass(frozen=True)
class CocoTable:
    """The well-formed entries of a file, in its order: K categories, N images and M annotations."""

    category_ids: np.ndarray  # int64 (K,)
    category_names: list[str]
    image_index: np.ndarray  # int64 (N,), position in the file
    image_ids: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N, 2), height and width in pixels
    file_names: list[str]
    index: np.ndarray  # int64 (M,), position in the file
    annotation_ids: np.ndarray  # int64 (M,)
    has_id: np.ndarray  # bool (M,), false where there is no id that is an integer
    of_image: np.ndarray  # int64 (M,), an image's id
    of_category: np.ndarray  # int64 (M,), a category's id
    boxes: np.ndarray  # float64 (M, 4), x y width height
    is_crowd: np.ndarray  # bool (M,)
    areas: np.ndarray  # float64 (M,), as the file has them, in pixels; nan where there is none or no number
    mask_rows: np.ndarray  # int64 (M,), of ``masks``; -1 where there is no segmentation
    masks: MaskTable | None = None


class _Unfit(ValueError):
    """An entry that fits into no array.

    Args:
        text: what it has, and what is expected.
        key: of the finding, where it is not the usual one.
    """

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


def read_table(path: Path, masks: MaskTable | None) -> tuple[CocoTable, list[Finding]]:
    """Read a COCO-format instance file.

    Args:
        path: the JSON file.
        masks: gets the segmentations, of all annotations; None leaves them unread.

    Returns:
        The well-formed entries, and what is wrong with the others, which are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or lacks one of COCO's lists.
    """
    document = _read_document(path, masks)
    findings: list[Finding] = []

    def sorted_out(name: str, check: Callable[[Any], None], columns: Callable[[list[Any]], Any]) -> tuple[Any, Any]:
        entries = document[name]
        try:
            return np.arange(len(entries)), columns(entries)
        except _UNFIT:
            good, found = _sort_out(entries, name, check)
        findings.extend(found)
        return np.array(good, dtype=np.int64), columns([entries[index] for index in good])

    _, (category_ids, names) = sorted_out("categories", _check_category, _category_columns)
    image_index, (image_ids, sizes, file_names) = sorted_out("images", _check_image, _image_columns)
    index, columns = sorted_out("annotations", _check_annotation, _annotation_columns)
    table = CocoTable(category_ids, names, image_index, image_ids, sizes, file_names, index, *columns)
    return replace(table, masks=masks), findings


def field(entry: Any, key: str, types: type | tuple[type, ...]) -> Any:
    """Return ``entry[key]``; raise ValueError where there is none of these types."""
    if not isinstance(entry, dict):
        raise _Unfit(f"is {type(entry).__name__}; expected an object")
    if key not in entry:
        raise _Unfit(f'has no "{key}" (it has {brief(sorted(entry))})')
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, types):
        expected = " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))
        raise _Unfit(f'has "{key}" {brief(value)} ({type(value).__name__}); expected {expected}')
    if isinstance(value, int) and value not in _INT64:
        raise _Unfit(f'has "{key}" {brief(value)}; expected an integer of 64 bits')
    return value


def _read_document(path: Path, masks: MaskTable | None) -> dict[str, list[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    document = read_json(path, masks.summarise if masks else _empty_segmentation)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(document).__name__}; is it a results file?")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            found = f"keys {brief(sorted(document))}" if key not in document else type(document[key]).__name__
            raise ValueError(f'{path}: a COCO file needs a list "{key}", found {found}')
    for key in ("images", "categories"):
        if not document[key]:
            raise ValueError(f'{path}: its list "{key}" is empty')
    return document


def _empty_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in entry:
        entry["segmentation"] = None
    return entry


def _sort_out(entries: list[Any], name: str, check: Callable[[Any], None]) -> tuple[list[int], list[Finding]]:
    """Return the positions of the well-formed entries, and what is wrong with the others."""
    good = []
    faults: dict[str, list[tuple[int, str]]] = {}
    usual = {"categories": "malformed_category", "images": "malformed_image", "annotations": "malformed_annotation"}
    for index, entry in enumerate(entries):
        try:
            check(entry)
            good.append(index)
        except _Unfit as error:
            faults.setdefault(error.key or usual[name], []).append((index, str(error)))

    def example(fault: tuple[int, str]) -> Example:
        entry = entries[fault[0]]
        own = entry if isinstance(entry, dict) else {}
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


def _check_category(entry: Any) -> None:
    field(entry, "id", int)
    _check_text(field(entry, "name", str), "name")


def _check_image(entry: Any) -> None:
    field(entry, "id", int)
    name = field(entry, "file_name", str)
    field(entry, "height", int)
    field(entry, "width", int)
    _check_text(name, "file_name")
    if not name or "\0" in name:
        raise _Unfit(f'has "file_name" {brief(name)}; expected the name of a file')


def _check_annotation(entry: Any) -> None:
    field(entry, "image_id", int)
    field(entry, "category_id", int)
    if entry.get("iscrowd", 0) not in (0, 1):
        raise _Unfit(f"has iscrowd {brief(entry['iscrowd'])}; expected 0 or 1")
    box = field(entry, "bbox", list)
    if len(box) != 4 or not all(type(value) in (int, float) and _is_finite(value) for value in box):
        raise _Unfit(f"has bbox {brief(box)}; expected [x, y, width, height] in pixels", "malformed_box")


def _check_text(text: str, key: str) -> None:
    """Half of a surrogate pair can be written in JSON, and nowhere else."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Unfit(f'has "{key}" {ascii(text[:60])}, which is no text') from None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
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
    boxes = _of_types(map(itemgetter("bbox"), entries), {list})
    if not set(map(len, boxes)) <= {4}:
        raise ValueError
    corners = np.array(_of_types(chain.from_iterable(boxes), {int, float}), dtype=np.float64).reshape(-1, 4)
    if not np.isfinite(corners).all():
        raise ValueError
    crowds = np.array(_of_types((entry.get("iscrowd", 0) for entry in entries), {int, float, bool}), dtype=np.float64)
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
    if not set(map(type, values)) <= {float}:  # integers may be beyond all floats
        values = [value if type(value) in (int, float) and _is_finite(value) else math.nan for value in values]
    return np.array(values, dtype=np.float64)


def _integers(entries: list[Any], key: str) -> np.ndarray:
    return np.array(_of_types(map(itemgetter(key), entries), {int}), dtype=np.int64)


def _strings(entries: list[Any], key: str) -> list[str]:
    found = _of_types(map(itemgetter(key), entries), {str})
    "".join(found).encode()
    return found


def _of_types(values: Iterable[Any], types: set[type]) -> list[Any]:
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
