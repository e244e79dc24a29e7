"""Reading YAML files as settings: for each dotted key its value, and the file and line that set it.

Nothing in a file is trusted: no tag makes an object, and size, depth and the number of values are bounded.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

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


BASE = "_BASE_"
_MOST_BYTES = 2**20
_MOST_VALUES = 20_000  # aliases count as often as they are used
_MOST_FILES = 50
_DEPTH = 20
_LONGEST_NUMBER = 400
_TAG = "tag:yaml.org,2002:"
_CONSTRUCTED = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null")}
_AS_WRITTEN = {f"{_TAG}timestamp", f"{_TAG}value"}  # a date as the name of a folder, and "="
_UNSAFE = "not a YAML file that can be read safely"
_HINTS = {
    "\\t": "indent with spaces, not with tabs",
    "expected ':'": "write a colon and a space after a key",
    "mapping values are not allowed": "one KEY: VALUE a line, and all keys of a section equally far from the left",
    "expected ',' or": "is a bracket not closed, or a comma missing?",
    "expected <block end>": "all keys of a section must stand equally far from the left; is a bracket not closed?",
    "found another document": "take out the line ---",
    "expected the node content": "is a bracket not closed, or a value missing?",
}


class Setting(NamedTuple):
    """The value of a key, and where it was set: ``configs/mine.yaml, line 12``, or ``the command line``."""

    value: Any
    origin: str


def config_folder() -> Path:
    """Return the folder of the project's configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def read_settings(path: Path) -> dict[str, Setting]:
    """Read a config file over its ``_BASE_`` files, named by a path relative to it or inside :func:`config_folder`.

    Returns:
        Dotted keys in the order of the files. A section without keys stands there as ``{}`` or None.

    Raises:
        FileNotFoundError: a ``_BASE_`` that is not there.
        OSError: a file that cannot be read.
        ValueError: not YAML, tags that make objects, a key twice, ``_BASE_`` in a circle or too much of anything.
    """
    return _Reader().read(path, ())


class _Reader:
    """One config with its bases: counts files and values."""

    def __init__(self) -> None:
        self.files = 0
        self.values = 0

    def read(self, path: Path, chain: tuple[Path, ...]) -> dict[str, Setting]:
        self.files += 1
        if self.files > _MOST_FILES:
            raise ValueError(f"{shown_path(path)}: a config may have {_MOST_FILES} {BASE} files, and no more")
        name = shown_path(path)
        loader = _Loader(_read_text(path, name), name)
        root = loader.compose()
        if root is None:
            raise ValueError(f"{name} is empty; write keys, such as SOLVER: {{MAX_ITER: 1000}}")
        if not isinstance(root, yaml.MappingNode):
            what = "a list" if isinstance(root, yaml.SequenceNode) else f"the value {shown(root.value)}"
            raise ValueError(f"{loader.place(root)}: a config holds KEY: VALUE pairs, found {what}")
        own: dict[str, Setting] = {}
        settings: dict[str, Setting] = {}
        for key, key_node, value_node in self._items(loader, root, 0):
            if key == BASE:
                for base in self._bases(loader, key_node, value_node):
                    settings |= self._read_base(loader.place(key_node), path, base, (*chain, path))
            else:
                own |= self._flat(loader, key, key_node, value_node, 1)
        return settings | own

    def _bases(self, loader: _Loader, key_node: yaml.Node, node: yaml.Node) -> list[str]:
        value = self._plain(loader, node, 1)
        bases = value if isinstance(value, list) else [value]
        if not all(isinstance(base, str) and base for base in bases):
            raise ValueError(f"{loader.place(key_node)}: {BASE} is {shown(value)}; write the path of a config file")
        return bases

    def _read_base(self, place: str, path: Path, base: str, chain: tuple[Path, ...]) -> dict[str, Setting]:
        if "://" in base:
            raise ValueError(f"{place}: {BASE} is {shown(base)}; download the file, and write its path")
        found = path.parent / (Path(base).expanduser() if base.startswith("~") else base)
        if not found.is_file():
            missing, found = found, config_folder() / base.removeprefix("configs/")
            if not found.is_file():
                raise FileNotFoundError(
                    f"{place}: {BASE} is {shown(base)}, and there is no file {shown_path(missing)}, nor a config of "
                    f"this package by that name"
                )
        links = " -> ".join(shown_path(link) for link in (*chain, found))
        if any(found.samefile(link) for link in chain):
            raise ValueError(f"{place}: {BASE} goes round in a circle: {links}")
        if len(chain) >= _DEPTH:
            raise ValueError(f"{place}: a chain of more than {_DEPTH} {BASE} files: {links}")
        return self.read(found, chain)

    def _flat(self, loader: _Loader, key: str, key_node: yaml.Node, node: yaml.Node, depth: int) -> dict[str, Setting]:
        if not isinstance(node, yaml.MappingNode) or not node.value:
            return {key: Setting(self._plain(loader, node, depth), loader.place(key_node))}
        found: dict[str, Setting] = {}
        for part, part_node, value_node in self._items(loader, node, depth):
            found |= self._flat(loader, f"{key}.{part}", part_node, value_node, depth + 1)
        return found

    def _plain(self, loader: _Loader, node: yaml.Node, depth: int) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return loader.scalar(node)
        if isinstance(node, yaml.MappingNode):
            return {key: self._plain(loader, value, depth + 1) for key, _, value in self._items(loader, node, depth)}
        self._count(loader, node, depth)
        loader.check_tag(node, "seq")
        return [self._plain(loader, item, depth + 1) for item in node.value]

    def _items(self, loader: _Loader, node: yaml.Node, depth: int) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Yield keys and nodes of a mapping, then those of what ``<<`` merges into it that it does not have itself."""
        self._count(loader, node, depth)
        loader.check_tag(node, "map")
        seen: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = loader.key(key_node)
            if key in seen:
                raise ValueError(
                    f"{loader.place(key_node)}: {key} is there twice, first in line {_line(seen[key])}; keep one"
                )
            seen[key] = key_node
            yield key, key_node, value_node
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                raise ValueError(f"{loader.place(other)}: << merges sections, written as aliases: <<: *name")
            for key, key_node, value_node in self._items(loader, other, depth + 1):
                if key not in seen:
                    seen[key] = key_node
                    yield key, key_node, value_node

    def _count(self, loader: _Loader, node: yaml.Node, depth: int) -> None:
        self.values += 1 + len(node.value)
        if self.values > _MOST_VALUES:
            raise ValueError(f"{loader.place(node)}: {_UNSAFE}: more than {_MOST_VALUES} values, aliases included")
        if depth > _DEPTH:
            raise ValueError(f"{loader.place(node)}: {_UNSAFE}: nested more than {_DEPTH} deep")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader up to its nodes, bounded, with errors that name file and line."""

    def __init__(self, text: str, name: str) -> None:
        self.file = name
        self.depth = 0
        self.nodes = 0
        try:
            super().__init__(text)
        except yaml.YAMLError as error:
            raise ValueError(f"{name}: {_UNSAFE}: {error}") from error

    def compose(self) -> yaml.Node | None:
        """Return the root of the file, None where it is empty."""
        try:
            return self.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.file}, line {mark.line + 1}, column {mark.column + 1}" if mark else self.file
            problem = (error.problem or "").removeprefix("but ") or error.context or "it ends too early"
            hint = next((f"; {hint}" for words, hint in _HINTS.items() if words in problem), "")
            snippet = mark.get_snippet() if mark else None
            raise ValueError(f"{where}: {_UNSAFE}: {problem}{hint}" + (f"\n{snippet}" if snippet else "")) from error
        except yaml.YAMLError as error:
            raise ValueError(f"{self.file}: {_UNSAFE}: {error}") from error
        except (ValueError, OverflowError) as error:  # escapes and %YAML versions that are no numbers
            raise ValueError(error if self.file in str(error) else f"{self.file}: {_UNSAFE}: {error}") from error

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.nodes += 1
        if self.depth > _DEPTH or self.nodes > _MOST_VALUES:
            much = f"nested more than {_DEPTH} deep" if self.depth > _DEPTH else f"more than {_MOST_VALUES} values"
            raise ValueError(f"{self.file}, line {self.peek_event().start_mark.line + 1}: {_UNSAFE}: {much}")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def place(self, node: yaml.Node) -> str:
        return f"{self.file}, line {_line(node)}"

    def check_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != f"{_TAG}{kind}":
            raise ValueError(f"{self.place(node)}: {_UNSAFE}: take out the tag {shown(node.tag)}")

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag in _AS_WRITTEN:
            return node.value
        if node.tag not in _CONSTRUCTED:
            raise ValueError(f"{self.place(node)}: {_UNSAFE}: take out the tag {shown(node.tag)}")
        if node.tag == f"{_TAG}str":
            return node.value
        try:
            if len(node.value) > _LONGEST_NUMBER:
                raise ValueError("it is too long")
            return self.construct_object(node)
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            kind = node.tag.removeprefix(_TAG)
            raise ValueError(f"{self.place(node)}: {shown(node.value)} cannot be read as {kind}: {error}") from error

    def key(self, node: yaml.Node) -> str:
        key = self.scalar(node) if isinstance(node, yaml.ScalarNode) else "a list or a section"
        if not isinstance(node, yaml.ScalarNode) or not isinstance(key, str):
            raise ValueError(f"{self.place(node)}: a key must be a word, found {shown(key)}")
        if "." in key:
            nested = ": {".join(key.split(".")) + ": ..." + "}" * key.count(".")
            raise ValueError(f"{self.place(node)}: {shown(key)} in a file is written as sections: {nested}")
        return key


def _read_text(path: Path, name: str) -> str:
    with path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise ValueError(f"{name} is larger than {_MOST_BYTES} bytes, too large for a config; is it one?")
    if b"\0" in raw:
        line = raw[: raw.index(b"\0")].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: {_UNSAFE}: it holds a NUL byte; write it as text in UTF-8")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {line}: {_UNSAFE}: it is not UTF-8; save it in UTF-8") from error


def shown_path(path: Path) -> str:
    """Return a path as messages show it: from the working directory, where it lies below."""
    absolute = Path(os.path.normpath(path.absolute()))
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def value_of(cfg: Mapping[str, Any], key: str) -> Any:
    """Return the value at a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of all values that are no mappings."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
