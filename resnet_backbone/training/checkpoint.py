"""Reading the checkpoints of a training without running code."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from fvcore.common.config import CfgNode

from resnet_backbone.files.checkpoints import last_checkpoint
from resnet_backbone.files.lock import wait_for_other_runs
from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.read import read_torch_file

logger = logging.getLogger(__name__)


def is_checkpoint(path: Path, belongs: Callable[[object], bool]) -> bool:
    """Return whether ``path`` is a ``.pth`` file whose content ``belongs`` to an engine, and can be read safely."""
    if path.suffix != ".pth" or not path.is_file():
        return False
    try:
        return belongs(read_torch_file(path, mapped=True))
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


def check_resumed(cfg: CfgNode, *, done: int, seed: int | None) -> None:
    """Raise ValueError for a config that a run cannot go on with.

    Args:
        cfg: of the command that resumes.
        done: iterations of the run so far.
        seed: that it has; None where the checkpoint does not say.
    """
    if done > cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"the run to resume has done {done} iterations: write SOLVER.MAX_ITER {done} or more, not "
            f"{cfg.SOLVER.MAX_ITER}"
        )
    if cfg.SEED >= 0 and seed is not None and cfg.SEED != seed:
        raise ValueError(f"the run to resume has the seed {seed}: write SEED {seed}")


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
