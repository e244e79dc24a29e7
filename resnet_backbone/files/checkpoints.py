"""Checkpoints of a run: written atomically, read back before anything names them, and found again past damaged ones.

Beside the checkpoints, OUTPUT_DIR has ``last_checkpoint`` (Detectron2's file: the name of the one to resume from) and
``checkpoint_history`` (the names of all that this run has written, oldest first, one a line).
"""

from __future__ import annotations

import logging
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_backbone.files.atomic import free_bytes, replacing, write_text
from resnet_backbone.files.text import walk

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"
HISTORY = "checkpoint_history"
FINAL = "model_final.pth"
BEST = "model_best.pth"


class CheckpointError(OSError):
    """A checkpoint could not be written. The message says why, and which one is the last good one."""


def write_checkpoint(folder: Path, name: str, state: Mapping[str, Any], *, resumable: bool = True) -> Path:
    """Write ``state`` to ``folder/name``, read it back, and only then let it take its name.

    Args:
        folder: OUTPUT_DIR.
        name: of the file, ending in ``.pth``.
        state: what ``torch.save`` takes.
        resumable: make it the one that ``--resume`` resumes from; all earlier ones stay.

    Raises:
        CheckpointError: the disk is full or cannot be written; every file is as it was before.
    """
    path = folder / name
    try:
        with replacing(path, "writing the checkpoint") as part:
            _save(state, part)
            damage = describe_damage(part)
            if damage:
                raise OSError(f"what was written reads back damaged ({damage})")
        if resumable:
            names = [one for one in _written_before(folder) if one != name]
            write_text(folder / HISTORY, "".join(f"{one}\n" for one in [*names, name]))
            write_text(folder / LAST, name)
    except OSError as error:
        raise CheckpointError(f"{error}. {_last_good(folder)}") from error
    logger.info("wrote %s", path)
    return path


def describe_damage(path: Path) -> str:
    """Return what is wrong with the file of a checkpoint, whose parts all have checksums; "" where it is intact.

    Files of torch's format before 1.6, which have none, count as intact.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b""):
                return "" if path.stat().st_size else "it is empty"
        with zipfile.ZipFile(path) as archive:
            if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                return "it unpacks to more than it has bytes, which no checkpoint does"
            broken = archive.testzip()
            return f"its part {broken} does not have the checksum that it was written with" if broken else ""
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        return str(error) or type(error).__name__


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that ``--resume`` resumes from: the newest intact one, None where there is none yet.

    One that is damaged or gone is passed over for the one before, with a warning.

    Raises:
        FileNotFoundError: the run names checkpoints, none of which is there and intact.
    """
    broken: list[str] = []
    for name in _candidates(folder):
        path = folder / name
        damage = describe_damage(path) if path.is_file() else "no such file"
        if not damage:
            if broken:
                logger.warning("going back to %s: %s", path, "; ".join(broken))
            return path
        broken.append(f"{path} cannot be used ({damage})")
    if broken:
        raise FileNotFoundError(
            f"{folder} has no whole checkpoint: {'; '.join(broken)}. Write the name of another one into "
            f"{folder / LAST}, or start from scratch in another OUTPUT_DIR"
        )
    return None


def last_written_ns(folder: Path) -> int | None:
    """Return when a run last wrote a checkpoint to resume from, in nanoseconds; None where there is none."""
    path = folder / LAST
    return path.stat().st_mtime_ns if path.is_file() else None


def checksum_of(path: Path) -> str:
    """Return a checksum over those that the file of a checkpoint records of its parts, or its size where it has none.

    Copies of a checkpoint have the same; it is read in no time.
    """
    if not zipfile.is_zipfile(path):
        return f"{path.stat().st_size} bytes"
    with zipfile.ZipFile(path) as archive:
        parts = [(record.filename, record.CRC) for record in archive.infolist()]
    return f"{zlib.crc32(repr(parts).encode()):08x}"


def retire_checkpoints(folder: Path) -> None:
    """Let nothing in this folder be taken for a result of the new run; the checkpoints themselves stay.

    What names them is removed, and ``model_final.pth`` and ``model_best.pth`` become ``earlier_...``.
    """
    named = [folder / name for name in (LAST, HISTORY) if (folder / name).is_file()]
    if named:
        logger.warning("a new run in the folder of an earlier one: removing %s", " and ".join(map(str, named)))
    for path in named:
        path.unlink()
    for path in (folder / FINAL, folder / BEST):
        if path.is_file():
            logger.warning("%s is of an earlier run: renamed to earlier_%s", path, path.name)
            path.replace(path.with_name(f"earlier_{path.name}"))


def remove_unfinished(folder: Path) -> None:
    """Delete what writing left behind in processes that were killed; to be called by the one that writes now."""
    for path in folder.glob(".*.part"):
        logger.warning("removing %s, which was never finished", path)
        path.unlink(missing_ok=True)


def check_disk_space(folder: Path, state: Mapping[str, Any], count: int, period_key: str) -> None:
    """Compare what is free with what the checkpoints of a run will need, before the first of them.

    Args:
        folder: OUTPUT_DIR.
        state: of the first checkpoint.
        count: how many are still to come.
        period_key: of the config, that says how many.

    Raises:
        OSError: not one of them has room.
    """
    size = sum(item.nbytes for item in walk(state, [sys.maxsize]) if isinstance(item, Tensor))
    free = free_bytes(folder)
    if count and size > free:
        raise OSError(
            f"a checkpoint takes {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free in {folder}: make room, or name "
            f"another OUTPUT_DIR"
        )
    if size * count > free:
        logger.warning(
            "%d checkpoints of %.0f MB are to come, and %.0f MB are free in %s: raise %s, or delete old ones in time",
            *(count, size / 1e6, free / 1e6, folder, period_key),
        )


def _save(state: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())  # before it is read back
    except RuntimeError as error:  # torch's own, about its archive, raised after the disk has failed
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise cause or OSError(f"torch could not write it: {error}") from None


def _candidates(folder: Path) -> list[str]:
    """Names, the one to try first in front."""
    last = _names_in(folder / LAST)[:1]
    return [*last, *(name for name in reversed(_written_before(folder)) if name not in last)]


def _written_before(folder: Path) -> list[str]:
    """Names up to the last one: later ones are of before the run was resumed from an earlier one."""
    history, last = _names_in(folder / HISTORY), _names_in(folder / LAST)
    return history[: history.index(last[0]) + 1] if last and last[0] in history else history


def _names_in(path: Path) -> list[str]:
    """Names of files in the same folder, one a line; a path that leads elsewhere is left out."""
    if not path.is_file():
        return []
    names = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [name for name in names if name and Path(name).name == name]


def _last_good(folder: Path) -> str:
    try:
        last = last_checkpoint(folder)
    except OSError as error:
        return str(error)
    return f"The last good checkpoint is {last}" if last else "There is no checkpoint yet"
