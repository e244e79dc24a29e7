"""One run from config to figures: check everything, then train, then package the weights, then evaluate."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader

from resnet_backbone.classification.device_images import DeviceImages
from resnet_backbone.classification.ensemble import Member, check_members
from resnet_backbone.classification.evaluate import Scorer, data_hash
from resnet_backbone.classification.network import (
    WEIGHTS,
    Start,
    build_network,
    fit_input,
    input_format_of,
    load_checkpoint,
    package_checkpoint,
    read_start,
    weights_file,
)
from resnet_backbone.classification.predict import Classifier, dense_window
from resnet_backbone.classification.trainer import Batch, Trainer
from resnet_backbone.classification.transforms import ONE_CROP, Views, training_transform
from resnet_backbone.config.acceleration import check_compiler
from resnet_backbone.config.merge import warn_of_changes
from resnet_backbone.data.catalog import check_same_classes
from resnet_backbone.data.images.classes import ClassDataset, TransformedClasses, open_classes
from resnet_backbone.engine.batches import BatchSampler, SeededDataset, images_per_pass
from resnet_backbone.engine.checkpoint import compare_data, find_resumed
from resnet_backbone.engine.launch import (
    check_processes,
    common_seed,
    from_main_process,
    make_accelerator,
    refuse_differences,
    settings_of,
)
from resnet_backbone.engine.run_folder import FINAL, check_evaluation, check_output_dir
from resnet_backbone.engine.signals import stay_for_the_parent
from resnet_backbone.engine.writers import begin_records, set_up_logging
from resnet_backbone.files.checkpoints import forget_checkpoints
from resnet_backbone.files.lock import writing_alone
from resnet_backbone.metrics.classification import ClassificationMetrics
from resnet_backbone.models.complexity import build_on_meta
from resnet_backbone.version import __version__
from resnet_backbone.weights import TestTransform

logger = logging.getLogger(__name__)


class Run:
    """A run that was checked and can start. Building one reads weights and lists images; it writes nothing to
    OUTPUT_DIR.

    Args:
        cfg: see ``load_config``; completed in place from the weights.
        resume: go on from the last checkpoint in OUTPUT_DIR; where there is none, start from the beginning.
        eval_only: evaluate MODEL.WEIGHTS (or, with ``resume``, the last checkpoint) and train nothing.

    Raises:
        FileNotFoundError, OSError, ValueError: what is missing or does not fit; nothing was written then.
    """

    def __init__(self, cfg: CfgNode, *, resume: bool = False, eval_only: bool = False) -> None:
        self.cfg = cfg
        self.output_dir = Path(cfg.OUTPUT_DIR)
        check_output_dir(self.output_dir)
        self.accelerator = make_accelerator(cfg, find_unused_parameters=cfg.MODEL.STOCHASTIC_DEPTH > 0)
        refuse_differences(settings_of(cfg, resume=resume, eval_only=eval_only))
        self.keeps_config = eval_only and from_main_process(lambda: check_evaluation(cfg, resume=resume))
        set_up_logging(None)
        if not self.accelerator.is_main_process:
            logging.getLogger("resnet_backbone").setLevel(logging.WARNING)
        if not eval_only:
            check_processes(cfg, self.accelerator.num_processes, norm="MODEL.NORM")
            check_compiler(cfg, "MODEL.COMPILE")
        self.train_set = None if eval_only else _open(cfg, "TRAIN")
        self.test_set = _open(cfg, "TEST") if cfg.DATASETS.TEST else None

        self.found = find_resumed(self.output_dir, load_checkpoint) if resume else None
        resumed = self.found.state if self.found else None
        start = Start(checkpoint=resumed) if resumed else read_start(cfg)
        if eval_only and not start.num_classes:
            raise ValueError(f"--eval-only needs a trained classifier in MODEL.WEIGHTS, found {cfg.MODEL.WEIGHTS!r}")
        fit_input(cfg, start)
        start.check_network(cfg, goes_on=resumed is not None or eval_only)
        if resumed and self.accelerator.is_main_process:
            warn_of_changes(self.output_dir, cfg)
        self.class_names = self._class_names(start, eval_only)
        if resumed and tuple(resumed["class_names"]) != self.class_names:
            raise ValueError(
                f"the run to resume learned the classes {resumed['class_names'][:8]}, the data has "
                f"{list(self.class_names[:8])}"
            )
        self.input_format = input_format_of(cfg)
        self.test_transform = TestTransform(cfg.INPUT.RESIZE_TEST, cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION)
        self.seed = common_seed(cfg.SEED, self.accelerator)
        torch.manual_seed(self.seed)
        self.network = build_network(cfg, len(self.class_names), start)
        if cfg.INPUT.SIZE < self.network.size_divisibility:
            raise ValueError(
                f"INPUT.SIZE {cfg.INPUT.SIZE} is too small for {cfg.MODEL.ARCH}, whose last feature map has a cell for "
                f"{self.network.size_divisibility} pixels: write INPUT.SIZE {self.network.size_divisibility} or more"
            )
        self.views = Views(cfg.TEST.VIEWS, tuple(cfg.TEST.SCALES))
        self.members = self._check_testing()
        self.resumes = resumed is not None
        self.trainer = None if eval_only else self._make_trainer(resumed)

    def start(self) -> ClassificationMetrics | None:
        """Train and evaluate; return the figures of the test set, None where there is none."""
        with writing_alone(self.output_dir) if self.accelerator.is_main_process else nullcontext():
            return self._start()

    def _start(self) -> ClassificationMetrics | None:
        if self.found:
            self.found.check_is_last()
        if self.accelerator.is_main_process:
            begin_records(self.cfg, self.accelerator, keeps_config=self.keeps_config)
        torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        self.network.to(self.accelerator.device)
        self._scorer = self._make_scorer()
        if self.trainer is None:
            return self._evaluate(over=True)
        if self.accelerator.is_main_process and not self.resumes:
            forget_checkpoints(self.output_dir)
            (self.output_dir / WEIGHTS).unlink(missing_ok=True)  # of an earlier run
        last: list[ClassificationMetrics] = []

        def scores(over: bool) -> dict[str, float]:
            if over and self.accelerator.is_main_process:
                logger.info("wrote %s", package_checkpoint(self.output_dir / FINAL))
            metrics = self._evaluate(over=over)
            if metrics is None:
                return {}
            last.append(metrics)
            return {f"{self.cfg.DATASETS.TEST[0]}/{name}": value for name, value in metrics.scalars().items()}

        self.trainer.train(self._make_batches, scores)
        return last[-1] if last else None

    def _class_names(self, start: Start, eval_only: bool) -> tuple[str, ...]:
        """Return the classes that the network tells apart, after a check that the data sets have just these."""
        data = [dataset for dataset in (self.train_set, self.test_set) if dataset is not None]
        names = start.class_names if eval_only and start.class_names else data[0].class_names
        for dataset in data:
            check_same_classes(dataset.source, dataset.class_names, names)
        if eval_only and start.num_classes != len(names):
            raise ValueError(
                f"MODEL.WEIGHTS {self.cfg.MODEL.WEIGHTS} tells {start.num_classes} classes apart, "
                f"{data[0].source} has {len(names)}"
            )
        return names

    def _check_testing(self) -> list[Member]:
        """Return the other members of the ensemble, after a check that TEST can be obeyed once training is over."""
        cfg = self.cfg
        self.views.check(self.test_transform)
        if self.views.kind == "multi-scale":
            meta = torch.device("meta")
            network = build_on_meta(cfg.MODEL.ARCH, num_classes=len(self.class_names))
            dense_window(network, cfg.MODEL.ARCH, cfg.INPUT.SIZE, self.views.scales, meta)
        if not cfg.TEST.ENSEMBLE or self.test_set is None:
            return []
        return check_members([weights_file(source) for source in cfg.TEST.ENSEMBLE], self.test_set, self.views)

    def _make_trainer(self, resumed: dict[str, Any] | None) -> Trainer:
        facts = {
            "arch": self.cfg.MODEL.ARCH,
            "stride_in_1x1": self.cfg.MODEL.STRIDE_IN_1X1,
            "stochastic_depth": self.cfg.MODEL.STOCHASTIC_DEPTH,
            "class_names": list(self.class_names),
            "input": self.input_format.to_dict(),
            "test_transform": asdict(self.test_transform),
            "version": __version__,
            "data": self._data_marks(resumed),
        }
        trainer = Trainer(
            self.cfg,
            self.network,
            self.accelerator,
            self.output_dir,
            self.seed,
            facts,
            compile=self.cfg.MODEL.COMPILE,
        )
        trainer.last_score_compares = self.views == ONE_CROP and not self.members
        if resumed:
            trainer.resume(resumed)
            logger.info("resumed after iteration %d of %d", trainer.iteration, self.cfg.SOLVER.MAX_ITER)
        return trainer

    def _data_marks(self, resumed: dict[str, Any] | None) -> dict[str, Any]:
        """Return what a checkpoint keeps of the data, compared with that of the other processes and of ``resumed``."""
        marks = {
            f"DATASETS.{key} {data.source}": {"sha256": data_hash(data), "images": len(data)}
            for key, data in (("TRAIN", self.train_set), ("TEST", self.test_set))
            if data is not None
        }
        compare_data(marks, resumed)
        return marks

    def _make_batches(self, start: int) -> Iterator[Batch]:
        """Return the endless batches of this process from number ``start`` on."""
        if self.train_set is None or self.trainer is None:
            raise RuntimeError("a run that only evaluates has no training data")
        cfg, accelerator = self.cfg, self.accelerator
        batch_size = images_per_pass(cfg, accelerator.num_processes)
        place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes, "start": start}
        seed = self.trainer.seed
        if cfg.DATALOADER.ON_DEVICE:
            transform = TestTransform(cfg.INPUT.SIZE, cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION)
            images = self._keep(self.train_set, transform, pad=cfg.INPUT.PAD)
            flip = cfg.INPUT.RANDOM_FLIP == "horizontal"
            return images.training_batches(batch_size, seed=seed, flip=flip, **place)
        transformed = TransformedClasses(self.train_set, training_transform(cfg, self.input_format))
        loader = DataLoader(
            SeededDataset(transformed, seed, cfg.INPUT.FORMAT),
            batch_sampler=BatchSampler([1.0] * len(transformed), batch_size, group=False, seed=seed, **place),
            num_workers=self._num_workers,
            pin_memory=cfg.MODEL.DEVICE != "cpu",
            worker_init_fn=stay_for_the_parent,
        )
        return iter(loader)

    @property
    def _num_workers(self) -> int:
        return min(self.cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)

    def _keep(self, dataset: ClassDataset, transform: TestTransform, pad: int = 0) -> DeviceImages:
        logger.info("decoding the %d images of %s", len(dataset), dataset.source)
        return DeviceImages(dataset, transform, self.input_format, self.accelerator.device, pad=pad)

    def _make_scorer(self) -> Scorer | None:
        if self.test_set is None:
            return None
        return Scorer(
            self.test_set,
            self.accelerator,
            batch_size=self.cfg.TEST.BATCH_SIZE,
            num_workers=self._num_workers,
            on_device=self._keep(self.test_set, self.test_transform) if self.cfg.DATALOADER.ON_DEVICE else None,
        )

    def _evaluate(self, *, over: bool) -> ClassificationMetrics | None:
        """Score the network; once training is over, with the views and the ensemble that TEST asks for."""
        if self._scorer is None:
            return None
        own = Classifier(
            model=self.network,
            input_format=self.input_format,
            test_transform=self.test_transform,
            class_names=self.class_names,
            name=self.cfg.MODEL.ARCH,
        )
        if over:
            metrics = self._scorer.full(own, self.views, self.output_dir / "inference", self.members)
        else:
            metrics = self._scorer.quick(own)
        logger.info("%s: %s", self.cfg.DATASETS.TEST[0], metrics.text())
        return metrics


def _open(cfg: CfgNode, key: str) -> ClassDataset:
    if not cfg.DATASETS[key]:
        raise ValueError(f"DATASETS.{key} names no data set: write one, such as \"['imagenet_{key.lower()}']\"")
    return open_classes(cfg.DATASETS[key][0])


def check_data(cfg: CfgNode, *, training: bool) -> None:
    """Raise FileNotFoundError or ValueError where a data set of ``cfg`` is not there."""
    for key in ("TRAIN", "TEST") if training else ("TEST",):
        if key == "TRAIN" or cfg.DATASETS.TEST:
            _open(cfg, key)
