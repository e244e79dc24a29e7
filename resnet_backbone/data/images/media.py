"""Images, videos and cameras that a command line names, frame by frame, and writing a video."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from resnet_backbone.data.images.read import FORMATS

logger = logging.getLogger(__name__)

# What desktops, servers and notebooks put beside a user's files, in lower case; and all whose names begin with a dot.
_OF_SYSTEMS = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "$recycle.bin")
    + ("system volume information", "lost+found", "__pycache__")
)
DEFAULT_FPS = 25.0  # of a camera or file that does not say it
VIDEOS = ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ts .3gp .ogv"


@cache
def image_endings() -> frozenset[str]:
    """Endings of the names of images that :func:`~resnet_backbone.data.images.read.read_image` reads, in lower case."""
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

    @property
    def is_video(self) -> bool:
        """Whether it has frames, not one image."""
        return isinstance(self.source, int) or self.source.suffix.lower() in VIDEOS.split()


class Media(NamedTuple):
    """What :func:`find_media` found."""

    found: list[Medium]
    skipped: int  # files in folders that are neither images nor videos, or hidden


def find_media(sources: Sequence[str]) -> Media:
    """Find what ``sources`` name, in their order, every file once.

    Args:
        sources: each a file, a folder (searched with all that is below it, by the endings of the names, sorted), a
            pattern such as ``photos/*.jpg`` or ``photos/**/a*``, or the number of a camera, ``0`` for the first. A file
            of an unknown ending that is named by itself is taken for an image.

    Raises:
        FileNotFoundError: a source names nothing, or there is no image or video among all that they name.
    """
    found: dict[Path | int, Medium] = {}
    skipped: set[Path] = set()
    for source in sources:
        for medium in _media(source, skipped):
            key = medium.source if isinstance(medium.source, int) else medium.source.resolve()
            found.setdefault(key, medium)
    if not found:
        raise FileNotFoundError(
            f"no image and no video in {' '.join(sources)} ({len(skipped)} other files); they are told by their "
            f"endings: {' '.join(sorted(image_endings()))} {VIDEOS}; name a hidden file by itself"
        )
    return Media(list(found.values()), len(skipped))


def _media(source: str, skipped: set[Path]) -> list[Medium]:
    path = Path(source)
    with suppress(RuntimeError):  # "~somebody" whom this machine does not know
        path = path.expanduser()
    if source and path.is_dir():
        files = {file: file.relative_to(path) for file in sorted(path.rglob("*")) if file.is_file()}
    elif source and path.exists():
        return [Medium(path, Path(path.name))]
    elif source.isascii() and source.isdigit():
        return [Medium(int(source), Path(f"camera_{source}"))]
    else:
        matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if source else []
        if not matches:
            raise FileNotFoundError(
                f"{source!r}: no such file or folder, no pattern that matches any, and no number of a camera"
            )
        files = {match: Path(match.name) for match in matches if match.is_file()}
    found = []
    for file, name in files.items():
        hidden = any(map(is_hidden, set(file.parts) - set(path.parts)))  # those that are named are meant
        if hidden or file.suffix.lower() not in {*image_endings(), *VIDEOS.split()}:
            skipped.add(file.resolve())
        else:
            found.append(Medium(file, name))
    return found


class VideoReader:
    """Iterate over the frames of a video file or camera: uint8 tensors (3, H, W), RGB, upright.

    Use it as a context manager, so that file or camera is given back.

    Args:
        source: a file of any format that OpenCV's FFmpeg reads, or the number of a camera.

    Attributes:
        fps: frames a second.
        frame_count: as the file says, which may be an estimate; None of a camera.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is no video that can be read, its name is not UTF-8, or there is no such camera.
    """

    def __init__(self, source: Path | int) -> None:
        self._name = f"camera {source}" if isinstance(source, int) else str(source)
        if isinstance(source, Path):
            if not source.is_file():
                raise FileNotFoundError(f"{source}: no such video file")
            _check_name(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            self._capture.release()
            todo = "0 is the first one" if isinstance(source, int) else "replace the file or take it out"
            raise OSError(f"{self._name}: cannot be read as a video; {todo}")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else DEFAULT_FPS
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.frame_count = count if isinstance(source, Path) and count > 0 else None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[Tensor]:
        """Raises: OSError where not one frame can be read. A file that ends early is a warning."""
        number = 0
        while (read := self._capture.read())[0]:
            number += 1
            yield torch.from_numpy(np.ascontiguousarray(read[1][:, :, ::-1])).permute(2, 0, 1).contiguous()
        if number == 0:
            raise OSError(f"{self._name}: not one frame can be read; replace the file or take it out")
        if self.frame_count is not None and number < self.frame_count:
            counts = (number, self.frame_count)
            logger.warning("%s: %d of %d frames could be read; the file is damaged or cut off", self._name, *counts)


def _check_name(path: Path) -> None:
    if any("\ud800" <= character <= "\udfff" for character in str(path)):  # OpenCV crashes
        raise OSError(f"{ascii(str(path))}: the name of a video must be text in UTF-8; rename it")


class VideoWriter:
    """Write frames to an ``.mp4`` file (MPEG-4). Use it as a context manager; without a frame there is no file.

    Args:
        path: the file; its folder must be there.
        fps: frames a second.

    Raises:
        ValueError: the file is not named ``.mp4``.
        OSError: its name is not UTF-8.
    """

    def __init__(self, path: Path, fps: float) -> None:
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"a video is written to an .mp4 file, not to {path}")
        _check_name(path)
        self.path = path
        self.fps = fps
        self._writer: Any = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._writer is None:
            return
        self._writer.release()
        if error is None and not (self.path.is_file() and self.path.stat().st_size > 0):
            raise OSError(f"{self.path} could not be written; is the disk full?")

    def write(self, frame: np.ndarray) -> None:
        """Append a frame.

        Args:
            frame: uint8, (H, W, 3), RGB. Odd sides, which the format does not have, are made even by repeating the
                last row or column.

        Raises:
            OSError: the file cannot be written.
            ValueError: the frame has another size than the first.
        """
        height, width = frame.shape[:2]
        if self._writer is None:
            self._size = (height, width)
            codec = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, (width + width % 2, height + height % 2))
            if not self._writer.isOpened():
                raise OSError(f"{self.path} cannot be written; does its folder exist, and may you write there?")
        if (height, width) != self._size:
            raise ValueError(f"{self.path}: frames are {self._size}, got one of {(height, width)} (height, width)")
        even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._writer.write(np.ascontiguousarray(even[:, :, ::-1]))
