"""The training step of detectors, and why their training has diverged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from resnet_backbone.engine.divergence import (
    broken_tensors,
    diverging_images,
    explain_divergence,
    invalid_boxes,
    unusual_pixels,
)
from resnet_backbone.engine.loop import TrainingLoop
from resnet_backbone.files.checkpoints import last_checkpoint

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Trainer(TrainingLoop):
    """Trains a detector; batches are (images, targets), and a loss that is not finite is explained with its images."""

    parameter_keys = "MODEL.BACKBONE.FREEZE_AT and MODEL.RESNET_BACKBONE.NORM"
    best_figure = "bbox/AP"
    larger_is_better = True
    _batch: Batch  # of the pass that is computed

    def _loss(self, batch: Batch, records: dict[str, float | Tensor]) -> Tensor:
        """Losses are recorded as means over processes; all processes stop where they are not finite, or none."""
        self._batch = batch
        losses = self.model(*self._to_device(*batch))
        total = torch.stack(list(losses.values())).sum()
        values = torch.stack([total, *losses.values()]).detach().float()
        mean = self.accelerator.reduce(values, reduction="mean")
        for name, value in zip(["total_loss", *losses], mean.tolist(), strict=True):
            records[name] = records.get(name, 0.0) + value / self.cfg.SOLVER.ACCUMULATION_STEPS
        if not torch.isfinite(mean).all():
            raise FloatingPointError(self._diagnosis("loss", records))
        return total

    def _before_update(self, records: dict[str, float | Tensor]) -> None:
        """Keep a gradient that is not finite from the weights; with float16 the scaler does, and skips the step."""
        if self.accelerator.scaler is not None:
            return
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
            raise FloatingPointError(self._diagnosis("gradient", records))

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

    def _diagnosis(self, what: str, losses: Mapping[str, float | Tensor]) -> str:
        """Look at the batch and the weights; called by all processes together."""
        values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        images, targets = self._batch
        ids = [target["image_id"] for target in targets]
        found = broken_tensors(self.module) or [
            *unusual_pixels(self.cfg, images, ids),
            *invalid_boxes(
                [(image.shape[-2], image.shape[-1]) for image in images], [target["boxes"] for target in targets], ids
            ),
            *(diverging_images(self._losses_of, ids) if self.accelerator.num_processes == 1 else []),
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
