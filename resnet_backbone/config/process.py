"""What a run decides for its whole process, from the config."""

from __future__ import annotations

import ctypes
import logging
import platform

import torch
from fvcore.common.config import CfgNode

logger = logging.getLogger(__name__)

TF32 = ("convolutions", "everywhere", "nowhere")  # the first is the default
FLOAT32_PRECISION = {"highest": "nowhere", "high": "everywhere", "medium": "everywhere"}  # Detectron2's key, as TF32
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def set_up_process(cfg: CfgNode) -> None:
    """Do what TF32, CUDNN_BENCHMARK and KEEP_FREED_MEMORY say, before the first step.

    TF32 is for GPUs since Ampere: float32 convolutions, and matrix products, round their factors. torch's own choice is
    ``convolutions``. Where a config has Detectron2's FLOAT32_PRECISION, that key decides.
    """
    tf32 = FLOAT32_PRECISION.get(cfg.get("FLOAT32_PRECISION", ""), cfg.TF32)
    if tf32 != cfg.TF32:
        logger.info("TF32 %s, as FLOAT32_PRECISION %s says", tf32, cfg.FLOAT32_PRECISION)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    torch.backends.cudnn.allow_tf32 = tf32 != "nowhere"
    torch.backends.cuda.matmul.allow_tf32 = tf32 == "everywhere"
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
