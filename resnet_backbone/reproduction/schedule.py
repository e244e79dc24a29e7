"""The linear rule: a config's schedule for another number of images a step, the same images and epochs in all."""

from __future__ import annotations

from dataclasses import dataclass

from fvcore.common.config import CfgNode


@dataclass(frozen=True)
class Schedule:
    """What changes in SOLVER (and TEST) with the number of images a step."""

    images_per_step: int
    base_lr: float
    max_iter: int
    steps: tuple[int, ...]
    warmup_iters: int
    eval_period: int
    checkpoint_period: int  # scaled, too: VGG-16's 128 checkpoints on one GPU would take 140 GB

    def overrides(self, cfg: CfgNode) -> tuple[str, ...]:
        """Return the ``KEY VALUE`` words that give ``cfg`` this schedule; none where it has it."""
        own = schedule_of(cfg)
        values = {
            "SOLVER.IMS_PER_BATCH": (own.images_per_step, self.images_per_step),
            "SOLVER.BASE_LR": (own.base_lr, self.base_lr),
            "SOLVER.MAX_ITER": (own.max_iter, self.max_iter),
            "SOLVER.STEPS": (own.steps, self.steps),
            "SOLVER.WARMUP_ITERS": (own.warmup_iters, self.warmup_iters),
            "TEST.EVAL_PERIOD": (own.eval_period, self.eval_period),
            "SOLVER.CHECKPOINT_PERIOD": (own.checkpoint_period, self.checkpoint_period),
        }
        changed = {key: new for key, (old, new) in values.items() if old != new}
        return tuple(word for key, value in changed.items() for word in (key, _word(value)))

    def text(self) -> str:
        """One line for people."""
        drops = f", x0.1 at {' and '.join(f'{step:,}' for step in self.steps)}" if self.steps else ""
        return (
            f"{self.max_iter:,} iterations of {self.images_per_step} images, learning rate {self.base_lr:g}"
            f"{drops}, warm-up {self.warmup_iters:,}"
        )


def schedule_of(cfg: CfgNode) -> Schedule:
    """Return the schedule that a config describes."""
    solver = cfg.SOLVER
    steps = tuple(solver.STEPS) if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" else ()
    return Schedule(
        solver.IMS_PER_BATCH,
        solver.BASE_LR,
        solver.MAX_ITER,
        tuple(step for step in steps if step < solver.MAX_ITER),
        solver.WARMUP_ITERS,
        cfg.TEST.EVAL_PERIOD,
        solver.CHECKPOINT_PERIOD,
    )


def scale_schedule(cfg: CfgNode, images_per_step: int) -> Schedule:
    """Return the schedule of ``cfg`` for another number of images a step: the rate times k, the iterations through k.

    Source: Goyal et al., arXiv 1706.02677, section 2.1; the arithmetic is that of Detectron2's
    ``DefaultTrainer.auto_scale_workers``.

    Raises:
        ValueError: no images.
    """
    if images_per_step < 1:
        raise ValueError(f"a step needs one image or more, got {images_per_step}")
    own = schedule_of(cfg)
    factor = images_per_step / own.images_per_step
    if factor == 1:
        return own
    return Schedule(
        images_per_step,
        float(f"{own.base_lr * factor:.10g}"),  # as it is printed
        round(own.max_iter / factor),
        tuple(round(step / factor) for step in own.steps),
        round(own.warmup_iters / factor),
        round(own.eval_period / factor),
        max(1, round(own.checkpoint_period / factor)),
    )


def images_for(cfg: CfgNode, gpus: int, reference_gpus: int) -> int:
    """Return how many images a step has on ``gpus``, each with as many as where the config was made for.

    Raises:
        ValueError: a number of GPUs that the images cannot be shared among.
    """
    images = cfg.SOLVER.IMS_PER_BATCH * gpus
    if gpus < 1 or images % reference_gpus:
        raise ValueError(
            f"{cfg.SOLVER.IMS_PER_BATCH} images on {reference_gpus} GPUs do not scale to {gpus}: "
            f"give --images-per-step, a multiple of {gpus}"
        )
    return images // reference_gpus


def _word(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
