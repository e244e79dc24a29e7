"""Detectron2's DefaultTrainer with our checkpoints and evaluators, which stops and resumes as our own trainings do."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import PreciseBN
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.detectron2_plugin.checkpoint import SafeCheckpointer
from resnet_backbone.detectron2_plugin.evaluation import evaluate
from resnet_backbone.detectron2_plugin.mapper import ResumableLoader
from resnet_backbone.engine.batches import DataError, derive_seed
from resnet_backbone.engine.checkpoint import last_checkpoint_text, warn_of_other_processes
from resnet_backbone.engine.command_line import Interrupted
from resnet_backbone.engine.divergence import broken_tensors, explain_divergence
from resnet_backbone.engine.loop import BestKeeper, evaluating, keeping_progress
from resnet_backbone.engine.processes import in_any_process, mean_over_processes
from resnet_backbone.engine.signals import deferring_signals, was_asked_to_stop
from resnet_backbone.engine.solver import build_optimizer
from resnet_backbone.files.atomic import copy_file
from resnet_backbone.files.checkpoints import BEST, FINAL, last_checkpoint
from resnet_backbone.models.acceleration import finish_for_inference

logger = logging.getLogger(__name__)

_NORMALIZER = "loss_normalizer"  # an attribute of Detectron2's DenseDetector, and no buffer
_LOOK_EVERY = 20  # iterations between two looks of several processes whether a signal has come


class Trainer(DefaultTrainer):
    """Trains a detector that was built before, and evaluates it as DATASETS.TEST and TEST say.

    Args:
        cfg: see ``load_config``.
        model: of ``build_model(cfg)``, with its initial weights.
        facts: see :class:`SafeCheckpointer`.
        improved: ``model`` with the improvements that TEST asks for, which the last evaluation scores in its place.

    Attributes:
        figures: of the last evaluation, see ``evaluate``.

    Raises:
        ValueError: this version of Detectron2 cannot train in bfloat16.
    """

    checkpointer: DetectionCheckpointer
    iter: int

    def __init__(
        self, cfg: CfgNode, model: nn.Module, facts: Mapping[str, Any], improved: nn.Module | None = None
    ) -> None:
        self._built_model = model
        self._facts = dict(facts)
        self._improved = improved
        self._best = BestKeeper("bbox/AP", larger_is_better=True)
        self.figures: dict[str, dict[str, Any]] = {}
        super().__init__(cfg)
        self._loader = self._trainer.data_loader
        if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "bfloat16":
            if not hasattr(self._trainer, "precision"):
                raise ValueError("SOLVER.AMP.DTYPE bfloat16 needs a newer Detectron2 than v0.6; write float16")
            self._trainer.precision = torch.bfloat16

    def build_model(self, cfg: CfgNode) -> nn.Module:
        return self._built_model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or ours, clipped by Detectron2, for what Detectron2 does not have."""
        solver = cfg.SOLVER
        if (solver.OPTIMIZER, solver.TRUNK_LR_FACTOR, solver.LAYER_DECAY) == ("SGD", 1.0, 1.0):
            return super().build_optimizer(cfg, model)
        return maybe_add_gradient_clipping(cfg, build_optimizer(cfg, model))

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> ResumableLoader:
        return ResumableLoader(cfg)

    def build_hooks(self) -> list[HookBase]:
        self.checkpointer = SafeCheckpointer(
            self.checkpointer.model,
            self.cfg.OUTPUT_DIR,
            arch=self.cfg.MODEL.RESNET_BACKBONE.ARCH,
            facts=self._facts,
            trainer=weakref.proxy(self),
        )
        return super().build_hooks()

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue from the last checkpoint in OUTPUT_DIR, which ``Run`` has checked; ``state`` is its plain values.

        The config decides on learning rate, decay and momentum, which Detectron2 takes from the checkpoint.
        """
        groups, scheduler = self._trainer.optimizer.param_groups, self.scheduler
        configured = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        base_rates = list(scheduler.base_lrs)
        self.resume_or_load(resume=True)
        scheduler.base_lrs = base_rates
        for group, options, rate in zip(
            self._trainer.optimizer.param_groups, configured, scheduler.get_lr(), strict=True
        ):
            group.update(options, lr=rate)
        self._loader.seed = state.get("seed", self._loader.seed)
        self._best.best = state.get("best")
        warn_of_other_processes(state.get("num_processes", comm.get_world_size()), comm.get_world_size())

    def state_dict(self) -> dict[str, Any]:
        """What Detectron2 saves, and the running mean that RetinaNet and FCOS divide their losses by."""
        return {**super().state_dict(), _NORMALIZER: getattr(self._built_model, _NORMALIZER, None)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get(_NORMALIZER) is not None:
            setattr(self._built_model, _NORMALIZER, state_dict[_NORMALIZER])
        scaler, inner = getattr(self._trainer, "grad_scaler", None), state_dict["_trainer"]
        if scaler is not None and not inner.get("grad_scaler"):
            logger.warning("the run so far was not in mixed precision: the scale of its loss is found from now on")
            state_dict = {**state_dict, "_trainer": {**inner, "grad_scaler": scaler.state_dict()}}
        super().load_state_dict(state_dict)

    def train(self) -> None:
        """Train and evaluate.

        Raises:
            FloatingPointError: it has diverged; the message names causes, images and the last checkpoint.
            Interrupted: a signal asked for the end; a checkpoint is written.
            DataError: a batch cannot be had; a checkpoint of all before is written.
            OSError: the disk is full; the message names the last good checkpoint.
        """
        self._loader.start = self.start_iter
        for hook in self._hooks:
            if isinstance(hook, PreciseBN):  # which takes its batches from where the last statistics left off
                hook._data_loader.seed = self._loader.seed
                hook._data_loader.start = self.start_iter // hook._period * hook._num_iter if hook._period else 0
        self._facts |= {"seed": self._loader.seed, "num_processes": comm.get_world_size(), "best": self._best.best}
        self.checkpointer.facts |= self._facts
        loop_logger = logging.getLogger("detectron2.engine.train_loop")
        loop_logger.addFilter(_is_news)
        try:
            with deferring_signals():
                self._train()
        except FloatingPointError as error:
            last = last_checkpoint(Path(self.cfg.OUTPUT_DIR))
            what = f"the loss is not finite at iteration {self.iter} ({_losses(error)}), of this process"
            found = broken_tensors(self.model)
            raise FloatingPointError(explain_divergence(self.cfg, what, self._loader.image_ids, last, found)) from error
        finally:
            loop_logger.removeFilter(_is_news)

    def _train(self) -> None:
        if self.start_iter == self.max_iter and not self.checkpointer.get_checkpoint_file().endswith(FINAL):
            self.iter = self.max_iter - 1
            self.checkpointer.save(FINAL.removesuffix(".pth"), iteration=self.iter)
        # TorchScript rewrites RetinaNet's loss after two calls, and rounds otherwise from then on: the weights would
        # depend on where a run was stopped.
        with keeping_progress(self._keep), torch.jit.optimized_execution(self.cfg.MODEL.DEVICE != "cpu"):
            super().train()

    def before_train(self) -> None:
        """Evaluate first where the training was killed between a checkpoint and the evaluation that follows it."""
        period, done = self.cfg.TEST.EVAL_PERIOD, self.start_iter
        if period and 0 < done < self.max_iter and done % period == 0:
            self.iter = done - 1
            scores = self.test(self.cfg, self.model)
            self.iter = done
            self.storage.put_scalars(**scores, smoothing_hint=False)
        super().before_train()

    def after_step(self) -> None:
        """End after a step during which a signal has come, in all processes alike; a checkpoint is written."""
        super().after_step()
        if comm.get_world_size() > 1 and (self.iter + 1) % _LOOK_EVERY:
            return
        if in_any_process(was_asked_to_stop(), self.cfg.MODEL.DEVICE):
            kept = self._keep()
            comm.synchronize()
            raise Interrupted(f"ended by a signal. {kept}")

    def run_step(self) -> None:
        torch.manual_seed(derive_seed(self._loader.seed, self.iter, comm.get_rank()))
        try:
            super().run_step()
        except DataError:
            self.iter = self._trainer.iter = self.iter - 1  # the last that is done
            raise
        mean = getattr(self._built_model, _NORMALIZER, None)
        if mean is not None and comm.get_world_size() > 1:  # a checkpoint has that of one process
            own = torch.tensor(mean, dtype=torch.float64, device=self.cfg.MODEL.DEVICE)
            setattr(self._built_model, _NORMALIZER, mean_over_processes(own).item())

    def test(self, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> dict[str, float]:
        """Evaluate, in the end with all that TEST asks for; return the summary figures by their full names."""
        if self.iter + 1 == self.max_iter:  # Detectron2 asks for the last one even where the last step has failed
            return {}
        over = self.iter >= self.max_iter
        with evaluating(self._keep):
            if over:
                self.figures = evaluate_all(cfg, model, improved=self._improved)
            else:
                self.figures = evaluate(cfg, model, Path(cfg.OUTPUT_DIR) / "inference", pictures=False)
        scores = {
            f"{name}/{kind}/{figure}": value
            for name, kinds in self.figures.items()
            for kind, values in kinds.items()
            for figure, value in values.items()
            if isinstance(value, float) and not figure.startswith("AP-")
        }
        self._keep_the_best(scores, over)
        comm.synchronize()  # for the main process, which has scored alone; a step does not wait for it as long
        return scores

    def _keep_the_best(self, scores: Mapping[str, float], over: bool) -> None:
        if over and self._improved is not None:  # the evaluations before showed it less
            return
        if not self._best.note(scores, min(self.iter + 1, self.max_iter)) or not self.cfg.TEST.EVAL_PERIOD:
            return
        self.checkpointer.facts["best"] = self._best.best
        if not over:
            self.checkpointer.save(BEST.removesuffix(".pth"), iteration=self.iter)
        elif comm.is_main_process():  # the network is finished for inference by now
            folder = Path(self.cfg.OUTPUT_DIR)
            copy_file(folder / FINAL, folder / BEST)

    def _keep(self) -> str:
        """Write a checkpoint of the iterations that are done, and say which one is the last."""
        folder, name = Path(self.cfg.OUTPUT_DIR), f"model_{self.iter:07d}"
        last = last_checkpoint(folder)
        is_saved = self.iter + 1 >= self.max_iter or (last is not None and last.stem == name)
        if self.iter >= self.start_iter and not is_saved:
            self.checkpointer.save(name, iteration=self.iter)
        return last_checkpoint_text(folder)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether Detectron2's traceback says more than the message that follows it."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, DataError | FloatingPointError | Interrupted | OSError)


def _losses(error: FloatingPointError) -> str:
    """Take the losses from Detectron2's message; or the checkpointer's about weights, as it is."""
    return str(error).split("loss_dict = ")[-1].strip("{}").replace("'", "")


def evaluate_all(cfg: CfgNode, model: nn.Module, *, improved: nn.Module | None = None) -> dict[str, dict[str, Any]]:
    """Evaluate into ``inference/`` with pictures, and with test-time augmentation into ``inference_TTA/``, too.

    The detector is finished for inference, in place; ``improved`` is scored in its place, without augmentation. Returns
    what ``evaluate`` does; the augmented figures are named ``<data set>_TTA``.
    """
    finish_for_inference(model.eval())
    output_dir = Path(cfg.OUTPUT_DIR)
    figures = evaluate(cfg, model if improved is None else improved, output_dir / "inference", pictures=True)
    if cfg.TEST.AUG.ENABLED:
        bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        found = evaluate(cfg, GeneralizedRCNNWithTTA(cfg, bare), output_dir / "inference_TTA", pictures=True)
        figures |= {f"{name}_TTA": values for name, values in found.items()}
    return figures
