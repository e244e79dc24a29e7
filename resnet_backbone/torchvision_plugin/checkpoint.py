"""Detection checkpoints, read without running code: to start from, and as trained detectors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config import fit_input, warn_of_random_weights
from resnet_backbone.config.weights_input import read_torchvision, refuse_unknown_input, required_by, required_input
from resnet_backbone.engine.checkpoint import is_checkpoint, read_checkpoint
from resnet_backbone.models.acceleration import finish_for_inference
from resnet_backbone.torchvision_plugin.datasets import set_num_classes
from resnet_backbone.torchvision_plugin.detector import Detector, build_detector
from resnet_backbone.torchvision_plugin.retinanet import RetinaNet
from resnet_backbone.weights import Weights, read_weights
from resnet_backbone.weights.detectors import (
    coco_classes,
    find_detector,
    from_detectron2,
    is_of_detectron2,
    is_of_torchvision,
    torchvision_config,
)
from resnet_backbone.weights.download import resolve
from resnet_backbone.weights.match import match_tensors
from resnet_backbone.weights.read import read_file, split_part

logger = logging.getLogger(__name__)

_HEADS = ("roi_heads.", "head.")  # of the two kinds of detectors
_UNNAMED = "does not name its classes: start a training from it, or use one of Detectron2's by --engine detectron2"
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


def read_detector(source: str) -> dict[str, Any] | None:
    """Read a trained detector onto the CPU: of this engine, Detectron2 or torchvision itself, also a published one.

    Returns:
        ``model``, the tensors in this engine's names; ``input``, the config keys that they need, and ``class_names``,
        both empty where nobody said; ``source``, for messages. None for a file that is no detector of these.

    Raises:
        OSError, WeightsError: it is not there, cannot be downloaded, or cannot be read safely.
    """
    resolved = resolve(source)
    path, part = split_part(resolved)
    if not path.is_file():
        return None
    if not part and is_own_checkpoint(path):
        return {"source": source, **load_checkpoint(path)}
    raw = read_file(resolved)
    if is_of_torchvision(raw.tensors):
        own = read_torchvision(raw)
        source = f"{source} (of configs/{torchvision_config(raw.tensors)})"
        return {"source": source, "model": own.tensors, **own.metadata}
    if not is_of_detectron2(raw.tensors):
        return None
    facts = raw.metadata
    found = {"source": source, "model": from_detectron2(raw.tensors), "input": {}, "class_names": ()}
    if {"input", "class_names"} <= facts.keys():
        return {**found, "input": facts["input"], "class_names": facts["class_names"]}
    if (entry := find_detector(raw.sha256)) is not None:
        found["source"] = f"{source} (of configs/{entry.config})"
        found["input"] = required_input(entry.arch, entry.input_format, entry.stride_in_1x1)
        found["class_names"] = coco_classes()
    return found


def _is_detector(state: object) -> bool:
    return (
        isinstance(state, dict)
        and {"model", "input", "class_names"} <= state.keys()
        and any(str(key).startswith(_HEADS) for key in state["model"])
    )


def load_detector(model: nn.Module, tensors: dict[str, Tensor], source: str, *, new_classes: bool) -> None:
    """Fill ``model`` with ``"model"`` of a checkpoint called ``source``; counters of batch norms may be missing.

    With ``new_classes`` the last layers, which are for other classes, stay as they are.

    Raises:
        ValueError: tensors are missing, left over or of other shapes; nothing is loaded then.
    """
    own = model.state_dict()
    from_scratch = {key for key in own if new_classes and key.startswith(_PREDICTORS)}
    have, want = ({key: part[key] for key in part if key not in from_scratch} for part in (tensors, own))
    match = match_tensors(want, have)
    if not match.fits:
        lines = match.lines()
        raise ValueError(f"{source} is of another detector than the config describes:\n  " + "\n  ".join(lines))
    if new_classes:
        logger.warning("%s detects other classes: %s start from scratch", source, ", ".join(sorted(from_scratch)))
    model.load_state_dict(have, strict=False)


def read_initial_weights(cfg: CfgNode, *, eval_only: bool = False) -> dict[str, Any] | Weights | None:
    """Read MODEL.WEIGHTS, downloading it where it is a name of the catalog or an address.

    Returns:
        The content of a detector's checkpoint, or the weights of a classifier; None where MODEL.WEIGHTS is empty.

    Raises:
        FileNotFoundError, OSError: the file is not there, or cannot be downloaded.
        ValueError: it cannot be read safely, or is of another architecture; for ``eval_only``, it is no detector.
    """
    source = cfg.MODEL.WEIGHTS
    detector = read_detector(source) if source else None
    if detector is not None:
        if eval_only and not detector["class_names"]:
            raise ValueError(f"{source} {_UNNAMED}")
        return detector
    if eval_only:
        raise ValueError(f"--eval-only needs a trained detector in MODEL.WEIGHTS, found {source!r}")
    return read_weights(source, arch=cfg.MODEL.RESNET_BACKBONE.ARCH) if source else None


def fit_input_to(cfg: CfgNode, initial: dict[str, Any] | Weights | None) -> None:
    """Take the input format and stride placement from what :func:`read_initial_weights` returned, or check them.

    Raises:
        ValueError: the weights do not say what they need, or the config differs from it and may not be changed.
    """
    if initial is None:
        warn_of_random_weights(cfg)
    else:
        required = required_by(initial, cfg) if isinstance(initial, Weights) else initial["input"]
        if not required:
            refuse_unknown_input(cfg, cfg.MODEL.WEIGHTS)
        fit_input(cfg, required, cfg.MODEL.WEIGHTS)


def load_trained(cfg: CfgNode) -> tuple[CfgNode, Detector | RetinaNet, tuple[str, ...]]:
    """Build the detector of a training on the CPU, fill it from MODEL.WEIGHTS, and finish it for inference.

    Returns:
        The config with the classes and the input format of the checkpoint, the detector, and the names of its classes.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it cannot be read safely, or is of another detector than the config describes.
    """
    source = cfg.MODEL.WEIGHTS
    state = read_detector(source)
    if state is None:
        if not split_part(resolve(source))[0].is_file():
            raise FileNotFoundError(f"MODEL.WEIGHTS {source!r}: no such file; name the checkpoint of a training")
        raise ValueError(f"MODEL.WEIGHTS {source!r} is no trained detector; name the checkpoint of a training")
    if not state["class_names"]:
        raise ValueError(f"{source} {_UNNAMED}")
    cfg = cfg.clone()
    fit_input(cfg, state["input"], source)
    class_names = tuple(state["class_names"])
    set_num_classes(cfg, class_names)
    detector = build_detector(cfg).eval()
    load_detector(detector, state["model"], state["source"], new_classes=False)
    finish_for_inference(detector)
    return cfg, detector, class_names
