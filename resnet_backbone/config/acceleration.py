"""Config keys for speed and memory: of the backbone, and of the whole process."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import sys

import torch
from fvcore.common.config import CfgNode

from resnet_backbone.config.merge import value_of
from resnet_backbone.models.acceleration import COMPILE_MODES, Acceleration

logger = logging.getLogger(__name__)

TF32 = ("convolutions", "everywhere", "nowhere")  # the first is the default
FLOAT32_PRECISION = {"highest": "nowhere", "high": "everywhere", "medium": "everywhere"}  # Detectron2's key, as TF32
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def set_up_process(cfg: CfgNode) -> None:
    """Do what TF32, CUDNN_BENCHMARK and KEEP_FREED_MEMORY say, before the first step.

    TF32 is for GPUs since Ampere: float32 convolutions, and matrix products, round their factors. torch's own choice is
    ``convolutions``. Where a config has Detectron2's FLOAT32_PRECISION, that key decides.
    """
    precision = cfg.get("FLOAT32_PRECISION", "")
    tf32 = FLOAT32_PRECISION.get(precision, cfg.TF32)
    if tf32 != cfg.TF32:
        logger.info("TF32 %s, as FLOAT32_PRECISION %s says", tf32, precision)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    torch.backends.cudnn.allow_tf32 = tf32 != "nowhere"
    # Not by allow_tf32, which leaves torch.compile unable to read what default_setup has set by this function.
    torch.set_float32_matmul_precision(precision or ("high" if tf32 == "everywhere" else "highest"))
    if cfg.KEEP_FREED_MEMORY and cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for its next step, instead of returning it to the system each time.

    A step on the CPU frees all its activations, and would get them back page by page, each filled with zeros first. The
    memory in use does not grow; it stays at its peak between steps. For the C library of Linux (glibc's mallopt);
    others are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        logger.debug("KEEP_FREED_MEMORY is for glibc: nothing changes here")
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20)):
        mallopt(parameter, value)


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
