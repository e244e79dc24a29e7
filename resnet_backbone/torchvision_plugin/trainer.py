"""The training of detectors: SGD over batches whose order and random numbers depend on seed and iteration alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from resnet_backbone.engine.batches import derive_seed
from resnet_backbone.engine.data_errors import fetch
from resnet_backbone.engine.divergence import (
    broken_tensors,
    explain_divergence,
    odd_boxes,
    odd_pixels,
    single_culprits,
)
from resnet_backbone.engine.loop import TrainingLoop
from resnet_backbone.engine.solver import clip_gradients
from resnet_backbone.engine.writers import Stopwatch
from resnet_backbone.files.checkpoints import last_checkpoint

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Trainer(TrainingLoop):
    """Trains a detector; batches are (images, targets), and what diverges is told with the images of its batch."""

    frozen_keys = "MODEL.BACKBONE.FREEZE_AT and MODEL.RESNET_BACKBONE.NORM"
    best_figure = "bbox/AP"
    larger_is_better = True
    _batch: Batch  # of the pass that is computed

    def _step(self, batches: Iterator[Batch]) -> tuple[dict[str, float | Tensor], float]:
        """One optimizer step. Returns the losses, averaged over processes and passes, and the seconds spent on data."""
        accelerator, passes = self.accelerator, self.cfg.SOLVER.ACCUMULATION_STEPS
        torch.manual_seed(derive_seed(self.seed, self.iteration, accelerator.process_index))
        self.set_learning_rate()
        totals: dict[str, float] = {}
        watch = Stopwatch()
        fetched = [fetch(batches) for _ in range(passes)]  # all of them before the network changes
        data_time = watch.lap()
        for number, (images, targets) in enumerate(fetched):
            self._batch = images, targets
            with nullcontext() if number == passes - 1 else accelerator.no_sync(self.model):
                losses = self.model(*self._to_device(images, targets))
                total = torch.stack(list(losses.values())).sum()
                self._record(totals, losses, total, passes)
                accelerator.backward(total / passes)
        self._check_gradients(totals)
        clip_gradients(self.cfg, accelerator, self.optimizer)
        self.optimizer.step()
        self.count_skipped()
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

    def check(self) -> None:
        broken = broken_tensors(self.module)
        if broken:
            raise FloatingPointError(f"{broken[0]}. The last good checkpoint is {last_checkpoint(self.output_dir)}")

    def _record(self, totals: dict[str, float], losses: dict[str, Tensor], total: Tensor, passes: int) -> None:
        """Add the losses of one pass to ``totals``; every process sees the same, so that all stop or none."""
        values = torch.stack([total, *losses.values()]).detach().float()
        mean = self.accelerator.reduce(values, reduction="mean")
        for name, value in zip(["total_loss", *losses], mean.tolist(), strict=True):
            totals[name] = totals.get(name, 0.0) + value / passes
        if not torch.isfinite(mean).all():
            raise FloatingPointError(self._diagnosis("loss", totals))

    def _check_gradients(self, totals: dict[str, float]) -> None:
        """Keep a gradient that is not finite from the weights; with float16 the scaler does, and skips the step."""
        if self.accelerator.scaler is not None:
            return
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
            raise FloatingPointError(self._diagnosis("gradient", totals))

    def _diagnosis(self, what: str, losses: dict[str, float]) -> str:
        """Look at the batch and the weights; called by all processes together."""
        values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        images, targets = self._batch
        ids = [target["image_id"] for target in targets]
        found = broken_tensors(self.module) or [
            *odd_pixels(self.cfg, images, ids),
            *odd_boxes(
                [(image.shape[-2], image.shape[-1]) for image in images], [target["boxes"] for target in targets], ids
            ),
            *(single_culprits(self._losses_of, ids) if self.accelerator.num_processes == 1 else []),
        ]
        every = gather_object([(ids, found)])
        return explain_divergence(
            self.cfg,
            f"the {what} is not finite at iteration {self.iteration} ({values})",
            [image_id for ids, _ in every for image_id in ids],
            last_checkpoint(self.output_dir),
            list(dict.fromkeys(text for _, found in every for text in found)),
        )

    def _losses_of(self, position: int) -> Tensor:
        """Return the sum of the losses of one image of the batch by itself."""
        images, targets = self._batch
        one = slice(position, position + 1)
        return torch.stack(list(self.model(*self._to_device(images[one], targets[one])).values())).sum()
