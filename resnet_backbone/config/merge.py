"""Config files and command-line overrides merged into a config, and two configs compared."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from resnet_backbone.config.checks import fit
from resnet_backbone.config.reader import Setting, config_folder, leaves, read_settings, shown, value_of
from resnet_backbone.config.schema import ConfigError, Key
from resnet_backbone.files.text import read_yaml

logger = logging.getLogger(__name__)

COMMAND_LINE = "the command line"
CONFIG = "config.yaml"  # in the folder of a run
# What a run writes from weights, data and machine, or what changes nothing that it learns.
_WRITTEN_BY_RUNS = {
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "INPUT.FORMAT",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
}
_PATHS = {"MODEL.WEIGHTS", "TEST.ENSEMBLE"}
# Keys that tell which tool a config is for.
_TOOL_OF = {"MODEL.ARCH": "resnet-backbone classify", "MODEL.BACKBONE.FREEZE_AT": "resnet-backbone train"}
_TOLD = 20  # of more, their number
_NEAREST = 3


def check_keys(cfg: CfgNode, settings: Mapping[str, Setting], engine: str, foreign: Collection[str]) -> None:
    """Raise ValueError, a line a key, for keys that ``cfg`` lacks and for sections and values in each other's place."""
    known = set(leaves(cfg))
    sections = {key[:end] for key in known for end, letter in enumerate(key) if letter == "."}
    unknown = [key for key in settings if key not in known and key not in sections]
    for key in unknown:
        if key in _TOOL_OF:
            hint = f"a config with that key is for {_TOOL_OF[key]}"
            raise ValueError(f"{settings[key].origin}: the {engine} engine does not obey the key {key}; {hint}")
    problems = []
    for key, (value, origin) in settings.items():
        parent = next((known_key for known_key in known if key.startswith(f"{known_key}.")), None)
        if key in sections and value != {}:
            problems.append(f"{origin}: {key} {_section_wanted(cfg, key, value)}")
        elif parent is not None:
            problems.append(f"{origin}: {parent} is a value and no section, so that it has no {key}")
        elif key in known and isinstance(value, dict):
            problems.append(f"{origin}: {key} is a value and no section; found {shown(value)}")
        elif key in unknown:
            hint = _hint(key, known, foreign)
            problems.append(f"{origin}: the {engine} engine does not obey the key {key}{hint}")
    if len(problems) > _TOLD:
        problems[_TOLD:] = [f"... and {len(problems) - _TOLD} more"]
    if problems:
        raise ValueError("\n".join(problems))


def _hint(key: str, known: Collection[str], foreign: Collection[str]) -> str:
    if key in foreign:
        ours = key.replace("MODEL.RESNETS.", "MODEL.RESNET_BACKBONE.")
        ours = f"; here it is {ours}" if ours in known else ""
        return f"; Detectron2 has it: take it out, or write --engine detectron2{ours}"
    by_upper = {other.upper(): other for other in known}
    near = [by_upper[key.upper()]] if key.upper() in by_upper else []
    near += difflib.get_close_matches(key.upper(), known, n=1)
    last = key.upper().rpartition(".")[2]
    near += difflib.get_close_matches(key.upper(), [k for k in known if k.endswith(f".{last}") or k == last], cutoff=0)
    near = list(dict.fromkeys(near))[:_NEAREST]
    return f"; the nearest that it obeys {'is' if len(near) == 1 else 'are'} {', '.join(near)}" if near else ""


def _section_wanted(cfg: CfgNode, key: str, value: object) -> str:
    keys = list(value_of(cfg, key))
    some = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
    found = "nothing is below it: take it out, or write keys below it" if value is None else f"found {shown(value)}"
    return f"is a section, of the keys {some}; {found}"


def find_config_file(name: str) -> Path:
    """Return the path of a config file, given as a path or as a name inside :func:`config_folder`, ".yaml" or not.

    Raises:
        FileNotFoundError: neither exists; the message names the nearest of the project's configs.
    """
    own = config_folder() / name.removeprefix("configs/")
    for path in (Path(name), own, own.with_name(f"{own.name}.yaml")):
        if path.is_file():
            return path
    known = sorted(path.relative_to(config_folder()).as_posix() for path in config_folder().rglob("*.yaml"))
    near = difflib.get_close_matches(name.removeprefix("configs/"), known, n=4, cutoff=0.5) or known
    raise FileNotFoundError(
        f"config file {name!r} is neither a file nor one of the project's; did you mean {', '.join(near)}?"
    )


def merge_config(
    cfg: CfgNode,
    config_file: str | Path,
    overrides: Sequence[str],
    engine: str,
    keys: Mapping[str, Key],
    foreign: Collection[str] = (),
) -> dict[str, str]:
    """Merge a YAML file (with its ``_BASE_`` files), then ``KEY VALUE`` pairs, into ``cfg``, in place.

    Args:
        cfg: the tree of every key that the engine obeys, with defaults.
        config_file: a path, or a name inside :func:`config_folder`.
        overrides: words from a command line.
        engine: its name, for messages.
        keys: what is known of the keys, by name; of others in ``cfg`` the default's type counts.
        foreign: keys that only Detectron2 has.

    Returns:
        Where each key was set, for :func:`check_with_origins`.

    Raises:
        OSError: a file that is not there, or cannot be read.
        ConfigError: not YAML, keys that are not in ``cfg``, or values of the wrong type: all of them, with their lines.
    """
    parts = read_settings(find_config_file(str(config_file))), _read_overrides(overrides)
    settings = parts[0] | parts[1]
    check_keys(cfg, settings, engine, foreign)
    defaults = cfg.clone()
    problems = [problem for part in parts for problem in _merge(cfg, part, defaults, keys)]
    if problems:
        raise ConfigError("\n".join(problems))
    return {key: setting.origin for key, setting in settings.items()}


def check_with_origins(cfg: CfgNode, origins: Mapping[str, str], check: Callable[[CfgNode], None]) -> None:
    """Call ``check(cfg)``, and add to its error, for each of its keys, the value and where that was set."""
    try:
        check(cfg)
    except ConfigError as error:
        lines = [str(error)]
        for key in dict.fromkeys(error.keys):
            origin = origins.get(key)
            where = "the default" if origin is None else f"set {'on' if origin == COMMAND_LINE else 'in'} {origin}"
            lines.append(f"  {key}: {shown(value_of(cfg, key))} is {where}")
        raise ConfigError("\n".join(lines), *error.keys) from error


def _merge(cfg: CfgNode, settings: Mapping[str, Setting], defaults: CfgNode, keys: Mapping[str, Key]) -> Iterator[str]:
    """Write the settings into ``cfg``, and yield what is wrong with those of another type than the defaults."""
    for name, (value, origin) in settings.items():
        default = value_of(defaults, name)
        if isinstance(default, CfgNode):
            continue  # an empty section
        known = Key(name, default, element=keys[name].first_element() if name in keys else None)
        section, _, last = name.rpartition(".")
        node = value_of(cfg, section) if section else cfg
        try:
            node[last] = fit(known, value, quoted=origin == COMMAND_LINE)
        except ValueError as error:
            yield f"{origin}: {error}"


def _read_overrides(overrides: Sequence[str]) -> dict[str, Setting]:
    if options := [word for word in overrides if re.match("--[a-z]", word)]:
        raise ValueError(f"write {' and '.join(options)} before the pairs KEY VALUE, which come last")
    if len(overrides) % 2:
        raise ValueError(f"write overrides as pairs KEY VALUE; got {len(overrides)} words: {' '.join(overrides)}")
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    return {key: Setting(value, COMMAND_LINE) for key, value in pairs}


def differences(
    written: Mapping[str, Any], cfg: Mapping[str, Any], names: tuple[str, str], but: Collection[str] = ()
) -> list[str]:
    """Say, a sentence a key, what a run's ``config.yaml`` has otherwise than ``cfg``; what runs write is left out.

    A key that only one of them has is left out, too: versions and engines know different ones. So are those in ``but``.
    The two are called by their ``names``.
    """
    both = set(leaves(written)) & set(leaves(cfg)) - _WRITTEN_BY_RUNS - set(but)
    values = {key: (value_of(written, key), value_of(cfg, key)) for key in sorted(both)}
    return [
        f"{key} is {_shown(found)} in {names[0]}, {_shown(expected)} in {names[1]}"
        for key, (found, expected) in values.items()
        if _comparable(key, found) != _comparable(key, expected)
    ]


def warn_of_changes(output_dir: Path, cfg: Mapping[str, Any]) -> None:
    """Log what a run that is resumed in ``output_dir`` will do otherwise than its ``config.yaml`` says."""
    path = output_dir / CONFIG
    if path.is_file():
        for text in differences(read_run_config(path), cfg, ("the run so far", "this command")):
            logger.warning("resuming with other settings: %s", text)


def read_run_config(path: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run as it is; raise FileNotFoundError, or ValueError where it is no config."""
    try:
        return read_yaml(path)
    except ValueError as error:
        raise ValueError(f"{error}; move the folder away") from error


def _comparable(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_comparable(key, item) for item in value]
    if key in _PATHS and isinstance(value, str) and "://" not in value:
        path = Path(value)  # the output folder may have been moved
        return (path.parent.name, path.name) if path.suffix else path.name
    return value


def _shown(value: Any) -> str:
    return str(value) or repr(value)  # '' would be nothing at all
