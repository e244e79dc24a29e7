"""The network that a config describes, what it starts from, and the input that this needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode

from resnet_backbone.classification.checkpoint import is_own_checkpoint, load_checkpoint
from resnet_backbone.config.files import value_of
from resnet_backbone.models.registry import create_model
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import InputFormat, Weights, WeightsError, load_weights, read_weights
from resnet_backbone.weights.cache import resolve

logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """What a network starts from: at most one of the two; He et al.'s initialisation without."""

    weights: Weights | None = None
    checkpoint: dict[str, Any] | None = None  # of a classifier's training

    @property
    def num_classes(self) -> int:
        """Of the classifier that is there already, 0 for none."""
        if self.checkpoint is not None:
            return len(self.checkpoint["class_names"])
        return self.weights.num_classes if self.weights else 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its classes, where they are known."""
        if self.checkpoint is not None:
            return tuple(self.checkpoint["class_names"])
        return self.weights.class_names if self.weights else ()

    def check_network(self, cfg: CfgNode, *, goes_on: bool) -> None:
        """Raise ValueError where the tensors hide that ``cfg`` describes another network than was trained.

        Args:
            cfg: of the run.
            goes_on: the same training is resumed, or its network evaluated: stochastic depth may not change either.
        """
        if self.checkpoint is None:
            return
        trained = {"MODEL.ARCH": self.checkpoint["arch"], "MODEL.STRIDE_IN_1X1": self.checkpoint["stride_in_1x1"]}
        if goes_on:
            trained["MODEL.STOCHASTIC_DEPTH"] = self.checkpoint.get("stochastic_depth", 0.0)
        for key, value in trained.items():
            if value_of(cfg, key) != value:
                raise ValueError(
                    f"the checkpoint was trained with {key} {value}, not {value_of(cfg, key)}; write {value}"
                )

    @property
    def input_format(self) -> InputFormat | None:
        if self.checkpoint is not None:
            return InputFormat.from_dict(self.checkpoint["input"])
        return self.weights.input_format if self.weights else None


def read_start(cfg: CfgNode) -> Start:
    """Read MODEL.WEIGHTS, downloading published weights the first time.

    Raises:
        FileNotFoundError, OSError: it is not there, or cannot be downloaded.
        ValueError: it cannot be read safely, or is of another architecture.
    """
    source = cfg.MODEL.WEIGHTS
    if not source:
        return Start()
    path = Path(resolve(source))
    if is_own_checkpoint(path):
        return Start(checkpoint=load_checkpoint(path))
    return Start(weights=read_weights(source, arch=cfg.MODEL.ARCH))


def input_format_of(cfg: CfgNode) -> InputFormat:
    """Return what INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD say.

    Raises:
        ValueError: values on another scale than 0 to 255.
    """
    return InputFormat(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))


def fit_input(cfg: CfgNode, start: Start) -> None:
    """Write the input format of what the network starts from into ``cfg``, in place, and log it.

    Raises:
        ValueError: weights that do not say what they were trained on.
    """
    needed = start.input_format
    if needed is None:
        if start.weights is not None:
            raise ValueError(
                f"{start.weights.source} does not say which input it was trained on: package it with "
                f"tools/package_weights.py"
            )
        return
    if needed != input_format_of(cfg):
        cfg.INPUT.FORMAT = needed.channel_order
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = list(needed.mean), list(needed.std)
        logger.info("from the weights: %s", needed)


def build_network(cfg: CfgNode, num_classes: int, start: Start) -> Trunk:
    """Build what MODEL describes, with ``num_classes``, filled with what it starts from; for other classes a new head.

    Raises:
        ValueError: options that do not fit the architecture, or weights that do not fit the network.
    """
    node = cfg.MODEL
    network = create_model(
        node.ARCH,
        num_classes=num_classes,
        norm=node.NORM or None,
        freeze_at=node.FREEZE_AT,
        stride_in_1x1=node.STRIDE_IN_1X1,
        shortcut=node.SHORTCUT or None,
        preactivation=node.PREACTIVATION,
        stochastic_depth=node.STOCHASTIC_DEPTH,
    )
    if start.checkpoint is not None:
        try:
            load_weights(network, start.checkpoint["model"], new_head=True)
        except WeightsError as error:
            raise ValueError(f"the checkpoint is of another network than MODEL describes: {error}") from error
    elif start.weights is not None:
        logger.info("%s", load_weights(network, start.weights, new_head=True).summary())
    if node.CHANNELS_LAST:
        network.to(memory_format=torch.channels_last)
    return network
