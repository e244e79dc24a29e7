"""Pascal VOC annotations (XML) to COCO format."""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from xml.parsers import expat

from resnet_backbone.data.images.files import find_spellings
from resnet_backbone.data.images.media import image_endings, is_hidden
from resnet_backbone.data.images.read import read_image

_MAX_XML_BYTES = 16 << 20  # of one image; an object takes 300
_MAX_XML_DEPTH = 32
_MAX_SIDE = 1_000_000  # pixels
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FLAGS = {"0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
_NOT_STATED = ("", "unspecified")
_WITH_COLUMN = re.compile(r"(.*\S)[ \t]+(?:-1|0|1)")
_DECLARED = re.compile(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?\sencoding\s*=\s*["']([\w.:-]+)["']""")
_MULTI_BYTE = ("gb2312", "gbk", "gb18030", "hz", "big5", "big5hkscs", "cp950", "shift_jis", "cp932", "euc_jp") + (
    "iso2022_jp", "euc_kr", "cp949", "johab",
)  # Python's names; expat has none of them  # fmt: skip


@dataclass(frozen=True)
class VocReport:
    """What one conversion kept, changed and dropped. Every text names the XML file and the object."""

    num_images: int
    num_boxes: int  # kept, difficult ones included
    num_difficult: int
    dropped: tuple[str, ...]  # boxes of no width or height, inverted, or outside the image
    clipped: tuple[str, ...]  # boxes that reached out of the image
    sizes_from_image: tuple[str, ...]  # files whose XML states no size
    notes: tuple[str, ...]  # what was read in a way that may surprise
    image_folder: Path  # that the file names are relative to

    def __str__(self) -> str:
        lines = [f"{self.num_images} images, {self.num_boxes} boxes, {self.num_difficult} of them difficult (iscrowd)"]
        for title, entries in (
            ("dropped", self.dropped),
            ("clipped to the image", self.clipped),
            ("size read from the image", self.sizes_from_image),
            *([("to know", self.notes)] if self.notes else []),
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


class _VocFolder:
    """Where the files of a VOC-style folder lie, and which image belongs to which name."""

    def __init__(self, root: Path, *, annotated: bool = True) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected one with Annotations and JPEGImages in it")
        self.lists = root / "ImageSets" / "Main"
        self.annotations, self.images = root / "Annotations", root / "JPEGImages"
        wanted = (self.annotations, self.images) if annotated else (self.images,)
        missing = [folder.name for folder in wanted if not folder.is_dir()]
        beside = any(path.parent == root for path in _annotation_files(root)) if len(missing) == 2 else False
        if beside and not _has_parts(root.parent):
            self.annotations = self.images = root  # XML files beside the images
        elif missing:
            raise FileNotFoundError(f"{root}: has no folder {' and no '.join(missing)}{_hint(root, missing)}")
        self.notes: list[str] = []
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    @cached_property
    def _annotated(self) -> dict[str, Path]:
        return {_stem(path, self.annotations): path for path in _annotation_files(self.annotations)}

    def annotation(self, stem: str) -> Path:
        if str(Path(stem)) not in self._annotated:
            hint = find_spellings(self.annotations, [f"{stem}.xml"])
            raise FileNotFoundError(f"{self.annotations / stem}.xml: no such annotation file{hint and f'; {hint}'}")
        return self._annotated[str(Path(stem))]

    def images_named(self, stem: str) -> list[Path]:
        """The images of this name, whatever their ending."""
        place = self.images / stem
        if place.parent not in self._listed:
            self._listed[place.parent] = defaultdict(list)
            for path in sorted(place.parent.iterdir()) if place.parent.is_dir() else ():
                if path.suffix.lower() in image_endings() and not is_hidden(path.name):
                    self._listed[place.parent][path.stem].append(path)
        return [path for path in self._listed[place.parent].get(place.name, ()) if path.is_file()]

    def image(self, stem: str, stated: str = "") -> Path:
        """The image of an annotation file.

        Args:
            stem: name of the annotation file without its ending.
            stated: what its ``<filename>`` says. It decides between images of one name, and where there is none.

        Raises:
            FileNotFoundError: there is none.
            ValueError: there are several, and nothing decides between them.
        """
        where = f"{self.images / stem}"
        stated = re.split(r"[/\\]", stated)[-1]
        own = self.images_named(stem)
        alike = self.images_named(str(Path(stem).parent / Path(stated).stem)) if stated else []
        named = [path for path in alike if path.name == stated]
        if named and (named[0] in own or not own):
            if own != named:
                self.notes.append(f"{where}: took {stated}, which <filename> says")
            return named[0]
        if len(own) > 1 or named:
            names = ", ".join(path.name for path in [*own, *named])
            raise ValueError(
                f"{where}: {names} are there, and <filename> is {stated!r}; take out the images that are not meant, or "
                "correct <filename> or the name of the annotation file"
            )
        if not own:
            hint = find_spellings(self.images, [stated or f"{stem}.jpg"])
            hint = hint or f"images end in {' '.join(sorted(image_endings()))}"
            raise FileNotFoundError(f"{where}: no image of that name; {hint}")
        if stated and Path(stem).name.lower() not in (stated.lower(), Path(stated).stem.lower()):
            self.notes.append(f"{where}: took {own[0].name}; <filename> says {stated[:80]!r}, which is not there")
        return own[0]

    def left_out(self, images: Collection[Path]) -> None:
        """Note which images of the folder are not among ``images``."""
        listed = chain.from_iterable(chain.from_iterable(found.values() for found in self._listed.values()))
        others = [path for path in listed if path not in images]
        if others:
            self.notes.append(
                f"{self.images}: left out {len(others)} images without annotation, such as {others[0].name}"
            )

    def stems(self, split: str | None) -> list[str]:
        """Names, without ending, of the images of a split; of all that have an annotation file where it is None."""
        if split is not None:
            return self._listed_stems(split)
        stems = [_stem(path, self.annotations) for path in _annotation_files(self.annotations)]
        hidden = [path.name for path in self.annotations.iterdir() if is_hidden(path.name)]
        if hidden:
            self.notes.append(f"{self.annotations}: left out {len(hidden)} hidden files, such as {min(hidden)}")
        return _checked_names(stems, self.annotations)

    def _listed_stems(self, split: str) -> list[str]:
        path = self.lists / f"{split}.txt"
        if not path.is_file():
            there = sorted(other.stem for other in path.parent.glob("*.txt") if not is_hidden(other.name))
            raise FileNotFoundError(
                f"{path}: no such split file; there are {there}. Without a split, all annotated images are taken"
            )
        data = path.read_bytes()
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        try:
            lines = [line.strip() for line in data.decode(encoding).split("\n") if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not text in UTF-8 ({error}); expected one name of an image a line") from error
        with_column = [match[1] for match in map(_WITH_COLUMN.fullmatch, lines) if match]  # -1, 0, 1 of VOC's classes
        if len(with_column) == len(lines) and not any(map(self._is_known, lines)):
            lines = with_column
        endings = (*image_endings(), ".xml")
        with_ending = [line for line in lines if line.lower().endswith(endings)]
        cut = {line: line.removesuffix(Path(line).suffix) for line in with_ending if not self._is_known(line)}
        stems = [cut.get(line, line) for line in lines]
        kept = [stem for stem in stems if not any(is_hidden(part) and part != ".." for part in Path(stem).parts)]
        if len(kept) < len(stems):
            self.notes.append(f"{path}: left out {len(stems) - len(kept)} hidden files that it lists")
        return _checked_names(kept, path)

    def _is_known(self, name: str) -> bool:
        return str(Path(name)) in self._annotated or bool(self.images_named(name))


def _has_parts(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _hint(root: Path, missing: Sequence[str]) -> str:
    """What to write or do where a folder is not laid out as VOC is."""
    below = [found.parent for pattern in ("*/JPEGImages", "*/*/JPEGImages") for found in sorted(root.glob(pattern))]
    for other in (root.absolute().parent, *below):
        if _has_parts(other):
            return f"; write {other}, which has both"
    there = sorted(entry.name for entry in root.iterdir() if not is_hidden(entry.name))
    alike = [(name, part) for part in missing for name in there if name.lower() == part.lower()]
    if alike:
        return "; " + ", ".join(f"rename {name} to {part}" for name, part in alike)
    return (
        f"; it holds {', '.join(there[:8]) or 'nothing'}. Expected Annotations/NAME.xml and JPEGImages/NAME.jpg, or "
        "both kinds of files side by side"
    )


def _annotation_files(folder: Path) -> list[Path]:
    """All below the folder but hidden ones, sorted."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() == ".xml" and path.is_file())
    return sorted(path for path in files if not any(map(is_hidden, path.relative_to(folder).parts)))


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _checked_names(stems: list[str], source: Path) -> list[str]:
    repeated = sorted(stem for stem, count in Counter(stems).items() if count > 1)
    if not stems or repeated:
        raise ValueError(f"{source}: {f'lists {repeated[:20]} more than once' if repeated else 'lists no image'}")
    for stem in stems:
        if Path(stem).is_absolute() or ".." in Path(stem).parts:
            raise ValueError(f"{source}: {stem!r} points out of the folder; expected the name of an image")
        if len(stem) > 200 or any(unicodedata.category(character) in ("Cc", "Cs") for character in stem):
            raise ValueError(
                f"{source}: {ascii(stem[:200])} has more than 200 characters, or some that are not text in UTF-8; "
                "rename the file"
            )
    return stems


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
    root = Path(root)
    folder = _VocFolder(root)
    stems = folder.stems(split)
    names = list(class_names) if class_names is not None else find_class_names(root)
    if not names and class_names is None:
        raise ValueError(
            f"{folder.annotations}: no annotation file has an object, so the classes are not known; name them"
        )
    if not names or len(set(names)) != len(names):
        raise ValueError(f"class names {names}; expected one or more, each once")
    categories = {name: index for index, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    dropped: list[str] = []
    clipped: list[str] = []
    sizes_from_image: list[str] = []
    owners: dict[Path, str] = {}
    for image_id, stem in enumerate(stems, start=1):
        xml_path = folder.annotation(stem)
        tree = _read_xml(xml_path)
        image_path = folder.image(stem, _text(tree, "filename", xml_path))
        other = owners.setdefault(image_path, xml_path.name)
        if other != xml_path.name:
            raise ValueError(f"{image_path}: {other} and {xml_path.name} are both of this image; correct <filename>")
        size = _stated_size(tree, xml_path)
        if size is None:
            height, width = read_image(image_path).shape[1:]
            sizes_from_image.append(xml_path.name)
        else:
            height, width = size
        file_name = image_path.relative_to(folder.images).as_posix()
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for number, item in enumerate(_objects(tree, xml_path, folder.notes), start=1):
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
    if split is None:
        folder.left_out(owners)
    name = " ".join(filter(None, (root.name, split)))
    document = {
        "info": {"description": f"{name}, converted from Pascal VOC; difficult objects have iscrowd 1"},
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
        notes=tuple(folder.notes),
        image_folder=folder.images,
    )
    return document, report


def find_class_names(root: str | Path) -> list[str]:
    """Sorted class names of every object in the annotation files of ``root``."""
    paths = _annotation_files(_VocFolder(Path(root)).annotations)
    return sorted({item.name for path in paths for item in _objects(_read_xml(path), path, [])})


def voc_images_to_coco(root: str | Path, split: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Convert a split without annotations, such as VOC 2012's test set: images, read for their sizes, and no object.

    Raises:
        FileNotFoundError, ValueError: as :func:`voc_to_coco`.
    """
    root = Path(root)
    folder = _VocFolder(root, annotated=False)
    images = []
    for image_id, stem in enumerate(folder.stems(split), start=1):
        path = folder.image(stem)
        height, width = read_image(path).shape[1:]
        file_name = path.relative_to(folder.images).as_posix()
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    return {
        "info": {"description": f"{root.name} {split}, images only"},
        "images": images,
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)],
    }


def read_split(root: Path, split: str) -> list[str]:
    """Names, without ending, of the images that ``ImageSets/Main/<split>.txt`` lists, one a line.

    Where every line ends in -1, 0 or 1, as in VOC's lists of the classes, that is no part of the name, unless there is
    a file of the whole name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lists none, one twice, or one outside the folder.
    """
    return _VocFolder(root, annotated=False).stems(split)


def _read_xml(path: Path) -> ET.Element:
    """Parse without document type declarations, and so without entities: no file is read and nothing expands."""

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
        builder.start(tag.lower(), {})  # VOC has no attributes; some tools write <Annotation>

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag.lower())

    data, encoding = _decoded(path)
    builder = ET.TreeBuilder()
    parser = expat.ParserCreate(encoding)
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
        tree = builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:  # the latter of an encoding that it declares, too
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: not a well-formed XML file ({error})") from error
    if tree.tag != "annotation":
        raise ValueError(f"{path}: its root is <{tree.tag[:80]}>; expected <annotation> of a Pascal VOC file")
    return tree


def _decoded(path: Path) -> tuple[bytes, str | None]:
    """The bytes of an XML file and their encoding, None for the one that it declares: expat cannot read all of them."""
    data = path.read_bytes()
    declared = _DECLARED.match(data[:1000])
    try:
        name = codecs.lookup(declared[1].decode()).name if declared else ""
    except LookupError:
        return data, None
    if name.startswith("utf-8"):  # expat does not know it as "utf8"
        return data, "utf-8"
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        name = "utf-32"
    elif name.startswith(("utf-16", "utf-32")):  # it is not, as the declaration could be read byte by byte
        return data, "utf-8"
    elif name not in _MULTI_BYTE:
        return data, None
    try:
        return data.decode(name).encode(), "utf-8"
    except UnicodeError as error:
        raise ValueError(f"{path}: is not text in {name}, as it says ({error}); correct its encoding") from error


def _stated_size(tree: ET.Element, path: Path) -> tuple[int, int] | None:
    """(height, width) in pixels, None where it is missing or zero."""
    if not _text(tree, "size/height", path) or not _text(tree, "size/width", path):
        return None
    height, width = (_number(tree, f"size/{key}", path) for key in ("height", "width"))
    if max(height, width) > _MAX_SIDE:
        raise ValueError(f"{path}: states a size of {height:g} x {width:g} pixels (height x width); no image has that")
    return (round(height), round(width)) if height > 0 and width > 0 else None


def _objects(tree: ET.Element, path: Path, notes: list[str]) -> list[_Object]:
    return [
        _Object(
            name=_needed(element, "name", path),
            corners=tuple(_number(element, f"bndbox/{corner}", path) for corner in _CORNERS),
            difficult=_flag(element, "difficult", path, notes),
        )
        for element in tree.findall("object")
    ]


def _flag(element: ET.Element, key: str, path: Path, notes: list[str]) -> bool:
    text = _text(element, key, path).lower().removesuffix(".0")
    if text in _NOT_STATED:
        if element.find(key) is not None:
            notes.append(f"{path.name}: <{key}> is {text!r}, taken as 0")
        return False
    if text not in _FLAGS:
        raise ValueError(f"{path}: <{key}> is {text[:80]!r}; expected 0 or 1 (false, true, no, yes, unspecified)")
    return _FLAGS[text]


def _text(element: ET.Element, key: str, path: Path) -> str:
    """The text of a part, "" where it is missing or empty."""
    found = element.findall(key)
    if len(found) > 1:
        raise ValueError(f"{path}: <{element.tag}> has <{key.replace('/', '><')}> {len(found)} times; expected it once")
    return (found[0].text or "").strip() if found else ""


def _needed(element: ET.Element, key: str, path: Path) -> str:
    text = _text(element, key, path)
    if not text:
        raise ValueError(f"{path}: <{element.tag}> without <{key.replace('/', '><')}>")
    return text


def _number(element: ET.Element, key: str, path: Path) -> float:
    text = _needed(element, key, path)
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
