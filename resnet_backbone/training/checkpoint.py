"""Checkpoints that are written whole or not at all."""

from __future__ import annotations

import logging
import os
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
