"""The config of the torchvision engine: every key of Detectron2's that it obeys, and those that both engines add."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fvcore.common.config import CfgNode

from resnet_backbone.config import merge_config
from resnet_backbone.config.acceleration import default_device
from resnet_backbone.config.checks import check_batches, check_detector, check_values
from resnet_backbone.config.combinations import (
    CONVOLVED_TOP,
    RETINANET_PYRAMID,
    TRUNK_ALONE,
    backbone_features,
    check_combinations,
    trunk_facts,
)
from resnet_backbone.config.merge import check_with_origins
from resnet_backbone.config.schema import TORCHVISION_KEYS, ConfigError, add_keys, detectron2_alone

ENGINE = "torchvision"


def get_cfg() -> CfgNode:
    """Return the tree with its default values; MODEL.DEVICE is that of ``default_device``."""
    cfg = add_keys(CfgNode(), TORCHVISION_KEYS.values())
    cfg.MODEL.DEVICE = default_device()
    return cfg


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file (and its ``_BASE_`` files), then ``KEY VALUE`` pairs, over the defaults.

    Raises:
        FileNotFoundError: no such config.
        ConfigError: a key that this engine does not obey, a value of the wrong type or one that it cannot obey.
    """
    cfg = get_cfg()
    origins = merge_config(cfg, config_file, overrides, ENGINE, TORCHVISION_KEYS, detectron2_alone())
    check_with_origins(cfg, origins, check_config)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Raise ConfigError for a value, or a combination of values, that this engine cannot obey."""
    check_values(cfg, TORCHVISION_KEYS, ENGINE)
    check_detector(cfg)
    check_batches(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        _check_retinanet(cfg)
    check_combinations(cfg)


def _check_retinanet(cfg: CfgNode) -> None:
    """torchvision's RetinaNet reads a whole pyramid."""
    builder, names = cfg.MODEL.BACKBONE.NAME, list(cfg.MODEL.RETINANET.IN_FEATURES)
    levels = list(backbone_features(cfg, trunk_facts(cfg)))
    if builder == TRUNK_ALONE or names != levels:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE RetinaNet reads MODEL.RETINANET.IN_FEATURES {names}, which must be all levels of "
            f"a pyramid; MODEL.BACKBONE.NAME {builder} returns {levels}: write "
            + ("these" if builder in CONVOLVED_TOP else f"MODEL.BACKBONE.NAME: {RETINANET_PYRAMID}"),
            *("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.RETINANET.IN_FEATURES"),
        )
