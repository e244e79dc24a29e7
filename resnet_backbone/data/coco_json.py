"""A COCO-format JSON file, checked entry by entry and kept as a few arrays."""

from __future__ import annotations

import gc
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.data.masks import usable_segmentation
from resnet_backbone.data.packed import PackedBytes

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Image:
    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class _Instance:
    box: tuple[float, float, float, float]  # x1 y1 x2 y2, pixels
    label: int
    is_crowd: bool
    segmentation: bytes  # JSON text, empty where masks are not wanted


def read_coco_json(path: Path, *, training: bool, with_masks: bool) -> CocoAnnotations:
    """Read, check and pack a COCO-format instance file.

    Boxes are clipped to their image. A box without area after that is dropped, and so is, ``with_masks``, an instance
    without a polygon of three points; both are counted in a warning. ``training`` leaves out crowd regions as well,
    and then every image without an annotation (counted in the log). ``iscrowd`` may be missing and means 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not COCO-format JSON, or nothing is left to train on.
    """
    with _garbage_collector_off():
        return _read_coco_json(path, training, with_masks)


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """Millions of objects come and go here, none of them in a cycle; looking for cycles takes half of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_coco_json(path: Path, training: bool, with_masks: bool) -> CocoAnnotations:
    document = _read_document(path, with_masks)
    names = _categories(document["categories"], path)
    labels = {category_id: label for label, category_id in enumerate(names)}
    images = _images(document["images"], path)
    by_id = {image.id: image for image in images}

    instances: dict[int, list[_Instance]] = defaultdict(list)
    dropped: Counter[str] = Counter()
    for index, entry in enumerate(document["annotations"]):
        where = f"{path}: annotations[{index}]"
        image = _image_of(entry, by_id, where)
        if (label := labels.get(_field(entry, "category_id", int, where))) is None:
            raise ValueError(
                f"{where} has category_id {entry['category_id']}, which is not in categories ({list(labels)})"
            )
        instance = _instance(entry, image, label, where, training, with_masks, dropped)
        if instance is not None:
            instances[image.id].append(instance)

    if dropped:
        counts = ", ".join(f"{number} {reason}" for reason, number in sorted(dropped.items()))
        logger.warning("%s: left out of %d annotations: %s", path, len(document["annotations"]), counts)
    if training:
        used = [image for image in images if image.id in instances]
        if len(used) < len(images):
            logger.info(
                "%s: %d of %d images have no usable box and are not trained on",
                path,
                len(images) - len(used),
                len(images),
            )
        if not used:
            raise ValueError(f"{path}: none of its {len(images)} images has a usable box; there is nothing to train on")
        images = used
    return _pack(names, images, instances, with_masks)


def _read_document(path: Path, with_masks: bool) -> dict[str, list[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        document = json.loads(_text(path), object_hook=None if with_masks else _empty_segmentation)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(document).__name__}; is it a results file?")
    for key in ("images", "annotations", "categories"):
        if not isinstance(document.get(key), list):
            found = f"keys {sorted(document)}" if key not in document else type(document[key]).__name__
            raise ValueError(f'{path}: a COCO file needs a list "{key}", found {found}')
    for key in ("images", "categories"):
        if not document[key]:
            raise ValueError(f'{path}: its list "{key}" is empty')
    return document


def _text(path: Path) -> str:
    """Decode as ``json.loads`` does, which holds the bytes, too, until its end."""
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data), "surrogatepass")


def _empty_segmentation(entry: dict[str, Any]) -> dict[str, Any]:
    """Polygons are most of a file, and need ten times its size as Python objects."""
    if "segmentation" in entry:
        entry["segmentation"] = None
    return entry


def _categories(entries: list[Any], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        category_id = _field(entry, "id", int, where)
        if category_id in names:
            raise ValueError(f"{where} repeats id {category_id}")
        names[category_id] = _field(entry, "name", str, where)
    return dict(sorted(names.items()))


def _images(entries: list[Any], path: Path) -> list[_Image]:
    images: dict[int, _Image] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        image = _Image(
            id=_field(entry, "id", int, where),
            file_name=_field(entry, "file_name", str, where),
            height=_field(entry, "height", int, where),
            width=_field(entry, "width", int, where),
        )
        if image.height <= 0 or image.width <= 0:
            raise ValueError(
                f"{where} ({image.file_name}) has height {image.height} and width {image.width}; expected pixels"
            )
        if image.id in images:
            raise ValueError(f"{where} ({image.file_name}) repeats id {image.id} of {images[image.id].file_name}")
        images[image.id] = image
    return [images[image_id] for image_id in sorted(images)]


def _image_of(entry: Any, by_id: dict[int, _Image], where: str) -> _Image:
    image_id = _field(entry, "image_id", int, where)
    if image_id not in by_id:
        raise ValueError(f"{where} is of image_id {image_id}, which is not in images")
    return by_id[image_id]


def _instance(
    entry: dict[str, Any],
    image: _Image,
    label: int,
    where: str,
    training: bool,
    with_masks: bool,
    dropped: Counter[str],
) -> _Instance | None:
    is_crowd = entry.get("iscrowd", 0)
    if is_crowd not in (0, 1):
        raise ValueError(f"{where} has iscrowd {is_crowd!r}; expected 0 or 1")
    box = _clip(_box(entry, where), image)
    if training and is_crowd:
        return None
    if box[2] <= box[0] or box[3] <= box[1]:
        dropped["without area inside the image"] += 1
        return None
    segmentation = b""
    if with_masks:
        if "segmentation" not in entry:
            raise ValueError(
                f'{where} has no "segmentation" (it has {sorted(entry)}), which instance masks need; '
                f"for boxes alone write MODEL.MASK_ON: False"
            )
        value = usable_segmentation(
            _field(entry, "segmentation", (list, dict), where), image.height, image.width, where
        )
        if value is None:
            dropped["without a polygon of three points"] += 1
            return None
        segmentation = json.dumps(value, separators=(",", ":")).encode()
    return _Instance(box, label, bool(is_crowd), segmentation)


def _box(entry: dict[str, Any], where: str) -> list[float]:
    box = _field(entry, "bbox", list, where)
    if len(box) != 4 or not all(type(value) in (int, float) and math.isfinite(value) for value in box):
        raise ValueError(f"{where} has bbox {box}; expected [x, y, width, height] in pixels")
    return box


def _clip(box: list[float], image: _Image) -> tuple[float, float, float, float]:
    """``[x, y, width, height]`` to corners inside the image, in the precision they are kept in."""
    x, y, width, height = box
    x1, x2 = (min(max(value, 0.0), image.width) for value in (x, x + width))
    y1, y2 = (min(max(value, 0.0), image.height) for value in (y, y + height))
    return float(np.float32(x1)), float(np.float32(y1)), float(np.float32(x2)), float(np.float32(y2))


def _field(entry: Any, key: str, types: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {type(entry).__name__}; expected an object")
    if key not in entry:
        raise ValueError(f'{where} has no "{key}" (it has {sorted(entry)})')
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, types):
        expected = " or ".join(t.__name__ for t in (types if isinstance(types, tuple) else (types,)))
        raise ValueError(f'{where} has "{key}" {value!r} ({type(value).__name__}); expected {expected}')
    return value


def _pack(
    names: dict[int, str], images: list[_Image], instances: dict[int, list[_Instance]], with_masks: bool
) -> CocoAnnotations:
    per_image = [instances.get(image.id, []) for image in images]

    def every() -> Iterator[_Instance]:
        return (instance for group in per_image for instance in group)

    return CocoAnnotations(
        category_ids=tuple(names),
        class_names=tuple(names.values()),
        image_ids=np.array([image.id for image in images], dtype=np.int64),
        sizes=np.array([(image.height, image.width) for image in images], dtype=np.int64),
        file_names=PackedBytes(image.file_name.encode() for image in images),
        first=np.cumsum([0, *map(len, per_image)], dtype=np.int64),
        boxes=np.array([instance.box for instance in every()], dtype=np.float32).reshape(-1, 4),
        labels=np.array([instance.label for instance in every()], dtype=np.int64),
        is_crowd=np.array([instance.is_crowd for instance in every()], dtype=bool),
        segmentations=PackedBytes(instance.segmentation for instance in every()) if with_masks else None,
    )
