"""Which engine runs a config."""

from __future__ import annotations

import importlib.util

ENGINES = ("auto", "detectron2", "torchvision")


def choose_engine(asked: str) -> str:
    """Return the engine to use, one of :data:`ENGINES`; ``auto`` is Detectron2 where it is installed."""
    if asked != "auto":
        return asked
    return "detectron2" if importlib.util.find_spec("detectron2") else "torchvision"
