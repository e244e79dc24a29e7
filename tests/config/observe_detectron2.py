"""Detectron2 with our builders, data and trainer, observed: what a config makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.utils.data import DataLoader

from resnet_backbone.config.schema import DETECTRON2, DETECTRON2_KEYS
from resnet_backbone.detectron2_plugin.checkpoint import build_detector
from resnet_backbone.detectron2_plugin.config import load_config
from resnet_backbone.detectron2_plugin.datasets import register_datasets
from resnet_backbone.detectron2_plugin.improvements import build_improved
from resnet_backbone.detectron2_plugin.mapper import ResumableLoader, TensorMapper
from resnet_backbone.detectron2_plugin.run import Run
from resnet_backbone.detectron2_plugin.trainer import Trainer
from tests.config.obeyed import DETECTRON2_ROWS, NOT_SEEN_ON_DETECTRON2
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

KEYS, NAME, NOT_SEEN, ALL_ROWS = DETECTRON2_KEYS, DETECTRON2, NOT_SEEN_ON_DETECTRON2, DETECTRON2_ROWS


def _inputs() -> list[dict[str, Any]]:
    inputs = []
    for image in images():
        size = (image.shape[1], image.shape[2])
        instances = Instances(
            size, gt_boxes=Boxes(BOXES), gt_classes=torch.tensor([0, 2]), gt_masks=BitMasks(masks(*size).bool())
        )
        inputs.append({"image": image, "instances": instances, "height": size[0], "width": size[1]})
    return inputs


def _tensors(instances: Instances) -> list[Tensor]:
    return [value.tensor if isinstance(value, Boxes) else value for value in instances.get_fields().values()]


class _Batches:
    """In place of the loader of images."""

    seed, start = 0, 0
    image_ids: tuple[int, ...] = ()

    def __iter__(self) -> Any:
        for batch in small_batches(self.start, 4):
            yield [{"image": image} for image in batch]


class _Trainer(Trainer):
    """Notes when it is to evaluate."""

    evaluated: list[int]

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return _Batches()

    def test(self, cfg: CfgNode, model: nn.Module, evaluators: None = None) -> dict[str, float]:
        self.evaluated.append(self.iter)
        return {}


class Observer:
    """Each method returns facts of what a config makes."""

    load = staticmethod(load_config)

    def __init__(self, monkeypatch: Any) -> None:
        self.monkeypatch = monkeypatch

    def detector(self, cfg: CfgNode) -> Facts:
        with EventStorage():
            return observe_network(
                lambda: build_detector(cfg),
                lambda model: model(_inputs()),
                lambda model: [tensor for found in model(_inputs()) for tensor in _tensors(found["instances"])],
            )

    def data(self, cfg: CfgNode) -> Facts:
        for catalog in (DatasetCatalog, MetadataCatalog):
            for name in ("own", "broken", "empty"):
                if name in catalog.list():
                    catalog.remove(name)
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
        register_datasets(cfg, training=True)
        batches = []
        for _, batch in zip(range(4), ResumableLoader(cfg), strict=False):
            kinds = sorted({key for sample in batch for key in sample["instances"].get_fields()})
            found = (sample["instances"].gt_boxes.tensor for sample in batch)
            batches.append((digest(*(sample["image"] for sample in batch)), digest(*found), kinds))
        test = []
        for name in cfg.DATASETS.TEST:
            loader = build_detection_test_loader(cfg, name, mapper=TensorMapper(cfg, is_train=False))
            test += [digest(sample["image"]) for batch in loader for sample in batch]
        return {"batches": batches, "test": test}

    def training(self, cfg: CfgNode) -> Facts:
        folder = Path(cfg.OUTPUT_DIR)
        folder.mkdir(parents=True)
        evaluated: list[int] = []
        _Trainer.evaluated = evaluated
        trainer = _Trainer(cfg, SmallNetwork(), {})
        torch.manual_seed(0)
        trainer.train()
        return training_facts(folder, trainer.model, evaluated)

    def process(self, cfg: CfgNode) -> Facts:
        return observe_process(cfg, self.monkeypatch)

    def run(self, cfg: CfgNode) -> Facts:
        run: list[Run] = []
        message = message_of(lambda: run.append(Run(cfg)))
        if message:
            return {"error": message}
        drawn = torch.rand(1) if cfg.SEED >= 0 else torch.zeros(1)
        return {"drawn": digest(drawn), "folder": run[0].output_dir, "weights": digest(*run[0].model.parameters())}

    def improved(self, cfg: CfgNode) -> Facts:
        torch.manual_seed(0)
        model = build_detector(cfg).eval()
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight)
        nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.2)
        made: list[Any] = []
        message = message_of(lambda: made.append(build_improved(cfg, model, ("a", "b", "c"))))
        if message or made[0] is None:
            return {"error": message, "improved": bool(made and made[0])}
        with torch.no_grad():
            return {"found": digest(*_tensors(made[0].detect(images()[0])))}
