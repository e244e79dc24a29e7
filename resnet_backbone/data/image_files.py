"""The image files of a data set: which are missing, and which are in another set, too."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_backbone.data.findings import Example, Finding, find


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
    there: dict[Path, dict[str, str]] = {}  # a folder's names in lower case, and as they are
    missing, similar = [], []
    for row in range(len(files)):
        path = files.path(row)
        names = there.get(path.parent)
        if names is None:
            listed = _regular_files(path.parent)
            names = there[path.parent] = {**{name.lower(): name for name in listed}, **{name: name for name in listed}}
        if names.get(path.name) != path.name:
            missing.append(row)
            if path.name.lower() in names:
                similar.append(names[path.name.lower()])
    note = f"with other capital letters there are {len(similar)}, such as {similar[0]}" if similar else ""
    if len(missing) == len(files) and not similar:
        note = _no_image_at_all(files)
    found = find("missing_image", missing, len(files), lambda row: files.example(row, str(files.path(row))), note=note)
    return found, missing


def _no_image_at_all(files: ImageFiles) -> str:
    listed = set(_regular_files(files.folder))
    bare = sum(name.replace("\\", "/").rsplit("/", 1)[-1] in listed for name in files.file_names)
    if bare:
        return f"{bare} are there without the folders in their file_name"
    return f"not one of them is there: is {files.folder} their folder?"


def _regular_files(folder: Path) -> list[str]:
    """Names of what can be read as a file; links are followed. A pipe would be waited for without end."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_file()]


def find_shared_files(train: Mapping[str, ImageFiles], test: ImageFiles) -> tuple[list[Finding], list[int]]:
    """Find images of ``test`` that are files of ``train`` (sets by name), links between folders followed.

    Returns:
        The finding, and the rows of ``test`` that are meant.
    """
    folders: dict[Path, Path] = {}

    def place(files: ImageFiles, row: int) -> tuple[Path, str]:
        path = files.path(row)
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        return folders[path.parent], path.name

    trained = {place(files, row): name for name, files in train.items() for row in range(len(files))}
    shared = [row for row in range(len(test)) if place(test, row) in trained]

    def example(row: int) -> Example:
        return test.example(row, f"{test.path(row)} is in {trained[place(test, row)]}, too")

    return find("shared_file", shared, len(test), example), shared
