"""torchvision's model and torch's way to fill it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision


def build_and_read(path: Path) -> Callable[[], None]:
    """Return a call that builds ResNet-101 and fills it from a file."""

    def call() -> None:
        torchvision.models.resnet101(weights=None).load_state_dict(torch.load(path, weights_only=True))

    return call
