"""Which checkpoint in OUTPUT_DIR a run goes on from."""

from __future__ import annotations

import logging
from pathlib import Path

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"


def last_checkpoint(output_dir: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None where there is none.

    Raises:
        FileNotFoundError: the run names a checkpoint that is not there.
    """
    marker = output_dir / LAST
    if not marker.is_file():
        return None
    path = output_dir / marker.read_text(encoding="utf-8").strip()
    if not path.is_file():
        raise FileNotFoundError(
            f"{marker} names {path}, which is not there; write the name of another checkpoint into it"
        )
    return path


def forget_checkpoints(output_dir: Path) -> None:
    """Let ``--resume`` find nothing of an earlier run in this folder; the checkpoints themselves stay."""
    marker = output_dir / LAST
    if marker.is_file():
        logger.warning("a new run in the folder of an earlier one: removing %s", marker)
        marker.unlink()


def check_output_dir(output_dir: Path) -> None:
    """Raise ValueError where OUTPUT_DIR is no folder and cannot become one."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"OUTPUT_DIR {output_dir} is a file; name a folder")
