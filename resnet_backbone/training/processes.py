"""The processes, devices and precision of a run, and what the processes share."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from fvcore.common.config import CfgNode
from torch import Tensor

from resnet_backbone.config.files import leaves, value_of
from resnet_backbone.training.batches import images_per_pass

_Value = TypeVar("_Value")

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


def settings_of(cfg: CfgNode, *, resume: bool, eval_only: bool) -> dict[str, object]:
    """Return what :func:`refuse_differences` compares of a command; places may differ from machine to machine."""
    own = {"OUTPUT_DIR", "DATASETS.OWN", "DATALOADER.NUM_WORKERS", "MODEL.WEIGHTS", "TEST.ENSEMBLE"}
    keys = [key for key in leaves(cfg) if key not in own]
    return {"--resume": resume, "--eval-only": eval_only, **{key: value_of(cfg, key) for key in keys}}


def refuse_differences(own: Mapping[str, object]) -> None:
    """Compare values of this process, by name, with those of the main process; to be called by all processes.

    Raises:
        ValueError: in all processes alike, where one has other values than the main process.
    """
    if process_count() == 1:
        return
    every: list[dict[str, object]] = [{}] * process_count()
    torch.distributed.all_gather_object(every, dict(own))
    differ = [
        f"{name} is {every[0].get(name)!r} in process 0, {other.get(name)!r} in process {rank}"
        for rank, other in enumerate(every)
        for name in dict.fromkeys([*every[0], *other])
        if other.get(name) != every[0].get(name)
    ]
    if differ:
        raise ValueError(
            f"the processes of the run do not agree: {'; '.join(differ[:4])}. Give every machine the "
            f"same command, data and checkpoint"
        )


def from_main_process(compute: Callable[[], _Value]) -> _Value:
    """Return, in all processes, what ``compute`` returns in the main process, the only one that calls it.

    Raises:
        OSError, ValueError: in all processes alike, those of ``compute``.
    """
    if process_count() == 1:
        return compute()
    outcome: list[Any] = [None]
    if is_main_process():
        try:
            outcome = [compute()]
        except (OSError, ValueError) as error:
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def process_count() -> int:
    """Return how many processes take part in this run, on all machines."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this process is the one that writes: the only one, or number 0 of several."""
    return process_count() == 1 or torch.distributed.get_rank() == 0


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes of a training, or ``value`` where there is only this one.

    What a training carries from step to step has to be the same in all processes: a checkpoint has that of one.
    """
    if process_count() == 1:
        return value
    mean = value.clone()
    torch.distributed.all_reduce(mean)
    return mean / process_count()
