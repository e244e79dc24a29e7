"""One run from config to scores: check everything, then train, then evaluate."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from fvcore.common.config import CfgNode

from resnet_backbone.evaluation.metrics import CocoMetrics
from resnet_backbone.torchvision_plugin.checkpoint import last_checkpoint, load_checkpoint, load_detector
from resnet_backbone.torchvision_plugin.datasets import (
    TrainSet,
    check_files,
    open_test_sets,
    open_train_set,
    set_num_classes,
)
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.torchvision_plugin.inference import evaluate
from resnet_backbone.torchvision_plugin.initial_weights import Initial, fit_input, input_of, read_initial_weights
from resnet_backbone.torchvision_plugin.loader import build_train_loader, images_per_pass
from resnet_backbone.torchvision_plugin.trainer import Trainer
from resnet_backbone.torchvision_plugin.writers import set_up_logging
from resnet_backbone.version import __version__

logger = logging.getLogger(__name__)


class Run:
    """A run that was checked and can start. Building one reads weights and annotations; it writes nothing.

    Args:
        cfg: see ``load_config``; completed in place from the weights and the data.
        resume: go on from the last checkpoint in OUTPUT_DIR; where there is none, start from MODEL.WEIGHTS.
        eval_only: evaluate MODEL.WEIGHTS (or, with ``resume``, the last checkpoint) and train nothing.

    Raises:
        FileNotFoundError, OSError, ValueError: what is missing or does not fit; nothing was written then.
    """

    def __init__(self, cfg: CfgNode, *, resume: bool = False, eval_only: bool = False) -> None:
        self.cfg = cfg
        self.output_dir = Path(cfg.OUTPUT_DIR)
        self.eval_only = eval_only
        self.accelerator = _make_accelerator(cfg)
        set_up_logging(None)
        if not self.accelerator.is_main_process:
            logging.getLogger("resnet_backbone").setLevel(logging.WARNING)
        images_per_pass(cfg, self.accelerator.num_processes)
        check_files(cfg, training=not eval_only)
        self.resumed = _resumed_checkpoint(self.output_dir) if resume else None
        initial = Initial(detector=self.resumed) if self.resumed else read_initial_weights(cfg)
        fit_input(cfg, initial)
        self.train_set: TrainSet | None = None
        if not eval_only:
            self.train_set = open_train_set(cfg)
            classes = self.train_set.class_names
        elif initial.detector is not None:
            classes = tuple(initial.detector["class_names"])
        else:
            raise ValueError(f"--eval-only needs a trained detector in MODEL.WEIGHTS, found {cfg.MODEL.WEIGHTS!r}")
        self.test_sets = open_test_sets(cfg, classes)
        set_num_classes(cfg, classes)
        self.class_names = classes
        self.seed = _common_seed(cfg.SEED, self.accelerator)
        torch.manual_seed(self.seed)
        self.detector = build_detector(cfg, initial.classifier)
        if initial.detector is not None:
            new_classes = not (eval_only or self.resumed)
            load_detector(
                self.detector, initial.detector, cfg.MODEL.WEIGHTS or "the checkpoint", new_classes=new_classes
            )

    def start(self) -> dict[str, CocoMetrics]:
        """Train and evaluate; return the figures of each test set, on the main process."""
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            set_up_logging(self.output_dir)
            (self.output_dir / "config.yaml").write_text(self.cfg.dump(), encoding="utf-8")
            logger.info(
                "resnet_backbone %s, torch %s, device %s", __version__, torch.__version__, self.accelerator.device
            )
            logger.info("config:\n%s", self.cfg.dump())
        torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        if self.train_set is None:
            self.detector.to(self.accelerator.device)
        else:
            self._train(self.train_set)
        return self._evaluate(pictures=True)

    def _train(self, train_set: TrainSet) -> None:
        facts = {
            "input": input_of(self.cfg),
            "class_names": list(self.class_names),
            "arch": self.cfg.MODEL.RESNET_BACKBONE.ARCH,
            "version": __version__,
        }
        trainer = Trainer(self.cfg, self.detector, self.accelerator, self.output_dir, self.seed, facts)
        if self.resumed:
            trainer.resume(self.resumed)
            logger.info("resumed after iteration %d of %d", trainer.iteration, self.cfg.SOLVER.MAX_ITER)

        def make_loader(start: int) -> Any:
            return build_train_loader(
                self.cfg,
                train_set.dataset,
                train_set.sizes,
                seed=trainer.seed,
                rank=self.accelerator.process_index,
                world_size=self.accelerator.num_processes,
                start=start,
            )

        def scores() -> dict[str, float]:
            return {
                f"{name}/bbox/{figure}": value
                for name, metrics in self._evaluate(pictures=False).items()
                for figure, value in metrics.summary().items()
            }

        trainer.train(make_loader, scores if self.test_sets else None)

    def _evaluate(self, *, pictures: bool) -> dict[str, CocoMetrics]:
        folder = self.output_dir / "inference"
        figures = {}
        for name, dataset in self.test_sets.items():
            own_folder = folder if len(self.test_sets) == 1 else folder / name
            metrics = evaluate(self.cfg, self.detector, dataset, self.accelerator, own_folder, pictures=pictures)
            if metrics is not None:
                figures[name] = metrics
        return figures


def _make_accelerator(cfg: CfgNode) -> Accelerator:
    precision = {"float16": "fp16", "bfloat16": "bf16"}[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else "no"
    return Accelerator(
        cpu=cfg.MODEL.DEVICE == "cpu",
        mixed_precision=precision,
        # Batch statistics are brought together before evaluating and saving, not on every step.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def _resumed_checkpoint(output_dir: Path) -> dict[str, Any] | None:
    path = last_checkpoint(output_dir)
    if path is None:
        logger.warning("--resume: no checkpoint in %s, starting anew", output_dir)
        return None
    logger.info("resuming from %s", path)
    return load_checkpoint(path)


def _common_seed(seed: int, accelerator: Accelerator) -> int:
    """Return ``seed``, or for a negative one a random seed that all processes share."""
    if seed >= 0:
        return seed
    drawn = torch.tensor(random.SystemRandom().randrange(2**31), device=accelerator.device)
    if accelerator.num_processes > 1:
        torch.distributed.broadcast(drawn, src=0)
    return int(drawn)
