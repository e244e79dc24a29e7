"""Checkpoints of a classifier's training, and the weights of the backbone that comes out of it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_backbone.models.blocks import survival_rates
from resnet_backbone.training.checkpoint import is_checkpoint, read_checkpoint
from resnet_backbone.weights import InputFormat, TestTransform, package_weights

WEIGHTS = "weights.pth"  # in OUTPUT_DIR: the packaged network, for tools/train_net.py and any Detectron2 project
_BLOCK = re.compile(r"res\d\.\d+")
_KEYS = {"model", "arch", "class_names", "input", "test_transform"}


def is_own_checkpoint(path: Path) -> bool:
    """Return whether ``path`` is a checkpoint of a classifier's training."""
    return is_checkpoint(path, _is_classifier)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        ValueError: the file is no such checkpoint.
    """
    expected = f"checkpoint of tools/train_classifier.py, which holds {', '.join(sorted(_KEYS))}"
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
        raise FileNotFoundError(f"no {path}; a run of tools/train_classifier.py has it when it is finished")
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
