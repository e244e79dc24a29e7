"""The processes, devices and precision of a run, and the seed that they share."""

from __future__ import annotations

import os
import random
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from fvcore.common.config import CfgNode

from resnet_backbone.config.files import value_of
from resnet_backbone.training.batches import images_per_pass

# How long processes wait for each other. The main one checks images and scores alone, which takes longer on a large set
# than NCCL's 10 minutes. Whoever watches the processes ends them when one of them has died, whatever this is.
PATIENCE = timedelta(hours=3)


def make_accelerator(cfg: CfgNode, *, find_unused_parameters: bool = False) -> Accelerator:
    """Return the accelerator of this process, as torchrun's environment, MODEL.DEVICE and SOLVER.AMP say.

    Args:
        cfg: of a run.
        find_unused_parameters: for networks that leave layers out of some steps.

    Raises:
        ValueError: more processes than GPUs.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if cfg.MODEL.DEVICE == "cuda" and local_rank >= torch.cuda.device_count():
        raise ValueError(f"process {local_rank + 1} of this machine has no GPU: there are {torch.cuda.device_count()}")
    precision = {"float16": "fp16", "bfloat16": "bf16"}[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else "no"
    # Batch statistics are brought together before evaluating and saving, not on every step.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=find_unused_parameters)
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=cfg.MODEL.DEVICE == "cpu", mixed_precision=precision, kwargs_handlers=[ddp, waiting])


def check_processes(cfg: CfgNode, num_processes: int, *, norm: str) -> None:
    """Raise ValueError for a training that so many processes cannot share.

    Args:
        cfg: of a run.
        num_processes: of all machines.
        norm: the key that names the norm of the trunk.
    """
    images_per_pass(cfg, num_processes)
    together = num_processes > 1 or torch.distributed.is_initialized()
    if together and cfg.MODEL.DEVICE == "cpu" and value_of(cfg, norm) == "SyncBN":
        raise ValueError(f"{norm} SyncBN brings processes together on GPUs only; on the CPU write {norm} BN")


def common_seed(seed: int, accelerator: Accelerator) -> int:
    """Return ``seed``, or for a negative one a random seed that all processes share."""
    if seed >= 0:
        return seed
    drawn = torch.tensor(random.SystemRandom().randrange(2**31), device=accelerator.device)
    if accelerator.num_processes > 1:
        torch.distributed.broadcast(drawn, src=0)
    return int(drawn)
