"""The files of a folder in Pascal VOC's layout: annotations, images, lists of images, and which belong together."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

from resnet_backbone.data.images.files import find_spellings
from resnet_backbone.data.images.media import image_endings, is_hidden

_WITH_COLUMN = re.compile(r"(.*\S)[ \t]+(?:-1|0|1)")


class VocFolder:
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
    def annotation_files(self) -> list[Path]:
        """All of them but hidden ones, sorted."""
        return _annotation_files(self.annotations)

    @cached_property
    def _annotated(self) -> dict[str, Path]:
        return {self._stem(path): path for path in self.annotation_files}

    def _stem(self, annotation: Path) -> str:
        return annotation.relative_to(self.annotations).with_suffix("").as_posix()

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

    def note_left_out(self, images: Collection[Path]) -> None:
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
        stems = [self._stem(path) for path in self.annotation_files]
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
        kept = [stem for stem in stems if not any(is_hidden(part) for part in stem.split("/") if part.strip("."))]
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


def read_split(root: Path, split: str) -> list[str]:
    """Names, without ending, of the images that ``ImageSets/Main/<split>.txt`` lists, one a line.

    Where every line ends in -1, 0 or 1, as in VOC's lists of the classes, that is no part of the name, unless there is
    a file of the whole name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lists none, one twice, or one outside the folder.
    """
    return VocFolder(root, annotated=False).stems(split)
