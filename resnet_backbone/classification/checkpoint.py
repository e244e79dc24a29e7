"""Checkpoints of a classifier's training, and the weights of the backbone that comes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet_backbone.training.checkpoint import is_checkpoint, read_checkpoint
from resnet_backbone.weights import InputFormat, TestTransform, package_weights

WEIGHTS = "weights.pth"  # in OUTPUT_DIR: the packaged network, for tools/train_net.py and any Detectron2 project
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


def package_checkpoint(path: Path) -> Path:
    """Write ``weights.pth`` beside a checkpoint: its network alone, saying what it is and what it was trained on.

    Raises:
        ValueError: no checkpoint of a classifier's training.
    """
    state = load_checkpoint(path)
    destination = path.with_name(WEIGHTS)
    package_weights(
        path,
        destination,
        state["arch"],
        InputFormat.from_dict(state["input"]),
        state["stride_in_1x1"],
        test_transform=TestTransform(**state["test_transform"]),
        class_names=state["class_names"],
    )
    return destination
