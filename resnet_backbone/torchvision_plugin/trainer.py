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
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_backbone.config.output import last_checkpoint
from resnet_backbone.torchvision_plugin.checkpoint import save_checkpoint
from resnet_backbone.torchvision_plugin.loader import derive_seed
from resnet_backbone.torchvision_plugin.solver import build_optimizer, build_schedule, clip_gradients
from resnet_backbone.torchvision_plugin.writers import RunWriter, Stopwatch

logger = logging.getLogger(__name__)

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Trainer:
    """Everything that changes while a detector is trained, and the loop that changes it.

    Args:
        cfg: reads SOLVER, SEED and TEST.EVAL_PERIOD; the input's keys for messages.
        detector: on the CPU; it is moved to the accelerator's device.
        accelerator: processes, device and precision.
        output_dir: gets checkpoints and records.
        seed: of all that is random.
        facts: plain values that every checkpoint carries along, for those who read it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        detector: nn.Module,
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
        self.schedule = build_schedule(cfg)
        self.iteration = 0  # how many are done

    def train(
        self, make_loader: Callable[[int], DataLoader[Any]], evaluate: Callable[[bool], dict[str, float]] | None
    ) -> None:
        """Train to SOLVER.MAX_ITER, with checkpoints on the way and ``model_final.pth`` at the end; then evaluate.

        Args:
            make_loader: returns the endless loader that starts at a given forward pass.
            evaluate: scores the detector as it is, told whether training is over; called every TEST.EVAL_PERIOD
                iterations and at the end.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the message names causes, images and the last
                checkpoint.
        """
        solver, period = self.cfg.SOLVER, self.cfg.TEST.EVAL_PERIOD
        writer = None
        if self.accelerator.is_main_process:
            writer = RunWriter(self.output_dir, solver.MAX_ITER, self.iteration, self.accelerator.device)

        def score(over: bool) -> None:
            if evaluate is not None:
                self.synchronise_statistics()
                scores = evaluate(over)
                if writer is not None and scores:
                    writer.scalars(self.iteration - 1, scores)

        try:
            batches = iter(make_loader(self.iteration * solver.ACCUMULATION_STEPS))
            self.model.train()
            watch = Stopwatch()
            while self.iteration < solver.MAX_ITER:
                losses, data_time = self._step(batches)
                if writer is not None:
                    lr = self.optimizer.param_groups[0]["lr"]
                    writer.step(self.iteration, {**losses, "lr": lr, "data_time": data_time}, watch.lap())
                self.iteration += 1
                last = self.iteration == solver.MAX_ITER
                if last or self.iteration % solver.CHECKPOINT_PERIOD == 0:
                    self.save("model_final.pth" if last else f"model_{self.iteration - 1:07d}.pth")
                if period and self.iteration % period == 0 and not last:
                    score(over=False)
                    watch.lap()
            score(over=True)
        finally:
            if writer is not None:
                writer.close()

    def _step(self, batches: Iterator[Batch]) -> tuple[dict[str, float], float]:
        """One optimizer step. Returns the losses, averaged over processes and passes, and the seconds spent on data."""
        accelerator, passes = self.accelerator, self.cfg.SOLVER.ACCUMULATION_STEPS
        torch.manual_seed(derive_seed(self.seed, self.iteration, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.iteration)
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
        return totals, data_time

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
        gradients = [p.grad for p in self.detector.parameters() if p.grad is not None]
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
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
                "iteration": self.iteration,
                "seed": self.seed,
                "num_processes": self.accelerator.num_processes,
            }
            save_checkpoint(self.output_dir, name, state)
        self.accelerator.wait_for_everyone()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where ``state``, the content of a checkpoint whose model is loaded already, left off.

        The config decides on learning rate, decay and momentum; the checkpoint gives what has been accumulated.

        Raises:
            ValueError: the checkpoint is of a run with another seed, or trained other parameters.
        """
        saved, now = state["optimizer"], self.optimizer.state_dict()
        if [len(g["params"]) for g in saved["param_groups"]] != [len(g["params"]) for g in now["param_groups"]]:
            raise ValueError(
                "the checkpoint was trained with other layers frozen; resume with the MODEL.BACKBONE.FREEZE_AT and "
                "MODEL.RESNET_BACKBONE.NORM of its config.yaml"
            )
        if self.cfg.SEED >= 0 and self.cfg.SEED != state["seed"]:
            raise ValueError(f"the run to resume has the seed {state['seed']}: write SEED {state['seed']}")
        if state["num_processes"] != self.accelerator.num_processes:
            logger.warning(
                "the checkpoint was written by %d processes, now there are %d: the images come in another order",
                state["num_processes"],
                self.accelerator.num_processes,
            )
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": now["param_groups"]})
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.iteration = state["iteration"]
        self.seed = state["seed"]
