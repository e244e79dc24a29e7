"""Optimizer, learning rate and gradient clipping, as Detectron2's SOLVER keys define them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from fvcore.common.config import CfgNode
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.SGD:
    """SGD over what is trained, the parameters of norms with WEIGHT_DECAY_NORM, the rest with WEIGHT_DECAY."""
    solver = cfg.SOLVER
    norms = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in norms], "weight_decay": solver.WEIGHT_DECAY},
        {"params": [p for p in trained if id(p) in norms], "weight_decay": solver.WEIGHT_DECAY_NORM},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
    )


def build_schedule(cfg: CfgNode) -> Callable[[int], float]:
    """Return the learning rate as a function of the iteration alone: warm-up, then steps or a cosine.

    Source: Detectron2, ``solver/build.py`` and ``solver/lr_scheduler.py``.
    """
    solver = cfg.SOLVER
    schedule: ParamScheduler
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
        values = [solver.GAMMA**k for k in range(len(steps) + 1)]
        schedule = MultiStepParamScheduler(values, milestones=steps, num_updates=solver.MAX_ITER)
    else:
        schedule = CosineParamScheduler(1.0, solver.BASE_LR_END / solver.BASE_LR)
    warmup = min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0)
    if warmup > 0:
        start, end = solver.WARMUP_FACTOR * schedule(0.0), schedule(warmup)
        ramp = LinearParamScheduler(start, end) if solver.WARMUP_METHOD == "linear" else ConstantParamScheduler(start)
        if warmup < 1:
            schedule = CompositeParamScheduler(
                [ramp, schedule], lengths=[warmup, 1 - warmup], interval_scaling=["rescaled", "fixed"]
            )
        else:
            schedule = ramp
    return lambda iteration: solver.BASE_LR * schedule(iteration / solver.MAX_ITER)


def clip_gradients(cfg: CfgNode, accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """Clip as SOLVER.CLIP_GRADIENTS says: each value, the norm of each parameter, or the norm of all together."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return
    accelerator.unscale_gradients(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if clip.CLIP_TYPE == "full_model":
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE)
    elif clip.CLIP_TYPE == "value":
        nn.utils.clip_grad_value_(parameters, clip.CLIP_VALUE)
    else:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE)
