"""The training of detectors: SGD over batches whose order and random numbers depend on seed and iteration alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from resnet_backbone.config.output import last_checkpoint
from resnet_backbone.training.batches import derive_seed
from resnet_backbone.training.loop import TrainingLoop
from resnet_backbone.training.solver import clip_gradients
from resnet_backbone.training.writers import Stopwatch

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Trainer(TrainingLoop):
    """Trains a detector; batches are (images, targets), and what diverges is told with the images of its batch."""

    frozen_keys = "MODEL.BACKBONE.FREEZE_AT and MODEL.RESNET_BACKBONE.NORM"

    def _step(self, batches: Iterator[Batch]) -> tuple[dict[str, float | Tensor], float]:
        """One optimizer step. Returns the losses, averaged over processes and passes, and the seconds spent on data."""
        accelerator, passes = self.accelerator, self.cfg.SOLVER.ACCUMULATION_STEPS
        torch.manual_seed(derive_seed(self.seed, self.iteration, accelerator.process_index))
        self.set_learning_rate()
        totals: dict[str, float] = {}
        data_time = 0.0
        image_ids: list[int] = []
        for number in range(passes):
            watch = Stopwatch()
            images, targets = next(batches)
            data_time += watch.lap()
            image_ids += [target["image_id"] for target in targets]
            with nullcontext() if number == passes - 1 else accelerator.no_sync(self.model):
                losses = self.model(*self._to_device(images, targets))
                total = torch.stack(list(losses.values())).sum()
                self._record(totals, losses, total, image_ids, passes)
                accelerator.backward(total / passes)
        self._check_gradients(totals, image_ids)
        clip_gradients(self.cfg, accelerator, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return dict(totals), data_time

    def _to_device(self, images: list[Tensor], targets: list[dict[str, Any]]) -> tuple[list[Tensor], list[dict]]:
        device = self.accelerator.device
        moved: list[dict[str, Any]] = []
        for target in targets:
            moved.append(
                {
                    "boxes": target["boxes"].as_subclass(Tensor).to(device, non_blocking=True),
                    "labels": target["labels"].to(device, non_blocking=True) + 1,
                }
            )
            if "masks" in target:
                moved[-1]["masks"] = target["masks"].as_subclass(Tensor).to(device, non_blocking=True)
            elif "polygons" in target:
                moved[-1]["masks"] = target["polygons"]
        return [image.to(device, non_blocking=True) for image in images], moved

    def _record(
        self, totals: dict[str, float], losses: dict[str, Tensor], total: Tensor, image_ids: list[int], passes: int
    ) -> None:
        """Add the losses of one pass to ``totals``; every process sees the same, so that all stop or none."""
        values = torch.stack([total, *losses.values()]).detach().float()
        mean = self.accelerator.reduce(values, reduction="mean")
        for name, value in zip(["total_loss", *losses], mean.tolist(), strict=True):
            totals[name] = totals.get(name, 0.0) + value / passes
        if not torch.isfinite(mean).all():
            raise FloatingPointError(self._diagnosis("loss", totals, image_ids))

    def _check_gradients(self, totals: dict[str, float], image_ids: list[int]) -> None:
        """Keep a gradient that is not finite from the weights; with float16 the scaler does, and skips the step."""
        if self.accelerator.scaler is not None:
            return
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
            raise FloatingPointError(self._diagnosis("gradient", totals, image_ids))

    def _diagnosis(self, what: str, losses: dict[str, float], image_ids: list[int]) -> str:
        solver = self.cfg.SOLVER
        usual = (0.01 if self.cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else 0.02) * solver.IMS_PER_BATCH / 16
        values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        last = last_checkpoint(self.output_dir)
        before = f"The last checkpoint is {last}, from before" if last else "There is no checkpoint yet"
        return (
            f"the {what} is not finite at iteration {self.iteration} ({values}) on images {image_ids}. Likely causes:\n"
            f"  - the learning rate: SOLVER.BASE_LR is {solver.BASE_LR:g}; the linear rule for IMS_PER_BATCH "
            f"{solver.IMS_PER_BATCH} gives {usual:g} for a ResNet, half of it for VGG; a longer WARMUP_ITERS "
            f"(now {solver.WARMUP_ITERS}) or SOLVER.CLIP_GRADIENTS helps, too\n"
            f"  - the input: INPUT.FORMAT {self.cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {self.cfg.MODEL.PIXEL_MEAN} and "
            f"PIXEL_STD {self.cfg.MODEL.PIXEL_STD} must be those that the weights were trained with\n"
            f"  - the norms: FrozenBN on random weights does not normalise; without MODEL.WEIGHTS write "
            f"MODEL.RESNET_BACKBONE.NORM BN and MODEL.BACKBONE.FREEZE_AT 0\n"
            f"  - the boxes of these images\n"
            f"{before}"
        )
