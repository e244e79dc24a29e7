"""The training step of classifiers: cross entropy, without synchronising GPU and CPU between two records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_backbone.engine.batches import derive_seed
from resnet_backbone.engine.data_errors import fetch
from resnet_backbone.engine.loop import TrainingLoop
from resnet_backbone.engine.solver import clip_gradients
from resnet_backbone.engine.writers import PERIOD, Stopwatch
from resnet_backbone.files.checkpoints import last_checkpoint

Batch = tuple[Tensor, Tensor]  # images (N, 3, H, W), labels (N,)


class Trainer(TrainingLoop):
    """Trains a classifier on batches of images and labels.

    Losses are looked at when they are recorded, and before a checkpoint is written, weights too: a run that has
    diverged stops within :data:`PERIOD` iterations, and never writes a checkpoint with what it diverged to.
    """

    frozen_keys = "MODEL.FREEZE_AT and MODEL.NORM"
    best_figure = "classification/top1_error"
    larger_is_better = False
    stop_every = PERIOD
    _unchecked: Tensor | None = None  # sum of the losses since they were looked at

    def _step(self, batches: Iterator[Batch]) -> tuple[dict[str, float | Tensor], float]:
        """One optimizer step. Returns loss and training error (percent), means over processes and passes."""
        accelerator, solver = self.accelerator, self.cfg.SOLVER
        passes = solver.ACCUMULATION_STEPS
        torch.manual_seed(derive_seed(self.seed, self.iteration, accelerator.process_index))
        self.set_learning_rate()
        figures = torch.zeros(2, device=accelerator.device)
        watch = Stopwatch()
        fetched = [fetch(batches) for _ in range(passes)]  # all of them before the network changes
        data_time = watch.lap()
        for number, batch in enumerate(fetched):
            images, labels = self._to_device(*batch)
            with nullcontext() if number == passes - 1 else accelerator.no_sync(self.model):
                logits = self.model(images)
                loss = F.cross_entropy(logits, labels, label_smoothing=solver.LABEL_SMOOTHING)
                accelerator.backward(loss / passes)
            wrong = (logits.detach().argmax(1) != labels).float().mean()
            figures += torch.stack([loss.detach().float(), 100 * wrong]) / passes
        if self.cfg.MODEL.STOCHASTIC_DEPTH:
            self._give_dropped_blocks_a_gradient()
        clip_gradients(self.cfg, accelerator, self.optimizer)
        self.optimizer.step()
        self.count_skipped()
        self.optimizer.zero_grad()
        figures = accelerator.reduce(figures, reduction="mean")
        self._unchecked = figures[0] if self._unchecked is None else self._unchecked + figures[0]
        if (self.iteration + 1) % PERIOD == 0:
            self._check_loss()
        return {"total_loss": figures[0], "train_error": figures[1]}, data_time

    def _give_dropped_blocks_a_gradient(self) -> None:
        """Of zero, so that momentum and decay go on for them: an optimizer leaves out what has none."""
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
        solver = self.cfg.SOLVER
        last = last_checkpoint(self.output_dir)
        before = f"The last checkpoint is {last}, from before" if last else "There is no checkpoint yet"
        return (
            f"{what} is not finite, at iteration {self.iteration} or up to {PERIOD} before. Likely causes:\n"
            f"  - the learning rate: SOLVER.BASE_LR is {solver.BASE_LR:g} for IMS_PER_BATCH {solver.IMS_PER_BATCH}; "
            f"with batch norm the paper takes 0.1 for 256 images of ImageNet and for 128 of CIFAR-10; without it "
            f"(vgg16, vgg19) take a tenth; SOLVER.WARMUP_ITERS (now {solver.WARMUP_ITERS}) helps deep networks\n"
            f"  - the input: MODEL.PIXEL_MEAN {self.cfg.MODEL.PIXEL_MEAN} and PIXEL_STD {self.cfg.MODEL.PIXEL_STD} "
            f"must be on the scale of 0 to 255\n"
            f"{before}"
        )
