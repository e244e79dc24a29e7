"""Before --eval-only: is there a detector to evaluate, and would its files replace those of a training?"""

from __future__ import annotations

from pathlib import Path

from fvcore.common.config import CfgNode

from resnet_backbone.config.differences import differences, read_settings
from resnet_backbone.config.finished_run import CONFIG, FINAL
from resnet_backbone.files.checkpoints import LAST, last_checkpoint
from resnet_backbone.weights.cache import MATCHING
from resnet_backbone.weights.read import split_part


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
        written = read_settings(folder / CONFIG)
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
