"""Pascal VOC annotations (XML) to COCO format."""

from __future__ import annotations

import codecs
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_backbone.data.images.read import read_image
from resnet_backbone.data.prepare.voc_folder import VocFolder

_MAX_XML_BYTES = 16 << 20  # of one image; an object takes 300
_MAX_XML_DEPTH = 32
_MAX_SIDE = 1_000_000  # pixels
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
_FLAGS |= {"": False, "unspecified": False}
_NOT_OF_FILES = ("utf-7", "unicode-escape", "raw-unicode-escape", "idna", "punycode")  # ASCII would mean other text
_DECLARED = re.compile(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")


@dataclass(frozen=True)
class VocReport:
    """What one conversion kept, changed and dropped. Every text names the XML file and the object."""

    num_images: int
    num_boxes: int  # kept, difficult ones included
    num_difficult: int
    dropped: tuple[str, ...]  # boxes of no width or height, inverted, or outside the image
    clipped: tuple[str, ...]  # boxes that reached out of the image
    image_folder: Path  # that the file names are relative to

    def __str__(self) -> str:
        lines = [f"{self.num_images} images, {self.num_boxes} boxes, {self.num_difficult} of them difficult (iscrowd)"]
        for title, entries in {"dropped": self.dropped, "clipped to the image": self.clipped}.items():
            lines.append(f"{title}: {len(entries)}")
            lines += [f"  {entry}" for entry in entries[:20]]
            if len(entries) > 20:
                lines.append(f"  and {len(entries) - 20} more")
        return "\n".join(lines)


def voc_to_coco(
    root: str | Path, split: str | None, class_names: Sequence[str] | None = None
) -> tuple[dict[str, Any], VocReport]:
    """Convert one split of a VOC-style folder.

    VOC counts pixels from 1 and includes the last one, so ``x = xmin - 1`` and ``w = xmax - xmin + 1``, as Detectron2
    reads VOC. A box with ``xmax <= xmin`` or ``ymax <= ymin`` is a slip of the mouse and dropped. ``difficult`` objects
    become ``iscrowd: 1``: COCO evaluation then ignores them as VOC's does, and training leaves them out.

    Args:
        root: holds ``Annotations/<id>.xml``, ``ImageSets/Main/<split>.txt`` and ``JPEGImages/<id>.jpg`` (or of any
            format that is read); or the XML files beside the images.
        split: such as ``"trainval"``; None takes every image that has an annotation file.
        class_names: categories 1..K in this order. None takes the sorted names of *all* XML files of ``root``, so that
            every split gets the same ids.

    Returns:
        The COCO document (``file_name`` relative to the report's ``image_folder``, ids from 1 in the order of the split
        file), and a report of what was changed.

    Raises:
        FileNotFoundError: the folder, one of its parts, the split file, an XML file or an image is missing.
        ValueError: a file is not a VOC annotation, declares a DTD, or has a class outside ``class_names``; nothing says
            which image an XML file is of.
    """
    folder = VocFolder(Path(root))
    stems = folder.stems(split)
    names = list(class_names) if class_names is not None else find_class_names(folder)
    title = " ".join(filter(None, (folder.root.name, split)))
    description = f"{title}, converted from Pascal VOC; difficult objects have iscrowd 1"
    document, report, owners = stems_to_coco(folder, stems, names, description)
    if split is None:
        folder.warn_of_left_out(owners)
    return document, report


def stems_to_coco(
    folder: VocFolder, stems: Sequence[str], names: Sequence[str], description: str, *, first_pixel: int = 1
) -> tuple[dict[str, Any], VocReport, dict[Path, str]]:
    """Do what :func:`voc_to_coco` does, corners being counted from ``first_pixel``; also return each image's XML."""
    if not names or len(set(names)) != len(names):
        why = "" if names else f"no annotation file in {folder.annotations} has an object: "
        raise ValueError(f"{why}class names {names}; expected one or more, each once")
    category_ids = {name: index for index, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    dropped, clipped = [], []
    owners: dict[Path, str] = {}
    for stem in stems:
        xml = _Annotation(folder.annotation(stem))
        image_path = folder.image(stem, xml.text("filename"))
        other = owners.setdefault(image_path, xml.path.name)
        if other != xml.path.name:
            raise ValueError(f"{image_path}: {other} and {xml.path.name} are both of this image; correct <filename>")
        images.append(_image(len(images) + 1, image_path, folder, xml.size()))
        for number, (name, corners, difficult) in enumerate(xml.objects(), start=1):
            if name not in category_ids:
                raise ValueError(f"{xml.path}: class {name!r} of object {number} is not one of {names}")
            where = f"{xml.path.name}, object {number} ({name}) {list(corners)}"
            corners = tuple(corner + 1 - first_pixel for corner in corners)
            box = _clipped_box(corners, images[-1]["height"], images[-1]["width"])
            if box is None:
                dropped.append(where)
                continue
            if box != _box(corners):
                clipped.append(where)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[-1]["id"],
                    "category_id": category_ids[name],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(difficult),
                }
            )
    report = VocReport(
        num_images=len(images),
        num_boxes=len(annotations),
        num_difficult=sum(annotation["iscrowd"] for annotation in annotations),
        dropped=tuple(dropped),
        clipped=tuple(clipped),
        image_folder=folder.images,
    )
    return _document(description, images, annotations, names), report, owners


def find_class_names(folder: VocFolder) -> list[str]:
    """Sorted class names of every object in the annotation files of ``folder``."""
    return sorted({name for path in folder.annotation_files for name, _, _ in _Annotation(path).objects()})


def voc_images_to_coco(root: str | Path, split: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Convert a split without annotations, such as VOC 2012's test set: images, read for their sizes, and no object.

    Raises:
        FileNotFoundError, ValueError: as :func:`voc_to_coco`.
    """
    folder = VocFolder(Path(root), annotated=False)
    images = [_image(index, folder.image(stem), folder) for index, stem in enumerate(folder.stems(split), start=1)]
    return _document(f"{Path(root).name} {split}, images only", images, [], class_names)


def _image(index: int, path: Path, folder: VocFolder, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """COCO's entry of an image; its size is read from the file where none is given."""
    height, width = size or read_image(path).shape[1:]
    return {"id": index, "file_name": path.relative_to(folder.images).as_posix(), "height": height, "width": width}


def _document(
    description: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]], names: Sequence[str]
) -> dict[str, Any]:
    return {
        "info": {"description": description},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, start=1)],
    }


def _read_xml(path: Path) -> ET.Element:
    """Parse without document type declarations, and so without entities: no file is read and nothing expands."""
    if path.stat().st_size > _MAX_XML_BYTES:
        raise ValueError(f"{path}: has {path.stat().st_size:,} bytes; the annotation of one image has fewer")
    parser = ET.XMLParser(target=_Builder(path))
    text = _read_text(path)
    try:
        parser.feed(text)
        root: ET.Element = parser.close()
    except (ET.ParseError, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: not a well-formed XML file ({error})") from error
    if root.tag != "annotation":
        raise ValueError(f"{path}: its root is <{root.tag[:80]}>; expected <annotation> of a Pascal VOC file")
    return root


def _read_text(path: Path) -> str:
    """The text of an XML file in the encoding that it declares: the parser itself knows few of them."""
    data = path.read_bytes()
    declared = _DECLARED.match(data[:1000])
    encoding = declared[1].decode() if declared else "utf-8"
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        encoding = "utf-32"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data[:2] in (b"<\0", b"\0<"):
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    elif encoding.lower().startswith(("utf8", "utf-8", "utf_8", "utf-16", "utf-32")):
        encoding = "utf-8-sig"  # also of the others, as the declaration could be read byte by byte
    try:
        if codecs.lookup(encoding).name in _NOT_OF_FILES:
            raise LookupError("no encoding of files")
        return data.decode(encoding)
    except (LookupError, UnicodeError) as error:
        raise ValueError(f"{path}: is not text in {encoding} ({error}); correct its encoding") from error


class _Builder(ET.TreeBuilder):
    """Elements with names in lower case, as some tools write <Annotation>, and without attributes, as VOC has none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> ET.Element:
        self._depth += 1
        if self._depth > _MAX_XML_DEPTH:
            raise ValueError(f"{self._path}: its elements are nested more than {_MAX_XML_DEPTH} deep, VOC's are 4")
        return super().start(_local_name(tag), {})

    def end(self, tag: str) -> ET.Element:
        self._depth -= 1
        return super().end(_local_name(tag))

    def doctype(self, *_: str | None) -> None:
        raise ValueError(f"{self._path}: declares a document type, which VOC files do not have, and attacks do")


def _local_name(tag: str) -> str:
    return tag.rpartition("}")[2].lower()  # {namespace}Name


class _Annotation:
    """One XML file. Every error of its methods is a ValueError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = _read_xml(path)

    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels, None where it is missing or zero."""
        if not self.text("size/height") or not self.text("size/width"):
            return None
        height, width = (self._number(f"size/{key}", self._root) for key in ("height", "width"))
        if max(height, width) > _MAX_SIDE:
            raise ValueError(f"{self.path}: states a size of {height:g} x {width:g} pixels; no image has that")
        return (round(height), round(width)) if height > 0 and width > 0 else None

    def objects(self) -> list[tuple[str, tuple[float, ...], bool]]:
        """Name of the class, corners and whether it is difficult, of every object.

        Corners are xmin, ymin, xmax, ymax: pixels counted from 1, the last ones included.
        """
        return [
            (
                self._needed("name", element),
                tuple(self._number(f"bndbox/{corner}", element) for corner in _CORNERS),
                self._is_difficult(element),
            )
            for element in self._root.findall("object")
        ]

    def text(self, key: str, element: ET.Element | None = None) -> str:
        """The text of a part of an element, by default of the root; "" where it is missing or empty."""
        element = self._root if element is None else element
        found = element.findall(key)
        if len(found) > 1:
            raise ValueError(f"{self.path}: <{element.tag}> has {_tags(key)} {len(found)} times; expected it once")
        return (found[0].text or "").strip() if found else ""

    def _needed(self, key: str, element: ET.Element) -> str:
        text = self.text(key, element)
        if not text:
            raise ValueError(f"{self.path}: <{element.tag}> without {_tags(key)}")
        return text

    def _number(self, key: str, element: ET.Element) -> float:
        text = self._needed(key, element)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{self.path}: {_tags(key)} is {text[:80]!r}; expected a number of pixels")
        return value

    def _is_difficult(self, element: ET.Element) -> bool:
        text = self.text("difficult", element).lower().removesuffix(".0")
        if text not in _FLAGS:
            raise ValueError(
                f"{self.path}: <difficult> is {text[:80]!r}; expected 0 or 1 (false, true, no, yes, unspecified)"
            )
        return _FLAGS[text]


def _tags(key: str) -> str:
    return f"<{key.replace('/', '><')}>"


def _box(corners: Sequence[float]) -> list[float]:
    """x, y, width and height, counted from 0."""
    xmin, ymin, xmax, ymax = corners
    return [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]


def _clipped_box(corners: Sequence[float], height: int, width: int) -> list[float] | None:
    """The part of a box inside the image; None where there is none, or the corners are in the wrong order."""
    xmin, ymin, xmax, ymax = corners
    x1, x2 = max(xmin - 1, 0.0), min(xmax, float(width))
    y1, y2 = max(ymin - 1, 0.0), min(ymax, float(height))
    if xmax <= xmin or ymax <= ymin or x2 <= x1 or y2 <= y1:
        return None
    return [x1, y1, x2 - x1, y2 - y1]
