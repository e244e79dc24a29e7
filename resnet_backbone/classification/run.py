"""A classifier's training step, and its run from config to figures, with the weights packaged in the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader

from resnet_backbone.classification.evaluate import Scorer, check_members, data_hash
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
from resnet_backbone.classification.predict import Classifier, Member, check_views
from resnet_backbone.classification.transforms import ONE_CROP, DeviceImages, Views, training_transform
from resnet_backbone.config.acceleration import check_compiler
from resnet_backbone.data.catalog import check_same_classes
from resnet_backbone.data.images.classes import ClassDataset, TransformedClasses, open_classes
from resnet_backbone.engine.batches import BatchSampler, SeededDataset, images_per_pass
from resnet_backbone.engine.checkpoint import Resumed, find_resumed
from resnet_backbone.engine.divergence import explain_classifier_divergence
from resnet_backbone.engine.loop import TrainingLoop
from resnet_backbone.engine.processes import check_processes, is_main_process, process_count
from resnet_backbone.engine.records import PERIOD
from resnet_backbone.engine.run import LoopRun, refuse_other_classes
from resnet_backbone.engine.signals import outlive_signal
from resnet_backbone.files.checkpoints import FINAL, last_checkpoint
from resnet_backbone.metrics.classification import ClassificationMetrics
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.version import __version__
from resnet_backbone.weights import TestTransform

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]  # images (N, 3, H, W), labels (N,)


class Trainer(TrainingLoop):
    """Trains a classifier on batches of images and labels.

    Losses are looked at when they are recorded, and before a checkpoint is written, weights too: a run that has
    diverged stops within :data:`PERIOD` iterations, and never writes a checkpoint with what it diverged to.
    """

    best_figure = "classification/top1_error"
    larger_is_better = False
    stop_every = PERIOD
    _unchecked: Tensor | None = None  # sum of the losses since they were looked at

    def _loss(self, batch: Batch, records: dict[str, float | Tensor]) -> Tensor:
        """Loss and training error (percent) are recorded as means over processes and passes."""
        solver = self.cfg.SOLVER
        images, labels = self._to_device(*batch)
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=solver.LABEL_SMOOTHING)
        wrong = (logits.detach().argmax(1) != labels).float().mean()
        for name, value in (("total_loss", loss.detach().float()), ("train_error", 100 * wrong)):
            records[name] = records.get(name, 0.0) + value / solver.ACCUMULATION_STEPS
        return loss

    def _before_update(self, records: dict[str, float | Tensor]) -> None:
        if self.cfg.MODEL.STOCHASTIC_DEPTH:
            self._give_dropped_blocks_a_gradient()

    def _after_update(self, records: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        own = torch.stack([torch.as_tensor(value) for value in records.values()])
        figures = self.accelerator.reduce(own, reduction="mean")
        self._unchecked = figures[0] if self._unchecked is None else self._unchecked + figures[0]
        if (self.iteration + 1) % PERIOD == 0:
            self._check_loss()
        return dict(zip(records, figures, strict=True))

    def _give_dropped_blocks_a_gradient(self) -> None:
        """Of zero, so that momentum and decay act on them, too: an optimizer leaves out what has none."""
        for parameter in self.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _to_device(self, images: Tensor, labels: Tensor) -> Batch:
        device = self.accelerator.device
        images = images.to(device, non_blocking=images.is_pinned())
        if self.cfg.MODEL.CHANNELS_LAST:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, labels.to(device, non_blocking=labels.is_pinned())

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
        what = f"{what} is not finite, at iteration {self.iteration} or up to {PERIOD} before"
        return explain_classifier_divergence(self.cfg, what, last_checkpoint(self.output_dir))


class Run(LoopRun):
    """See :class:`~resnet_backbone.engine.run.BaseRun`. It returns the figures of the test set, or None."""

    model: Trunk
    class_names: tuple[str, ...]
    figures: ClassificationMetrics | None = None

    def _check_config(self) -> None:
        if not self.eval_only:
            check_processes(self.cfg, process_count(), norm="MODEL.NORM")
            check_compiler(self.cfg, "MODEL.COMPILE")

    def _check_data(self) -> None:
        self.train_set = None if self.eval_only else _open(self.cfg, "TRAIN")
        self.test_set = _open(self.cfg, "TEST") if self.cfg.DATASETS.TEST else None

    def _find_checkpoint(self) -> Resumed:
        return find_resumed(self.output_dir, load_checkpoint)

    def _read_weights(self) -> None:
        self._start_from = Start(checkpoint=self.resumed) if self.resumed else read_start(self.cfg)
        if self.eval_only and not self._start_from.num_classes:
            weights = self.cfg.MODEL.WEIGHTS
            raise ValueError(f"--eval-only needs a trained classifier in MODEL.WEIGHTS, found {weights!r}")
        fit_input(self.cfg, self._start_from)
        self._start_from.check_network(self.cfg, exact=bool(self.resumed) or self.eval_only)

    def _fit_classes(self) -> None:
        """Take the classes of the network or of the data, after a check that the data sets have just these."""
        start = self._start_from
        data = [dataset for dataset in (self.train_set, self.test_set) if dataset is not None]
        self.class_names = start.class_names if self.eval_only and start.class_names else data[0].class_names
        for dataset in data:
            check_same_classes(dataset.source, dataset.class_names, self.class_names)
        if self.eval_only and start.num_classes != len(self.class_names):
            raise ValueError(
                f"MODEL.WEIGHTS {self.cfg.MODEL.WEIGHTS} tells {start.num_classes} classes apart, "
                f"{data[0].source} has {len(self.class_names)}"
            )
        if self.resumed:
            refuse_other_classes("the run to resume", start.class_names, self.class_names)

    def _build_model(self) -> Trunk:
        cfg = self.cfg
        self.input_format = input_format_of(cfg)
        self.test_transform = TestTransform(cfg.INPUT.RESIZE_TEST, cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION)
        network = build_network(cfg, len(self.class_names), self._start_from)
        del self._start_from  # the memory
        if cfg.INPUT.SIZE < network.size_divisibility:
            raise ValueError(
                f"INPUT.SIZE {cfg.INPUT.SIZE} is too small for {cfg.MODEL.ARCH}, whose last feature map has a cell for "
                f"{network.size_divisibility} pixels: write INPUT.SIZE {network.size_divisibility} or more"
            )
        self.views = Views(cfg.TEST.VIEWS, tuple(cfg.TEST.SCALES))
        check_views(self.views, cfg.MODEL.ARCH, cfg.MODEL.ARCH, len(self.class_names), self.test_transform)
        self.members: list[Member] = []  # of the ensemble, besides this network
        if cfg.TEST.ENSEMBLE and self.test_set is not None:
            sources = [weights_file(source) for source in cfg.TEST.ENSEMBLE]
            self.members = check_members(sources, self.test_set, self.views)
        return network

    def _data_fingerprints(self) -> dict[str, Any]:
        return {
            f"DATASETS.{key} {data.source}": {"sha256": data_hash(data), "images": len(data)}
            for key, data in (("TRAIN", self.train_set), ("TEST", self.test_set))
            if data is not None
        }

    def _make_trainer(self) -> Trainer:
        facts = {
            "arch": self.cfg.MODEL.ARCH,
            "stride_in_1x1": self.cfg.MODEL.STRIDE_IN_1X1,
            "stochastic_depth": self.cfg.MODEL.STOCHASTIC_DEPTH,
            "class_names": list(self.class_names),
            "input": self.input_format.to_dict(),
            "test_transform": asdict(self.test_transform),
            "version": __version__,
            "data": self.data,
        }
        compiled = self.cfg.MODEL.COMPILE
        trainer = Trainer(self.cfg, self.model, self.accelerator, self.output_dir, self.seed, facts, compile=compiled)
        trainer.last_score_compares = self.views == ONE_CROP and not self.members
        return trainer

    def _set_up_process(self) -> None:
        torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        self._scorer = None
        if self.test_set is not None:
            self._scorer = Scorer(
                self.test_set,
                self.accelerator,
                batch_size=self.cfg.TEST.BATCH_SIZE,
                num_workers=self._num_workers,
                on_device=self._keep(self.test_set, self.test_transform) if self.cfg.DATALOADER.ON_DEVICE else None,
            )

    def _forget_earlier_run(self) -> None:
        super()._forget_earlier_run()
        if not self.resumed and is_main_process():
            (self.output_dir / WEIGHTS).unlink(missing_ok=True)

    def _make_batches(self, start: int) -> Iterator[Batch]:
        """Return the endless batches of this process from number ``start`` on."""
        if self.train_set is None:
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
            pin_memory=cfg.MODEL.DEVICE == "cuda",
            worker_init_fn=outlive_signal,
        )
        return iter(loader)

    @property
    def _num_workers(self) -> int:
        return min(self.cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)

    def _keep(self, dataset: ClassDataset, transform: TestTransform, pad: int = 0) -> DeviceImages:
        logger.info("decoding the %d images of %s", len(dataset), dataset.source)
        return DeviceImages(dataset, transform, self.input_format, self.accelerator.device, pad=pad)

    def _score(self, over: bool) -> dict[str, float]:
        """Score the network; once training is over, packaged, with the views and the ensemble that TEST asks for."""
        if over and not self.eval_only and is_main_process():
            logger.info("wrote %s", package_checkpoint(self.output_dir / FINAL))
        if self._scorer is None:
            return {}
        own = Classifier(
            model=self.model if over else cast(Trunk, self._scored),
            input_format=self.input_format,
            test_transform=self.test_transform,
            class_names=self.class_names,
            name=self.cfg.MODEL.ARCH,
        )
        if over:
            metrics = self._scorer.full(own, self.views, self.output_dir / "inference", self.members)
        else:
            metrics = self._scorer.quick(own)
        name = self.cfg.DATASETS.TEST[0]
        logger.info("%s: %s", name, metrics.text())
        self.figures = metrics
        return {f"{name}/{figure}": value for figure, value in metrics.scalars().items()}


def _open(cfg: CfgNode, key: str) -> ClassDataset:
    if not cfg.DATASETS[key]:
        raise ValueError(f"DATASETS.{key} names no data set: write one, such as \"['imagenet_{key.lower()}']\"")
    return open_classes(cfg.DATASETS[key][0])


def check_data(cfg: CfgNode, *, training: bool) -> None:
    """Raise FileNotFoundError or ValueError where a data set of ``cfg`` is not there."""
    for key in ("TRAIN", "TEST") if training else ("TEST",):
        if key == "TRAIN" or cfg.DATASETS.TEST:
            _open(cfg, key)
