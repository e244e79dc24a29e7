"""Checkpoints that are written whole or not at all, and read without running code."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resnet_backbone.config.output import LAST, last_checkpoint

logger = logging.getLogger(__name__)


def save_checkpoint(output_dir: Path, name: str, state: dict[str, Any]) -> Path:
    """Write ``state`` to ``output_dir/name`` and make it the one that ``--resume`` continues from.

    The file appears under its name only when it is complete.
    """
    path = output_dir / name
    _replace(path, lambda temporary: torch.save(state, temporary))
    _replace(output_dir / LAST, lambda temporary: temporary.write_text(name, encoding="utf-8"))
    logger.info("wrote %s", path)
    return path


def is_checkpoint(path: Path, belongs: Callable[[object], bool]) -> bool:
    """Return whether ``path`` is a ``.pth`` file whose content ``belongs`` to an engine, and can be read safely."""
    if path.suffix != ".pth" or not path.is_file():
        return False
    try:
        return belongs(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError):
        return False


def read_checkpoint(path: Path, belongs: Callable[[object], bool], expected: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: of the file.
        belongs: whether its content is of the engine that asks.
        expected: what it should be, for the message where it is not.

    Raises:
        ValueError: it cannot be read safely, or is another file.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a checkpoint that can be read safely ({error})") from error
    if not belongs(state):
        raise ValueError(f"{path}: no {expected}")
    return state


def find_resumed(output_dir: Path, load: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
    """Return what ``load`` makes of the last checkpoint in ``output_dir``; None, with a warning, where there is none.

    Raises:
        FileNotFoundError: the run names a checkpoint that is not there.
    """
    path = last_checkpoint(output_dir)
    if path is None:
        logger.warning("--resume: no checkpoint in %s, starting anew", output_dir)
        return None
    logger.info("resuming from %s", path)
    return load(path)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
