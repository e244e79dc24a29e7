"""A detector that was trained on this engine, with what its checkpoint says of it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fvcore.common.config import CfgNode

from resnet_backbone.config import fit_input
from resnet_backbone.models.acceleration import finish_for_inference
from resnet_backbone.torchvision_plugin.checkpoint import load_checkpoint, load_detector
from resnet_backbone.torchvision_plugin.datasets import set_num_classes
from resnet_backbone.torchvision_plugin.detector import Detector, build_detector
from resnet_backbone.torchvision_plugin.retinanet import RetinaNet
from resnet_backbone.weights.cache import resolve


class Trained(NamedTuple):
    """All of it is of the checkpoint: input format, classes, tensors."""

    cfg: CfgNode
    detector: Detector | RetinaNet
    class_names: tuple[str, ...]


def load_trained(cfg: CfgNode) -> Trained:
    """Build the detector of a training on the CPU, fill it, and finish it for inference.

    Args:
        cfg: of the training, MODEL.WEIGHTS being its checkpoint; see ``load_config``. It stays as it is.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it cannot be read safely, or is of another detector than the config describes.
    """
    source = cfg.MODEL.WEIGHTS
    path = Path(resolve(source))
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS {source!r}: no such file; name the checkpoint of a training")
    cfg = cfg.clone()
    state = load_checkpoint(path)
    fit_input(cfg, state["input"], source)
    class_names = tuple(state["class_names"])
    set_num_classes(cfg, class_names)
    detector = build_detector(cfg).eval()
    load_detector(detector, state["model"], source, new_classes=False)
    finish_for_inference(detector)
    return Trained(cfg, detector, class_names)
