"""The training step of classifiers: cross entropy, without synchronising GPU and CPU between two records."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_backbone.engine.divergence import explain_classifier_divergence
from resnet_backbone.engine.loop import TrainingLoop
from resnet_backbone.engine.records import PERIOD
from resnet_backbone.files.checkpoints import last_checkpoint

Batch = tuple[Tensor, Tensor]  # images (N, 3, H, W), labels (N,)


class Trainer(TrainingLoop):
    """Trains a classifier on batches of images and labels.

    Losses are looked at when they are recorded, and before a checkpoint is written, weights too: a run that has
    diverged stops within :data:`PERIOD` iterations, and never writes a checkpoint with what it diverged to.
    """

    parameter_keys = "MODEL.FREEZE_AT and MODEL.NORM"
    best_figure = "classification/top1_error"
    larger_is_better = False
    stop_every = PERIOD
    _unchecked: Tensor | None = None  # sum of the losses since they were looked at

    def _loss(self, batch: Batch, records: dict[str, float | Tensor]) -> Tensor:
        """Loss and training error (percent) are recorded as means over processes and passes."""
        solver = self.cfg.SOLVER
        images, labels = self._to_device(*batch)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=solver.LABEL_SMOOTHING)
        wrong = (logits.detach().argmax(1) != labels).float().mean()
        for name, value in (("total_loss", loss.detach().float()), ("train_error", 100 * wrong)):
            records[name] = records.get(name, 0.0) + value / solver.ACCUMULATION_STEPS
        return loss

    def _before_update(self, records: dict[str, float | Tensor]) -> None:
        if self.cfg.MODEL.STOCHASTIC_DEPTH:
            self._give_dropped_blocks_a_gradient()

    def _after_update(self, records: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        own = torch.stack([torch.as_tensor(value) for value in records.values()])
        figures = self.accelerator.reduce(own, reduction="mean")
        self._unchecked = figures[0] if self._unchecked is None else self._unchecked + figures[0]
        if (self.iteration + 1) % PERIOD == 0:
            self._check_loss()
        return dict(zip(records, figures, strict=True))

    def _give_dropped_blocks_a_gradient(self) -> None:
        """Of zero, so that momentum and decay act on them, too: an optimizer leaves out what has none."""
        for parameter in self.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _to_device(self, images: Tensor, labels: Tensor) -> Batch:
        device = self.accelerator.device
        images = images.to(device, non_blocking=True)
        if self.cfg.MODEL.CHANNELS_LAST:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels.to(device, non_blocking=True)

    def check(self) -> None:
        self._check_loss()
        if not torch.isfinite(torch.stack(torch._foreach_norm(list(self.module.parameters())))).all():
            raise FloatingPointError(self._diagnosis("a weight"))

    def _check_loss(self) -> None:
        """Raise FloatingPointError where a loss since the last look was not finite; all processes see the same."""
        if self._unchecked is not None and not torch.isfinite(self._unchecked):
            raise FloatingPointError(self._diagnosis("a loss"))
        self._unchecked = None

    def _diagnosis(self, what: str) -> str:
        what = f"{what} is not finite, at iteration {self.iteration} or up to {PERIOD} before"
        return explain_classifier_divergence(self.cfg, what, last_checkpoint(self.output_dir))
