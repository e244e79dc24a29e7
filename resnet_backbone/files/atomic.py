"""Writing files atomically and one process at a time: no file is half written, and no two runs share a folder."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK = ".lock"
PATIENCE_S = 60.0  # a run that was asked to end still writes its checkpoint
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of disks that know none
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
            _flush_to_disk(part, os.O_RDWR)  # Windows flushes nothing that is open for reading
        part.replace(path)
        if durable:
            with suppress(OSError):  # not every file system can do that with a folder
                _flush_to_disk(path.parent, os.O_RDONLY)
    except OSError as error:
        raise _explained(error, doing, path) from error
    finally:
        with suppress(OSError):  # a disk that is gone or read-only by now holds no more than before
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, folders included; see :func:`replacing`. File names that are not UTF-8 are escaped."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file; see :func:`replacing`."""
    with replacing(path, f"copying {source}") as part:
        shutil.copyfile(source, part)


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk of ``folder``, or of the nearest folder above it that exists."""
    return shutil.disk_usage(existing_folder(folder)).free


def check_free(folder: Path, needed: int, doing: str) -> None:
    """Raise OSError where the disk of ``folder`` has no room for so many bytes; the message starts with ``doing``."""
    if needed > (free := free_bytes(folder)):
        raise OSError(
            f"{doing} needs {needed / 1e9:.3f} GB in {folder}, {free / 1e9:.3f} GB are free; make room and start "
            "again, it resumes here"
        )


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


def _flush_to_disk(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
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


@contextmanager
def locked(path: Path, *, waiting: str, patience_s: float = -1, too_long: str = "") -> Iterator[None]:
    """Hold the lock that the file ``path`` stands for; it ends with the process. The file stays, and is empty.

    A disk that knows no locks is used without, with a warning.

    Args:
        path: of the file; its folder is there.
        waiting: logged once, as a warning, where another process holds the lock.
        patience_s: how long to wait for it; below 0 without end.
        too_long: the message of the error after that time.

    Raises:
        TimeoutError: another process still holds it after that time.
        OSError: the file cannot be written to.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("%s", waiting)
            lock.acquire(timeout=patience_s, poll_interval=0.2)
    except Timeout:
        raise TimeoutError(too_long) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s): see to it that no other process writes there", path.parent, error)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing_alone(folder: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Keep other runs out of ``folder`` meanwhile; see :func:`locked`.

    Args:
        folder: OUTPUT_DIR; it is made.
        patience_s: how long to wait for the end of a run that writes there.

    Raises:
        OSError: another run still writes there after that time, or the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(
        folder / LOCK,
        waiting=f"another run writes to {folder}: waiting for its end",
        patience_s=patience_s,
        too_long=f"another run writes to {folder}, still after {patience_s:.0f} s: wait for its end, or name another "
        "OUTPUT_DIR",
    ):
        yield


def wait_for_other_runs(folder: Path) -> None:
    """Wait until nobody writes to ``folder``, so that what is read there next is the last that was written.

    Raises:
        OSError: see :func:`writing_alone`.
    """
    if (folder / LOCK).exists():
        with writing_alone(folder):
            pass
