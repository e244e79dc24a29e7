"""Reading the checkpoints of a training without running code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from resnet_backbone.files.checkpoints import last_checkpoint
from resnet_backbone.files.lock import wait_for_other_runs
from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.read import TORCH, check_readable, read_torch_file

logger = logging.getLogger(__name__)


def is_checkpoint(path: Path, belongs: Callable[[object], bool]) -> bool:
    """Return whether ``path`` is a file of torch's whose content ``belongs`` to an engine, and can be read safely."""
    if not path.is_file():
        return False
    try:
        return check_readable(path) == TORCH and belongs(read_torch_file(path, mapped=True))
    except WeightsError:
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
        state = read_torch_file(path, mapped=False)
    except WeightsError as error:
        raise ValueError(f"{path}: not a checkpoint that can be read safely ({error})") from error
    if not belongs(state):
        raise ValueError(f"{path}: no {expected}")
    return state


def find_resumed(
    output_dir: Path, load: Callable[[Path], dict[str, Any]], accelerator: Accelerator
) -> dict[str, Any] | None:
    """Return what ``load`` makes of the last checkpoint in ``output_dir``; None, with a warning, where there is none.

    A run that is about to end there is waited for.

    Raises:
        OSError: another run writes there, and does not end.
        FileNotFoundError: the run names checkpoints, none of which is there and whole.
    """
    if accelerator.is_main_process:
        wait_for_other_runs(output_dir)
    accelerator.wait_for_everyone()
    path = last_checkpoint(output_dir)
    if path is None:
        logger.warning("--resume: no checkpoint in %s, starting anew", output_dir)
        return None
    logger.info("resuming from %s", path)
    return load(path)
