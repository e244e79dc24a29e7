"""Entering things into Detectron2's registries."""

from __future__ import annotations

from typing import Any, TypeVar

from fvcore.common.registry import Registry

Thing = TypeVar("Thing", bound=Any)


def register(registry: Registry, thing: Thing) -> Thing:
    """Enter ``thing`` under its name, unless this package, imported under another module name, did so before.

    Raises:
        ValueError: the name belongs to something else.
    """
    name = thing.__name__
    if name not in registry:
        registry.register(thing)
        return thing
    other = registry.get(name)
    if other.__module__.rsplit(".", 1)[-1] != thing.__module__.rsplit(".", 1)[-1]:
        raise ValueError(f"{name} of {other.__module__} stands in Detectron2's registry already; import one of the two")
    return thing
