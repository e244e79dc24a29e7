"""Where the keys that an error speaks of were set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fvcore.common.config import CfgNode

from resnet_backbone.config.files import COMMAND_LINE, leaves, value_of
from resnet_backbone.config.words import shown

_KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*\b")


@contextmanager
def naming_origins(cfg: CfgNode, origins: Mapping[str, str]) -> Iterator[None]:
    """Add to a ValueError or TypeError raised inside, for each key that it speaks of, where that was set.

    Args:
        cfg: whose keys are looked for in the message.
        origins: by dotted key, see :func:`~resnet_backbone.config.files.merge_config`; other keys have their defaults.

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
