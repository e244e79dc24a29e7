"""YOLO's data sets, a line of a text file for each object, to COCO format: boxes and polygons."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.data.images.media import image_endings, is_hidden
from resnet_backbone.data.images.read import upright_size
from resnet_backbone.files.text import brief, read_yaml

CLASSES = "classes.txt"  # of Label Studio's exports, which have no data.yaml
_SLACK = 0.01  # of coordinates, which may be rounded
_LINE = "expected CLASS X Y WIDTH HEIGHT, or CLASS and the X Y of three or more corners, as shares of the image, 0 to 1"


def read_yolo(source: Path) -> dict[str, tuple[dict[str, Any], Path]]:
    """Convert what a ``data.yaml`` names, or the folder of a ``classes.txt``; sizes are those of the upright images.

    A label file has the name of its image, in ``labels`` where that is in ``images`` (whether the split is above or
    below), or beside it. Images without one are without objects.

    Args:
        source: ``data.yaml`` with ``names``, a list or a mapping from numbers, and ``train``, ``val`` (or ``valid``)
            and ``test``: folders, files of paths, or lists of these, from ``path`` on or from the file's own folder.

    Returns:
        By split, "" where there is none, the COCO document and the folder that its file names start at.

    Raises:
        FileNotFoundError: a folder, an image or all labels are missing, or the images of some labels.
        ValueError: a file is malformed; the message names it and the line.
        OSError: an image cannot be read.
    """
    if source.name == CLASSES:
        content: Mapping[Any, Any] = {"names": _lines(source), "train": source.parent / "images"}
    else:
        content = read_yaml(source, keys=(str, int))
    names = _class_names(source, content)
    base = source.parent / str(content.get("path") or "")
    entries = {"train": content.get("train"), "val": content.get("val") or content.get("valid")}
    entries["test"] = content.get("test")
    parts = {}
    for split, entry in entries.items():
        places = [_place(source, base, split, item) for item in (entry if isinstance(entry, list) else [entry]) if item]
        if split == "test" and not all(place.exists() for place in places):
            continue  # Roboflow names one whether there is one or not
        images = [image for place in places for image in _images(base, place)]
        if places and not images:
            raise FileNotFoundError(f"{source}: no image in {', '.join(map(str, places))}, its {split!r}")
        if images:
            _check_labels(images, [place for place in places if place.is_dir()])
            folder = Path(os.path.commonpath([image.parent for image in images]))
            document = _document(images, folder, names, first=5 if "kpt_shape" in content else None)
            parts["" if source.name == CLASSES else split] = (document, folder)
    if not parts:
        raise ValueError(f"{source}: has {brief(sorted(map(str, content)))}; expected train and val: folders of images")
    return parts


def _class_names(source: Path, content: Mapping[Any, Any]) -> dict[int, str]:
    names = content.get("names")
    by_number = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(by_number, dict) or not by_number or any(type(key) is not int for key in by_number):
        raise ValueError(f"{source}: names is {brief(names)}; expected names: [cat, dog], or {{0: cat, 1: dog}}")
    if wrong := [name for name in by_number.values() if type(name) not in (str, int) or name == ""]:
        raise ValueError(f"{source}: the class name {brief(wrong[0])} is no text; write it in quotation marks")
    if content.get("nc", len(by_number)) != len(by_number):
        raise ValueError(f"{source}: nc is {brief(content['nc'])}, and names has {len(by_number)}; correct one of them")
    return {number: str(name) for number, name in by_number.items()}


def _place(source: Path, base: Path, split: str, item: Any) -> Path:
    """Roboflow writes ``../train/images`` for what lies beside the file, which YOLO's own code corrects as well."""
    tried = [base / str(item), source.parent / str(item), source.parent / str(item).removeprefix("../")]
    found = next((place for place in tried if place.exists()), None)
    if found is None and split != "test":
        looked = ", ".join(dict.fromkeys(str(place) for place in tried))
        raise FileNotFoundError(f"{source}: {split}: {brief(str(item))} is not there; looked for {looked}")
    return found or tried[0]


def _images(base: Path, place: Path) -> Iterator[Path]:
    if place.is_dir():
        inside = (path for path in sorted(place.rglob("*")) if path.suffix.lower() in image_endings())
        yield from (path for path in inside if not any(map(is_hidden, path.relative_to(place).parts)))
        return
    for line in _lines(place):
        found = next((image for image in (place.parent / line, base / line) if image.is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{place}: lists {brief(line)}, and there is no image {place.parent / line}")
        yield found


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8 ({error})") from error


def _label(image: Path) -> Path:
    """Where the label file of an image is, or would be."""
    parts = list(image.with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    mirrored = Path(*parts)
    return mirrored if mirrored.is_file() or not image.with_suffix(".txt").is_file() else image.with_suffix(".txt")


def _check_labels(images: Sequence[Path], places: Sequence[Path]) -> None:
    """Raise FileNotFoundError where no image has labels, or labels of a folder have no image."""
    labels = {_label(image) for image in images}
    if not any(label.is_file() for label in labels):
        raise FileNotFoundError(
            f"none of the {len(images)} images such as {images[0]} has labels: no file {_label(images[0])}"
        )
    folders = {label.parent for label in labels} if places else set()
    orphans = sorted({path for folder in folders for path in folder.glob("*.txt") if path.name != CLASSES} - labels)
    if orphans:
        raise FileNotFoundError(
            f"{len(orphans)} label files have no image, such as {orphans[0]}; put the images into "
            f"{', '.join(map(str, places))}, or take the labels out"
        )


def _document(images: Sequence[Path], folder: Path, names: Mapping[int, str], first: int | None) -> dict[str, Any]:
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        height, width = upright_size(image)
        file_name = image.relative_to(folder).as_posix()
        entries.append({"id": number, "file_name": file_name, "height": height, "width": width})
        label = _label(image)
        for where, values in _objects(label, first) if label.is_file() else ():
            if values[0] not in names:
                raise ValueError(f"{where}: class {values[0]:g} is not one of names, {brief(dict(names))}")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(values[0]) + 1,
                    "iscrowd": 0,
                    **_shape(np.array(values[1:]), width, height),
                }
            )
    categories = [{"id": key + 1, "name": name} for key, name in sorted(names.items())]
    return {"info": {}, "images": entries, "annotations": annotations, "categories": categories}


def _objects(label: Path, first: int | None) -> Iterator[tuple[str, list[float]]]:
    """Yield the place and the numbers of each line, only the ``first`` where keypoints follow."""
    for number, line in enumerate(_lines(label), start=1):
        where = f"{label}, line {number}"
        try:
            values = [float(word) for word in line.split()][:first]
        except ValueError:
            raise ValueError(f"{where}: {brief(line)} holds what is no number; {_LINE}") from None
        if len(values) < 5 or len(values) % 2 == 0:
            raise ValueError(f"{where}: {brief(line)} has {len(values)} numbers; {_LINE}")
        if not all(math.isfinite(value) and -_SLACK <= value <= 1 + _SLACK for value in values[1:]):
            raise ValueError(f"{where}: {brief(line)} has coordinates outside of 0 to 1; {_LINE}")
        yield where, values


def _shape(values: np.ndarray, width: int, height: int) -> dict[str, Any]:
    """The box, area and, of a polygon, segmentation of an object, in pixels."""
    if len(values) == 4:
        x, y, w, h = values * (width, height, width, height)
        return {"bbox": [x - w / 2, y - h / 2, w, h], "area": w * h}
    return polygon_entry(values.reshape(-1, 2) * (width, height))


def polygon_entry(points: np.ndarray) -> dict[str, Any]:
    """Return ``bbox``, ``area`` and ``segmentation`` of a polygon of three or more corners (N, 2), in pixels."""
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    x, y = points.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2  # of a polygon by its corners
    box = [float(value) for value in (left, top, right - left, bottom - top)]
    return {"bbox": box, "area": float(area), "segmentation": [points.reshape(-1).tolist()]}
