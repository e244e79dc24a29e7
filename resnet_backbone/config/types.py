"""The type that a key has, from its default, and what to write where a value is of another."""

from __future__ import annotations

import math
from typing import Any

from resnet_backbone.config.words import literal, shown

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
