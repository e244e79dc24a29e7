"""The config tree of a classifier's training. Keys that detectors have, too, keep their names and meaning."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fvcore.common.config import CfgNode

from resnet_backbone.classification.transforms import KINDS, SCALES
from resnet_backbone.config import merge_config
from resnet_backbone.config.acceleration import default_device
from resnet_backbone.config.checks import check_batches, check_values
from resnet_backbone.config.merge import check_with_origins
from resnet_backbone.config.schema import (
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    TORCHVISION_KEYS,
    ConfigError,
    Key,
    Range,
    add_keys,
)
from resnet_backbone.models.layers import NORMS
from resnet_backbone.models.registry import list_models
from resnet_backbone.weights.catalog import INTERPOLATIONS, TIMM

ENGINE = "classification"

# Keys that mean what they mean for detectors, and those of them that have another default.
_AS_OF_DETECTORS = """
VERSION OUTPUT_DIR SEED MODEL.WEIGHTS MODEL.DEVICE DATASETS.TRAIN DATASETS.TEST DATALOADER.NUM_WORKERS
SOLVER.LR_SCHEDULER_NAME SOLVER.BASE_LR_END SOLVER.MOMENTUM SOLVER.NESTEROV SOLVER.WEIGHT_DECAY SOLVER.GAMMA
SOLVER.CHECKPOINT_PERIOD SOLVER.ACCUMULATION_STEPS SOLVER.CLIP_GRADIENTS.ENABLED SOLVER.CLIP_GRADIENTS.CLIP_VALUE
SOLVER.CLIP_GRADIENTS.NORM_TYPE SOLVER.AMP.ENABLED SOLVER.OPTIMIZER SOLVER.WEIGHT_DECAY_BIAS SOLVER.BIAS_LR_FACTOR
SOLVER.EMA.ENABLED SOLVER.EMA.DECAY TEST.EVAL_PERIOD TEST.PATIENCE
"""
_OTHER_DEFAULTS = {
    "CUDNN_BENCHMARK": True,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "SOLVER.MAX_ITER": 600000,
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0001,
    "SOLVER.STEPS": [150000, 300000, 450000],
    "SOLVER.WARMUP_FACTOR": 0.1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WARMUP_METHOD": "constant",
    "SOLVER.IMS_PER_BATCH": 256,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.AMP.DTYPE": "bfloat16",
}
_PARTS = Range(above=0, most=1, order="ascending")
_OWN = (
    Key("MODEL.ARCH", "resnet50", "a name of resnet_backbone.list_models(), or timm/NAME"),
    Key("MODEL.NORM", "", "empty: what the architecture was published with", choices=NORMS),
    Key("MODEL.SHORTCUT", "", "of the paper; empty: B, for cifar_* A", choices=("", "A", "B", "C")),
    Key("MODEL.PREACTIVATION", False, "norm and ReLU before the convolutions (arXiv 1603.05027)"),
    Key("MODEL.STOCHASTIC_DEPTH", 0.0, "how often the last block's residual is dropped (1603.09382: 0.5)", BELOW_ONE),
    Key("MODEL.STRIDE_IN_1X1", False, "True: bottlenecks as in the paper's released models"),
    Key("MODEL.FREEZE_AT", 0, "so many stages are not trained, counted from the stem", NOT_NEGATIVE),
    Key("MODEL.CHANNELS_LAST", True, "memory format"),
    Key("MODEL.COMPILE", False, "torch.compile"),
    Key("INPUT.SIZE", 224, "side of the square that the network gets, in training and in evaluation", COUNT),
    # The paper's for ImageNet; random area and shape, as torchvision's recipes have it; the paper's for CIFAR.
    Key("INPUT.TRAIN_CROP", "short_side", choices=("short_side", "area", "pad")),
    Key("INPUT.SHORT_SIDE", [256, 480], "range of the shorter side, both ends included", length=2),
    Key("INPUT.AREA", [0.08, 1.0], "range of the part of the image", _PARTS, length=2),
    Key("INPUT.PAD", 4, "pixels of mean colour on each side, then a random crop of SIZE", NOT_NEGATIVE),
    Key("INPUT.RANDOM_FLIP", "horizontal", choices=("horizontal", "none")),
    # alexnet: along the principal components of ImageNet's colours.
    Key("INPUT.COLOR_AUGMENTATION", "none", choices=("none", "alexnet")),
    Key("INPUT.RESIZE_TEST", 256, "shorter side before the centre crop of SIZE"),
    Key("INPUT.INTERPOLATION", "bilinear", choices=INTERPOLATIONS),
    # Keep the central square of every image decoded on the device, and augment whole batches there.
    Key("DATALOADER.ON_DEVICE", False, "for TRAIN_CROP pad"),
    Key("SOLVER.LABEL_SMOOTHING", 0.0, "part of the target that all classes share", BELOW_ONE),
    Key("TEST.BATCH_SIZE", 100, "images of a forward pass", COUNT),
    Key("TEST.VIEWS", KINDS[0], "of the last evaluation and --eval-only, the others are 1-crop", choices=KINDS),
    Key("TEST.SCALES", list(SCALES), "of multi-scale: lengths of the shorter side", Range(least=1)),
    Key("TEST.ENSEMBLE", [], "networks averaged with this one: run folders, packaged files, names", element="a_run"),
)
KEYS: Mapping[str, Key] = {
    **{name: TORCHVISION_KEYS[name] for name in _AS_OF_DETECTORS.split()},
    **{name: replace(TORCHVISION_KEYS[name], default=default) for name, default in _OTHER_DEFAULTS.items()},
    **{key.name: key for key in _OWN},
}


def get_cfg() -> CfgNode:
    """Return the tree with its default values; MODEL.DEVICE is that of ``default_device``."""
    cfg = add_keys(CfgNode(), KEYS.values())
    cfg.MODEL.DEVICE = default_device()
    return cfg


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file (and its ``_BASE_`` files), then ``KEY VALUE`` pairs, over the defaults.

    Raises:
        FileNotFoundError: no such config.
        ConfigError: an unknown key, a value of the wrong type or one that makes no sense.
    """
    cfg = get_cfg()
    origins = merge_config(cfg, config_file, overrides, ENGINE, KEYS)
    check_with_origins(cfg, origins, check_config)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Raise ConfigError for a value, or a combination of values, that cannot be obeyed."""
    if cfg.MODEL.ARCH not in list_models() and not cfg.MODEL.ARCH.startswith(TIMM):
        near = [name for name in list_models() if name.endswith(f"_{cfg.MODEL.ARCH}")]
        near += difflib.get_close_matches(cfg.MODEL.ARCH, list_models(), n=1)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"MODEL.ARCH {cfg.MODEL.ARCH!r} must be one of {', '.join(list_models())}, or {TIMM}NAME{hint}",
            "MODEL.ARCH",
        )
    check_values(cfg, KEYS, ENGINE)
    check_batches(cfg)
    _check_input(cfg)
    _check_data(cfg)


def _check_input(cfg: CfgNode) -> None:
    node = cfg.INPUT
    if node.RESIZE_TEST < node.SIZE:
        raise ConfigError(
            f"INPUT.RESIZE_TEST {node.RESIZE_TEST} must be INPUT.SIZE, {node.SIZE}, or more",
            *("INPUT.RESIZE_TEST", "INPUT.SIZE"),
        )
    short, long = node.SHORT_SIDE
    if node.TRAIN_CROP == "short_side" and not node.SIZE <= short <= long:
        raise ConfigError(
            f"INPUT.SHORT_SIDE {list(node.SHORT_SIDE)} must be a range of pixels from INPUT.SIZE, {node.SIZE}, upwards",
            *("INPUT.SHORT_SIDE", "INPUT.SIZE"),
        )
    if cfg.DATALOADER.ON_DEVICE and (node.TRAIN_CROP != "pad" or node.COLOR_AUGMENTATION != "none"):
        raise ConfigError(
            "DATALOADER.ON_DEVICE augments with padding, cropping and flipping alone: write INPUT.TRAIN_CROP pad and "
            f"COLOR_AUGMENTATION none, not {node.TRAIN_CROP} and {node.COLOR_AUGMENTATION}",
            *("DATALOADER.ON_DEVICE", "INPUT.TRAIN_CROP"),
        )


def _check_data(cfg: CfgNode) -> None:
    for key in ("TRAIN", "TEST"):
        sources = cfg.DATASETS[key]
        if isinstance(sources, str) or len(sources) > 1 or not all(isinstance(source, str) for source in sources):
            raise ConfigError(
                f"DATASETS.{key} is {sources!r}; name one data set or folder: \"['path/to/{key.lower()}']\"",
                f"DATASETS.{key}",
            )
