"""The training loop: optimizer steps with records, checkpoints and evaluations between them."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.training.checkpoint import save_checkpoint
from resnet_backbone.training.solver import build_optimizer, build_schedule
from resnet_backbone.training.writers import RunWriter, Stopwatch

logger = logging.getLogger(__name__)


class _Network(nn.Module):
    """What accelerate may wrap: it replaces ``forward`` by one with autocast, on the very object that it is given.

    The network itself so stays as it is, and is evaluated in float32 whatever it is trained in.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any) -> Any:
        return self.network(*inputs)


class TrainingLoop(ABC):
    """Everything that changes while a network is trained, and the loop that changes it.

    Args:
        cfg: reads SOLVER, SEED and TEST.EVAL_PERIOD.
        module: the network, on the CPU; it is moved to the accelerator's device.
        accelerator: processes, device and precision.
        output_dir: gets checkpoints and records.
        seed: of all that is random.
        facts: plain values that every checkpoint carries along, for those who read it.
        compile: run the network through ``torch.compile``.
    """

    frozen_keys: str  # of the config that say what is trained, for a message

    def __init__(
        self,
        cfg: CfgNode,
        module: nn.Module,
        accelerator: Accelerator,
        output_dir: Path,
        seed: int,
        facts: dict[str, Any],
        *,
        compile: bool = False,
    ) -> None:
        self.cfg = cfg
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.seed = seed
        self.facts = facts
        self.module = module
        # The order matters: the optimizer must hold the parameters that are on the device.
        module.to(accelerator.device)
        network: Any = torch.compile(module) if compile else module
        self.model, self.optimizer = accelerator.prepare(_Network(network), build_optimizer(cfg, module))
        self.schedule = build_schedule(cfg)
        self.iteration = 0  # how many are done

    @abstractmethod
    def _step(self, batches: Iterator[Any]) -> tuple[dict[str, float | Tensor], float]:
        """One optimizer step. Returns what is recorded, ``total_loss`` among it, and the seconds spent on data."""

    def check(self) -> None:  # noqa: B027  a loop that looks at every step has nothing left to check
        """Raise FloatingPointError where training has diverged; called before every checkpoint and evaluation."""

    def train(
        self, make_batches: Callable[[int], Iterator[Any]], evaluate: Callable[[bool], dict[str, float]] | None
    ) -> None:
        """Train to SOLVER.MAX_ITER, with checkpoints on the way and ``model_final.pth`` at the end; then evaluate.

        Args:
            make_batches: returns the endless batches that start at a given forward pass.
            evaluate: scores the network as it is, told whether training is over; called every TEST.EVAL_PERIOD
                iterations and at the end.

        Raises:
            FloatingPointError: a loss, a gradient or a weight is not finite; the message names causes and the last
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
            batches = make_batches(self.iteration * solver.ACCUMULATION_STEPS)
            self.model.train()
            watch = Stopwatch()
            while self.iteration < solver.MAX_ITER:
                records, data_time = self._step(batches)
                if writer is not None:
                    lr = self.optimizer.param_groups[0]["lr"]
                    writer.step(self.iteration, {**records, "lr": lr, "data_time": data_time}, watch.lap())
                self.iteration += 1
                last = self.iteration == solver.MAX_ITER
                if last or self.iteration % solver.CHECKPOINT_PERIOD == 0:
                    self.save("model_final.pth" if last else f"model_{self.iteration - 1:07d}.pth")
                if period and self.iteration % period == 0 and not last:
                    self.check()
                    score(over=False)
                    watch.lap()
            score(over=True)
        finally:
            if writer is not None:
                writer.close()

    def set_learning_rate(self) -> None:
        """Give the optimizer the learning rate of this iteration."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.iteration)

    def synchronise_statistics(self) -> None:
        """Give every process the main process's running statistics of batch norms, which differ after training."""
        if self.accelerator.num_processes > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def save(self, name: str) -> None:
        """Write a checkpoint with everything that resuming needs; the main process does, the others wait."""
        self.check()
        if self.accelerator.is_main_process:
            state = {
                **self.facts,
                "model": self.module.state_dict(),
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
            ValueError: the checkpoint is of a run with another seed, trained other parameters, or trained longer.
        """
        if state["iteration"] > self.cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"the run to resume has done {state['iteration']} iterations: write SOLVER.MAX_ITER "
                f"{state['iteration']} or more, not {self.cfg.SOLVER.MAX_ITER}"
            )
        saved, now = state["optimizer"], self.optimizer.state_dict()
        if [len(g["params"]) for g in saved["param_groups"]] != [len(g["params"]) for g in now["param_groups"]]:
            raise ValueError(
                f"the checkpoint was trained with other layers frozen; resume with the {self.frozen_keys} of its "
                f"config.yaml"
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
