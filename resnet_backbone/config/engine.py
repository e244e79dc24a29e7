"""Which engine runs a config."""

from __future__ import annotations

import importlib.util

ENGINES = ("auto", "detectron2", "torchvision")


def choose_engine(asked: str) -> str:
    """Return the engine to use; ``auto`` is Detectron2 where it and our plug-in for it can be imported."""
    if asked != "auto":
        return asked
    there = all(importlib.util.find_spec(name) for name in ("detectron2", "resnet_backbone.detectron2_plugin"))
    return "detectron2" if there else "torchvision"
