"""What MODEL.WEIGHTS names: an ImageNet classifier, a detector, or nothing; and the input that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from resnet_backbone.config import fit_input, warn_of_random_weights
from resnet_backbone.config.input import required_by
from resnet_backbone.torchvision_plugin.checkpoint import is_own_checkpoint, load_checkpoint
from resnet_backbone.weights import Weights, read_weights
from resnet_backbone.weights.cache import resolve


class Initial(NamedTuple):
    """At most one of the two is there."""

    classifier: Weights | None = None
    detector: dict[str, Any] | None = None  # content of a checkpoint


def read_initial_weights(cfg: CfgNode) -> Initial:
    """Read MODEL.WEIGHTS, downloading it where it is a name of the catalog or an address.

    Raises:
        FileNotFoundError, OSError: the file is not there, or cannot be downloaded.
        ValueError: it cannot be read safely, or is of another architecture.
    """
    source = cfg.MODEL.WEIGHTS
    if not source:
        return Initial()
    path = Path(resolve(source))
    if is_own_checkpoint(path):
        return Initial(detector=load_checkpoint(path))
    return Initial(classifier=read_weights(source, arch=cfg.MODEL.RESNET_BACKBONE.ARCH))


def fit_input_to(cfg: CfgNode, initial: Initial) -> None:
    """Take the input format and stride placement from the weights, in place; or check them, as INPUT_FROM_WEIGHTS says.

    Raises:
        ValueError: the weights do not say what they need, or the config differs from it and may not be changed.
    """
    if initial.detector is not None:
        fit_input(cfg, initial.detector["input"], cfg.MODEL.WEIGHTS)
    elif initial.classifier is not None:
        fit_input(cfg, required_by(initial.classifier, cfg), cfg.MODEL.WEIGHTS)
    else:
        warn_of_random_weights(cfg)
