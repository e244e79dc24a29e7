"""Reading a small JSON file whole, with every way in which it can be broken as one error."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON in UTF-8, or nested without end.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deeply") from error


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Put the name of the file that is being read in front of messages; nothing, where ``source`` is no path."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if not isinstance(source, Path) or str(source) in str(error):
            raise
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{source}: {error}") from error


def brief(value: Any) -> str:
    """Show a value from a file in a message, whatever its size and depth."""
    text = reprlib.repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
