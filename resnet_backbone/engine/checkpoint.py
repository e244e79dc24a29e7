"""The checkpoints of a training: finding and reading them, and resuming from the last one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from resnet_backbone.config.merge import CONFIG
from resnet_backbone.engine.processes import check_same_settings, from_main_process, is_main_process
from resnet_backbone.files.atomic import wait_for_other_runs
from resnet_backbone.files.checkpoints import FINAL, last_checkpoint, last_written_ns
from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.read import TORCH, check_readable, read_file, read_torch_file

logger = logging.getLogger(__name__)

_TORCHVISION_PARTS = ("rpn.", "head.classification_head.")  # of Faster R-CNN, and of RetinaNet


class FinishedRun(NamedTuple):
    """What it takes to use a trained detector again."""

    config_file: Path
    weights: Path


def find_run(folder: str | Path) -> FinishedRun:
    """Return config and weights of an output folder; of a run that has not ended its last checkpoint, with a warning.

    Raises:
        FileNotFoundError: there is no such folder, or no config or checkpoint in it.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        what = f"it has no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(f"{folder} is not the output folder of a run: {what}; name OUTPUT_DIR of a training")
    weights = folder / FINAL
    if not weights.is_file():
        unfinished = last_checkpoint(folder)
        if unfinished is None:
            raise FileNotFoundError(
                f"{folder} has no checkpoint: the run has not come to its first one; resume it: "
                f"resnet-backbone train --config-file {folder / CONFIG} --resume"
            )
        logger.warning("%s has not ended: taking its last checkpoint, %s", folder, unfinished.name)
        weights = unfinished
    return FinishedRun(folder / CONFIG, weights)


def engine_of(weights: Path) -> str:
    """Return ``"detectron2"`` or ``"torchvision"``: the one whose names the tensors of a detector have.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: it cannot be read safely, or holds no detector.
    """
    tensors = read_file(weights).tensors
    if any(name.startswith(_TORCHVISION_PARTS) for name in tensors):
        return "torchvision"
    if holds_detector(tensors):
        return "detectron2"
    raise WeightsError(f"{weights} holds no detector; name a checkpoint of resnet-backbone train")


def is_checkpoint(path: Path, belongs: Callable[[object], bool]) -> bool:
    """Return whether ``path`` is a file of torch's whose content ``belongs`` to an engine, and can be read safely."""
    if not path.is_file():
        return False
    try:
        return check_readable(path) == TORCH and belongs(read_torch_file(path, mapped=True))
    except WeightsError:
        return False


def read_checkpoint(path: Path, belongs: Callable[[object], bool], expected: str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; raise ValueError where it is unsafe, or ``belongs`` to no ``expected``."""
    try:
        state = read_torch_file(path, mapped=False)
    except WeightsError as error:
        raise ValueError(f"{path}: not a checkpoint that can be read safely ({error})") from error
    if not belongs(state):
        raise ValueError(f"{path}: no {expected}")
    return state


def check_resumed(cfg: CfgNode, *, done: int, seed: int | None) -> None:
    """Raise ValueError for a config that does not fit the iterations ``done`` so far, or the run's seed if known."""
    if done > cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"the run to resume has done {done} iterations: write SOLVER.MAX_ITER {done} or more, not "
            f"{cfg.SOLVER.MAX_ITER}"
        )
    if cfg.SEED >= 0 and seed is not None and cfg.SEED != seed:
        raise ValueError(f"the run to resume has the seed {seed}: write SEED {seed}")


def check_same_parameters(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError where a checkpoint's optimizer is of another kind than this run's, or has other parameters."""

    def told(state: Mapping[str, Any]) -> str:
        groups = state["param_groups"]
        kind = "AdamW" if "betas" in groups[0] else "SGD"
        return f"groups of {[len(group['params']) for group in groups]} parameters by {kind}"

    if told(saved) != told(now):
        raise ValueError(
            f"the run to resume trained {told(saved)}, this config asks for {told(now)}; write FREEZE_AT and NORM of "
            "MODEL, and OPTIMIZER, WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR, TRUNK_LR_FACTOR and LAYER_DECAY of SOLVER, as "
            "its config.yaml has them"
        )


def warn_of_other_processes(then: int, now: int) -> None:
    """Log a warning where a run is resumed by another number of processes."""
    if then != now:
        logger.warning(
            "the checkpoint was written by %d processes, now there are %d: images come in another order, and batch "
            "norms take their statistics over the images of one process, whose number changes. Learning rate and "
            "schedule count the images of all processes and stay",
            *(then, now),
        )


def last_checkpoint_text(output_dir: Path) -> str:
    """Return what a run that stops says of its last checkpoint."""
    last = last_checkpoint(output_dir)
    if last is None:
        return "No iteration is done yet: nothing is lost"
    return f"Everything up to {last} is kept; continue with --resume"


class Resumed(NamedTuple):
    """What ``--resume`` finds in OUTPUT_DIR of the main process."""

    output_dir: Path
    written_ns: int | None  # see ``last_written_ns``
    state: Any  # the checkpoint; None where there is none

    def check_is_last(self) -> None:
        """Raise OSError, once no other run can write, where one has since the checkpoint was read."""
        if is_main_process() and last_written_ns(self.output_dir) != self.written_ns:
            raise OSError(
                f"another run has written to {self.output_dir} since this one read its last checkpoint: run the same "
                f"command again, once no other run writes there"
            )


def find_resumed(output_dir: Path, load: Callable[[Path], Any]) -> Resumed:
    """Return what ``load`` makes of the last checkpoint in ``output_dir`` of the main process, in all processes.

    On other machines the folder may lack it. A run that is about to end there is waited for. Where there is no
    checkpoint a warning says so.

    Raises:
        OSError: another run writes there, and does not end.
        FileNotFoundError: the run names checkpoints, none of which is there and undamaged.
        ValueError: ``load`` cannot use it.
    """

    def find() -> Resumed:
        wait_for_other_runs(output_dir)
        written_ns, path = last_written_ns(output_dir), last_checkpoint(output_dir)
        if path is None:
            logger.warning("--resume: no checkpoint in %s, starting from the beginning", output_dir)
            return Resumed(output_dir, written_ns, None)
        logger.info("resuming from %s", path)
        return Resumed(output_dir, written_ns, load(path))

    return from_main_process(find)


def compare_data(now: Mapping[str, Any], resumed: Mapping[str, Any] | None) -> None:
    """Compare the data of this process with that of the main process, and of the checkpoint that is resumed from.

    What has changed since the checkpoint is logged as a warning.

    Args:
        now: by name (``DATASETS.TRAIN my_train``) ``{"sha256": of annotations or labels, "images": number of them}``.
        resumed: the checkpoint, which has the same as ``data``; those of earlier versions have not.

    Raises:
        ValueError: in all processes alike, where one has other data than the main process.
    """
    check_same_settings(now)
    then = (resumed or {}).get("data", {})
    for name, own in now.items() if is_main_process() else ():
        before = then.get(name, own)
        if before["sha256"] == own["sha256"]:
            continue
        counts = f"{before['images']} images then, {own['images']} now; "
        effect = (
            "The run continues with other data than it began with"
            if name.startswith("DATASETS.TRAIN")
            else "Figures from before and after cannot be compared, and the best network may be one from before"
        )
        logger.warning(
            "%s is not what it was when the checkpoint was written: its annotations, or names of images, have changed "
            "(%sSHA-256 %.12s... then, %.12s... now). %s. If only the form of the file has changed, all is well; "
            "else put the old data back, or write another OUTPUT_DIR",
            *(name, counts if before["images"] != own["images"] else "", before["sha256"], own["sha256"], effect),
        )
