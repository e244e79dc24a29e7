"""The files of a folder in Pascal VOC's layout: annotations, images, lists of images, and which belong together."""

from __future__ import annotations

import codecs
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

from resnet_backbone.data.images.files import find_spellings
from resnet_backbone.data.images.media import image_endings, is_hidden

logger = logging.getLogger(__name__)

_PARTS = ("Annotations", "JPEGImages", "ImageSets/Main")  # annotations, images and lists of images
_WITH_COLUMN = re.compile(r"(.*\S)[ \t]+-?\d{1,9}")


class VocFolder:
    """Where the files of a VOC-style folder lie, and which image belongs to which name."""

    def __init__(self, root: Path, *, annotated: bool = True, parts: Sequence[str] = _PARTS) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder; expected one with Annotations and JPEGImages in it")
        self.root = root
        self.annotations, self.images, self.lists = (root / part for part in parts)
        wanted = (self.annotations, self.images) if annotated else (self.images,)
        missing = [folder.name for folder in wanted if not folder.is_dir()]
        beside = any(path.parent == root for path in _annotation_files(root)) if len(missing) == 2 else False
        if beside and not _has_parts(root.parent):
            self.annotations = self.images = root  # XML files beside the images
        elif missing:
            raise FileNotFoundError(f"{root}: has no folder {' and no '.join(missing)}{_hint(root)}")
        self._listed: dict[Path, dict[str, list[Path]]] = {}

    @cached_property
    def annotation_files(self) -> list[Path]:
        """All of them but hidden ones, sorted."""
        return _annotation_files(self.annotations)

    @cached_property
    def _annotated(self) -> dict[str, Path]:
        return {self._stem(path): path for path in self.annotation_files}

    def _stem(self, annotation: Path) -> str:
        return annotation.relative_to(self.annotations).with_suffix("").as_posix()

    def has_annotation(self, stem: str) -> bool:
        return str(Path(stem)) in self._annotated

    def annotation(self, stem: str) -> Path:
        if not self.has_annotation(stem):
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
        """The image of an annotation file; its ``<filename>``, ``stated``, decides between several or instead of none.

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
                logger.warning("%s: took %s, which <filename> says", where, stated)
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
            logger.warning("%s: took %s; <filename> says %r, which is not there", where, own[0].name, stated[:80])
        return own[0]

    def warn_of_left_out(self, images: Collection[Path]) -> None:
        """Log how many images of the folder are not among ``images``."""
        listed = chain.from_iterable(chain.from_iterable(found.values() for found in self._listed.values()))
        others = [path for path in listed if path not in images]
        if others:
            message = "%s: left out %d images without annotation, such as %s"
            logger.warning(message, self.images, len(others), others[0].name)

    def stems(self, split: str | None) -> list[str]:
        """Names, without ending, of the images of a split; of all that have an annotation file where it is None.

        Where every line ends in a whole number, as in VOC's lists of the classes (-1, 0 or 1) and in ILSVRC's, that is
        no part of the name, unless there is a file of the name with it.

        Raises:
            FileNotFoundError: there is no such split.
            ValueError: it lists none, one twice, or one outside the folder.
        """
        if split is not None:
            return self._listed_stems(split)
        return _checked_names([self._stem(path) for path in self.annotation_files], self.annotations)

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
        with_column = [match[1] for match in map(_WITH_COLUMN.fullmatch, lines) if match]
        if len(with_column) == len(lines) and not any(map(self._is_known, lines)):
            lines = with_column
        endings = (*image_endings(), ".xml")
        with_ending = [line for line in lines if line.lower().endswith(endings)]
        cut = {line: line.removesuffix(Path(line).suffix) for line in with_ending if not self._is_known(line)}
        stems = [cut.get(line, line) for line in lines]
        shown = [stem for stem in stems if not any(is_hidden(part) for part in stem.split("/") if part.strip("."))]
        return _checked_names(shown, path)

    def _is_known(self, name: str) -> bool:
        return self.has_annotation(name) or bool(self.images_named(name))


def _has_parts(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def _hint(root: Path) -> str:
    """What to write or do where a folder is not laid out as VOC is."""
    below = [found.parent for pattern in ("*/JPEGImages", "*/*/JPEGImages") for found in sorted(root.glob(pattern))]
    if other := next(filter(_has_parts, (root.absolute().parent, *below)), None):
        return f"; write {other}, which has both"
    there = sorted(entry.name for entry in root.iterdir() if not is_hidden(entry.name))
    return (
        f"; it holds {', '.join(there[:8]) or 'nothing'}. Expected Annotations/NAME.xml and JPEGImages/NAME.jpg, or "
        "both kinds of files side by side"
    )


def _annotation_files(folder: Path) -> list[Path]:
    """All below the folder but hidden ones, sorted."""
    files = (path for path in folder.rglob("*") if path.suffix.lower() == ".xml" and path.is_file())
    return sorted(path for path in files if not any(map(is_hidden, path.relative_to(folder).parts)))


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
