"""Detections of a whole data set as arrays: read from COCO's results files piece by piece, or taken from a detector."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Real
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from resnet_backbone.data.coco.masks import Rle, find_broken
from resnet_backbone.data.coco.read import GroundTruth, mask_areas
from resnet_backbone.data.coco.table import EXACT, UNFIT, is_number, of_types
from resnet_backbone.files.text import brief, json_encoding, json_errors, naming, pairs_hook
from resnet_backbone.metrics.results import ImageResults

CHUNK = 1 << 20  # characters read at a time
MAX_ELEMENT = 1 << 24  # characters of one element; a detection with its mask has a few thousand

_SPACE = re.compile(r"[ \t\n\r]*")


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
    mark = window.mark()
    while mark != "]":
        yield window.value()
        mark = window.mark()
        if mark not in (",", "]"):
            raise window.fault("Expecting ',' delimiter", window.at)
        if mark == ",":
            window.at += 1
            window.mark()
    window.at += 1
    if window.mark():
        raise window.fault("Extra data", window.at)


Results = Path | Sequence[Mapping[str, Any]]  # COCO's result records, or the JSON file of them

_RECORDS_AT_ONCE = 200  # results that are records at a time; thousands would keep the garbage collector busy


@dataclass(frozen=True, eq=False)
class ResultTable:
    """N detections, in the order in which they were given. Images and classes are positions in the ground truth."""

    images: np.ndarray  # int64, (N,)
    labels: np.ndarray  # int64, (N,), 0 to K - 1
    scores: np.ndarray  # float64, (N,)
    boxes: np.ndarray  # float64, (N, 4), x, y, width, height in pixels; (0, 4) where they were not asked for
    masks: Sequence[Rle]  # N compressed RLEs of the size of their images; empty where they were not asked for

    def __len__(self) -> int:
        return len(self.scores)

    def areas(self, iou_type: str) -> np.ndarray:
        """Return the pixels of the boxes or masks, float64 (N,)."""
        return self.boxes[:, 2] * self.boxes[:, 3] if iou_type == "bbox" else mask_areas(self.masks)


def to_result_table(found: Sequence[ImageResults], category_ids: Sequence[int], truth: GroundTruth) -> ResultTable:
    """Return the detections of images in the form that :func:`read_results` gives of their records.

    Args:
        found: of each image, what the detector found.
        category_ids: the ids of the detector's labels, in their order.
        truth: what they are compared with.

    Raises:
        ValueError: an image or class is not in the ground truth.
    """
    for image in found:
        if type(image.image_id) is not int or image.image_id not in truth.image_positions:
            raise ValueError(_not_an_image("the image", image.image_id, truth))
    if unknown := sorted(set(category_ids) - truth.label_of.keys()):
        raise ValueError(f"the detector has classes of the ids {unknown}; {_known_categories(truth)}")
    none = torch.zeros(0)
    corners = torch.cat([none.reshape(0, 4).double(), *(image.boxes.double() for image in found)])
    corners[:, 2:] -= corners[:, :2]
    labels = torch.cat([none.long(), *(image.labels.long() for image in found)]).numpy()
    return ResultTable(
        images=np.repeat(
            np.array([truth.image_positions[image.image_id] for image in found], dtype=np.int64),
            [len(image.scores) for image in found],
        ),
        labels=np.array([truth.label_of[key] for key in category_ids], dtype=np.int64)[labels],
        scores=torch.cat([none.double(), *(image.scores.double() for image in found)]).numpy(),
        boxes=corners.numpy(),
        masks=list(chain.from_iterable(image.masks or () for image in found)),
    )


def read_results(source: Results, truth: GroundTruth, iou_types: Collection[str]) -> ResultTable:
    """Read COCO results with boxes where ``iou_types`` has "bbox", and with masks where it has "segm".

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the results are no list.
        ValueError: a result for an unknown image or category, without the needed keys, with a score that is not
            finite, with a broken box, or with a mask of another size than its image.
    """
    with naming(source):
        results = iterate_results(source)
        blocks = []
        count = 0
        while block := list(islice(results, _RECORDS_AT_ONCE)):
            blocks.append(_read_block(block, count, truth, iou_types))
            count += len(block)
    blocks = blocks or [_to_table([], truth, iou_types)]
    return ResultTable(
        images=np.concatenate([block.images for block in blocks]),
        labels=np.concatenate([block.labels for block in blocks]),
        scores=np.concatenate([block.scores for block in blocks]),
        boxes=np.concatenate([block.boxes for block in blocks]),
        masks=list(chain.from_iterable(block.masks for block in blocks)),
    )


def iterate_results(source: Results) -> Iterator[Any]:
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


def _read_block(block: Sequence[Any], first: int, truth: GroundTruth, iou_types: Collection[str]) -> ResultTable:
    """The table of some results, the first of which has the number ``first``."""
    if "segm" in iou_types or not _boxes_are_plain(block, truth):
        block = [_checked(result, index, truth, iou_types) for index, result in enumerate(block, first)]
    if "segm" in iou_types:
        masks = [result["segmentation"] for result in block]
        broken = find_broken([mask["counts"] for mask in masks], [mask["size"][0] * mask["size"][1] for mask in masks])
        if broken is not None:  # COCO's code would hang or crash
            where = f"result {first + broken[0]}"
            raise ValueError(f"{where}: its mask {broken[1]}; write what pycocotools.mask.encode gives")
    return _to_table(block, truth, iou_types)


def _to_table(block: Sequence[Any], truth: GroundTruth, iou_types: Collection[str]) -> ResultTable:
    boxes = [result["bbox"] for result in block] if "bbox" in iou_types else []
    return ResultTable(
        images=np.array([truth.image_positions[result["image_id"]] for result in block], dtype=np.int64),
        labels=np.array([truth.label_of[result["category_id"]] for result in block], dtype=np.int64),
        scores=np.array([result["score"] for result in block], dtype=float),
        boxes=np.array(boxes, dtype=float).reshape(-1, 4),
        masks=[result["segmentation"] for result in block] if "segm" in iou_types else [],
    )


def _boxes_are_plain(block: Sequence[Any], truth: GroundTruth) -> bool:
    """Whether each result is what JSON gives and right. One that is not may still be right, numbers of NumPy's, say."""
    try:
        of_types(block, {dict})
        columns = map(itemgetter("image_id", "category_id", "score", "bbox"), block)
        image_ids, category_ids, scores, boxes = zip(*columns, strict=True)
        of_types(chain(image_ids, category_ids), {int})
        of_types(boxes, {list})
        of_types(chain(scores, *boxes), {int, float})
        sizes = np.array(boxes, dtype=float)
        finite = bool(np.isfinite(sizes).all()) and all(map(math.isfinite, scores))
    except UNFIT:
        return False
    known = truth.image_positions.keys() >= set(image_ids) and truth.label_of.keys() >= set(category_ids)
    return known and finite and sizes.shape[1:] == (4,) and bool((sizes[:, 2:] >= 0).all())


def _checked(result: Any, index: int, truth: GroundTruth, iou_types: Collection[str]) -> dict[str, Any]:
    """One result with the keys that are needed. ``index``, from 0, is for messages."""
    where = f"result {index}"
    if not isinstance(result, Mapping):
        raise ValueError(f"{where} is no object with image_id, category_id and so on; got {brief(result)}")
    measures = [{"bbox": "bbox", "segm": "segmentation"}[iou_type] for iou_type in iou_types]
    missing = [name for name in ("image_id", "category_id", "score", *measures) if name not in result]
    if missing:
        raise ValueError(f"{where} lacks {missing}; it has {brief(sorted(map(str, result)))}")
    image_id, category_id = result["image_id"], result["category_id"]
    if not _is_among(image_id, truth.image_positions):
        raise ValueError(_not_an_image(where, image_id, truth))
    if not _is_among(category_id, truth.label_of):
        raise ValueError(
            f"{where} has category_id {brief(category_id)}; {_known_categories(truth)}. "
            "Write the ids of the file, not the contiguous labels of the model"
        )
    if not is_number(result["score"]) and not isinstance(result["score"], bool):
        raise ValueError(f"{where} has the score {brief(result['score'])}; a score is a finite number")
    checked: dict[str, Any] = {"image_id": int(image_id), "category_id": int(category_id)}
    checked["score"] = float(result["score"])
    if "bbox" in iou_types:
        checked["bbox"] = _checked_box(result["bbox"], where)
    if "segm" in iou_types:
        checked["segmentation"] = _checked_rle(result["segmentation"], checked["image_id"], truth, where)
    return checked


def _checked_box(box: Any, where: str) -> list[float]:
    """``[x, y, width, height]`` as floats."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(is_number, box)):
        raise ValueError(f"{where}: bbox must be four finite numbers [x, y, width, height], got {brief(box)}")
    if box[2] < 0 or box[3] < 0:
        raise ValueError(f"{where}: bbox is [x, y, width, height] and width and height are not negative, got {box!r}")
    return [float(value) for value in box]


def _checked_rle(rle: Any, image_id: int, truth: GroundTruth, where: str) -> Rle:
    """The mask of a result, its form and size checked; its counts are checked for many at once."""
    if not isinstance(rle, Mapping) or not isinstance(rle.get("counts"), str | bytes):
        raise ValueError(
            f'{where}: a result\'s segmentation is a compressed RLE {{"size": [height, width], "counts": "..."}}, as '
            f"pycocotools.mask.encode writes"
        )
    size, expected = rle.get("size"), truth.sizes[truth.image_positions[image_id]].tolist()
    if not isinstance(size, list | tuple) or list(size) != expected:
        raise ValueError(f"{where}: mask of [height, width] {brief(size)} on image {image_id} of {expected}")
    return {"size": expected, "counts": rle["counts"]}


def _is_among(value: Any, ids: Mapping[int, int]) -> bool:
    """``in``, for what JSON may have in the place of an id: lists have no hash, and true is no 1."""
    return isinstance(value, Real) and not isinstance(value, bool) and not _inexact(value) and value in ids


def _inexact(value: Any) -> str:
    """What is wrong with a floating-point number that may have been rounded from another id."""
    if not isinstance(value, float) or abs(value) < EXACT:
        return ""
    return (
        "; it has a decimal point or an exponent, and such numbers do not tell ids beyond 2**53 apart: write integers"
    )


def _not_an_image(where: str, image_id: Any, truth: GroundTruth) -> str:
    return (
        f"{where} is for image_id {brief(image_id)}, which is not among the {len(truth.image_ids)} images; "
        f"compare results with the annotations of the data set they were made on{_inexact(image_id)}"
    )


def _known_categories(truth: GroundTruth) -> str:
    return f"the ground truth knows {truth.category_ids.tolist()}"
