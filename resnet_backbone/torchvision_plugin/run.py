"""One run on torchvision from config to scores: its training step, and why a training has diverged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from resnet_backbone.engine.checkpoint import Resumed, find_resumed
from resnet_backbone.engine.divergence import (
    broken_tensors,
    diverging_images,
    explain_divergence,
    invalid_boxes,
    unusual_pixels,
)
from resnet_backbone.engine.loop import TrainingLoop
from resnet_backbone.engine.run import LoopRun, detector_facts, refuse_other_classes
from resnet_backbone.files.atomic import file_hash
from resnet_backbone.files.checkpoints import last_checkpoint
from resnet_backbone.metrics.coco import CocoMetrics
from resnet_backbone.models.acceleration import finish_for_inference
from resnet_backbone.torchvision_plugin.checkpoint import (
    fit_input_to,
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
from resnet_backbone.torchvision_plugin.inference import evaluate
from resnet_backbone.weights import Weights

Batch = tuple[list[Tensor], list[dict[str, Any]]]


class Trainer(TrainingLoop):
    """Trains a detector; batches are (images, targets), and a loss that is not finite is explained with its images."""

    best_figure = "bbox/AP"
    larger_is_better = True
    _batch: Batch  # of the pass that is computed

    def _loss(self, batch: Batch, records: dict[str, float | Tensor]) -> Tensor:
        """Losses are recorded as means over processes; all processes stop where they are not finite, or none."""
        self._batch = batch
        losses = self.model(*self._to_device(*batch))
        total = torch.stack(list(losses.values())).sum()
        values = torch.stack([total, *losses.values()]).detach().float()
        mean = self.accelerator.reduce(values, reduction="mean")
        for name, value in zip(["total_loss", *losses], mean.tolist(), strict=True):
            records[name] = records.get(name, 0.0) + value / self.cfg.SOLVER.ACCUMULATION_STEPS
        if not torch.isfinite(mean).all():
            raise FloatingPointError(self._diagnosis("loss", records))
        return total

    def _before_update(self, records: dict[str, float | Tensor]) -> None:
        """Keep a gradient that is not finite from the weights; with float16 the scaler does, and skips the step."""
        if self.accelerator.scaler is not None:
            return
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        if not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
            raise FloatingPointError(self._diagnosis("gradient", records))

    def _to_device(self, images: list[Tensor], targets: list[dict[str, Any]]) -> tuple[list[Tensor], list[dict]]:
        def move(value: Tensor) -> Tensor:
            return value.as_subclass(Tensor).to(self.accelerator.device, non_blocking=value.is_pinned())

        moved: list[dict[str, Any]] = []
        for target in targets:
            moved.append({name: move(target[name]) for name in ("boxes", "labels", "masks") if name in target})
            if "polygons" in target:
                moved[-1]["masks"] = target["polygons"]
        return [move(image) for image in images], moved

    def check(self) -> None:
        broken = broken_tensors(self.module)
        if broken:
            raise FloatingPointError(f"{broken[0]}. The last good checkpoint is {last_checkpoint(self.output_dir)}")

    def _diagnosis(self, what: str, losses: Mapping[str, float | Tensor]) -> str:
        """Look at the batch and the weights; called by all processes together."""
        values = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
        images, targets = self._batch
        ids = [target["image_id"] for target in targets]
        found = broken_tensors(self.module) or [
            *unusual_pixels(self.cfg, images, ids),
            *invalid_boxes(
                [(image.shape[-2], image.shape[-1]) for image in images], [target["boxes"] for target in targets], ids
            ),
            *(diverging_images(self._losses_of, ids) if self.accelerator.num_processes == 1 else []),
        ]
        every = gather_object([(ids, found)])
        return explain_divergence(
            self.cfg,
            f"the {what} is not finite at iteration {self.iteration} ({values})",
            [image_id for ids, _ in every for image_id in ids],
            last_checkpoint(self.output_dir),
            list(dict.fromkeys(text for _, found in every for text in found)),
        )

    def _losses_of(self, position: int) -> Tensor:
        """Return the sum of the losses of one image of the batch by itself."""
        images, targets = self._batch
        one = slice(position, position + 1)
        return torch.stack(list(self.model(*self._to_device(images[one], targets[one])).values())).sum()


class Run(LoopRun):
    """See :class:`~resnet_backbone.engine.run.BaseRun`. It returns ``CocoMetrics`` by test set, on the main process."""

    class_names: tuple[str, ...]
    figures: dict[str, CocoMetrics]

    def _check_data(self) -> None:
        check_files(self.cfg, training=not self.eval_only)

    def _find_checkpoint(self) -> Resumed:
        return find_resumed(self.output_dir, load_checkpoint)

    def _read_weights(self) -> None:
        initial = self.resumed or read_initial_weights(self.cfg, eval_only=self.eval_only)
        fit_input_to(self.cfg, initial)
        self._classifier = initial if isinstance(initial, Weights) else None
        self._detector = None if isinstance(initial, Weights) else initial

    def _fit_classes(self) -> None:
        self.train_set = None if self.eval_only else open_train_set(self.cfg)
        self.class_names = self.train_set.class_names if self.train_set else self._learned or ()
        if self.resumed:
            refuse_other_classes("the run to resume", self._learned or (), self.class_names)
        self.test_sets = open_test_sets(self.cfg, self.class_names, self.train_set)
        set_num_classes(self.cfg, self.class_names)

    @property
    def _learned(self) -> tuple[str, ...] | None:
        return tuple(self._detector["class_names"]) or None if self._detector else None

    def _build_model(self) -> nn.Module:
        detector = build_detector(self.cfg, self._classifier)
        if self._detector is not None:
            source = self._detector.get("source", "the checkpoint")
            load_detector(detector, self._detector["model"], source, new_classes=self.class_names != self._learned)
        self._classifier = self._detector = None  # the memory
        self._improved = build_improved(self.cfg, detector, self.class_names)
        return detector

    def _data_fingerprints(self) -> dict[str, Any]:
        train_parts = self.train_set.parts if self.train_set else {}
        return {
            f"DATASETS.{key} {name}": {"sha256": file_hash(dataset.json_path, "sha256"), "images": len(dataset)}
            for key, sets in (("TRAIN", train_parts), ("TEST", self.test_sets))
            for name, dataset in sets.items()
        }

    def _make_trainer(self) -> Trainer:
        facts = detector_facts(self.cfg, self.class_names, self.data)
        trainer = Trainer(self.cfg, self.model, self.accelerator, self.output_dir, self.seed, facts)
        trainer.last_score_compares = self._improved is None
        return trainer

    def _make_batches(self, start: int) -> Iterator[Any]:
        if self.train_set is None:
            raise RuntimeError("a run that only evaluates has no training data")
        loader = build_train_loader(
            self.cfg,
            self.train_set.dataset,
            self.train_set.sizes,
            seed=self.trainer.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            start=start,
        )
        return iter(loader)

    def _score(self, over: bool) -> dict[str, float]:
        """Score the detector; once training is over, finished for inference, with pictures and what TEST improves."""
        detector = self._scored
        if over:
            detector = self.model
            finish_for_inference(self.model.eval())
            if self._improved is not None:
                detector = self._improved.to(self.accelerator.device)
        folder = self.output_dir / "inference"
        self.figures = {}
        for name, dataset in self.test_sets.items():
            own_folder = folder if len(self.test_sets) == 1 else folder / name
            if detector is self._improved:
                dataset = dataset.with_other()
            metrics = evaluate(self.cfg, detector, name, dataset, self.accelerator, own_folder, pictures=over)
            if metrics is not None:
                self.figures[name] = metrics
        return {
            f"{name}/{figure}": value
            for name, metrics in self.figures.items()
            for figure, value in metrics.scalars().items()
        }
