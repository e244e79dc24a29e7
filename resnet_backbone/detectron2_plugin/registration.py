"""Entering things into Detectron2's registries."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, TypeVar

from fvcore.common.registry import Registry

Thing = TypeVar("Thing", bound=Any)


def register(registry: Registry, thing: Thing) -> Thing:
    """Enter ``thing`` under its name, unless this file, imported under another module name, did so before.

    Raises:
        ValueError: the name belongs to something else.
    """
    name = thing.__name__
    if name not in registry:
        registry.register(thing)
        return thing
    other = registry.get(name)
    if _file_of(other) != _file_of(thing):
        raise ValueError(
            f"{name} stands in Detectron2's registry already, from {_file_of(other)}; import either that or "
            f"{_file_of(thing)}"
        )
    return thing


def _file_of(thing: Any) -> Path:
    return Path(inspect.getfile(thing)).resolve()
