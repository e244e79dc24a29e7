"""Values as they are written: words of a command line, and what messages show of a value."""

from __future__ import annotations

import ast
import warnings
from typing import Any

_LONGEST = 20_000  # of a word that is looked at as a Python literal
_SHOWN = 80


def literal(word: str) -> Any:
    """Return the number, list, ... that ``word`` is in Python, as yacs reads it; the word itself where it is none."""
    if len(word) > _LONGEST:
        return word
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "1is" and the like
            value = ast.literal_eval(word)
        repr(value)  # numbers of thousands of digits cannot be shown
        return value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return word


def shown(value: Any) -> str:
    """Return ``repr(value)``, of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
