"""The keys that make a backbone faster or smaller, as what the backbone is told."""

from __future__ import annotations

import os
import shutil
import sys

import torch
from fvcore.common.config import CfgNode

from resnet_backbone.config.files import value_of
from resnet_backbone.models.acceleration import COMPILE_MODES, Acceleration

PRECISIONS = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEMORY_FORMATS = ("auto", "channels_last", "contiguous")

# For check_values: what both engines know of these keys.
ALLOWED: dict[str, tuple[object, ...]] = {
    "MODEL.RESNET_BACKBONE.MEMORY_FORMAT": MEMORY_FORMATS,
    "MODEL.RESNET_BACKBONE.PRECISION": tuple(PRECISIONS),
    "MODEL.RESNET_BACKBONE.COMPILE": COMPILE_MODES,
}


def add_acceleration_keys(node: CfgNode) -> None:
    """Add to MODEL.RESNET_BACKBONE, in place, the keys that :func:`acceleration_of` reads."""
    node.FOLD_NORMS = True  # frozen norms scale the weights of their convolutions, not the feature maps
    node.MEMORY_FORMAT = "auto"  # channels_last on the CPU and in half precision, else contiguous; or one of these
    node.PRECISION = ""  # bfloat16 or float16 for trunk and pyramid alone, where SOLVER.AMP does not decide for all
    node.COMPILE = ""  # a mode of torch.compile: default, reduce-overhead (CUDA graphs), max-autotune
    node.PAD_TO = 0  # pad images to multiples of so many pixels; 128 or more leaves COMPILE few shapes
    node.CHECKPOINT_STAGES = []  # stages, such as [res2, res3], that compute activations anew in the backward pass


def acceleration_of(cfg: CfgNode) -> Acceleration:
    """Return what MODEL.RESNET_BACKBONE asks for.

    Args:
        cfg: also reads MODEL.DEVICE and SOLVER.AMP.ENABLED, on which ``MEMORY_FORMAT: auto`` depends.

    Raises:
        ValueError: a value that is none of those that the key knows.
    """
    node, on_cpu = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL.DEVICE == "cpu"
    for key, known in (("MEMORY_FORMAT", MEMORY_FORMATS), ("PRECISION", PRECISIONS), ("COMPILE", COMPILE_MODES)):
        if node[key] not in known:
            raise ValueError(
                f"MODEL.RESNET_BACKBONE.{key} is {node[key]!r}; write one of {', '.join(map(repr, known))}"
            )
    if on_cpu and node.PRECISION == "float16":
        raise ValueError("MODEL.RESNET_BACKBONE.PRECISION float16 is for GPUs; on the CPU write bfloat16")
    half = bool(node.PRECISION) or cfg.SOLVER.AMP.ENABLED
    auto = node.MEMORY_FORMAT == "auto" and (on_cpu or half)
    return Acceleration(
        scale_weights=node.FOLD_NORMS,
        channels_last=auto or node.MEMORY_FORMAT == "channels_last",
        precision=PRECISIONS[node.PRECISION],
        compile_mode=node.COMPILE,
        pad_to=node.PAD_TO,
        checkpoint_stages=tuple(node.CHECKPOINT_STAGES),
    )


def check_compiler(cfg: CfgNode, key: str) -> None:
    """Raise ValueError where torch.compile would find no compiler, which it looks for in the first step.

    Args:
        cfg: reads MODEL.DEVICE and ``key``.
        key: MODEL.RESNET_BACKBONE.COMPILE, or of a classifier MODEL.COMPILE.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if value_of(cfg, key) and cfg.MODEL.DEVICE == "cpu" and shutil.which(compiler) is None:
        off = "False" if value_of(cfg, key) is True else "''"
        raise ValueError(
            f"{key}: torch.compile needs a C++ compiler on the CPU, and there is no {compiler}; install it, name "
            f"another one in the environment variable CXX, or write {key} {off}"
        )


def check_training_precision(cfg: CfgNode) -> None:
    """Raise ValueError for a training whose gradients would vanish: float16 without the scaler of SOLVER.AMP."""
    if cfg.MODEL.RESNET_BACKBONE.PRECISION == "float16" and not cfg.SOLVER.AMP.ENABLED:
        raise ValueError(
            "MODEL.RESNET_BACKBONE.PRECISION float16 is for inference; to train write SOLVER.AMP.ENABLED True, which "
            "scales the loss, or PRECISION bfloat16"
        )
