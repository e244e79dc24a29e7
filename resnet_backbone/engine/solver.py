"""Optimizer, learning rate and gradient clipping, as Detectron2's SOLVER keys define them."""

from __future__ import annotations

import re
from collections import defaultdict
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

from resnet_backbone.weights.architecture import stage_of

if TYPE_CHECKING:
    from accelerate import Accelerator

# backbone.stem.conv1.weight, backbone.bottom_up.res2.0.conv1.weight, roi_heads.res5.0.conv1.weight, not the pyramid's.
_OF_TRUNK = re.compile(r"backbone\.(?:bottom_up\.|(?!fpn|top_block))(.+)|roi_heads\.(res5\..+)")
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Return SOLVER.OPTIMIZER over what is trained.

    Its groups have equal decay and ``lr_factor``, by which the schedule is multiplied. As in Detectron2
    (``solver/build.py``), norms have WEIGHT_DECAY_NORM, and biases, those of norms included, BIAS_LR_FACTOR and, where
    it is set, WEIGHT_DECAY_BIAS.
    """
    solver = cfg.SOLVER
    norms = {id(p) for m in model.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    factor_of = trunk_lr_factor(cfg, model)
    members: dict[tuple[bool, float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_norm, factor = id(parameter) in norms, factor_of(name)
        decay = solver.WEIGHT_DECAY_NORM if is_norm else solver.WEIGHT_DECAY
        if name.endswith(".bias"):
            factor *= solver.BIAS_LR_FACTOR
            decay = decay if solver.WEIGHT_DECAY_BIAS is None else solver.WEIGHT_DECAY_BIAS
        members[is_norm, factor, decay].append(parameter)
    groups = [
        {"params": parameters, "weight_decay": decay, "lr_factor": factor, "lr": factor * solver.BASE_LR}
        for (_, factor, decay), parameters in sorted(members.items(), key=lambda item: item[0][0])
    ]
    if solver.OPTIMIZER == "AdamW":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)


def trunk_lr_factor(cfg: CfgNode, model: nn.Module) -> Callable[[str], float]:
    """Return the factor on the learning rate of a parameter, by its name in a detector.

    It is 1 but for the trunk, res5 in the heads of a C4 detector included: SOLVER.TRUNK_LR_FACTOR, times LAYER_DECAY
    for the last stage, its square for the one before, and so on. Stages are those of ``Trunk.stage_of``; in a backbone
    of another project, what its names begin with.

    Source: layer-wise decay, Clark et al. 2020 (arXiv 2003.10555), Bao et al. 2021 (2106.08254), by stages here.
    """
    solver, backbone = cfg.SOLVER, getattr(model, "backbone", None)
    factor, decay = solver.get("TRUNK_LR_FACTOR", 1.0), solver.get("LAYER_DECAY", 1.0)
    inner = {name: match[1] or match[2] for name, _ in model.named_parameters() if (match := _OF_TRUNK.match(name))}
    find_stage = getattr(getattr(backbone, "bottom_up", backbone), "stage_of", stage_of)
    stage_by_name = {name: stage_of(of) if of.startswith("res5.") else find_stage(of) for name, of in inner.items()}
    stages = list(dict.fromkeys(stage_by_name.values()))
    factors = {stage: factor * decay ** (len(stages) - number) for number, stage in enumerate(stages)}
    return lambda name: factors[stage_by_name[name]] if name in inner else 1.0


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
