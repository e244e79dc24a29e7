"""The network that a config describes, its weights and input, and the checkpoints of its training."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from resnet_backbone.config.reader import value_of
from resnet_backbone.engine.checkpoint import is_checkpoint, read_checkpoint
from resnet_backbone.models.registry import create_model
from resnet_backbone.models.resnet import survival_rates
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import (
    InputFormat,
    TestTransform,
    Weights,
    WeightsError,
    load_weights,
    package_weights,
    read_weights,
)
from resnet_backbone.weights.download import resolve

logger = logging.getLogger(__name__)

WEIGHTS = "weights.pth"  # in OUTPUT_DIR: the packaged network, for tools/train_net.py and any Detectron2 project
_BLOCK = re.compile(r"res\d\.\d+")
_KEYS = {"model", "arch", "class_names", "input", "test_transform"}


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

    def check_network(self, cfg: CfgNode, *, exact: bool) -> None:
        """Raise ValueError where the tensors hide that ``cfg`` describes another network than was trained.

        Args:
            cfg: of the run.
            exact: the same training is resumed, or its network evaluated: stochastic depth may not change either.
        """
        if self.checkpoint is None:
            return
        facts = {"MODEL.ARCH": self.checkpoint["arch"], "MODEL.STRIDE_IN_1X1": self.checkpoint["stride_in_1x1"]}
        if exact:
            facts["MODEL.STOCHASTIC_DEPTH"] = self.checkpoint.get("stochastic_depth", 0.0)
        for key, value in facts.items():
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
    if is_checkpoint(path, _is_classifier):
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
                f"resnet-backbone package"
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


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        ValueError: the file is no such checkpoint.
    """
    expected = f"checkpoint of resnet-backbone classify, which holds {', '.join(sorted(_KEYS))}"
    return read_checkpoint(path, _is_classifier, expected)


def _is_classifier(state: object) -> bool:
    return isinstance(state, dict) and state.keys() >= _KEYS


def weights_file(source: str) -> str:
    """Return the packaged file in the folder of a run; a source that is no folder as it is.

    Raises:
        FileNotFoundError: a folder without it.
    """
    if not Path(source).is_dir():
        return source
    path = Path(source) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; a run of resnet-backbone classify has it when it is finished")
    return str(path)


def package_checkpoint(path: Path) -> Path:
    """Write ``weights.pth`` beside a checkpoint: its network alone, saying what it is and what it was trained on.

    What stochastic depth multiplies residuals by is multiplied into their last layers: see :func:`fold_survival`.

    Raises:
        ValueError: no checkpoint of a classifier's training.
    """
    state = load_checkpoint(path)
    destination = path.with_name(WEIGHTS)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".packaging-") as folder:
        folded = Path(folder) / path.name
        torch.save(fold_survival(state["model"], state.get("stochastic_depth", 0.0)), folded)
        package_weights(
            folded,
            destination,
            state["arch"],
            InputFormat.from_dict(state["input"]),
            state["stride_in_1x1"],
            test_transform=TestTransform(**state["test_transform"]),
            class_names=state["class_names"],
        )
    return destination


def fold_survival(state_dict: Mapping[str, Tensor], stochastic_depth: float) -> dict[str, Tensor]:
    """Return the tensors of a network that computes without stochastic depth what this one does in evaluation.

    There it multiplies the residual of each block by the block's survival (arXiv 1603.09382, equation 5). Here the norm
    that ends the residual is multiplied, or the convolution where none follows it.

    Args:
        state_dict: of the whole network, in our names.
        stochastic_depth: what it was trained with, see ``create_model``.
    """
    folded = dict(state_dict)
    found = {match[0] for name in state_dict if (match := _BLOCK.match(name))}
    blocks = sorted(found, key=lambda block: [int(number) for number in re.findall(r"\d+", block)])
    for block, survival in zip(blocks, survival_rates(len(blocks), stochastic_depth), strict=True):
        last = next(f"{block}.conv{n}" for n in (3, 2) if f"{block}.conv{n}.weight" in state_dict)
        has_norm = f"{last}.norm.weight" in state_dict
        for name in (f"{last}.norm.weight", f"{last}.norm.bias") if has_norm else (f"{last}.weight",):
            folded[name] = state_dict[name] * survival
    return folded
