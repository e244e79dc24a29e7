"""Keys that an engine does not have: all of them at once, with the nearest that it has."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping

from fvcore.common.config import CfgNode

from resnet_backbone.config.words import shown
from resnet_backbone.config.yaml_files import Setting

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
