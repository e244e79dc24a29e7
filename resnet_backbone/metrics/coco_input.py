"""Reading and checking what COCO evaluation compares: ground truth and results.

Both backends accept a good deal that they then count wrongly or crash on. Here it is refused, and the place named.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TextIO

from pycocotools import mask as coco_mask

from resnet_backbone.files.text import brief, json_encoding, json_errors, naming, pairs_hook, read_json
from resnet_backbone.metrics.masks import Record, checked_rle, refuse_broken_masks, to_rle

CHUNK = 1 << 20  # characters read at a time
MAX_ELEMENT = 1 << 24  # characters of one element; a detection with its mask has a few thousand

_SPACE = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def iterate_list(path: Path, chunk: int = CHUNK) -> Iterator[Any]:
    """Yield the elements of the list that a JSON file holds, as ``json.loads`` gives them.

    Args:
        path: a file in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.
        chunk: characters that are read at a time.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the file holds something else than a list.
        ValueError: the file is not JSON, or an object has a key twice. What comes before has been yielded by then.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with json_errors(path), path.open(encoding=json_encoding(path), errors="surrogatepass", newline="") as file:
        yield from _elements(_Window(file, chunk))


class _Window:
    """The part of a file that is in memory, and the place in it that is read next."""

    def __init__(self, file: TextIO, chunk: int) -> None:
        self.file = file
        self.chunk = chunk
        self.text = ""
        self.at = 0
        self.dropped = 0  # characters of the file before the text
        self.decode = json.JSONDecoder(object_pairs_hook=pairs_hook()).raw_decode

    def grow(self, count: int = 0) -> bool:
        """Read on, ``count`` characters or more, and forget what is done with; false at the end of the file."""
        read = self.file.read(max(self.chunk, count))
        self.dropped += self.at
        self.text = self.text[self.at :] + read
        self.at = 0
        return bool(read)

    def mark(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing, too
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, self.at = self.decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                problem = self.fault(error.msg, error.pos)
            # The value may have been cut off by the end of the text. Twice as much of it is tried each time, so that
            # a long one is not decoded over and over.
            if len(self.text) - self.at > MAX_ELEMENT:
                raise self.fault(f"no element has more than {MAX_ELEMENT:,} characters", self.at)
            if not self.grow(len(self.text) - self.at):
                raise problem

    def fault(self, what: str, at: int) -> ValueError:
        """What is wrong, at a place of the text."""
        return ValueError(f"{what}: character {self.dropped + at}")


def _elements(window: _Window) -> Iterator[Any]:
    if window.mark() != "[":
        found = "dict" if window.mark() == "{" else type(window.value()).__name__  # one with images is large
        hint = "; results are a list, and the annotations of a data set are a dict" if found == "dict" else ""
        raise TypeError(f"expected a list in the file {window.file.name}, got {found}{hint}")
    window.at += 1
    if window.mark() == "]":
        window.at += 1
    else:
        while True:
            yield window.value()
            between = _BETWEEN.match(window.text, window.at)
            if between and between.end() < len(window.text):
                window.at = between.end()
                continue
            mark = window.mark()
            if mark not in (",", "]"):
                raise window.fault("Expecting ',' delimiter", window.at)
            window.at += 1
            if mark == "]":
                break
            window.mark()
    if window.mark():
        raise window.fault("Extra data", window.at)


_ID_LIMIT = 1 << 63  # ids are kept in 64 bits
_EXACT = 1 << 53  # from here on a float stands for several integers


def read_ground_truth(source: Path | Mapping[str, Any], iou_type: str) -> dict[str, list[Record]]:
    """Return a checked copy of COCO ground truth; the source stays as it is.

    In the copy, annotations are numbered from 1 (COCO's code takes an annotation with id 0 for "no match", and loses
    all but one of those that share an id), a missing "iscrowd" is 0, and a missing "area" is the mask's where
    ``iou_type`` is "segm", else the box's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not COCO ground truth; the message names the image, category or annotation.
    """
    data = read_json(source) if isinstance(source, Path) else source
    with naming(source):
        return _checked_ground_truth(data, iou_type)


def _checked_ground_truth(data: Any, iou_type: str) -> dict[str, list[Record]]:
    if not isinstance(data, Mapping):
        raise ValueError(
            f"COCO ground truth is an object with images, annotations, categories; got {type(data).__name__}"
        )
    missing = [key for key in ("images", "annotations", "categories") if key not in data]
    if missing:
        raise ValueError(f"COCO ground truth lacks {missing}; it has {_keys(data)}")
    for key in ("images", "annotations", "categories"):
        if isinstance(data[key], str | bytes) or not isinstance(data[key], Sequence):
            raise ValueError(f"{key} of COCO ground truth is a list of objects, got {type(data[key]).__name__}")
        for number, record in enumerate(data[key], start=1):
            if not isinstance(record, Mapping):
                raise ValueError(f"entry {number} of {key} is no object, got {brief(record)}")
    for key in ("images", "categories"):
        if not data[key]:
            raise ValueError(f"the ground truth has no {key}; there is nothing to measure")
    images = _by_id(data["images"], "image")
    categories = _by_id(data["categories"], "category")
    _check_names(categories)
    annotations = [
        _checked_annotation(annotation, number, images, categories, iou_type)
        for number, annotation in enumerate(data["annotations"], start=1)
    ]
    return {"images": list(images.values()), "annotations": annotations, "categories": list(categories.values())}


def read_results(
    source: Path | Sequence[Mapping[str, Any]], ground_truth: Mapping[str, list[Record]], iou_type: str
) -> list[Record]:
    """Return a checked copy of COCO results, with only the keys that ``iou_type`` needs.

    With "segm" the boxes are left out: COCO's code would otherwise tell small objects from large by the area of the
    box, where it should use the mask's.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the results are no list.
        ValueError: a result for an unknown image or category, without the needed keys, with a score that is not
            finite, with a broken box, or with a mask of another size than its image.
    """
    images = {image["id"]: image for image in ground_truth["images"]}
    category_ids = {category["id"] for category in ground_truth["categories"]}
    with naming(source):
        checked = [
            checked_result(result, index, images, category_ids, iou_type)
            for index, result in enumerate(iterate_results(source))
        ]
        if iou_type == "segm":
            refuse_broken_masks(checked, 0)
    return checked


def iterate_results(source: Path | Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Yield COCO results, unchecked, one by one; those of a file are not in memory all at once.

    Raises:
        FileNotFoundError, TypeError, ValueError: as :func:`read_results`, of what is no list and no JSON.
    """
    if isinstance(source, Path):
        yield from iterate_list(source)
        return
    if isinstance(source, str | bytes) or not isinstance(source, Sequence):
        raise TypeError(f"COCO results are a list of objects, or the Path of a JSON file; got {type(source).__name__}")
    yield from source


def _by_id(records: Sequence[Mapping[str, Any]], kind: str) -> dict[int, Record]:
    by_id: dict[int, Record] = {}
    for record in records:
        key: Any = record.get("id")
        if not _is_id(key):
            expected = "an integer of 64 bits" if type(key) is int else "an integer"
            raise ValueError(f"the id of every {kind} must be {expected}, got {brief(key)} in {brief(dict(record))}")
        if key in by_id:
            raise ValueError(f"two entries share the {kind} id {key}; ids must be unique")
        by_id[key] = dict(record)
    return by_id


def _check_names(categories: Mapping[int, Record]) -> None:
    seen: dict[str, int] = {}
    for key, category in categories.items():
        name = category.get("name")
        if not isinstance(name, str):
            raise ValueError(f"category {key} has no name, got {name!r}; add one, the figures are reported by name")
        if name in seen:
            raise ValueError(f"categories {seen[name]} and {key} are both called {name!r}; give them different names")
        seen[name] = key


def _checked_annotation(
    annotation: Mapping[str, Any],
    number: int,
    images: Mapping[int, Record],
    categories: Mapping[int, Record],
    iou_type: str,
) -> Record:
    where = f"annotation {brief(annotation.get('id'))} (number {number} of the file)"
    image_id: Any = annotation.get("image_id")
    category_id: Any = annotation.get("category_id")
    if not _is_among(image_id, images):
        raise ValueError(
            f"{where}: image_id {brief(image_id)} is not among the {len(images)} images{_inexact(image_id)}"
        )
    if not _is_among(category_id, categories):
        raise ValueError(f"{where}: category_id {brief(category_id)} is not among {sorted(categories)}")
    box = _checked_box(annotation.get("bbox"), where)
    crowd = annotation.get("iscrowd", 0)
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        raise ValueError(f"{where}: iscrowd is 0 or 1, got {brief(crowd)}")
    ids = {"id": number, "image_id": int(image_id), "category_id": int(category_id)}
    checked = {**annotation, **ids, "bbox": box, "iscrowd": int(crowd)}
    if checked.get("area") is not None and not _is_number(checked["area"]):
        raise ValueError(f"{where}: area is a finite number, got {brief(checked['area'])}")
    if iou_type == "segm":
        rle = to_rle(annotation.get("segmentation"), images[image_id], where)
        checked["segmentation"] = rle
        area = float(coco_mask.area(rle))
    else:
        checked.pop("segmentation", None)
        area = box[2] * box[3]
    if checked.get("area") is None:
        checked["area"] = area
    return checked


def checked_result(
    result: Any, index: int, images: Mapping[int, Record], category_ids: Collection[int], iou_type: str
) -> Record:
    """Return one record of :func:`read_results`.

    Args:
        result: as it was given.
        index: of the result, from 0, for messages.
        images: those of the ground truth by id.
        category_ids: of the ground truth.
        iou_type: "bbox" or "segm".

    Raises:
        ValueError: as :func:`read_results`.
    """
    where = f"result {index}"
    if not isinstance(result, Mapping):
        raise ValueError(f"{where} is no object with image_id, category_id and so on; got {brief(result)}")
    key = "bbox" if iou_type == "bbox" else "segmentation"
    missing = [name for name in ("image_id", "category_id", "score", key) if name not in result]
    if missing:
        raise ValueError(f"{where} lacks {missing}; it has {_keys(result)}")
    if not _is_among(result["image_id"], images):
        raise ValueError(
            f"{where} is for image_id {brief(result['image_id'])}, which is not among the {len(images)} images; "
            f"compare results with the annotations of the data set they were made on{_inexact(result['image_id'])}"
        )
    if not _is_among(result["category_id"], category_ids):
        raise ValueError(
            f"{where} has category_id {brief(result['category_id'])}; the ground truth knows {sorted(category_ids)}. "
            "Write the ids of the file, not the contiguous labels of the model"
        )
    score = result["score"]
    if not _is_number(score):
        raise ValueError(f"{where} has the score {brief(score)}; a score is a finite number")
    if iou_type == "bbox":
        measured: Any = _checked_box(result["bbox"], where)
    else:
        measured = checked_rle(result["segmentation"], images[result["image_id"]], where)
    ids = {"image_id": int(result["image_id"]), "category_id": int(result["category_id"])}
    return {**ids, "score": float(score), key: measured}


def _checked_box(box: Any, where: str) -> list[float]:
    """``[x, y, width, height]`` as floats."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"{where}: bbox must be four finite numbers [x, y, width, height], got {brief(box)}")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox is [x, y, width, height] and width and height are not negative, got {box!r}")
    return [float(value) for value in box]


def _is_number(value: Any) -> bool:
    # asking for the type first saves half of the time
    if type(value) is float:
        return math.isfinite(value)
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # a whole number that is larger than any float
        return False


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_ID_LIMIT <= value < _ID_LIMIT


def _is_among(value: Any, ids: Collection[int]) -> bool:
    """``in``, for what JSON may have in the place of an id: lists have no hash, and true is no 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and not _inexact(value) and value in ids


def _inexact(value: Any) -> str:
    """What is wrong with a floating-point number that may have been rounded from another id."""
    if not isinstance(value, float) or abs(value) < _EXACT:
        return ""
    return (
        "; it has a decimal point or an exponent, and such numbers do not tell ids beyond 2**53 apart: write integers"
    )


def _keys(record: Mapping[Any, Any]) -> str:
    return brief(sorted(map(str, record)))
