"""What both plug-ins read from a config: the trunk, the weights and the input they need, the user's own data.

The keys have Detectron2's names and meaning; ``add_backbone_keys`` adds the few that Detectron2 does not have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from resnet_backbone.models.registry import create_model, list_models
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import InputFormat, Weights, load_weights
from resnet_backbone.weights.architecture import has_bottlenecks

logger = logging.getLogger(__name__)


def add_backbone_keys(cfg: CfgNode) -> None:
    """Add to ``cfg``, in place, the keys that Detectron2 does not have."""
    cfg.MODEL.RESNET_BACKBONE = CfgNode()
    node = cfg.MODEL.RESNET_BACKBONE
    node.ARCH = "resnet50"  # a name of resnet_backbone.list_models()
    node.NORM = "FrozenBN"  # BN, FrozenBN, SyncBN, GN or "" (VGG without batch norm)
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # VGG: conv1 ... conv5, pool5
    node.RES5_DILATION = 1  # 2 for DC5
    node.INPUT_FROM_WEIGHTS = True  # take INPUT.FORMAT, PIXEL_MEAN, PIXEL_STD and STRIDE_IN_1X1 from MODEL.WEIGHTS
    node.STRICT_WEIGHTS = True  # a load that leaves the trunk partly unfilled raises
    # Own data in COCO's format: [{NAME: my_train, JSON: path/to.json, IMAGES: folder}, ...]
    cfg.DATASETS.OWN = []


def config_folder() -> Path:
    """Return the folder of the project's configs: inside an installed package, beside it in a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "configs"


def find_config_file(name: str) -> Path:
    """Return the path of a config file, given as a path or as a name inside :func:`config_folder`.

    Raises:
        FileNotFoundError: neither exists; the message lists the project's configs.
    """
    for path in (Path(name), config_folder() / name.removeprefix("configs/")):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.relative_to(config_folder()).as_posix() for p in config_folder().rglob("*.yaml")))
    raise FileNotFoundError(f"config file {name!r} is neither a file nor one of the project's: {known}")


def build_trunk(
    cfg: CfgNode, *, out_features: Sequence[str], num_classes: int = 0, weights: Weights | None = None
) -> Trunk:
    """Build the classifier that ``cfg.MODEL`` describes, filled with ``weights`` if there are any.

    Args:
        cfg: reads MODEL.RESNET_BACKBONE, BACKBONE.FREEZE_AT, RESNETS.STRIDE_IN_1X1 and the length of PIXEL_MEAN.
        out_features: feature maps to return.
        num_classes: 0 for a trunk; VGG's fc6 and fc7 exist with the head only.
        weights: ImageNet weights of the architecture.

    Raises:
        ValueError: options or weights that do not fit the architecture.
    """
    node = cfg.MODEL.RESNET_BACKBONE
    if node.ARCH not in list_models():
        raise ValueError(f"MODEL.RESNET_BACKBONE.ARCH {node.ARCH!r} must be one of {', '.join(list_models())}")
    trunk = create_model(
        node.ARCH,
        num_classes=num_classes,
        out_features=out_features,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1 if has_bottlenecks(node.ARCH) else False,
        res5_dilation=node.RES5_DILATION,
        in_channels=len(cfg.MODEL.PIXEL_MEAN),
    )
    if weights is not None:
        logger.info("loaded %s", load_weights(trunk, weights).summary())
    return trunk


def required_input(arch: str, input_format: InputFormat, stride_in_1x1: bool | None) -> dict[str, object]:
    """Return the config keys that weights fix, with the values they need."""
    keys: dict[str, object] = {
        "INPUT.FORMAT": input_format.channel_order,
        "MODEL.PIXEL_MEAN": [round(value, 3) for value in input_format.mean],
        "MODEL.PIXEL_STD": [round(value, 3) for value in input_format.std],
    }
    if stride_in_1x1 is not None and has_bottlenecks(arch):
        keys["MODEL.RESNETS.STRIDE_IN_1X1"] = stride_in_1x1
    return keys


def check_input(cfg: CfgNode, required: Mapping[str, object], source: str) -> None:
    """Raise ValueError, with the lines to write, where ``cfg`` differs from what the weights need."""
    have = {key: _get(cfg, key) for key in required}
    wrong = [key for key in required if not _same(have[key], required[key])]
    if wrong:
        lines = "\n".join(f"  {key}: {required[key]}   # the config has {have[key]}" for key in wrong)
        raise ValueError(f"the input does not match the weights {source}; write\n{lines}")


def set_input(cfg: CfgNode, required: Mapping[str, object]) -> list[str]:
    """Write into ``cfg``, in place, what the weights need; return one line for each key that changed."""
    changed = []
    for key, value in required.items():
        before = _get(cfg, key)
        if not _same(before, value):
            cfg.merge_from_list([key, value])
            changed.append(f"{key}: {value} (was {before})")
    return changed


def _get(cfg: CfgNode, key: str) -> object:
    node = cfg
    for part in key.split("."):
        node = node[part]
    return node


def _same(a: object, b: object) -> bool:
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))
    return a == b
