"""The torchvision engine, observed: what a config makes of its detector, data, training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_backbone.config.schema import TORCHVISION_KEYS
from resnet_backbone.engine.batches import images_per_pass
from resnet_backbone.engine.processes import make_accelerator
from resnet_backbone.torchvision_plugin.config import ENGINE, load_config
from resnet_backbone.torchvision_plugin.datasets import (
    build_test_loader,
    build_train_loader,
    open_test_sets,
    open_train_set,
)
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.torchvision_plugin.improvements import build_improved
from resnet_backbone.torchvision_plugin.inference import predict
from resnet_backbone.torchvision_plugin.run import Run, Trainer
from tests.config.obeyed import ROWS
from tests.config.observing import (
    BOXES,
    Facts,
    SmallNetwork,
    digest,
    images,
    masks,
    message_of,
    observe_network,
    observe_process,
    small_batches,
    training_facts,
)

KEYS, NAME, NOT_SEEN, ALL_ROWS = TORCHVISION_KEYS, ENGINE, (), ROWS


class _NoDetector(nn.Module):
    """Keeps what it is given, and finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[str] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.given += [digest(image) for image in images]
        return [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0).long()}] * len(images)


class Observer:
    """Each method returns facts of what a config makes."""

    load = staticmethod(load_config)

    def __init__(self, monkeypatch: Any) -> None:
        self.monkeypatch = monkeypatch

    def detector(self, cfg: CfgNode) -> Facts:
        targets = [
            {"boxes": BOXES, "labels": torch.tensor([0, 2]), "masks": masks(*image.shape[1:])} for image in images()
        ]
        return observe_network(
            lambda: build_detector(cfg),
            lambda model: model(images(), targets),
            lambda model: [tensor for found in model(images()) for tensor in found.values()],
        )

    def data(self, cfg: CfgNode) -> Facts:
        workers: list[int] = []
        original = DataLoader.__init__
        self.monkeypatch.setattr(
            DataLoader,
            "__init__",
            lambda loader, *args, **kwargs: workers.append(kwargs["num_workers"]) or original(loader, *args, **kwargs),
        )
        try:
            facts: Facts = {}
            error = message_of(lambda: facts.update(self._data(cfg)))
            return {**facts, "error": error, "workers": workers}
        finally:
            self.monkeypatch.setattr(DataLoader, "__init__", original)

    def _data(self, cfg: CfgNode) -> Facts:
        train = open_train_set(cfg)
        loader = build_train_loader(cfg, train.dataset, train.sizes, seed=3, rank=0, world_size=1, start=0)
        batches = []
        for _, (pixels, targets) in zip(range(3), loader, strict=False):
            kinds = sorted({key for target in targets for key in target})
            batches.append((digest(*pixels), digest(*(target["boxes"] for target in targets)), kinds))
        detector = _NoDetector()
        for dataset in open_test_sets(cfg, train.class_names).values():
            loader = build_test_loader(cfg, dataset, rank=0, world_size=1)
            predict(detector, loader, make_accelerator(cfg), len(train.class_names))
        return {"batches": batches, "test": detector.given}

    def training(self, cfg: CfgNode) -> Facts:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = make_accelerator(cfg)
        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir(parents=True)
        trainer = Trainer(cfg, SmallNetwork(), accelerator, folder, cfg.SEED, {})
        evaluated: list[int] = []

        def evaluate(over: bool) -> dict[str, float]:
            evaluated.append(trainer.iteration)
            return {"shapes_val/bbox/AP": 1.0}

        empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
        count = images_per_pass(cfg, 1)
        trainer.train(lambda start: ((batch, [empty] * count) for batch in small_batches(start, 4)), evaluate)
        return training_facts(folder, trainer.module, evaluated)

    def process(self, cfg: CfgNode) -> Facts:
        return observe_process(cfg, self.monkeypatch)

    def run(self, cfg: CfgNode) -> Facts:
        AcceleratorState._reset_state(reset_partial_state=True)
        run: list[Run] = []
        message = message_of(lambda: run.append(Run(cfg)))
        if message:
            return {"error": message}
        return {"seed": run[0].seed, "folder": run[0].output_dir, "weights": digest(*run[0].model.parameters())}

    def improved(self, cfg: CfgNode) -> Facts:
        torch.manual_seed(0)
        detector = build_detector(cfg).eval()
        nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight)
        nn.init.normal_(detector.roi_heads.box_predictor.bbox_pred.weight, std=0.2)
        made: list[Any] = []
        message = message_of(lambda: made.append(build_improved(cfg, detector, ("a", "b", "c"))))
        if message or made[0] is None:
            return {"error": message, "improved": bool(made and made[0])}
        with torch.no_grad():
            return {"found": digest(*made[0](images()[:1])[0].values())}
