"""The training loop: SGD over batches whose order and random numbers depend on the seed and the iteration alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_backbone.torchvision_plugin.checkpoint import save_checkpoint
from resnet_backbone.torchvision_plugin.detector import Detector
from resnet_backbone.torchvision_plugin.loader import derive_seed
from resnet_backbone.torchvision_plugin.solver import build_lr_scheduler, build_optimizer, clip_gradients
from resnet_backbone.torchvision_plugin.writers import RunWriter, Stopwatch

logger = logging.getLogger(__name__)

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Trainer:
    """Everything that changes while a detector is trained, and the loop that changes it.

    Args:
        cfg: reads SOLVER, TEST.EVAL_PERIOD, MODEL.DEVICE.
        detector: on the CPU; it is moved to the accelerator's device.
        accelerator: processes, device and precision.
        output_dir: gets checkpoints and records.
        seed: of all that is random.
        facts: plain values that every checkpoint carries along, for those who read it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        detector: Detector,
        accelerator: Accelerator,
        output_dir: Path,
        seed: int,
        facts: dict[str, Any],
    ) -> None:
        self.cfg = cfg
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.seed = seed
        self.facts = facts
        self.detector = detector
        # The order matters: the optimizer must hold the parameters that are on the device.
        detector.to(accelerator.device)
        self.model, self.optimizer = accelerator.prepare(detector, build_optimizer(cfg, detector))
        self.scheduler = build_lr_scheduler(cfg, self.optimizer.optimizer)
        self.iteration = 0  # how many are done

    def train(
        self, make_loader: Callable[[int], DataLoader[Any]], evaluate: Callable[[], dict[str, float]] | None
    ) -> None:
        """Train to SOLVER.MAX_ITER, with checkpoints on the way and ``model_final.pth`` at the end.

        Args:
            make_loader: returns the endless loader that starts at a given forward pass.
            evaluate: scores the detector as it is; called every TEST.EVAL_PERIOD iterations but the last.

        Raises:
            FloatingPointError: a loss is not finite; the message names causes, images and the last checkpoint.
        """
        solver = self.cfg.SOLVER
        main = self.accelerator.is_main_process
        writer = None
        if main:
            writer = RunWriter(self.output_dir, solver.MAX_ITER, self.iteration, self.accelerator.device)
        batches = iter(make_loader(self.iteration * solver.ACCUMULATION_STEPS))
        self.model.train()
        watch = Stopwatch()
        try:
            while self.iteration < solver.MAX_ITER:
                lr = self.optimizer.param_groups[0]["lr"]
                losses, data_time = self._step(batches)
                if writer is not None:
                    writer.step(self.iteration, {**losses, "lr": lr, "data_time": data_time}, watch.lap())
                self.iteration += 1
                last = self.iteration == solver.MAX_ITER
                if last or self.iteration % solver.CHECKPOINT_PERIOD == 0:
                    self.save("model_final.pth" if last else f"model_{self.iteration - 1:07d}.pth")
                period = self.cfg.TEST.EVAL_PERIOD
                if evaluate is not None and period and self.iteration % period == 0 and not last:
                    self.synchronise_statistics()
                    scores = evaluate()
                    self.model.train()
                    if writer is not None:
                        writer.scalars(self.iteration - 1, scores)
                    watch.lap()
            self.synchronise_statistics()
        finally:
            if writer is not None:
                writer.close()

    def _step(self, batches: Iterator[Batch]) -> tuple[dict[str, float], float]:
        """One optimizer step. Returns the losses, averaged over processes and passes, and the seconds spent on data."""
        accelerator, passes = self.accelerator, self.cfg.SOLVER.ACCUMULATION_STEPS
        torch.manual_seed(derive_seed(self.seed, self.iteration, accelerator.process_index))
        totals: dict[str, float] = {}
        data_time = 0.0
        for number in range(passes):
            watch = Stopwatch()
            images, targets = next(batches)
            data_time += watch.lap()
            with nullcontext() if number == passes - 1 else accelerator.no_sync(self.model):
                losses = self.model(*self._to_device(images, targets))
                total = torch.stack(list(losses.values())).sum()
                self._record(totals, losses, total, targets, passes)
                accelerator.backward(total / passes)
        clip_gradients(self.cfg, accelerator, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return totals, data_time

    def _to_device(self, images: list[Tensor], targets: list[dict[str, Any]]) -> tuple[list[Tensor], list[dict]]:
        device = self.accelerator.device
        return [image.to(device, non_blocking=True) for image in images], [
            {
                "boxes": target["boxes"].as_subclass(Tensor).to(device, non_blocking=True),
                "labels": target["labels"].to(device, non_blocking=True) + 1,
            }
            for target in targets
        ]

    def _record(
        self, totals: dict[str, float], losses: dict[str, Tensor], total: Tensor, targets: list[dict], passes: int
    ) -> None:
        """Add the losses of one pass to ``totals``; every process sees the same, so that all stop or none."""
        values = torch.stack([total, *losses.values()]).detach().float()
        mean = self.accelerator.reduce(values, reduction="mean")
        for name, value in zip(["total_loss", *losses], mean.tolist(), strict=True):
            totals[name] = totals.get(name, 0.0) + value / passes
        if not torch.isfinite(mean).all():
            raise FloatingPointError(self._diagnosis(losses, targets))

    def _diagnosis(self, losses: dict[str, Tensor], targets: list[dict]) -> str:
        solver = self.cfg.SOLVER
        usual = 0.02 * solver.IMS_PER_BATCH / 16
        values = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        return (
            f"the loss is not finite at iteration {self.iteration} ({values}) on images "
            f"{[target['image_id'] for target in targets]}. Likely causes:\n"
            f"  - the learning rate: SOLVER.BASE_LR is {solver.BASE_LR:g}; the linear rule for IMS_PER_BATCH "
            f"{solver.IMS_PER_BATCH} gives {usual:g} for a ResNet, half of it for VGG; a longer WARMUP_ITERS "
            f"(now {solver.WARMUP_ITERS}) or SOLVER.CLIP_GRADIENTS helps, too\n"
            f"  - the input: INPUT.FORMAT {self.cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {self.cfg.MODEL.PIXEL_MEAN} and "
            f"PIXEL_STD {self.cfg.MODEL.PIXEL_STD} must be those that the weights were trained with\n"
            f"  - the norms: FrozenBN on random weights does not normalise; without MODEL.WEIGHTS write "
            f"MODEL.RESNET_BACKBONE.NORM BN and MODEL.BACKBONE.FREEZE_AT 0\n"
            f"  - the boxes of these images\n"
            f"The checkpoints in {self.output_dir} are from before."
        )

    def synchronise_statistics(self) -> None:
        """Give every process the main process's running statistics of batch norms, which differ after training."""
        if self.accelerator.num_processes > 1:
            for buffer in self.detector.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def save(self, name: str) -> None:
        """Write a checkpoint with everything that resuming needs; the main process does, the others wait."""
        if self.accelerator.is_main_process:
            state = {
                **self.facts,
                "model": self.detector.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "iteration": self.iteration,
                "seed": self.seed,
            }
            save_checkpoint(self.output_dir, name, state)
        self.accelerator.wait_for_everyone()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where ``state``, the content of a checkpoint whose model is loaded already, left off."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self.seed = state["seed"]
