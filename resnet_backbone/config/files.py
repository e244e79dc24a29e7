"""Config files and command-line overrides, merged with errors that name the key and where it was set."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from resnet_backbone.config.known_keys import check_keys
from resnet_backbone.config.types import fit
from resnet_backbone.config.yaml_files import Setting, read_settings

COMMAND_LINE = "the command line"


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


def merge_config(
    cfg: CfgNode, config_file: str | Path, overrides: Sequence[str], engine: str, foreign: Collection[str] = ()
) -> dict[str, str]:
    """Merge a YAML file (with its ``_BASE_`` files), then ``KEY VALUE`` pairs, into ``cfg``, in place.

    Args:
        cfg: the tree of every key that the engine obeys, with defaults.
        config_file: a path, or a name inside :func:`config_folder`.
        overrides: words from a command line.
        engine: its name, for messages.
        foreign: keys that only Detectron2 has.

    Returns:
        Where each key was set, for :func:`~resnet_backbone.config.origins.naming_origins`.

    Raises:
        FileNotFoundError: no such config, or no such ``_BASE_``.
        OSError: a file that cannot be read.
        ValueError: not YAML, keys that are not in ``cfg``, or values of the wrong type: all of them, with their lines.
    """
    parts = read_settings(find_config_file(str(config_file))), _read_overrides(overrides)
    settings = parts[0] | parts[1]
    check_keys(cfg, settings, engine, foreign)
    defaults = cfg.clone()
    problems = [problem for part in parts for problem in _merge(cfg, part, defaults)]
    if problems:
        raise ValueError("\n".join(problems))
    return {key: setting.origin for key, setting in settings.items()}


def _merge(cfg: CfgNode, settings: Mapping[str, Setting], defaults: CfgNode) -> Iterator[str]:
    """Write the settings into ``cfg``, and yield what is wrong with those of another type than the defaults."""
    for key, (value, origin) in settings.items():
        default, present = value_of(defaults, key), value_of(cfg, key)
        if isinstance(default, CfgNode):
            continue  # an empty section
        section, _, name = key.rpartition(".")
        node = value_of(cfg, section) if section else cfg
        try:
            node[name] = fit(key, value, default, present=present, quoted=origin == COMMAND_LINE)
        except ValueError as error:
            yield f"{origin}: {error}"


def _read_overrides(overrides: Sequence[str]) -> dict[str, Setting]:
    if options := [word for word in overrides if re.match("--[a-z]", word)]:
        raise ValueError(f"write {' and '.join(options)} before the pairs KEY VALUE, which come last")
    if len(overrides) % 2:
        raise ValueError(f"write overrides as pairs KEY VALUE; got {len(overrides)} words: {' '.join(overrides)}")
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return {key: Setting(value, COMMAND_LINE) for key, value in pairs}


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
