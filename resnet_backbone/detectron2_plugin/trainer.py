"""Detectron2's DefaultTrainer with our checkpoints and evaluators."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.modeling import GeneralizedRCNNWithTTA
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.detectron2_plugin.checkpoint import SafeCheckpointer
from resnet_backbone.detectron2_plugin.evaluation import evaluate
from resnet_backbone.detectron2_plugin.mapper import TensorMapper
from resnet_backbone.models.acceleration import finish_for_inference

logger = logging.getLogger(__name__)


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

    def __init__(
        self, cfg: CfgNode, model: nn.Module, facts: Mapping[str, Any], improved: nn.Module | None = None
    ) -> None:
        self._built_model = model
        self._facts = facts
        self._improved = improved
        self.figures: dict[str, dict[str, Any]] = {}
        super().__init__(cfg)
        if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "bfloat16":
            if not hasattr(self._trainer, "precision"):
                raise ValueError("SOLVER.AMP.DTYPE bfloat16 needs a newer Detectron2 than v0.6; write float16")
            self._trainer.precision = torch.bfloat16

    def build_model(self, cfg: CfgNode) -> nn.Module:
        return self._built_model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        logger.info("images of the training are decoded and resized by torchvision (TensorMapper), others by Pillow")
        return build_detection_train_loader(cfg, mapper=TensorMapper(cfg, is_train=True))

    def build_hooks(self) -> list[HookBase]:
        self.checkpointer = SafeCheckpointer(
            self.checkpointer.model,
            self.cfg.OUTPUT_DIR,
            arch=self.cfg.MODEL.RESNET_BACKBONE.ARCH,
            facts=self._facts,
            trainer=weakref.proxy(self),
        )
        return super().build_hooks()

    def test(self, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> dict[str, float]:
        """Evaluate, in the end with all that TEST asks for; return the summary figures by their full names."""
        if self.iter + 1 >= self.max_iter:
            self.figures = evaluate_all(cfg, model, improved=self._improved)
        else:
            self.figures = evaluate(cfg, model, Path(cfg.OUTPUT_DIR) / "inference", pictures=False)
        return {
            f"{name}/{kind}/{figure}": value
            for name, kinds in self.figures.items()
            for kind, values in kinds.items()
            for figure, value in values.items()
            if isinstance(value, float) and not figure.startswith("AP-")
        }


def evaluate_all(cfg: CfgNode, model: nn.Module, *, improved: nn.Module | None = None) -> dict[str, dict[str, Any]]:
    """Evaluate into ``inference/`` with pictures, and with test-time augmentation into ``inference_TTA/``, too.

    Args:
        cfg: see ``evaluate``; also reads TEST.AUG.
        model: the detector; it is finished for inference, in place.
        improved: what to score in its place, without augmentation.

    Returns:
        See ``evaluate``; the augmented figures are named ``<data set>_TTA``.
    """
    finish_for_inference(model.eval())
    output_dir = Path(cfg.OUTPUT_DIR)
    figures = evaluate(cfg, model if improved is None else improved, output_dir / "inference", pictures=True)
    if cfg.TEST.AUG.ENABLED:
        bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        found = evaluate(cfg, GeneralizedRCNNWithTTA(cfg, bare), output_dir / "inference_TTA", pictures=True)
        figures |= {f"{name}_TTA": values for name, values in found.items()}
    return figures
