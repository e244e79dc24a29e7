"""Which files are images and videos, and what a command line names: files, folders, patterns and camera numbers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from resnet_backbone.data.images import FORMATS

# What desktops, servers and notebooks put beside a user's files, in lower case; and all whose names begin with a dot.
_OF_SYSTEMS = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin")
    + ("system volume information", "lost+found", "__pycache__")
)
VIDEOS = ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ts .3gp .ogv"


@cache
def image_endings() -> frozenset[str]:
    """Endings of the names of images that :func:`~resnet_backbone.data.images.read_image` reads, in lower case."""
    return frozenset(end for end, format_name in Image.registered_extensions().items() if format_name in FORMATS)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is none of the user's own, and left out wherever folders are searched.

    Names with a dot in front (``.ipynb_checkpoints``, ``._a.jpg``, ``.DS_Store``), ``__MACOSX``, ``Thumbs.db``, ...
    """
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


class Medium(NamedTuple):
    """One image file, video file or camera."""

    source: Path | int  # a file, or the number of a camera
    name: Path  # below the folder that was named; of a single file its name
    is_video: bool


class Media(NamedTuple):
    """What :func:`find_media` found."""

    found: list[Medium]
    skipped: int  # files in folders that are neither images nor videos, or hidden


def find_media(words: Sequence[str]) -> Media:
    """Find what ``words`` name, in their order, every file once.

    Args:
        words: each a file, a folder (searched with all that is below it, by the endings of the names, sorted), a
            pattern such as ``photos/*.jpg`` or ``photos/**/a*``, or the number of a camera, ``0`` for the first. A file
            of an unknown ending that is named by itself is taken for an image.

    Raises:
        FileNotFoundError: a word names nothing, or there is no image or video among all that they name.
    """
    found: dict[Path | int, Medium] = {}
    skipped: set[Path] = set()
    for word in words:
        for medium in _media(word, skipped):
            key = medium.source if isinstance(medium.source, int) else medium.source.resolve()
            found.setdefault(key, medium)
    if not found:
        raise FileNotFoundError(
            f"no image and no video in {' '.join(words)} ({len(skipped)} other files); they are told by their endings: "
            f"{' '.join(sorted(image_endings()))} {VIDEOS}; name a hidden file by itself"
        )
    return Media(list(found.values()), len(skipped))


def _media(word: str, skipped: set[Path]) -> list[Medium]:
    try:
        path = Path(word).expanduser()
    except RuntimeError:  # "~somebody" whom this machine does not know
        path = Path(word)
    if word and path.exists():
        return _below(path, skipped) if path.is_dir() else [_medium(path, path.name)]
    if word.isascii() and word.isdigit():
        return [Medium(int(word), Path(f"camera_{word}"), is_video=True)]
    matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if word else []
    if not matches:
        raise FileNotFoundError(
            f"{word!r}: no such file or folder, no pattern that matches any, and no number of a camera"
        )
    files = [match for match in matches if match.is_file()]
    named = path.parts  # a hidden folder that the pattern itself has is meant
    return [medium for match in files for medium in _of_known_kind(match, match.name, skipped, named)]


def _below(folder: Path, skipped: set[Path]) -> list[Medium]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [medium for path in files for medium in _of_known_kind(path, path.relative_to(folder), skipped)]


def _of_known_kind(path: Path, name: Path | str, skipped: set[Path], named: Sequence[str] = ()) -> list[Medium]:
    below = path.parts if named else Path(name).parts
    hidden = any(is_hidden(part) and part not in named for part in below)
    if hidden or path.suffix.lower() not in {*image_endings(), *VIDEOS.split()}:
        skipped.add(path.resolve())
        return []
    return [_medium(path, name)]


def _medium(path: Path, name: str | Path) -> Medium:
    return Medium(path, Path(name), is_video=path.suffix.lower() in VIDEOS.split())
