"""Reads a long JSON list element by element, so that no more than one part of the file is in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from resnet_backbone.files.json_file import json_encoding, json_errors, pairs_hook

CHUNK = 1 << 20  # characters read at a time
MAX_ELEMENT = 1 << 24  # characters of one element; a detection with its mask has a few thousand

_SPACE = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"[ \t\n\r]*,[ \t\n\r]*")


def iterate_list(path: Path, chunk: int = CHUNK) -> Iterator[Any]:
    """Yield the elements of the list that a JSON file holds, as ``json.loads`` gives them.

    Args:
        path: a file in UTF-8, UTF-16 or UTF-32, with a byte order mark or without.
        chunk: characters that are read at a time.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the file holds something else than a list.
        ValueError: the file is not JSON, or an object has a key twice. What comes before has been yielded by then.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with json_errors(path), path.open(encoding=json_encoding(path), errors="surrogatepass", newline="") as file:
        yield from _elements(_Window(file, chunk))


class _Window:
    """The part of a file that is in memory, and the place in it that is read next."""

    def __init__(self, file: TextIO, chunk: int) -> None:
        self.file = file
        self.chunk = chunk
        self.text = ""
        self.at = 0
        self.dropped = 0  # characters of the file before the text
        self.decode = json.JSONDecoder(object_pairs_hook=pairs_hook()).raw_decode

    def grow(self, count: int = 0) -> bool:
        """Read on, ``count`` characters or more, and forget what is done with; false at the end of the file."""
        read = self.file.read(max(self.chunk, count))
        self.dropped += self.at
        self.text = self.text[self.at :] + read
        self.at = 0
        return bool(read)

    def mark(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # matches nothing, too
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, self.at = self.decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                problem = self.fault(error.msg, error.pos)
            # The value may have been cut off by the end of the text. Twice as much of it is tried each time, so that
            # a long one is not decoded over and over.
            if len(self.text) - self.at > MAX_ELEMENT:
                raise self.fault(f"no element has more than {MAX_ELEMENT:,} characters", self.at)
            if not self.grow(len(self.text) - self.at):
                raise problem

    def fault(self, what: str, at: int) -> ValueError:
        """What is wrong, at a place of the text."""
        return ValueError(f"{what}: character {self.dropped + at}")


def _elements(window: _Window) -> Iterator[Any]:
    if window.mark() != "[":
        found = "dict" if window.mark() == "{" else type(window.value()).__name__  # one with images is large
        hint = "; results are a list, and the annotations of a data set are a dict" if found == "dict" else ""
        raise TypeError(f"expected a list in the file {window.file.name}, got {found}{hint}")
    window.at += 1
    if window.mark() == "]":
        window.at += 1
    else:
        while True:
            yield window.value()
            between = _BETWEEN.match(window.text, window.at)
            if between and between.end() < len(window.text):
                window.at = between.end()
                continue
            mark = window.mark()
            if mark not in (",", "]"):
                raise window.fault("Expecting ',' delimiter", window.at)
            window.at += 1
            if mark == "]":
                break
            window.mark()
    if window.mark():
        raise window.fault("Extra data", window.at)
