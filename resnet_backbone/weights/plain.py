"""Telling plain containers, whatever somebody put into them: cycles, a million levels, or shared parts without end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_ITEMS = 1_000_000
MAX_DEPTH = 32
STANDS_IN_FOR = "stands_in_for"  # attribute of a dict in place of an object of another class; see pickle_check
_PLAIN = (str, int, float, bool, type(None))


def is_plain(value: Any, budget: list[int] | None = None) -> bool:
    """Return whether ``value`` is text, a number, or lists and dicts with text as keys of such, of a bearable size.

    Parts that are shared count as often as a walk comes by, so later walks are bounded, too.

    Args:
        value: to be looked at.
        budget: how many items may be looked at, one number that several calls use up; by default MAX_ITEMS.
    """
    budget = [MAX_ITEMS] if budget is None else budget
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        budget[0] -= 1
        if len(waiting) > budget[0] or depth > MAX_DEPTH:
            return False
        if isinstance(item, Mapping):
            if (type(item) is not dict and stands_in_for(item)) or not all(isinstance(key, str) for key in item):
                return False
            waiting += [(part, depth + 1) for part in item.values()]
        elif isinstance(item, list | tuple):
            waiting += [(part, depth + 1) for part in item]
        elif not isinstance(item, _PLAIN):
            return False
    return True


def stands_in_for(value: Any) -> str:
    """Return the class of the object that a file had here; "" where ``value`` is what the file had."""
    return str(getattr(value, "__dict__", {}).get(STANDS_IN_FOR, ""))


def shown(key: Any, length: int = 80) -> str:
    """Return a name for a message: short, and of a key that is no text not more than its type where it may be long."""
    if isinstance(key, str):
        return key if len(key) <= length else f"{key[:length]}..."
    if isinstance(key, float | bool | type(None)) or (isinstance(key, int) and key.bit_length() <= 64):
        return repr(key)
    return f"a key of type {type(key).__name__}"
