"""The config tree of a classifier's training. Keys that detectors have, too, keep their names and meaning."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from fvcore.common.config import CfgNode

from resnet_backbone.classification.transforms import KINDS
from resnet_backbone.config import merge_config
from resnet_backbone.config.checks import (
    check_allowed,
    check_batches,
    check_least,
    check_lengths,
    check_pixels,
    check_training,
)
from resnet_backbone.config.merge import naming_origins
from resnet_backbone.models.layers import NORMS
from resnet_backbone.models.registry import list_models
from resnet_backbone.weights.catalog import INTERPOLATIONS

ENGINE = "classification"

_DEFAULTS = """
VERSION: 2
OUTPUT_DIR: ./output
SEED: -1
CUDNN_BENCHMARK: True
MODEL:
  ARCH: resnet50             # a name of resnet_backbone.list_models()
  WEIGHTS: ""                # what to start from: imagenet://ARCH/NAME, a packaged file or a checkpoint; empty: He init
  DEVICE: cuda
  NORM: ""                   # BN, SyncBN, GN, ...; empty: what the architecture was published with
  SHORTCUT: ""               # A, B or C of the paper; empty: B, for cifar_* A
  PREACTIVATION: False       # norm and ReLU before the convolutions (arXiv 1603.05027)
  STOCHASTIC_DEPTH: 0.0      # how often the last block's residual is dropped (arXiv 1603.09382: 0.5)
  STRIDE_IN_1X1: False       # True: bottlenecks as in the paper's released models
  FREEZE_AT: 0
  CHANNELS_LAST: True        # memory format
  COMPILE: False             # torch.compile
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
INPUT:
  FORMAT: RGB
  SIZE: 224                  # side of the square that the network sees, in training and in evaluation
  TRAIN_CROP: short_side     # short_side: the paper's for ImageNet; area: random area and shape, as torchvision's
                             # recipes have it; pad: the paper's for CIFAR
  SHORT_SIDE: [256, 480]     # of short_side: the shorter side is drawn from this range, both ends included
  AREA: [0.08, 1.0]          # of area: part of the image
  PAD: 4                     # of pad: pixels of mean colour on each side, then a random crop of SIZE
  RANDOM_FLIP: horizontal    # or none
  COLOR_AUGMENTATION: none   # or alexnet: along the principal components of ImageNet's colours
  RESIZE_TEST: 256           # shorter side before the centre crop of SIZE
  INTERPOLATION: bilinear    # or bicubic
DATASETS:                    # a name (imagenet_train, ...), torchvision://NAME/SPLIT, or a folder of class folders
  TRAIN: []
  TEST: []
DATALOADER:
  NUM_WORKERS: 4
  ON_DEVICE: False           # keep the central square of every image decoded on the device, and augment whole batches
                             # there; TRAIN_CROP: pad
SOLVER:
  LR_SCHEDULER_NAME: WarmupMultiStepLR
  MAX_ITER: 600000
  BASE_LR: 0.1
  BASE_LR_END: 0.0
  MOMENTUM: 0.9
  NESTEROV: False
  WEIGHT_DECAY: 0.0001
  WEIGHT_DECAY_NORM: 0.0001
  LABEL_SMOOTHING: 0.0
  GAMMA: 0.1
  STEPS: [150000, 300000, 450000]
  WARMUP_FACTOR: 0.1
  WARMUP_ITERS: 0
  WARMUP_METHOD: constant
  CHECKPOINT_PERIOD: 5000
  IMS_PER_BATCH: 256
  ACCUMULATION_STEPS: 1
  CLIP_GRADIENTS: {ENABLED: False, CLIP_TYPE: full_model, CLIP_VALUE: 1.0, NORM_TYPE: 2.0}
  AMP: {ENABLED: False, DTYPE: bfloat16}
TEST:
  EVAL_PERIOD: 0
  BATCH_SIZE: 100
  VIEWS: 1-crop              # or 10-crop, multi-scale; of the last evaluation and --eval-only, the others are 1-crop
  SCALES: [224, 256, 384, 480, 640]  # of multi-scale: lengths of the shorter side
  ENSEMBLE: []               # more networks, averaged with this one: folders of runs, packaged files, catalog names
"""

_ALLOWED: dict[str, tuple[object, ...]] = {
    "VERSION": (2,),
    "MODEL.DEVICE": ("cpu", "cuda"),
    "MODEL.SHORTCUT": ("", "A", "B", "C"),
    "MODEL.NORM": NORMS,
    "INPUT.FORMAT": ("RGB", "BGR"),
    "INPUT.TRAIN_CROP": ("short_side", "area", "pad"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.COLOR_AUGMENTATION": ("none", "alexnet"),
    "INPUT.INTERPOLATION": INTERPOLATIONS,
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (2.0,),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "TEST.VIEWS": KINDS,
}
_LEAST: dict[str, float] = {
    "MODEL.FREEZE_AT": 0,
    "INPUT.SIZE": 1,
    "INPUT.PAD": 0,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.ACCUMULATION_STEPS": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.WEIGHT_DECAY_NORM": 0,
    "SOLVER.BASE_LR_END": 0,
    "SOLVER.GAMMA": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.BATCH_SIZE": 1,
}
_LENGTHS = {"MODEL.PIXEL_MEAN": 3, "MODEL.PIXEL_STD": 3, "INPUT.SHORT_SIDE": 2, "INPUT.AREA": 2}


def get_cfg() -> CfgNode:
    """Return the tree with its default values; MODEL.DEVICE is ``cuda`` where there is a GPU, else ``cpu``."""
    cfg = CfgNode(yaml.safe_load(_DEFAULTS))
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file (and its ``_BASE_`` files), then ``KEY VALUE`` pairs, over the defaults.

    Raises:
        FileNotFoundError: no such config.
        ValueError: an unknown key, a value of the wrong type or one that makes no sense.
    """
    cfg = get_cfg()
    origins = merge_config(cfg, config_file, overrides, ENGINE)
    with naming_origins(cfg, origins):
        check_config(cfg)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Raise ValueError for a value, or a combination of values, that cannot be obeyed."""
    if cfg.MODEL.ARCH not in list_models():
        near = [name for name in list_models() if name.endswith(f"_{cfg.MODEL.ARCH}")]
        near += difflib.get_close_matches(cfg.MODEL.ARCH, list_models(), n=1)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"MODEL.ARCH {cfg.MODEL.ARCH!r} must be one of {', '.join(list_models())}{hint}")
    check_allowed(cfg, _ALLOWED, ENGINE)
    check_least(cfg, _LEAST)
    check_lengths(cfg, _LENGTHS)
    check_training(cfg)
    check_pixels(cfg)
    check_batches(cfg)
    _check_input(cfg)
    _check_data(cfg)
    if not 0 <= cfg.MODEL.STOCHASTIC_DEPTH < 1:
        raise ValueError(f"MODEL.STOCHASTIC_DEPTH is {cfg.MODEL.STOCHASTIC_DEPTH}; it must be 0 or more, and below 1")
    if not 0 <= cfg.SOLVER.WARMUP_FACTOR <= 1:
        raise ValueError(f"SOLVER.WARMUP_FACTOR is {cfg.SOLVER.WARMUP_FACTOR}; it must lie between 0 and 1")
    if not 0 <= cfg.SOLVER.LABEL_SMOOTHING < 1:
        raise ValueError(f"SOLVER.LABEL_SMOOTHING is {cfg.SOLVER.LABEL_SMOOTHING}; it must be 0 or more, and below 1")


def _check_input(cfg: CfgNode) -> None:
    node = cfg.INPUT
    if node.RESIZE_TEST < node.SIZE:
        raise ValueError(f"INPUT.RESIZE_TEST {node.RESIZE_TEST} must be INPUT.SIZE, {node.SIZE}, or more")
    short, long = node.SHORT_SIDE
    if node.TRAIN_CROP == "short_side" and not node.SIZE <= short <= long:
        raise ValueError(
            f"INPUT.SHORT_SIDE {list(node.SHORT_SIDE)} must be a range of pixels, from INPUT.SIZE, {node.SIZE}, upwards"
        )
    low, high = node.AREA
    if not 0 < low <= high <= 1:
        raise ValueError(f"INPUT.AREA {list(node.AREA)} must be a range above 0 and up to 1")
    if cfg.DATALOADER.ON_DEVICE and (node.TRAIN_CROP != "pad" or node.COLOR_AUGMENTATION != "none"):
        raise ValueError(
            "DATALOADER.ON_DEVICE augments with padding, cropping and flipping alone: write INPUT.TRAIN_CROP pad and "
            f"COLOR_AUGMENTATION none, not {node.TRAIN_CROP} and {node.COLOR_AUGMENTATION}"
        )


def _check_data(cfg: CfgNode) -> None:
    for key in ("TRAIN", "TEST"):
        sources = cfg.DATASETS[key]
        if isinstance(sources, str) or len(sources) > 1 or not all(isinstance(source, str) for source in sources):
            raise ValueError(
                f"DATASETS.{key} is {sources!r}; name one data set or folder: \"['path/to/{key.lower()}']\""
            )
