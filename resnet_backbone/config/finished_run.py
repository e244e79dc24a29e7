"""The folder of a run, and which engine can use the detector that it left."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import NamedTuple

from resnet_backbone.config.differences import CONFIG
from resnet_backbone.files.checkpoints import FINAL, last_checkpoint
from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.convert import holds_detector
from resnet_backbone.weights.read import read_file

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
                f"{folder} has no checkpoint: the run has not come to its first one; go on with it: "
                f"python tools/train_net.py --config-file {folder / CONFIG} --resume"
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
    raise WeightsError(f"{weights} holds no detector; name a checkpoint of tools/train_net.py")
