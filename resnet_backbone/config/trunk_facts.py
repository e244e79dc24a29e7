"""What the trunk of a config returns, found by building it without memory or values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode
from torch.overrides import TorchFunctionMode

from resnet_backbone.config.keys import build_trunk
from resnet_backbone.models.trunk import FeatureInfo

_OPTIONS = {
    "out_features": "MODEL.RESNET_BACKBONE.OUT_FEATURES",
    "norm": "MODEL.RESNET_BACKBONE.NORM",
    "shortcut": "MODEL.RESNET_BACKBONE.SHORTCUT",
    "stem": "MODEL.RESNET_BACKBONE.STEM",
    "res4_dilation": "MODEL.RESNET_BACKBONE.RES4_DILATION",
    "res5_dilation": "MODEL.RESNET_BACKBONE.RES5_DILATION",
    "res5_multi_grid": "MODEL.RESNET_BACKBONE.RES5_MULTI_GRID",
    "freeze_at": "MODEL.BACKBONE.FREEZE_AT",
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
}
# "norm", "stem" and "shortcut" are words of the language, too: as names they stand before a value.
_NAMES = re.compile(rf"\b({'|'.join(name for name in _OPTIONS if '_' in name)})\b|\b(norm|stem|shortcut)(?==| ')")
_LEFT_OUT = re.compile(rf"\b({'|'.join(_OPTIONS)})\b")


class TrunkFacts(NamedTuple):
    """Of a trunk: its feature maps in network order, and the stages that it consists of."""

    features: dict[str, FeatureInfo]
    stages: tuple[str, ...]


def trunk_facts(cfg: CfgNode, out_features: Sequence[str] | None = None) -> TrunkFacts:
    """Return the facts of the trunk that ``build_trunk`` would build.

    Args:
        cfg: reads what ``build_trunk`` does.
        out_features: in place of MODEL.RESNET_BACKBONE.OUT_FEATURES.

    Raises:
        ValueError: no such architecture, or options that do not fit it, by their dotted keys.
    """
    model = cfg.MODEL
    node = dict(model.RESNET_BACKBONE)
    if out_features is not None:
        node["OUT_FEATURES"] = list(out_features)
    read = {
        "RESNET_BACKBONE": node,
        "BACKBONE": {"FREEZE_AT": model.BACKBONE.FREEZE_AT},
        "RESNETS": {"STRIDE_IN_1X1": model.RESNETS.STRIDE_IN_1X1},
        "PIXEL_MEAN": list(model.PIXEL_MEAN),
    }
    return _facts(json.dumps(read))


@lru_cache(maxsize=64)
def _facts(model: str) -> TrunkFacts:
    cfg = CfgNode({"MODEL": json.loads(model)})
    node = cfg.MODEL.RESNET_BACKBONE
    try:
        with torch.device("meta"), _Unfilled():
            trunk = build_trunk(cfg, out_features=node.OUT_FEATURES)
    except ValueError as error:
        message = str(error)
        if not message.startswith("MODEL."):
            message = f"MODEL.RESNET_BACKBONE.ARCH {node.ARCH}: {_with_keys(message)}"
        raise ValueError(message) from error
    return TrunkFacts(dict(trunk.feature_info), trunk.stage_names)


def _with_keys(message: str) -> str:
    """Name the options of ``create_model`` as the config does."""
    head, leave_out, tail = message.partition("leave out")
    tail = _LEFT_OUT.sub(lambda match: _OPTIONS[match[0]], tail)
    return _NAMES.sub(lambda match: _OPTIONS[match[0]], head) + leave_out + tail


class _Unfilled(TorchFunctionMode):
    """Skips what fills tensors: on the meta device it would change nothing, but import much of torch for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if args and (name == "sub" or (name.endswith("_") and not name.endswith("__"))):
            return args[0]
        return func(*args, **(kwargs or {}))
