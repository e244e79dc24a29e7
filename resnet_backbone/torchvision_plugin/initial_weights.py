"""What MODEL.WEIGHTS names: an ImageNet classifier, a detector, or nothing; and the input that it needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from fvcore.common.config import CfgNode

from resnet_backbone.config import check_input, required_input, set_input
from resnet_backbone.torchvision_plugin.checkpoint import holds_detector, load_checkpoint
from resnet_backbone.weights import Weights, read_weights

logger = logging.getLogger(__name__)


class Initial(NamedTuple):
    """At most one of the two is there."""

    classifier: Weights | None = None
    detector: dict[str, Any] | None = None  # content of a checkpoint


def read_initial_weights(cfg: CfgNode) -> Initial:
    """Read MODEL.WEIGHTS, downloading it where it is ``imagenet://...``.

    Raises:
        FileNotFoundError, OSError: the file is not there, or cannot be downloaded.
        ValueError: it cannot be read safely, or is of another architecture.
    """
    source = cfg.MODEL.WEIGHTS
    if not source:
        return Initial()
    if holds_detector(Path(source)):
        return Initial(detector=load_checkpoint(Path(source)))
    return Initial(classifier=read_weights(source, arch=cfg.MODEL.RESNET_BACKBONE.ARCH))


def fit_input(cfg: CfgNode, initial: Initial) -> None:
    """Take the input format and stride placement from the weights, in place; or check them, as INPUT_FROM_WEIGHTS says.

    Raises:
        ValueError: the weights do not say what they need, or the config differs from it and may not be changed.
    """
    node, source = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL.WEIGHTS
    if initial.detector is not None:
        required = initial.detector["input"]
    elif initial.classifier is not None:
        weights = initial.classifier
        if weights.input_format is None:
            if node.INPUT_FROM_WEIGHTS:
                raise ValueError(
                    f"{source} does not say which input it was trained on. Package it with tools/package_weights.py, "
                    f"or write INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD, and "
                    f"MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS: False"
                )
            return
        required = required_input(node.ARCH, weights.input_format, weights.stride_in_1x1)
    else:
        _warn_of_random_weights(cfg)
        return
    if not node.INPUT_FROM_WEIGHTS:
        check_input(cfg, required, source)
    for line in set_input(cfg, required):
        logger.info("from the weights: %s", line)


def input_of(cfg: CfgNode) -> dict[str, Any]:
    """Return the keys that a detector trained with ``cfg`` needs again, for its checkpoints."""
    return {
        "INPUT.FORMAT": cfg.INPUT.FORMAT,
        "MODEL.PIXEL_MEAN": list(cfg.MODEL.PIXEL_MEAN),
        "MODEL.PIXEL_STD": list(cfg.MODEL.PIXEL_STD),
        "MODEL.RESNETS.STRIDE_IN_1X1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
    }


def _warn_of_random_weights(cfg: CfgNode) -> None:
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0 or cfg.MODEL.RESNET_BACKBONE.NORM == "FrozenBN":
        logger.warning(
            "MODEL.WEIGHTS is empty, so layers stay random and never train: MODEL.BACKBONE.FREEZE_AT is %d and "
            "MODEL.RESNET_BACKBONE.NORM is %r. To train from scratch write FREEZE_AT: 0 and NORM: BN",
            cfg.MODEL.BACKBONE.FREEZE_AT,
            cfg.MODEL.RESNET_BACKBONE.NORM,
        )
