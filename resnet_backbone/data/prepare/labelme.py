"""labelme's JSON files, one an image, to COCO format: polygons, rectangles, circles, and boxes of masks."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.data.images.read import upright_size
from resnet_backbone.data.prepare.yolo import polygon_entry
from resnet_backbone.files.text import brief

_FEWEST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}
_EXPECTED = f"expected label, points [[X, Y], ...] and shape_type, one of {', '.join(_FEWEST_POINTS)}"


def read_labelme(files: Mapping[Path, Mapping[str, Any]], names: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """Convert files of labelme; each has its image where ``imagePath`` says, from the file on, or beside it.

    Args:
        files: path and content.
        names: of the K classes, whose ids are 1 to K.

    Returns:
        The COCO document, and the folder that its file names start at.

    Raises:
        FileNotFoundError: an image that is not there.
        ValueError: a shape that has no area, or is malformed, or an image of another size than its file says.
        OSError: an image cannot be read.
    """
    images = [_image(path, content) for path, content in files.items()]
    folder = Path(os.path.commonpath([image.parent for image in images]))
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (image, (path, content)) in enumerate(zip(images, files.items(), strict=True), start=1):
        height, width = upright_size(image)
        said = content.get("imageHeight") or height, content.get("imageWidth") or width
        if said != (height, width):
            raise ValueError(f"{path}: says {said[1]} x {said[0]} pixels, and {image} has {width} x {height}")
        file_name = image.relative_to(folder).as_posix()
        entries.append({"id": number, "file_name": file_name, "height": height, "width": width})
        for label, entry in _objects(path, content["shapes"]):
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(label) + 1}
            annotations.append({**ids, "iscrowd": 0, **entry})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"info": {}, "images": entries, "annotations": annotations, "categories": categories}, folder


def labels_of(path: Path, content: Mapping[str, Any]) -> set[str]:
    """Return the names of the classes of a file; ValueError where it is malformed."""
    shapes = content["shapes"]
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError(f"{path}: shapes is {brief(shapes)}; expected a list, and in it {_EXPECTED}")
    if wrong := [shape for shape in shapes if not isinstance(shape.get("label"), str) or not shape["label"]]:
        raise ValueError(f"{path}: a shape has the label {brief(wrong[0].get('label'))}; {_EXPECTED}")
    return {shape["label"] for shape in shapes}


def _image(path: Path, content: Mapping[str, Any]) -> Path:
    name = str(content["imagePath"]).replace("\\", "/")
    tried = [Path(os.path.normpath(path.parent / name)), path.parent / Path(name).name]
    if (image := next((one for one in tried if one.is_file()), None)) is None:
        raise FileNotFoundError(f"{path}: imagePath is {brief(name)}, and there is no image {tried[0]}")
    return image


def _objects(path: Path, shapes: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each object's label and entry; shapes of one label and ``group_id`` are the parts of one."""
    parts: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        group = shape.get("group_id")
        parts[shape["label"], ("alone", number) if group is None else ("group", str(group))].append(_entry(path, shape))
    return [(label, _joined(entries)) for (label, _), entries in parts.items()]


def _entry(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.array(shape.get("points"), dtype=float).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.empty((0, 2))
    if kind not in _FEWEST_POINTS or len(points) < _FEWEST_POINTS[kind] or not np.isfinite(points).all():
        what = f"a {brief(kind)} with the points {brief(shape.get('points'))}"
        raise ValueError(f"{path}: {brief(shape['label'])} is {what}; {_EXPECTED}")
    if kind == "polygon":
        return polygon_entry(points)
    if kind == "circle":  # its centre, and a point of the line
        radius = np.linalg.norm(points[1] - points[0])
        points = np.array([points[0] - radius, points[0] + radius])
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}


def _joined(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    boxes = np.array([entry["bbox"] for entry in entries])
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
    joined = {"bbox": [left, top, right - left, bottom - top], "area": sum(entry["area"] for entry in entries)}
    if all("segmentation" in entry for entry in entries):
        joined["segmentation"] = [polygon for entry in entries for polygon in entry["segmentation"]]
    return joined
