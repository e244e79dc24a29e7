"""Reading one YAML file of settings, with every way in which it can be broken as one error."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 18  # Detectron2's own config, written out, has 10 kB
MAX_VALUES = 20_000  # an alias counts with all that it stands for
MAX_DEPTH = 32
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = (str, int, float, bool, date, type(None))


class _Loader(yaml.SafeLoader):
    """Plain values alone. Merges are refused: of twenty levels of them PyYAML makes a million keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if any(key.tag == _MERGE for key, _ in node.value):
            raise yaml.constructor.ConstructorError(None, None, "it merges mappings by <<", node.start_mark)
        super().flatten_mapping(node)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds: plain values under keys that are text, of a bearable size.

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
    _check_size(values, path)
    return values


def _check_size(values: dict[str, Any], path: Path) -> None:
    waiting: list[tuple[Any, int]] = [(values, 0)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen + len(waiting) > MAX_VALUES:
            raise ValueError(
                f"{path} is no config: its aliases unfold to more than {MAX_VALUES:,} values, or {MAX_DEPTH} levels"
            )
        if isinstance(value, dict):
            if strange := [key for key in value if not isinstance(key, str)]:
                raise ValueError(f"{path} is no config: the key {str(strange[0])[:80]} is no text")
            waiting += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, list | tuple):
            waiting += [(part, depth + 1) for part in value]
        elif not isinstance(value, _PLAIN):
            raise ValueError(f"{path} is no config: it holds a {type(value).__name__}")
