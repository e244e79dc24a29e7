"""The image files of a data set: which are missing, and which are in another set, too."""

from __future__ import annotations

import html
import os
import posixpath
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from resnet_backbone.data.coco.findings import Example, Finding, find, printable
from resnet_backbone.data.images.media import image_endings


@dataclass(frozen=True)
class ImageFiles:
    """N images of a data set."""

    folder: Path
    file_names: Sequence[str]  # N, below the folder
    image_ids: np.ndarray  # int64 (N,)
    sizes: np.ndarray  # int64 (N, 2), height and width in pixels as the annotation file states them

    def __len__(self) -> int:
        return len(self.file_names)

    def path(self, row: int) -> Path:
        """Where the image lies."""
        return self.folder / self.file_names[row]

    def without(self, rows: Sequence[int]) -> ImageFiles:
        """Return the others."""
        kept = np.setdiff1d(np.arange(len(self)), rows)
        return ImageFiles(self.folder, [self.file_names[row] for row in kept], self.image_ids[kept], self.sizes[kept])

    def example(self, row: int, text: str, twin: Path | None = None) -> Example:
        """Describe an image for a finding."""
        return Example(text, int(self.image_ids[row]), self.file_names[row], twin=twin)


def find_missing_images(files: ImageFiles) -> tuple[list[Finding], list[int]]:
    """Find images that are not in the folder; folders are listed, and no image is opened.

    Returns:
        The finding, and the rows that are meant.
    """
    listed = cache(_regular_files)
    missing = [row for row in range(len(files)) if files.path(row).name not in listed(files.path(row).parent)]
    note = find_spellings(files.folder, [files.file_names[row] for row in missing]) if missing else ""
    if len(missing) == len(files) and not note:
        note = f"not one of them is there: is {files.folder} their folder?"
    found = find("missing_image", missing, len(files), lambda row: files.example(row, str(files.path(row))), note=note)
    return found, missing


def find_spellings(folder: Path, names: Sequence[str]) -> str:
    """Say under which other spellings files that are not there are found below a folder, each with an example.

    Tried are those of ``_CHANGES``, alone and together, with all folders in the name or fewer, and with each of them
    those of ``_LOOKUPS``.

    Returns:
        "" where none is found.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not all(map(str.isascii, names)):
        return f"names of files are {encoding} by this machine's locale: try it with PYTHONUTF8=1 in the environment"
    listed = list(islice(_files_below(folder), MAX_LISTED))
    indexes = []
    for how, key in _LOOKUPS.items():
        index: dict[str, list[str]] = defaultdict(list)
        for path in listed:
            index[key(path)].append(path)
        indexes.append((how, key, index))
    found: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        variants = _variants(name)
        hits = (
            ((*changes, how) if how else changes, index[key(text)][0])
            for how, key, index in indexes
            for text, changes in variants
            if len(index.get(key(text), ())) == 1 and index[key(text)] != [name]
        )
        for changes, path in islice(hits, 1):
            found[changes].append((name, path))
    return "; ".join(
        f"{len(pairs)} of the {len(names)} are there {', '.join(changes)}: "
        f"write {_shown(pairs[0][1])} for {_shown(pairs[0][0])}"
        for changes, pairs in found.items()
    )


def _variants(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """Other texts for a name, and what was changed; those with the fewest changes first."""
    spelled: list[tuple[str, tuple[str, ...]]] = [(name, ())]
    for how, change in _CHANGES.items():
        spelled += [(changed, (*hows, how)) for text, hows in spelled if (changed := change(text)) != text]
    texts = []
    for text, hows in spelled:
        parts = posixpath.normpath(text).split("/")
        texts.append(("/".join(parts), hows))
        texts += [("/".join(parts[start:]), (*hows, _FEWER_FOLDERS)) for start in range(1, len(parts))]
    return sorted(texts, key=lambda text: len(text[1]))


def _shown(name: str) -> str:
    """The name in quotes, with the accents that look like others as escapes."""
    return '"' + "".join(ascii(c)[1:-1] if unicodedata.combining(c) else printable(c) for c in name) + '"'


def _composed(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def _alike(path: str) -> str:
    return _composed(path).casefold()


def _without_suffix(path: str) -> str:
    stem, suffix = posixpath.splitext(_alike(posixpath.basename(path)))
    return stem if suffix in image_endings() else stem + suffix


def _decoded_twice(path: str) -> str:
    return unquote(unquote(path))


def _as_utf8(path: str) -> str:
    """UTF-8 that was read as Windows-1252 or Latin-1."""
    for encoding in ("cp1252", "latin-1"):
        try:
            return path.encode(encoding).decode()
        except UnicodeError:
            continue
    return path


MAX_LISTED = 1_000_000  # files below a folder that are looked through for other spellings
_UPLOADED = re.compile(r"(?:(?<=[/\\])|^)[0-9a-f]{8}-(?=[^/\\]+$)")
_FEWER_FOLDERS = "without the folders in their file_name"
_CHANGES: dict[str, Callable[[str], str]] = {
    "without what follows ?": lambda name: name.partition("?")[0] or name,
    "with %20 and the like decoded": _decoded_twice,
    "with blanks in place of +": lambda name: name.replace("+", " "),
    "with &amp; and the like decoded": html.unescape,
    "with accents that were read in another encoding than UTF-8 put right": _as_utf8,
    "with / in place of \\": lambda name: name.replace("\\", "/"),
    "without blanks around the name": lambda name: "/".join(part.strip().strip("\ufeff") for part in name.split("/")),
    "without the 8 digits in front of the name, as of Label Studio": lambda name: _UPLOADED.sub("", name),
}
_LOOKUPS: dict[str, Callable[[str], str]] = {  # what is the same in both spellings
    "": str,
    "with accents composed in another way (Unicode NFC, NFD)": _composed,
    "with blanks of another kind": lambda path: " ".join(_composed(path).split()),
    "with other capital letters": _alike,
    "in another folder": posixpath.basename,
    "in another folder, with other capital letters or accents": lambda path: _alike(posixpath.basename(path)),
    "with another suffix": _without_suffix,
}


def _files_below(folder: Path) -> Iterator[str]:
    """Paths of all files, relative to the folder, with / between the parts."""
    for parent, _, names in os.walk(folder):
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        yield from names if below == "." else (f"{below}/{name}" for name in names)


def _regular_files(folder: Path) -> set[str]:
    """Names of what can be read as a file; links are followed. A pipe would be waited for without end."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}


def find_shared_files(train: Mapping[str, ImageFiles], test: ImageFiles) -> tuple[list[Finding], list[int]]:
    """Find images of ``test`` that are files of ``train`` (sets by name), links between folders followed.

    Returns:
        The finding, and the rows of ``test`` that are meant.
    """
    resolved = cache(Path.resolve)

    def place(files: ImageFiles, row: int) -> tuple[Path, str]:
        path = files.path(row)
        return resolved(path.parent), path.name

    sets = {place(files, row): name for name, files in train.items() for row in range(len(files))}
    shared = [row for row in range(len(test)) if place(test, row) in sets]

    def example(row: int) -> Example:
        return test.example(row, f"{test.path(row)} is in {sets[place(test, row)]}, too")

    return find("shared_file", shared, len(test), example), shared
