"""The processes of a run: their devices, what they tell each other, and starting them."""

from __future__ import annotations

import os
import random
import signal
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import main as torchrun

from resnet_backbone.config.reader import leaves, value_of
from resnet_backbone.engine.batches import images_per_pass
from resnet_backbone.engine.command_line import LOST_PEER, RESUME_ME, Interrupted, LostPeer, failed, torchrun_arguments
from resnet_backbone.engine.signals import catching_signals

if TYPE_CHECKING:
    from resnet_backbone.engine.run import BaseRun

_Value = TypeVar("_Value")
_Run = TypeVar("_Run", bound="BaseRun")

# How long processes wait for each other. The main one checks images and scores alone, which takes longer on a large set
# than NCCL's 10 minutes. Whoever watches the processes ends them when one of them has died, whatever this is.
PATIENCE = timedelta(hours=3)

_FOLLOWERS = (RESUME_ME, LOST_PEER, -signal.SIGTERM)  # how processes end that only follow another one
_ADVICE = "The last checkpoint is undamaged: put right what was wrong, and continue with --resume"


def make_accelerator(cfg: CfgNode) -> Accelerator:
    """Return the accelerator of this process, as torchrun's environment, MODEL.DEVICE and SOLVER.AMP say.

    Raises ValueError for more processes than GPUs.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if cfg.MODEL.DEVICE == "cuda" and local_rank >= torch.cuda.device_count():
        raise ValueError(f"process {local_rank + 1} of this machine has no GPU: there are {torch.cuda.device_count()}")
    precision = {"float16": "fp16", "bfloat16": "bf16"}[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else "no"
    # Batch statistics are brought together before evaluating and saving, not on every step.
    leaves_layers_out = cfg.MODEL.get("STOCHASTIC_DEPTH", 0.0) > 0  # of some steps
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=leaves_layers_out)
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(cpu=cfg.MODEL.DEVICE == "cpu", mixed_precision=precision, kwargs_handlers=[ddp, waiting])


def check_processes(cfg: CfgNode, num_processes: int, *, norm: str) -> None:
    """Raise ValueError for a training that so many processes cannot share; ``norm`` is the key of the trunk's norm."""
    images_per_pass(cfg, num_processes)
    together = num_processes > 1 or torch.distributed.is_initialized()
    if together and cfg.MODEL.DEVICE == "mps":
        raise ValueError("MODEL.DEVICE mps is one GPU, for one process; write --num-gpus 1, or MODEL.DEVICE cpu")
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


def shared_settings(cfg: CfgNode, *, resume: bool, eval_only: bool) -> dict[str, object]:
    """Return what :func:`check_same_settings` compares of a command; places may differ from machine to machine."""
    own = {"OUTPUT_DIR", "DATASETS.OWN", "DATALOADER.NUM_WORKERS", "MODEL.WEIGHTS", "TEST.ENSEMBLE"}
    keys = [key for key in leaves(cfg) if key not in own]
    return {"--resume": resume, "--eval-only": eval_only, **{key: value_of(cfg, key) for key in keys}}


def check_same_settings(own: Mapping[str, object]) -> None:
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


def in_any_process(value: bool, device: torch.device | str) -> bool:
    """Return, in all processes alike, whether ``value`` is true in one of them."""
    if process_count() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.uint8, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared)


def mean_over_processes(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes of a training, or ``value`` where there is only this one.

    What a training carries from step to step has to be the same in all processes: a checkpoint has that of one.
    """
    if process_count() == 1:
        return value
    mean = value.clone()
    torch.distributed.all_reduce(mean)
    return mean / process_count()


class ProcessError(RuntimeError):
    """A process of the run has ended before its time, and so have the others."""


def launch(arguments: Sequence[str]) -> None:
    """Run a script in several processes, and wait for their end. When one ends early, the others are ended, too.

    Args:
        arguments: of torchrun.

    Raises:
        Interrupted: a signal asked for the end, and the processes have saved.
        ProcessError: one has failed or was killed; the message says which, and how.
    """
    try:
        torchrun(list(arguments))
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        raise Interrupted(f"ended by {name}; --resume continues from the last checkpoint") from None
    except ChildFailedError as error:
        # torchrun ends the others after the first failure, and then counts them among the failures.
        causes = {rank: one for rank, one in error.failures.items() if one.exitcode not in _FOLLOWERS}
        if not causes and RESUME_ME in {one.exitcode for one in error.failures.values()}:
            raise Interrupted("ended by a signal; --resume continues from the last checkpoint") from None
        raise ProcessError(_explanation(causes or error.failures)) from None


def launch_processes(
    args: Namespace,
    command: Sequence[str],
    load_config: Callable[[str, Sequence[str]], CfgNode],
    check_data: Callable[..., object],
    *,
    norm: str,
) -> int:
    """Check data and batches before several processes do, which would each say it, start them; return the exit status.

    Args:
        args: see :func:`~resnet_backbone.engine.command_line.add_run_arguments`.
        command: what each process runs: script and arguments.
        load_config: of the engine.
        check_data: called with the config and whether it is for ``training``.
        norm: see :func:`check_processes`.
    """
    try:
        cfg = load_config(args.config_file, args.opts)
        check_data(cfg, training=not args.eval_only)
        if not args.eval_only:
            check_processes(cfg, args.num_gpus * args.num_machines, norm=norm)
        launch(torchrun_arguments(args, command))
    except (ValueError, TypeError, OSError, ProcessError, Interrupted) as error:
        return failed(error)
    return 0


def run_here(build: Callable[[], _Run], report: Callable[[_Run, Any], None]) -> int:
    """Build a run, start it in this process, and report its figures; return the exit status.

    Signals end it in order: see :func:`~resnet_backbone.engine.signals.catching_signals`.
    """
    with catching_signals():
        try:
            run = build()
        except (ValueError, TypeError, OSError, Interrupted) as error:
            return failed(error)
        try:
            figures = run.start()
        except (FloatingPointError, ValueError, OSError, Interrupted, KeyboardInterrupt) as error:
            return failed(error)
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            return failed(LostPeer(f"another process of this run has ended, and so this one does ({error})"))
    report(run, figures)
    return 0


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether an error is what a process gets when another one, with which it trains, has ended."""
    return isinstance(error, DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def _explanation(failures: Mapping[int, ProcessFailure]) -> str:
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    who = f"process {rank} of the run (pid {first.pid})"
    if first.exitcode >= 0:
        return f"{who} ended with status {first.exitcode}, as it says above; the others were ended. {_ADVICE}"
    name = signal.Signals(-first.exitcode).name
    why = " (mostly memory has run out; the system's log says so)" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{why}; the others were ended. {_ADVICE}"
