"""The processes, devices and precision of a run, and the seed that they share."""

from __future__ import annotations

import os
import random

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from fvcore.common.config import CfgNode
from torch import Tensor


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
    return Accelerator(cpu=cfg.MODEL.DEVICE == "cpu", mixed_precision=precision, kwargs_handlers=[ddp])


def common_seed(seed: int, accelerator: Accelerator) -> int:
    """Return ``seed``, or for a negative one a random seed that all processes share."""
    if seed >= 0:
        return seed
    drawn = torch.tensor(random.SystemRandom().randrange(2**31), device=accelerator.device)
    if accelerator.num_processes > 1:
        torch.distributed.broadcast(drawn, src=0)
    return int(drawn)


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes of a training, or ``value`` where there is only this one.

    What a training carries from step to step has to be the same in all processes: a checkpoint has that of one.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    mean = value.clone()
    torch.distributed.all_reduce(mean)
    return mean / torch.distributed.get_world_size()
