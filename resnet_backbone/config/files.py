"""Config files and command-line overrides, merged with errors that name the key."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

# Keys that tell which tool a config is for.
_TOOL_OF = {"MODEL.ARCH": "tools/train_classifier.py", "MODEL.BACKBONE.FREEZE_AT": "tools/train_net.py"}


def config_folder() -> Path:
    """Return the folder of the project's configs: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def find_config_file(name: str) -> Path:
    """Return the path of a config file, given as a path or as a name inside :func:`config_folder`.

    Raises:
        FileNotFoundError: neither exists; the message names the nearest of the project's configs.
    """
    for path in (Path(name), config_folder() / name.removeprefix("configs/")):
        if path.is_file():
            return path
    known = sorted(path.relative_to(config_folder()).as_posix() for path in config_folder().rglob("*.yaml"))
    near = difflib.get_close_matches(name.removeprefix("configs/"), known, n=4, cutoff=0.5) or known
    raise FileNotFoundError(
        f"config file {name!r} is neither a file nor one of the project's; did you mean {', '.join(near)}?"
    )


def merge_config(cfg: CfgNode, config_file: str | Path, overrides: Sequence[str], engine: str) -> None:
    """Merge a YAML file (with its ``_BASE_`` files), then ``KEY VALUE`` pairs, into ``cfg``, in place.

    Args:
        cfg: the tree of every key that the engine obeys, with defaults.
        config_file: a path, or a name inside :func:`config_folder`.
        overrides: words from a command line.
        engine: its name, for messages.

    Raises:
        FileNotFoundError: no such config.
        ValueError: not YAML, a key that is not in ``cfg``, or a value of the wrong type.
    """
    path = find_config_file(str(config_file))
    try:
        values = CfgNode.load_yaml_with_base(str(path), allow_unsafe=False)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file that can be read safely: {error}") from error
    _check_keys(cfg, list(leaves(values)), str(path), engine)
    try:
        cfg.merge_from_other_cfg(type(cfg)(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if options := [word for word in overrides if word.startswith("--")]:
        raise ValueError(f"write {' and '.join(options)} before the pairs KEY VALUE, which come last")
    if len(overrides) % 2:
        raise ValueError(f"write overrides as pairs KEY VALUE; got {len(overrides)} words: {' '.join(overrides)}")
    for key, value in zip(overrides[::2], overrides[1::2], strict=True):
        _check_keys(cfg, [key], "the command line", engine)
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            reason = _wanted(key, value, value_of(cfg, key)) if "Type mismatch" in str(error) else f"{value}: {error}"
            raise ValueError(f"{key} {reason}") from error


def _wanted(key: str, word: str, present: Any) -> str:
    """Say which type a key has, with an example of what to write."""
    if isinstance(present, bool):
        return f"wants True or False, not {word}"
    if isinstance(present, (list, tuple)):
        try:
            item = ast.literal_eval(word)
        except (ValueError, SyntaxError):
            item = word
        return f'wants a list: "{[item] if isinstance(item, (str, int, float)) else list(present)}"'
    kinds = {int: "a whole number", float: "a number with a point", str: "a word"}
    example = repr(str(present)) if isinstance(present, str) else present
    return f"wants {kinds.get(type(present), type(present).__name__)}, such as {example}, not {word}"


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


def _check_keys(cfg: CfgNode, keys: Sequence[str], source: str, engine: str) -> None:
    known = set(leaves(cfg))
    unknown = [key for key in keys if key not in known]
    for key in [*(key for key in unknown if key in _TOOL_OF), *unknown]:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; the nearest that it obeys is {near[0]}" if near else ""
        if key in _TOOL_OF:
            hint = f"; a config with that key is for {_TOOL_OF[key]}"
        raise ValueError(f"{source}: the {engine} engine does not obey the key {key}{hint}")
