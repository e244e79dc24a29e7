"""Reading detection checkpoints without running code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from resnet_backbone.training.checkpoint import is_checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

_COUNTER = ".num_batches_tracked"
_HEADS = ("roi_heads.", "head.")  # of the two kinds of detectors
_PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.", "head.classification_head.cls_logits.")


def is_own_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is a checkpoint of this engine, and not a classifier's weights or no file at all."""
    return is_checkpoint(path, _is_detector)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this engine onto the CPU.

    Raises:
        ValueError: the file is no such checkpoint.
    """
    expected = "detector of the torchvision engine; a checkpoint holds 'model' with 'roi_heads.*' or 'head.*'"
    return read_checkpoint(path, _is_detector, expected)


def _is_detector(state: object) -> bool:
    return (
        isinstance(state, dict)
        and {"model", "input", "class_names"} <= state.keys()
        and any(str(key).startswith(_HEADS) for key in state["model"])
    )


def load_detector(model: nn.Module, tensors: dict[str, Tensor], source: str, *, new_classes: bool) -> None:
    """Fill ``model`` with the tensors of a checkpoint; the counters of batch norms may be there or not.

    Args:
        model: the detector.
        tensors: ``"model"`` of the checkpoint, see :func:`load_checkpoint`.
        source: name of the checkpoint for messages.
        new_classes: leave the last layers, which are for other classes, as they are.

    Raises:
        ValueError: tensors are missing, left over or of other shapes; nothing is loaded then.
    """
    anew = {key for key in model.state_dict() if new_classes and key.startswith(_PREDICTORS)}
    have = {key: value for key, value in tensors.items() if key not in anew}
    want = {key: value for key, value in model.state_dict().items() if key not in anew}
    counters = {key for key in have.keys() ^ want.keys() if key.endswith(_COUNTER)}
    have, want = ({key: tensors[key] for key in tensors if key not in counters} for tensors in (have, want))
    differ = [key for key in want if key in have and have[key].shape != want[key].shape]
    missing, left = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    if missing or left or differ:
        shapes = [f"{key}: {tuple(have[key].shape)} in the file, {tuple(want[key].shape)} here" for key in differ]
        problems = {"missing": missing, "left over": left, "of another shape": shapes}
        lines = [f"  {len(keys)} {kind}: {', '.join(keys[:4])}" for kind, keys in problems.items() if keys]
        if any(key.startswith(("backbone.fpn_lateral", "proposal_generator.", "head.cls_subnet.")) for key in left):
            lines.append("  It has the names of Detectron2: write --engine detectron2")
        raise ValueError(f"{source} is of another detector than the config describes:\n" + "\n".join(lines))
    if new_classes:
        logger.warning("%s detects other classes: %s start anew", source, ", ".join(sorted(anew)))
    model.load_state_dict(have, strict=False)
