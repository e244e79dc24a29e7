"""The image files of a data set: their names in one array, which are missing, and which are in another set, too."""

from __future__ import annotations

import html
import os
import posixpath
import re
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from urllib.parse import unquote_plus

import numpy as np

from resnet_backbone.data.coco.findings import Example, Finding, find, printable
from resnet_backbone.data.images.media import image_endings


class PackedBytes:
    """A read-only sequence of byte strings without one Python object each.

    Touching a Python object writes its reference count, so a list of a million objects is copied page by page into
    every forked worker; an array is not. Source: the serialized list of Detectron2 (``detectron2/data/common.py``).
    """

    def __init__(self, items: Iterable[bytes]) -> None:
        buffer = bytearray()
        ends = [0]
        for item in items:
            buffer += item
            ends.append(len(buffer))
        self._buffer = np.frombuffer(bytes(buffer), dtype=np.uint8)
        self._ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside 0..{len(self) - 1}")
        return self._buffer[self._ends[index] : self._ends[index + 1]].tobytes()


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
    """Say under which other names files that are not there are found below a folder, with an example; "" for none.

    What may differ is in :func:`_spelling`, and then the folders, and then the suffix, as long as one file fits.
    """
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8" and not all(map(str.isascii, names)):
        return f"names of files are {encoding} by this machine's locale: try it with PYTHONUTF8=1 in the environment"
    index: dict[tuple[int, str], list[str]] = defaultdict(list)
    for path in islice(_files_below(folder), _MAX_LISTED):
        spelled = _spelling(path)
        for number, lookup in enumerate(_LOOKUPS):
            index[number, lookup(spelled)].append(path)
    found = []
    for name in names:
        parts = [_spelling(text).split("/") for text in (name, name.partition("?")[0])]  # as in addresses
        texts = ["/".join(split[start:]) for split in parts for start in range(len(split))]
        fitting = (index.get((number, lookup(text)), []) for number, lookup in enumerate(_LOOKUPS) for text in texts)
        found += [(name, paths[0]) for paths in islice((p for p in fitting if len(p) == 1 and p != [name]), 1)]
    if not found:
        return ""
    name, path = found[0]
    return f"{len(found)} of the {len(names)} are there under other names: write {_shown(path)} for {_shown(name)}"


def _spelling(path: str) -> str:
    """A path without what may differ: ``\\``, escapes of addresses and HTML, accents, blanks, upper and lower case.

    The 8 digits that Label Studio puts in front of names go, too.
    """
    text = html.unescape(unquote_plus(unquote_plus(path))).replace("\\", "/").replace("\ufeff", "")
    text = unicodedata.normalize("NFC", text).casefold()
    *folders, name = posixpath.normpath("/".join(" ".join(part.split()) for part in text.split("/"))).split("/")
    return "/".join([*folders, _UPLOADED.sub("", name)])


def _without_suffix(path: str) -> str:
    stem, suffix = posixpath.splitext(posixpath.basename(path))
    return stem if suffix in image_endings() else stem + suffix


_LOOKUPS: tuple[Callable[[str], str], ...] = (str, posixpath.basename, _without_suffix)
_MAX_LISTED = 1_000_000  # files below a folder that are looked through
_UPLOADED = re.compile("^[0-9a-f]{8}-(?=.)")


def _shown(name: str) -> str:
    """The name in quotes, with the accents that look like others as escapes."""
    return '"' + "".join(ascii(c)[1:-1] if unicodedata.combining(c) else printable(c) for c in name) + '"'


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
