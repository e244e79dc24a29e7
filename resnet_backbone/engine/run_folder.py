"""The output folder of a run: which engine runs it, whether it may be written to, and what a finished run left."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import NamedTuple

from fvcore.common.config import CfgNode

from resnet_backbone.config.merge import CONFIG, differences, read_run_config
from resnet_backbone.files.atomic import existing_folder
from resnet_backbone.files.checkpoints import FINAL, LAST, last_checkpoint
from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.cache import MATCHING
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.read import read_file, split_part

ENGINES = ("auto", "detectron2", "torchvision")


def choose_engine(asked: str) -> str:
    """Return the engine to use, one of :data:`ENGINES`; ``auto`` is Detectron2 where it is installed."""
    if asked != "auto":
        return asked
    return "detectron2" if importlib.util.find_spec("detectron2") else "torchvision"


def check_output_dir(output_dir: Path) -> None:
    """Look whether a run can write to OUTPUT_DIR, and write nothing.

    Raises:
        ValueError: it is a file, or its name is not UTF-8, which TensorBoard's records need.
        PermissionError: it is there, or where it would be made, and cannot be written to.
    """
    try:
        str(output_dir).encode()
    except UnicodeEncodeError:
        raise ValueError(f"OUTPUT_DIR {ascii(str(output_dir))} is not text in UTF-8; name another folder") from None
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"OUTPUT_DIR {output_dir} is a file; name a folder")
    place = existing_folder(output_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        why = "the disk is mounted read-only" if read_only else "this user may not write there"
        raise PermissionError(f"OUTPUT_DIR {output_dir} cannot be written to: {place}: {why}; name another OUTPUT_DIR")


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


def check_evaluation(cfg: CfgNode, *, resume: bool) -> bool:
    """Check MODEL.WEIGHTS and OUTPUT_DIR of an evaluation.

    Args:
        cfg: of the evaluation, before the run completes it.
        resume: the last checkpoint in OUTPUT_DIR takes the place of MODEL.WEIGHTS, where there is one.

    Returns:
        Whether OUTPUT_DIR holds the training of the detector, whose ``config.yaml`` must stay as it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing to evaluate, or OUTPUT_DIR holds another training, or the same with other settings.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only with empty DATASETS.TEST has nothing to do: name a data set")
    folder = Path(cfg.OUTPUT_DIR)
    resumed = resume and last_checkpoint(folder) is not None
    if not resumed:
        _check_weights(cfg.MODEL.WEIGHTS)
    if not any((folder / name).is_file() for name in (FINAL, LAST)):
        return False
    own = f"give this evaluation a folder of its own: OUTPUT_DIR {folder}_eval"
    refusal = f"OUTPUT_DIR {folder} holds a training; {own}"
    weights, final = Path(cfg.MODEL.WEIGHTS), folder / FINAL
    of_the_training = weights.resolve() == final.resolve() or not final.is_file()
    if not resumed and not (of_the_training and weights.parent.resolve() == folder.resolve()):
        raise ValueError(f"{refusal} (MODEL.WEIGHTS {weights} is not its {FINAL})")
    try:
        written = read_run_config(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(f"{refusal} (its settings cannot be read: {error})") from error
    was_evaluated = bool(written.get("DATASETS", {}).get("TEST"))
    free = ("MODEL.WEIGHTS",) if was_evaluated else ("MODEL.WEIGHTS", "DATASETS.TEST")
    first = next(differences(written, cfg, but=free), None)
    if first is not None:
        raise ValueError(f"{refusal} ({first.text('that training', 'this evaluation')})")
    return True


def _check_weights(weights: str) -> None:
    """A name that is no path, such as that of published weights, is left to the engines."""
    if not weights:
        raise ValueError(
            "--eval-only needs a trained network, and MODEL.WEIGHTS is empty; add MODEL.WEIGHTS "
            "output/NAME/model_final.pth"
        )
    path, _ = split_part(weights.removesuffix(MATCHING))
    if "://" not in weights and path.suffix and not path.is_file():
        raise FileNotFoundError(f"--eval-only needs a trained network in MODEL.WEIGHTS: no file {weights}")
