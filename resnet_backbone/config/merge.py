"""Config files and command-line overrides merged into a config, with errors that name the key and where it was set."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from resnet_backbone.config.reader import Setting, literal, read_settings, shown

_KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*\b")


@contextmanager
def naming_origins(cfg: CfgNode, origins: Mapping[str, str]) -> Iterator[None]:
    """Add to a ValueError or TypeError raised inside, for each key that it speaks of, where that was set.

    Args:
        cfg: whose keys are looked for in the message.
        origins: by dotted key, see :func:`~resnet_backbone.config.merge.merge_config`; other keys have their defaults.

    Raises:
        ValueError: in place of what was raised inside.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise ValueError("\n".join([str(error), *origin_lines(str(error), cfg, origins)])) from error


def origin_lines(message: str, cfg: CfgNode, origins: Mapping[str, str]) -> list[str]:
    """Return a line for each dotted key of ``cfg`` in ``message``: its value, and where it was set."""
    known = set(leaves(cfg))
    keys = [key for key in dict.fromkeys(_KEY.findall(message)) if key in known]
    return [f"  {key}: {shown(value_of(cfg, key))} is {_told(key, origins)}" for key in keys]


def _told(key: str, origins: Mapping[str, str]) -> str:
    if key not in origins:
        return "the default"
    return f"set {'on' if origins[key] == COMMAND_LINE else 'in'} {origins[key]}"


_LARGEST = 2**63
# Elements of lists that are empty by default.
_ELEMENTS: dict[str, Any] = {
    "MODEL.FPN.IN_FEATURES": "res4",
    "MODEL.RESNET_BACKBONE.CHECKPOINT_STAGES": "res4",
    "DATASETS.TRAIN": "my_train",
    "DATASETS.TEST": "my_val",
    "DATASETS.OWN": {"NAME": "my_train", "JSON": "my/train.json", "IMAGES": "my/images"},
    "DATASETS.PROPOSAL_FILES_TRAIN": "proposals.pkl",
    "DATASETS.PROPOSAL_FILES_TEST": "proposals.pkl",
    "TEST.ENSEMBLE": "output/other",
    "TEST.KEYPOINT_OKS_SIGMAS": 0.1,
}
_ANY_NUMBER = ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ANGLES")  # whole by default
_TRUE, _FALSE = ("yes", "on", "true", "1"), ("no", "off", "false", "0")
_KINDS = {
    bool: ("True or False", "values True or False"),
    int: ("a whole number", "whole numbers"),
    float: ("a number with a point", "numbers"),
    str: ("a word", "words"),
    dict: ("a section", "sections"),
}


def fit(key: str, value: Any, default: Any, *, present: Any = None, quoted: bool = False) -> Any:
    """Return ``value`` as the key has it: a word that stands for a number or a list as that, a list as a tuple.

    Args:
        key: dotted.
        value: from a file or a command line.
        default: what the key has without it, whose type counts; None is for numbers.
        present: what the key has so far, as an example; None for the default.
        quoted: whether an example of a list is shown in quotation marks, for a shell.

    Raises:
        ValueError: of another type, which says what to write.
    """
    meant = literal(value) if isinstance(value, str) else value
    if isinstance(default, str):
        if isinstance(value, str) and meant is not None:
            return meant if isinstance(meant, str) else value
    elif isinstance(default, (list, tuple)):
        if not isinstance(meant, (list, tuple)):
            example = _repaired(key, meant, default)
            raise ValueError(f"{key} wants a list: {_in_quotes(example, quoted)}, not {_plain(value)}")
        _check_elements(key, meant, default, quoted)
        return type(default)(meant)
    elif default is None:
        if meant is not None and type(meant) not in (int, float):
            raise ValueError(f"{key} wants a number or None, not {_plain(value)}")
        _check_number(key, meant)
        return meant
    elif type(meant) is type(default):
        _check_number(key, meant)
        return meant
    raise ValueError(f"{key} {_wanted(value, meant, default if present is None else present)}")


def _wanted(value: Any, meant: Any, default: Any) -> str:
    """Say which type a key has, with an example of what to write."""
    wants = f"wants {_KINDS[type(default)][0]}"
    if isinstance(default, bool):
        word = str(value).lower()
        hint = ": write True" if word in _TRUE else ": write False" if word in _FALSE else ""
        return f"{wants}, not {_plain(value)}{hint}"
    example = f", such as {shown(str(default)) if isinstance(default, str) else default}"
    if meant is None:
        nothing = ": for none write ''" if isinstance(default, str) else ""
        return f"{wants}{example}, and has no value{nothing}; write one, or leave the key out"
    written = _as_written(meant, default)
    return f"{wants}{example}, not {_plain(value)}" + (f": write {written}" if written else "")


def _as_written(meant: Any, default: Any) -> str:
    """What was probably meant; nothing where nobody knows."""
    if isinstance(default, str) and isinstance(meant, (int, float)):
        return f"it in quotation marks, '{meant}'"
    if isinstance(meant, (list, tuple)) and len(meant) == 1 and type(meant[0]) is type(default):
        return f"{meant[0]!r}"
    if isinstance(meant, tuple) and len(meant) == 2 and all(type(part) is int for part in meant):
        return f"{meant[0]}.{meant[1]}" if isinstance(default, float) else ""
    if isinstance(meant, bool) or not isinstance(meant, (int, float)):
        return ""
    if isinstance(default, float) and abs(meant) < _LARGEST:
        return repr(float(meant))
    return repr(int(meant)) if isinstance(meant, float) and meant.is_integer() else ""


def _check_number(key: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} is {value}, with which nothing can be computed; write a number")
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError(f"{key} is {shown(value)}, which is too large")


def _check_elements(key: str, items: Any, default: Any, quoted: bool) -> None:
    """Compare the elements with the first of the default, in lists of lists one by one."""
    element = _element(key, default)
    if element is None:
        return
    for item in items:
        if isinstance(element, (list, tuple)) and isinstance(item, (list, tuple)):
            _check_elements(key, item, element, quoted)
        elif not _is_like(item, element, key in _ANY_NUMBER):
            found = f"{shown(item)} among {shown(list(items))}" if len(items) > 1 else shown(list(items))
            example = _in_quotes(_repaired(key, list(items), default), quoted)
            raise ValueError(f"{key} wants a list of {_kind(element, key)}, such as {example}, not {found}")
        _check_number(key, item)


def _is_like(item: Any, element: Any, any_number: bool) -> bool:
    if isinstance(element, bool) or isinstance(item, bool):
        return isinstance(element, bool) and isinstance(item, bool)
    if isinstance(element, float) or (any_number and isinstance(element, int)):
        return isinstance(item, (int, float))
    return isinstance(item, type(element)) or (isinstance(element, (list, tuple)) and isinstance(item, (list, tuple)))


def _element(key: str, default: Any) -> Any:
    return default[0] if len(default) else _ELEMENTS.get(key)


def _kind(element: Any, key: str) -> str:
    if isinstance(element, (list, tuple)):
        return f"lists of {_kind(element[0], key)}" if len(element) else "lists"
    return "numbers" if key in _ANY_NUMBER else _KINDS[type(element)][1]


def _repaired(key: str, meant: Any, default: Any) -> Any:
    """The value in as many brackets as it needs, with numbers for words; where that does not help, the default."""
    element = _element(key, default)
    candidates = [meant, [meant], [[meant]]]
    if isinstance(meant, (list, tuple)):
        candidates.append([literal(item) if isinstance(item, str) else item for item in meant])
        candidates.append([int(item) if isinstance(item, float) and item.is_integer() else item for item in meant])
        candidates.append([str(item) for item in meant])
        candidates.append([[item] for item in meant])
    for candidate in candidates:
        if isinstance(candidate, (list, tuple)) and _fits(key, candidate, element):
            return [list(item) if isinstance(item, tuple) else item for item in candidate]
    plain = isinstance(meant, (str, int, float)) and element is None
    return [meant] if plain else (list(default) or [element])


def _fits(key: str, items: Any, element: Any) -> bool:
    if element is None or not len(items):
        return False
    if isinstance(element, (list, tuple)):
        return all(isinstance(item, (list, tuple)) and _fits(key, item, element[0]) for item in items)
    return all(_is_like(item, element, key in _ANY_NUMBER) for item in items)


def _in_quotes(example: Any, quoted: bool) -> str:
    return f'"{example}"' if quoted else str(example)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and 0 < len(value) <= 80 and value.isprintable() else shown(value)


# Keys that tell which tool a config is for.
_TOOL_OF = {"MODEL.ARCH": "tools/train_classifier.py", "MODEL.BACKBONE.FREEZE_AT": "tools/train_net.py"}
_TOLD = 20  # of more, their number
_NEAREST = 3


def check_keys(cfg: CfgNode, settings: Mapping[str, Setting], engine: str, foreign: Collection[str]) -> None:
    """Raise ValueError, one line a key, for keys that ``cfg`` lacks, and for sections and values in each other's place.

    Args:
        cfg: the tree of every key that the engine obeys.
        settings: by dotted key.
        engine: its name.
        foreign: keys that only Detectron2 has.
    """
    sections = set(_sections(cfg))
    known = {key for section in ("", *sections) for key in _keys_below(cfg, section)} - sections
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
    keys = [name.rpartition(".")[2] for name in _keys_below(cfg, key)]
    some = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
    found = "nothing is below it: take it out, or write keys below it" if value is None else f"found {shown(value)}"
    return f"is a section, of the keys {some}; {found}"


def _sections(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield f"{prefix}{key}"
            yield from _sections(value, f"{prefix}{key}.")


def _keys_below(cfg: CfgNode, section: str) -> list[str]:
    node = cfg
    for part in section.split(".") if section else ():
        node = node[part]
    return [f"{section}.{key}" if section else key for key in node]


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
        Where each key was set, for :func:`~resnet_backbone.config.merge.naming_origins`.

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
