"""One run from config to scores: check everything, then train, then evaluate."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.data import DataLoader

from resnet_backbone.config.acceleration import check_compiler, check_training_precision, set_up_process
from resnet_backbone.config.checks import warn_of_suspicious
from resnet_backbone.config.merge import warn_of_changes
from resnet_backbone.config.weights_input import input_of
from resnet_backbone.engine.checkpoint import compare_data, find_resumed
from resnet_backbone.engine.launch import (
    check_processes,
    common_seed,
    from_main_process,
    make_accelerator,
    refuse_differences,
    settings_of,
)
from resnet_backbone.engine.run_folder import check_evaluation, check_output_dir
from resnet_backbone.engine.writers import begin_records, set_up_logging
from resnet_backbone.files.checkpoints import forget_checkpoints
from resnet_backbone.files.lock import writing_alone
from resnet_backbone.metrics.run_facts import hash_file
from resnet_backbone.metrics.summary import CocoMetrics
from resnet_backbone.models.acceleration import finish_for_inference
from resnet_backbone.torchvision_plugin.checkpoint import (
    Initial,
    fit_input_to,
    is_own_checkpoint,
    load_checkpoint,
    load_detector,
    read_initial_weights,
)
from resnet_backbone.torchvision_plugin.datasets import (
    build_train_loader,
    check_files,
    open_test_sets,
    open_train_set,
    set_num_classes,
)
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.torchvision_plugin.improvements import build_improved
from resnet_backbone.torchvision_plugin.inference import evaluate, without_transforms
from resnet_backbone.torchvision_plugin.trainer import Trainer
from resnet_backbone.version import __version__
from resnet_backbone.weights.cache import resolve

logger = logging.getLogger(__name__)


class Run:
    """A run that was checked and can start. Building one reads weights (into the cache, if it must) and
    annotations; it writes nothing to OUTPUT_DIR.

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
        check_output_dir(self.output_dir)
        self.accelerator = make_accelerator(cfg)
        refuse_differences(settings_of(cfg, resume=resume, eval_only=eval_only))
        self.keeps_config = eval_only and from_main_process(lambda: check_evaluation(cfg, resume=resume))
        set_up_logging(None)
        if not self.accelerator.is_main_process:
            logging.getLogger("resnet_backbone").setLevel(logging.WARNING)
        warn_of_suspicious(cfg, training=not eval_only)
        if not eval_only:
            check_processes(cfg, self.accelerator.num_processes, norm="MODEL.RESNET_BACKBONE.NORM")
            check_training_precision(cfg)
        check_compiler(cfg, "MODEL.RESNET_BACKBONE.COMPILE")
        check_files(cfg, training=not eval_only)
        self.found = find_resumed(self.output_dir, load_checkpoint) if resume else None
        resumed = self.found.state if self.found else None
        if eval_only and resumed is None and not is_own_checkpoint(Path(resolve(cfg.MODEL.WEIGHTS))):
            raise ValueError(f"--eval-only needs a trained detector in MODEL.WEIGHTS, found {cfg.MODEL.WEIGHTS!r}")
        initial = Initial(detector=resumed) if resumed else read_initial_weights(cfg)
        fit_input_to(cfg, initial)
        self.train_set = None if eval_only else open_train_set(cfg)
        learned = tuple(initial.detector["class_names"]) if initial.detector else None
        self.class_names = self.train_set.class_names if self.train_set else learned or ()
        if resumed and self.accelerator.is_main_process:
            warn_of_changes(self.output_dir, cfg)
        if resumed and self.class_names != learned:
            raise ValueError(f"the run to resume learned the classes {learned}, the data now has {self.class_names}")
        self.test_sets = open_test_sets(cfg, self.class_names, self.train_set)
        set_num_classes(cfg, self.class_names)
        self.seed = common_seed(cfg.SEED, self.accelerator)
        torch.manual_seed(self.seed)
        self.detector = build_detector(cfg, initial.classifier)
        if initial.detector is not None:
            source = cfg.MODEL.WEIGHTS or "the checkpoint"
            new_classes = self.class_names != learned
            load_detector(self.detector, initial.detector["model"], source, new_classes=new_classes)
        self.improved = build_improved(cfg, self.detector, self.class_names)
        self.resumes = resumed is not None
        self.trainer = None if eval_only else self._make_trainer(resumed)

    def start(self) -> dict[str, CocoMetrics]:
        """Train and evaluate; return the figures of each test set, on the main process."""
        with writing_alone(self.output_dir) if self.accelerator.is_main_process else nullcontext():
            return self._start()

    def _start(self) -> dict[str, CocoMetrics]:
        if self.found:
            self.found.check_is_last()
        if self.accelerator.is_main_process:
            begin_records(self.cfg, self.accelerator, keeps_config=self.keeps_config)
        set_up_process(self.cfg)
        if self.trainer is None:
            self.detector.to(self.accelerator.device)
            return self._evaluate(over=True)
        if self.accelerator.is_main_process and not self.resumes:
            forget_checkpoints(self.output_dir)
        figures: dict[str, CocoMetrics] = {}

        def scores(over: bool) -> dict[str, float]:
            figures.update(self._evaluate(over=over))
            return {
                f"{name}/{figure}": value
                for name, metrics in figures.items()
                for figure, value in metrics.scalars().items()
            }

        self.trainer.train(lambda start: iter(self._make_loader(start)), scores if self.test_sets else None)
        return figures

    def _make_trainer(self, resumed: dict[str, Any] | None) -> Trainer:
        facts = {
            "input": input_of(self.cfg),
            "class_names": list(self.class_names),
            "arch": self.cfg.MODEL.RESNET_BACKBONE.ARCH,
            "version": __version__,
            "data": self._data_marks(resumed),
        }
        trainer = Trainer(self.cfg, self.detector, self.accelerator, self.output_dir, self.seed, facts)
        trainer.last_score_compares = self.improved is None
        if resumed:
            trainer.resume(resumed)
            logger.info("resumed after iteration %d of %d", trainer.iteration, self.cfg.SOLVER.MAX_ITER)
        return trainer

    def _data_marks(self, resumed: dict[str, Any] | None) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data, compared with that of the other processes and of ``resumed``."""
        train_parts = self.train_set.parts if self.train_set else {}
        marks = {
            f"DATASETS.{key} {name}": {"sha256": hash_file(dataset.json_path), "images": len(dataset)}
            for key, sets in (("TRAIN", train_parts), ("TEST", self.test_sets))
            for name, dataset in sets.items()
        }
        compare_data(marks, resumed)
        return marks

    def _make_loader(self, start: int) -> DataLoader[Any]:
        if self.train_set is None or self.trainer is None:
            raise RuntimeError("a run that only evaluates has no training data")
        return build_train_loader(
            self.cfg,
            self.train_set.dataset,
            self.train_set.sizes,
            seed=self.trainer.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start=start,
        )

    def _evaluate(self, *, over: bool) -> dict[str, CocoMetrics]:
        """Score the detector; once training is over, finished for inference, with pictures and what TEST improves."""
        if over:
            finish_for_inference(self.detector.eval())
        folder = self.output_dir / "inference"
        detector: nn.Module = self.detector
        if over and self.improved is not None:
            detector = self.improved.to(self.accelerator.device)
        figures = {}
        for name, dataset in self.test_sets.items():
            own_folder = folder if len(self.test_sets) == 1 else folder / name
            if detector is self.improved:
                dataset = without_transforms(dataset)
            metrics = evaluate(self.cfg, detector, name, dataset, self.accelerator, own_folder, pictures=over)
            if metrics is not None:
                figures[name] = metrics
        return figures
