"""The training loop: optimizer steps with records, checkpoints and evaluations between them."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resnet_backbone.engine.batches import DataError, derive_seed, fetch, restore_sigchld
from resnet_backbone.engine.checkpoint import (
    check_resumed,
    check_same_parameters,
    last_checkpoint_text,
    warn_of_other_processes,
)
from resnet_backbone.engine.command_line import Interrupted
from resnet_backbone.engine.processes import in_any_process
from resnet_backbone.engine.records import RunWriter, Stopwatch
from resnet_backbone.engine.signals import deferring_signals, raising_signals, was_asked_to_stop
from resnet_backbone.engine.solver import build_optimizer, build_schedule, clip_gradients
from resnet_backbone.files.atomic import copy_file
from resnet_backbone.files.checkpoints import BEST, FINAL, check_disk_space, last_checkpoint, write_checkpoint

logger = logging.getLogger(__name__)

MOST_SKIPPED = 50  # steps; a scaler that starts at 65536 has halved its scale to nothing by then
MakeBatches = Callable[[int], Iterator[Any]]
Evaluate = Callable[[bool], dict[str, float]]


class BestKeeper:
    """Says of every evaluation whether it is the best so far.

    Args:
        figure: the end of the figure's name, such as ``bbox/AP``; of several test sets the first counts.
        larger_is_better: or smaller.

    Attributes:
        best: which figure, after how many iterations, and how good; None at first. Checkpoints keep it.
    """

    def __init__(self, figure: str, *, larger_is_better: bool) -> None:
        self.figure = figure
        self.sign = 1 if larger_is_better else -1
        self.best: list[Any] | None = None

    def note(self, scores: Mapping[str, float], iteration: int) -> bool:
        """Take in the scores after so many iterations; return whether they are the best. nan never is."""
        name = next((name for name in scores if name.endswith(f"/{self.figure}")), None)
        if name is None or math.isnan(scores[name]):
            return False
        if self.best is not None and self.best[0] == name and self.sign * scores[name] <= self.sign * self.best[2]:
            return False
        self.best = [name, iteration, scores[name]]
        return True


@contextmanager
def keeping_progress(keep: Callable[[], str]) -> Iterator[None]:
    """Around the steps of a training: where a batch cannot be had, ``keep`` a checkpoint of those that are done.

    Raises:
        DataError: with what ``keep`` says, which checkpoint is the last.
        Interrupted: a signal was the cause: what loads images may have got it first.
    """
    try:
        yield
    except DataError as error:
        kept = keep()
        if was_asked_to_stop():
            raise Interrupted(f"ended by a signal. {kept}") from error
        raise DataError(f"{error}\nPut that right. {kept}") from error


@contextmanager
def evaluating(keep: Callable[[], str]) -> Iterator[None]:
    """Around an evaluation, which signals end at once: whatever goes wrong, ``keep`` saves what was learned."""
    try:
        with raising_signals():
            yield
    except Interrupted as error:
        raise Interrupted(f"{error}, in an evaluation. {keep()}") from None
    except Exception:
        logger.error("the evaluation has failed. %s", keep())
        raise


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

    Attributes:
        module: the network that the steps change.
        averaged: with SOLVER.EMA the running mean of its weights, and of the statistics of its norms. It is what
            evaluations score and checkpoints call ``model``; the weights themselves are their ``unaveraged`` then.
    """

    best_figure: str  # the end of the name of the score that says which network is the best
    larger_is_better: bool
    stop_every = 1  # iterations between two looks of several processes whether one of them has got a signal
    last_score_compares = True  # with those before: the last evaluation shows the network nothing more than they do

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
        self.averaged: AveragedModel | None = None
        if cfg.SOLVER.EMA.ENABLED:
            self.averaged = AveragedModel(module, multi_avg_fn=self._average, use_buffers=True)
        self.iteration = 0  # how many are done
        self.best = BestKeeper(self.best_figure, larger_is_better=self.larger_is_better)
        self._saved_at = 0  # iteration of the last checkpoint
        self._skipped = 0  # steps, one after another

    def _average(self, means: Any, weights: Any, number: Tensor | int) -> None:
        """Move the means towards the weights; faster in the first iterations, which are far from the last."""
        number = int(number)
        get_ema_multi_avg_fn(min(self.cfg.SOLVER.EMA.DECAY, (1 + number) / (10 + number)))(means, weights, number)

    @abstractmethod
    def _loss(self, batch: Any, records: dict[str, float | Tensor]) -> Tensor:
        """Return the loss of one forward pass; add it to ``total_loss`` in the records, the mean over passes."""

    def _before_update(self, records: dict[str, float | Tensor]) -> None:  # noqa: B027
        """Look at the gradients of a step, before they are clipped."""

    def _after_update(self, records: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        """Return what is recorded of a step."""
        return records

    def _step(self, batches: Iterator[Any]) -> tuple[dict[str, float | Tensor], float]:
        """One optimizer step. Returns what is recorded, and the seconds spent on data."""
        accelerator, passes = self.accelerator, self.cfg.SOLVER.ACCUMULATION_STEPS
        torch.manual_seed(derive_seed(self.seed, self.iteration, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_factor"] * self.schedule(self.iteration)
        records: dict[str, float | Tensor] = {}
        watch = Stopwatch()
        fetched = [fetch(batches) for _ in range(passes)]  # all of them before the network changes
        data_time = watch.lap()
        for number, batch in enumerate(fetched):
            with nullcontext() if number == passes - 1 else accelerator.no_sync(self.model):
                accelerator.backward(self._loss(batch, records) / passes)
        self._before_update(records)
        clip_gradients(self.cfg, accelerator, self.optimizer)
        self.optimizer.step()
        self._count_skipped()
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        self.optimizer.zero_grad()
        return self._after_update(records), data_time

    def check(self) -> None:  # noqa: B027  a loop that looks at every step has nothing left to check
        """Raise FloatingPointError where training has diverged; called before every checkpoint and evaluation."""

    def train(self, make_batches: MakeBatches, evaluate: Evaluate) -> None:
        """Train to SOLVER.MAX_ITER, with checkpoints on the way and ``model_final.pth`` at the end; then evaluate.

        Args:
            make_batches: returns the endless batches that start at a given forward pass.
            evaluate: scores the network as it is, given whether training is over; called every TEST.EVAL_PERIOD
                iterations and at the end. The network with the best score so far is kept in ``model_best.pth``.

        Raises:
            FloatingPointError: a loss, a gradient or a weight is not finite; the message names causes and the last
                checkpoint.
            Interrupted: a signal asked for the end; a checkpoint is written.
            DataError: a batch cannot be had; a checkpoint of all before is written.
            OSError: the disk is full; the message names the last good checkpoint.
        """
        writer = None
        if self.accelerator.is_main_process:
            self._check_room()
            is_over = self.iteration == self.cfg.SOLVER.MAX_ITER
            redone = self.iteration if is_over or self._evaluation_is_due() else None
            writer = RunWriter(
                self.output_dir, self.cfg.SOLVER.MAX_ITER, self.iteration, self.accelerator.device, redone
            )
        try:
            with deferring_signals(), keeping_progress(self._keep):
                self._iterate(make_batches, evaluate, writer)
        finally:
            if writer is not None:
                writer.close()

    def _iterate(self, make_batches: MakeBatches, evaluate: Evaluate, writer: RunWriter | None) -> None:
        solver, period = self.cfg.SOLVER, self.cfg.TEST.EVAL_PERIOD
        if self._evaluation_is_due():
            self._score(evaluate, writer, over=False)
        if self.iteration == solver.MAX_ITER:
            if self.accelerator.is_main_process and getattr(last_checkpoint(self.output_dir), "name", "") != FINAL:
                self._write(FINAL)
            self.accelerator.wait_for_everyone()
        batches = make_batches(self.iteration * solver.ACCUMULATION_STEPS)
        restore_sigchld()
        self.model.train()
        watch = Stopwatch()
        while self.iteration < solver.MAX_ITER and not self._is_out_of_patience():
            self._stop_if_asked()
            records, data_time = self._step(batches)
            if writer is not None:
                lr = self.schedule(self.iteration)
                writer.step(self.iteration, {**records, "lr": lr, "data_time": data_time}, watch.lap())
            self.iteration += 1
            last = self.iteration == solver.MAX_ITER
            if last or self.iteration % solver.CHECKPOINT_PERIOD == 0:
                self.save(FINAL if last else self._name())
            if period and self.iteration % period == 0 and not last:
                self.check()
                self._score(evaluate, writer, over=False)
                watch.lap()
        if self.iteration < solver.MAX_ITER:
            self.save(FINAL)
        if self.averaged is not None:
            self.module.load_state_dict(self.averaged.module.state_dict())
        self._score(evaluate, writer, over=True)

    def _score(self, evaluate: Evaluate, writer: RunWriter | None, *, over: bool) -> None:
        """Evaluate, record, and keep the best."""
        self.synchronise_statistics()
        with evaluating(self._keep):
            scores = evaluate(over)
        if writer is None or not scores:
            return
        writer.scalars(self.iteration - 1, scores)
        competes = self.last_score_compares or not over
        if competes and self.best.note(scores, self.iteration) and self.cfg.TEST.EVAL_PERIOD:
            logger.info("the best so far: %s %.4g after %d iterations", *(self.best.best or ())[::2], self.iteration)
            if over:  # the network is finished for inference by now
                copy_file(self.output_dir / FINAL, self.output_dir / BEST)
            else:
                write_checkpoint(self.output_dir, BEST, self._state(), resumable=False)

    def _is_out_of_patience(self) -> bool:
        """Whether the last TEST.PATIENCE evaluations brought nothing better; the same in all processes."""
        test = self.cfg.TEST
        if not test.PATIENCE or self.iteration % test.EVAL_PERIOD:
            return False
        best = self.best.best  # which the main process alone has
        is_out = best is not None and self.iteration - best[1] >= test.PATIENCE * test.EVAL_PERIOD
        is_out = in_any_process(is_out, self.accelerator.device)
        if is_out:
            logger.info("the last %d evaluations were no better than that of %s: training ends", test.PATIENCE, BEST)
        return is_out

    def _evaluation_is_due(self) -> bool:
        """Whether the run was stopped between a checkpoint and the evaluation that follows it."""
        period = self.cfg.TEST.EVAL_PERIOD
        return bool(period and 0 < self.iteration < self.cfg.SOLVER.MAX_ITER and self.iteration % period == 0)

    def _stop_if_asked(self) -> None:
        """Raise Interrupted, in all processes alike, where one of them has got a signal."""
        if self.accelerator.num_processes > 1 and self.iteration % self.stop_every:
            return
        if in_any_process(was_asked_to_stop(), self.accelerator.device):
            kept = self._keep()
            self.accelerator.wait_for_everyone()
            raise Interrupted(f"ended by a signal. {kept}")

    def _keep(self) -> str:
        """Write a checkpoint of the steps that are done, and say which one is the last."""
        if not self.accelerator.is_main_process:
            return "The main process keeps what was learned; continue with --resume"
        if self.iteration not in (0, self._saved_at):
            self._write(self._name())
        return last_checkpoint_text(self.output_dir)

    def _name(self) -> str:
        return f"model_{self.iteration - 1:07d}.pth"

    def _count_skipped(self) -> None:
        """Raise FloatingPointError where the scaler of float16 skips more steps than any needs to find its scale."""
        if self.accelerator.scaler is None:
            return
        self._skipped = self._skipped + 1 if self.optimizer.step_was_skipped else 0
        if self._skipped == MOST_SKIPPED:
            raise FloatingPointError(
                f"the last {MOST_SKIPPED} steps, up to iteration {self.iteration}, were skipped: their gradients were "
                f"not finite in float16, at any scale. Write SOLVER.AMP.DTYPE bfloat16, or a smaller SOLVER.BASE_LR"
            )

    def synchronise_statistics(self) -> None:
        """Give every process the main process's running statistics of batch norms, which differ after training."""
        if self.accelerator.num_processes > 1:
            for buffer in self.module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def save(self, name: str) -> None:
        """Write a checkpoint with everything that resuming needs; the main process does, the others check and wait."""
        if self.accelerator.is_main_process:
            self._write(name)
        else:
            self.check()
        self.accelerator.wait_for_everyone()

    def _write(self, name: str) -> None:
        self.check()
        write_checkpoint(self.output_dir, name, self._state())
        self._saved_at = self.iteration

    def _state(self) -> dict[str, Any]:
        """Return the content of a checkpoint. The order of the data, and all random numbers, follow from the seed."""
        return {
            **self.facts,
            **self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "iteration": self.iteration,
            "seed": self.seed,
            "num_processes": self.accelerator.num_processes,
            "best": self.best.best,
        }

    def _weights(self) -> dict[str, Any]:
        if self.averaged is None:
            return {"model": self.module.state_dict()}
        return {"model": self.averaged.module.state_dict(), "unaveraged": self.module.state_dict()}

    def _check_room(self) -> None:
        solver = self.cfg.SOLVER
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        to_come = math.ceil((solver.MAX_ITER - self.iteration) / solver.CHECKPOINT_PERIOD)
        moments = {"first": [*trained], "second": [*trained] if solver.OPTIMIZER == "AdamW" else []}
        state = {**self._weights(), **moments}
        check_disk_space(self.output_dir, state, to_come, "SOLVER.CHECKPOINT_PERIOD")

    def resume(self, state: dict[str, Any]) -> None:
        """Continue where ``state``, the content of a checkpoint whose model is loaded already, left off.

        The config decides on learning rate, decay and momentum; the checkpoint gives what has been accumulated.

        Raises:
            ValueError: the checkpoint is of a run with another seed, trained other parameters, or trained longer.
        """
        check_resumed(self.cfg, done=state["iteration"], seed=state["seed"])
        saved, now = state["optimizer"], self.optimizer.state_dict()
        check_same_parameters(saved, now)
        warn_of_other_processes(state["num_processes"], self.accelerator.num_processes)
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": now["param_groups"]})
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if ("unaveraged" in state) != (self.averaged is not None):
            raise ValueError("the run to resume has another SOLVER.EMA.ENABLED; write that of its config.yaml")
        if self.averaged is not None:
            self.averaged.module.load_state_dict(state["model"])
            self.averaged.n_averaged.fill_(state["iteration"])
            self.module.load_state_dict(state["unaveraged"])
        self.iteration = self._saved_at = state["iteration"]
        self.seed = state["seed"]
        self.best.best = state.get("best")  # older checkpoints have none
