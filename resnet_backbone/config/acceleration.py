"""Config keys for speed and memory: of the backbone, and of the whole process."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import sys

import torch
import torchvision
from fvcore.common.config import CfgNode

from resnet_backbone.config.reader import value_of
from resnet_backbone.config.schema import FLOAT32_PRECISION, TORCHVISION_KEYS, ConfigError
from resnet_backbone.models.acceleration import Acceleration

logger = logging.getLogger(__name__)

_PRECISIONS = {"": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def has_device(device: str) -> bool:
    """Return whether this machine has what MODEL.DEVICE names: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(device.partition(":")[0])
    return backend is None or backend.is_available()


def default_device() -> str:
    """Return ``cuda`` where there is such a GPU, ``mps`` on a Mac where its results are right, else ``cpu``."""
    return next(one for one in ("cuda", "mps", "cpu") if has_device(one) and not (one == "mps" and mps_problem()))


def mps_problem() -> str:
    """Say what is wrong on this machine's MPS; "" for nothing. Source: https://github.com/pytorch/vision/pull/9510."""
    if not has_device("mps") or tuple(map(int, torchvision.__version__.split(".")[:2])) >= (0, 29):
        return ""
    return f"torchvision {torchvision.__version__} has wrong RoIAlign gradients on MPS: take 0.29, or MODEL.DEVICE cpu"


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
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        logger.debug("KEEP_FREED_MEMORY is for glibc: nothing changes here")
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 * 2**20)):
        mallopt(parameter, value)


def acceleration_of(cfg: CfgNode) -> Acceleration:
    """Return what MODEL.RESNET_BACKBONE, with MODEL.DEVICE and SOLVER.AMP.ENABLED, asks for.

    Raises:
        ConfigError: a value that the key does not know: those who call registered builders have not checked it.
    """
    check_precision(cfg)
    node, on_cpu, on_mps = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL.DEVICE == "cpu", cfg.MODEL.DEVICE == "mps"
    auto = node.MEMORY_FORMAT == "auto" and (on_cpu or (not on_mps and bool(node.PRECISION or cfg.SOLVER.AMP.ENABLED)))
    return Acceleration(
        scale_weights=node.FOLD_NORMS,
        channels_last=auto or node.MEMORY_FORMAT == "channels_last",
        precision=_PRECISIONS[node.PRECISION],
        compile_mode=node.COMPILE,
        pad_to=node.PAD_TO,
        checkpoint_stages=tuple(node.CHECKPOINT_STAGES),
    )


def check_precision(cfg: CfgNode) -> None:
    """Raise ConfigError for values of MODEL.RESNET_BACKBONE that nothing can be computed with."""
    for name in ("MEMORY_FORMAT", "PRECISION", "COMPILE"):
        TORCHVISION_KEYS[f"MODEL.RESNET_BACKBONE.{name}"].check(cfg.MODEL.RESNET_BACKBONE[name], "backbone's")
    if cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.RESNET_BACKBONE.PRECISION == "float16":
        raise ConfigError(
            "MODEL.RESNET_BACKBONE.PRECISION float16 is for GPUs; on the CPU write bfloat16",
            *("MODEL.RESNET_BACKBONE.PRECISION", "MODEL.DEVICE"),
        )


def check_compiler(cfg: CfgNode, key: str) -> None:
    """Raise ConfigError where torch.compile would find no compiler, which it looks for in the first step.

    Args:
        cfg: reads MODEL.DEVICE and ``key``.
        key: MODEL.RESNET_BACKBONE.COMPILE, or of a classifier MODEL.COMPILE.
    """
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if value_of(cfg, key) and cfg.MODEL.DEVICE == "cpu" and shutil.which(compiler) is None:
        off = "False" if value_of(cfg, key) is True else "''"
        raise ConfigError(
            f"{key}: torch.compile needs a C++ compiler on the CPU, and there is no {compiler}; install it, name "
            f"another one in the environment variable CXX, or write {key} {off}",
            key,
        )


def check_training_precision(cfg: CfgNode) -> None:
    """Raise ConfigError for gradients that vanish, in float16 without the scaler of SOLVER.AMP, or are wrong on MPS."""
    if cfg.MODEL.DEVICE == "mps" and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and mps_problem():
        raise ConfigError(mps_problem(), "MODEL.DEVICE")
    if cfg.MODEL.RESNET_BACKBONE.PRECISION == "float16" and not cfg.SOLVER.AMP.ENABLED:
        raise ConfigError(
            "MODEL.RESNET_BACKBONE.PRECISION float16 is for inference; to train write SOLVER.AMP.ENABLED True, which "
            "scales the loss, or PRECISION bfloat16",
            *("MODEL.RESNET_BACKBONE.PRECISION", "SOLVER.AMP.ENABLED"),
        )
