"""Pascal VOC annotations (XML) to COCO format."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

from resnet_backbone.data.images import read_image

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG", ".BMP")
_MAX_XML_BYTES = 16 << 20  # of one image; an object takes 300
_MAX_XML_DEPTH = 32
_MAX_SIDE = 1_000_000  # pixels
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocReport:
    """What one conversion kept, changed and dropped. Every text names the XML file and the object."""

    num_images: int
    num_boxes: int  # kept, difficult ones included
    num_difficult: int
    dropped: tuple[str, ...]  # boxes of no width or height, inverted, or outside the image
    clipped: tuple[str, ...]  # boxes that reached out of the image
    sizes_from_image: tuple[str, ...]  # files whose XML states no size

    def __str__(self) -> str:
        lines = [f"{self.num_images} images, {self.num_boxes} boxes, {self.num_difficult} of them difficult (iscrowd)"]
        for title, entries in (
            ("dropped", self.dropped),
            ("clipped to the image", self.clipped),
            ("size read from the image", self.sizes_from_image),
        ):
            lines.append(f"{title}: {len(entries)}")
            lines += [f"  {entry}" for entry in entries[:20]]
            if len(entries) > 20:
                lines.append(f"  and {len(entries) - 20} more")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, ...]  # xmin, ymin, xmax, ymax: 1-based pixels, the last ones included
    difficult: bool


def voc_to_coco(
    root: str | Path, split: str, class_names: Sequence[str] | None = None
) -> tuple[dict[str, Any], VocReport]:
    """Convert one split of a VOC-style folder.

    VOC counts pixels from 1 and includes the last one, so ``x = xmin - 1`` and ``w = xmax - xmin + 1``, as Detectron2
    reads VOC. A box with ``xmax <= xmin`` or ``ymax <= ymin`` is a slip of the mouse and dropped. ``difficult`` objects
    become ``iscrowd: 1``: COCO evaluation then ignores them as VOC's does, and training leaves them out.

    Args:
        root: holds ``Annotations/<id>.xml``, ``ImageSets/Main/<split>.txt`` and ``JPEGImages/<id>.jpg`` (.png, .bmp).
        split: such as ``"trainval"``.
        class_names: categories 1..K in this order. None takes the sorted names of *all* XML files of ``root``, so that
            every split gets the same ids.

    Returns:
        The COCO document (``file_name`` relative to ``JPEGImages``, ids from 1 in the order of the split file), and a
        report of what was changed.

    Raises:
        FileNotFoundError: the split file, an XML file or an image is missing.
        ValueError: a file is not a VOC annotation, declares a DTD, or has a class outside ``class_names``.
    """
    root = Path(root)
    names = list(class_names) if class_names is not None else find_class_names(root)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"class names {names}; expected one or more, each once")
    categories = {name: index for index, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    dropped: list[str] = []
    clipped: list[str] = []
    sizes_from_image: list[str] = []
    for image_id, stem in enumerate(read_split(root, split), start=1):
        xml_path = root / "Annotations" / f"{stem}.xml"
        tree = _read_xml(xml_path)
        image_path = _find_image(root, stem)
        size = _stated_size(tree, xml_path)
        if size is None:
            height, width = read_image(image_path).shape[1:]
            sizes_from_image.append(xml_path.name)
        else:
            height, width = size
        file_name = image_path.relative_to(root / "JPEGImages").as_posix()
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for number, item in enumerate(_objects(tree, xml_path), start=1):
            where = f"{xml_path.name}, object {number} ({item.name}) {list(item.corners)}"
            if item.name not in categories:
                raise ValueError(f"{xml_path}: class {item.name!r} of object {number} is not one of {names}")
            box = _clipped_box(item, height, width)
            if box is None:
                dropped.append(where)
                continue
            if box != _plain_box(item):
                clipped.append(where)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": categories[item.name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(item.difficult),
                }
            )
    document = {
        "info": {"description": f"{root.name} {split}, converted from Pascal VOC; difficult objects have iscrowd 1"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for name, index in categories.items()],
    }
    report = VocReport(
        num_images=len(images),
        num_boxes=len(annotations),
        num_difficult=sum(annotation["iscrowd"] for annotation in annotations),
        dropped=tuple(dropped),
        clipped=tuple(clipped),
        sizes_from_image=tuple(sizes_from_image),
    )
    return document, report


def find_class_names(root: str | Path) -> list[str]:
    """Sorted class names of every object in ``root/Annotations/*.xml``."""
    paths = sorted((Path(root) / "Annotations").glob("*.xml"))
    return sorted({item.name for path in paths for item in _objects(_read_xml(path), path)})


def voc_images_to_coco(root: str | Path, split: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Convert a split without annotations, such as VOC 2012's test set: images, read for their sizes, and no object.

    Raises:
        FileNotFoundError, ValueError: as :func:`voc_to_coco`.
    """
    root = Path(root)
    images = []
    for image_id, stem in enumerate(read_split(root, split), start=1):
        path = _find_image(root, stem)
        height, width = read_image(path).shape[1:]
        file_name = path.relative_to(root / "JPEGImages").as_posix()
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    return {
        "info": {"description": f"{root.name} {split}, images only"},
        "images": images,
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)],
    }


def read_split(root: Path, split: str) -> list[str]:
    """Names, without suffix, of the images that ``ImageSets/Main/<split>.txt`` lists.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lists none, one twice, or one outside the folder.
    """
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.txt"))
        raise FileNotFoundError(f"{path}: no such split file; there are {there}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not text in UTF-8 ({error}); expected one name of an image a line") from error
    stems = [line.split()[0] for line in lines if line.strip()]
    repeated = sorted(stem for stem, count in Counter(stems).items() if count > 1)
    if not stems or repeated:
        raise ValueError(f"{path}: {f'lists {repeated[:20]} more than once' if repeated else 'lists no image'}")
    for stem in stems:
        if Path(stem).is_absolute() or ".." in Path(stem).parts or not stem.isprintable() or len(stem) > 200:
            raise ValueError(f"{path}: {stem!r} points out of the folder; expected the name of an image without suffix")
    return stems


def _read_xml(path: Path) -> ET.Element:
    """Parse without document type declarations, and so without entities: no file is read and nothing expands."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")

    def refuse(*_: object) -> None:
        raise ValueError(
            f"{path}: declares a document type, which VOC files do not have; refused, as it can hide an attack"
        )

    if path.stat().st_size > _MAX_XML_BYTES:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes; the annotation of one image has fewer")
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_XML_DEPTH:
            raise ValueError(f"{path}: its elements are nested more than {_MAX_XML_DEPTH} deep, those of VOC are 4")
        builder.start(tag, {})  # VOC has no attributes

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    builder = ET.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
        tree = builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter of an encoding that it declares, too
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: not a well-formed XML file ({error})") from error
    if tree.tag != "annotation":
        raise ValueError(f"{path}: its root is <{tree.tag[:80]}>; expected <annotation> of a Pascal VOC file")
    return tree


def _find_image(root: Path, stem: str) -> Path:
    for suffix in _IMAGE_SUFFIXES:
        path = root / "JPEGImages" / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise FileNotFoundError(f"{root / 'JPEGImages' / stem}: no image with one of {', '.join(_IMAGE_SUFFIXES[:4])}")


def _stated_size(tree: ET.Element, path: Path) -> tuple[int, int] | None:
    """(height, width) in pixels, None where it is missing or zero."""
    if not tree.findtext("size/height", "").strip() or not tree.findtext("size/width", "").strip():
        return None
    height, width = (_number(tree, f"size/{key}", path) for key in ("height", "width"))
    if max(height, width) > _MAX_SIDE:
        raise ValueError(f"{path}: states a size of {height:g} x {width:g} pixels (height x width); no image has that")
    return (round(height), round(width)) if height > 0 and width > 0 else None


def _objects(tree: ET.Element, path: Path) -> list[_Object]:
    return [
        _Object(
            name=_text(element, "name", path),
            corners=tuple(_number(element, f"bndbox/{corner}", path) for corner in _CORNERS),
            difficult=element.findtext("difficult", "0").strip() == "1",
        )
        for element in tree.findall("object")
    ]


def _text(element: ET.Element, key: str, path: Path) -> str:
    text = element.findtext(key, "").strip()
    if not text:
        raise ValueError(f"{path}: <{element.tag}> without <{key.replace('/', '><')}>")
    return text


def _number(element: ET.Element, key: str, path: Path) -> float:
    text = _text(element, key, path)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}: <{key.replace('/', '><')}> is {text[:80]!r}; expected a number of pixels")
    return value


def _plain_box(item: _Object) -> list[float]:
    xmin, ymin, xmax, ymax = item.corners
    return [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]


def _clipped_box(item: _Object, height: int, width: int) -> list[float] | None:
    xmin, ymin, xmax, ymax = item.corners
    x1, x2 = max(xmin - 1, 0.0), min(xmax, float(width))
    y1, y2 = max(ymin - 1, 0.0), min(ymax, float(height))
    if xmax <= xmin or ymax <= ymin or x2 <= x1 or y2 <= y1:
        return None
    return [x1, y1, x2 - x1, y2 - y1]
