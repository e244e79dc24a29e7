"""Writing files atomically, so that each is complete on the disk or as it was; disk space and hashes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_CHUNK_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, doing: str = "writing", *, durable: bool = True) -> Iterator[Path]:
    """Give a file to write beside ``path``, which it becomes in the end; after an error ``path`` is as it was before.

    Args:
        path: of the file; its folder is made.
        doing: what this is a part of, for the message.
        durable: wait until the disk has it, so that not even a power cut leaves half of it; costs milliseconds.

    Raises:
        OSError: the disk is full, or does not take it; the message starts with ``doing``, and says what is free.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if durable:
            _flush_to_disk(part)
        part.replace(path)
        if durable:
            with suppress(OSError):  # not every file system can do that with a folder
                _flush_to_disk(path.parent)
    except OSError as error:
        raise _explained(error, doing, path) from error
    finally:
        with suppress(OSError):  # a disk that is gone or read-only by now holds no more than before
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, folders included; see :func:`replacing`. File names that are not UTF-8 are escaped."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file; see :func:`replacing`."""
    with replacing(path, f"copying {source}") as part:
        shutil.copyfile(source, part)


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk of ``folder``, or of the nearest folder above it that exists."""
    return shutil.disk_usage(existing_folder(folder)).free


def existing_folder(folder: Path) -> Path:
    """Return ``folder``, or the nearest folder above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def file_hash(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file's content, read in pieces. ``algorithm`` is ``"sha256"`` or ``"md5"``."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(error: OSError, doing: str, path: Path) -> OSError:
    remedy = "Make room" if error.errno in _NO_ROOM else "Put that right"
    explained = OSError(
        f"{doing} failed at {path}: {error.strerror or error}; {free_bytes(path.parent) / 1e6:.1f} MB are free there. "
        f"{remedy} and start again"
    )
    explained.errno = error.errno
    return explained
