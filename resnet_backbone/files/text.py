"""Reading YAML and JSON files: whatever is wrong with one is a ValueError that names it."""

from __future__ import annotations

import gc
import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 18  # Detectron2's own config, written out, has 10 kB
MAX_VALUES = 20_000  # an alias counts with all that it stands for
MAX_DEPTH = 32
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = (str, int, float, bool, date, type(None))
_FORMATS = {
    b"\x1f\x8b": "a gzip file; unpack it: gunzip -c FILE > NEW",
    b"PK\x03\x04": "a ZIP file; unpack it and name the file inside",
    b"BZh": "a bzip2 file; unpack it: bunzip2 -c FILE > NEW",
    b"\xfd7zXZ\x00": "an xz file; unpack it: xz -dc FILE > NEW",
    b"\x28\xb5\x2f\xfd": "a Zstandard file; unpack it: zstd -dc FILE > NEW",
    b"7z\xbc\xaf\x27\x1c": "a 7z file; unpack it and name the file inside",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "an array of numpy (.npy)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF file",
    b"PAR1": "a Parquet file",
    b"SQLite format 3": "an SQLite data base",
    b"<": "a web page; the address that it came from has changed",
    b"version https://git-lfs": "a pointer of Git LFS; get the file itself: git lfs pull",
}


def known_format(start: bytes) -> str:
    """Return what a file is that begins with ``start``, of what users take for another one by mistake; or ``""``."""
    return next((what for magic, what in _FORMATS.items() if start.lstrip().startswith(magic)), "")


def walk(value: Any, budget: list[int], max_depth: float = math.inf) -> Iterator[Any]:
    """Yield ``value``, and all that its dicts, lists and tuples hold; of dicts the values alone.

    Args:
        value: to be looked through; what it holds twice is yielded twice.
        budget: how many may be yielded, one number that several walks use up.
        max_depth: of containers in each other.

    Raises:
        ValueError: there are more, or they are deeper.
    """
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        budget[0] -= 1
        if len(waiting) > budget[0] or depth > max_depth:
            raise ValueError("it holds too many values, or they are nested too deeply")
        yield item
        # Not item.values(): a file of weights can give a dict an attribute of that name.
        parts = dict.values(item) if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
        waiting += [(part, depth + 1) for part in parts]


class _Loader(yaml.SafeLoader):
    """Plain values alone. Merges are refused: of twenty levels of them PyYAML makes a million keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == _MERGE for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "it merges mappings by <<", node.start_mark)
        super().flatten_mapping(node)


def read_yaml(path: Path, keys: tuple[type, ...] = (str,)) -> dict[Any, Any]:
    """Return the mapping that a YAML file holds: plain values under ``keys``, by default text, of a bearable size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a config has at most {MAX_BYTES:,}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except RecursionError as error:
        raise ValueError(f"{path} is no YAML that can be read: it is nested too deeply") from error
    except Exception as error:  # yaml's constructors raise nearly anything of a value that is not what its tag says
        reason = str(error)[:500] or type(error).__name__
        raise ValueError(f"{path} is not YAML that can be read safely: {reason}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no config: it holds a {type(values).__name__}, expected KEY: VALUE")
    try:
        for value in walk(values, [MAX_VALUES], MAX_DEPTH):
            if isinstance(value, dict):
                if no_text := [key for key in value if not isinstance(key, keys)]:
                    raise ValueError(f"the key {str(no_text[0])[:80]} is no text")
            elif not isinstance(value, (*_PLAIN, list, tuple)):
                raise ValueError(f"it holds a {type(value).__name__}")
    except ValueError as error:
        raise ValueError(f"{path} is no config: {error}") from error
    return values


@contextmanager
def paused_collector() -> Iterator[None]:
    """Keep Python's garbage collector from looking, again and again, through millions of records that are made.

    None of them is in a cycle; looking for cycles takes a third to half of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return what a JSON file in UTF-8, UTF-16 or UTF-32 holds, with a byte order mark or without.

    Args:
        path: the file.
        object_hook: as of ``json.loads``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else, nested without end, or an object has a key twice, of which ``json.loads``
            would drop the first one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with json_errors(path):
        encoding = json_encoding(path)
        # As json.loads does, which would keep the bytes, too.
        text = path.read_bytes().decode(encoding, "surrogatepass")
        return json.loads(text, object_pairs_hook=pairs_hook(object_hook))


def json_encoding(path: Path) -> str:
    """Return the name of the encoding that the first bytes of a JSON file tell.

    Raises:
        ValueError: the file is no text, as far as these bytes tell.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if what := known_format(start):
        raise ValueError(f"it is {what}")
    return json.detect_encoding(start[:4])


def pairs_hook(object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Callable[[list[tuple[str, Any]]], Any]:
    """Return the ``object_pairs_hook`` that refuses an object with a key twice, and calls ``object_hook`` on others."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            key = next(key for key, count in counts.items() if count > 1)
            raise ValueError(
                f"{brief(key)} stands {counts[key]} times in one object ({brief([*counts])}), and all but the last "
                "would be lost; write it once, of lists with the entries of all"
            )
        return found if object_hook is None else object_hook(found)

    return without_repeats


@contextmanager
def json_errors(path: Path) -> Iterator[None]:
    """Name the file in what reading it as JSON raises, as ValueError."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error}; it is neither UTF-8 nor UTF-16 nor UTF-32: iconv -f ITS_ENCODING -t UTF-8"
        ) from error
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
