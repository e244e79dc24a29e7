"""What tests of several rooms write again and again: small detectors, data sets of one's own, an oracle's figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from fvcore.common.config import CfgNode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from resnet_backbone.classification.config import load_config as load_classifier_config
from resnet_backbone.reproduce.tables import Training
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.weights.architecture import LAYOUTS

# A Faster R-CNN that trains on the shapes in seconds, on either engine.
TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "15"),
    *("INPUT.MIN_SIZE_TRAIN", "(64, 80)", "INPUT.MAX_SIZE_TRAIN", "128"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128", "SOLVER.IMS_PER_BATCH", "2"),
]
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def own_sets(**sets: tuple[str | Path, str | Path]) -> list[str]:
    """Return ``DATASETS.OWN`` and its value: ``own_sets(name=(json, images))``."""
    entries = [{"NAME": name, "JSON": str(path), "IMAGES": str(images)} for name, (path, images) in sets.items()]
    return ["DATASETS.OWN", str(entries)]


def mini_sets(coco_mini: Path) -> list[str]:
    """Return keys that train on ``mini_train`` and evaluate on ``mini_val``, photographs of COCO."""
    splits = {s: (coco_mini / f"annotations/instances_{s}2017.json", coco_mini / f"{s}2017") for s in ("train", "val")}
    own = own_sets(**{f"mini_{split}": places for split, places in splits.items()})
    return [*own, "DATASETS.TRAIN", "['mini_train']", "DATASETS.TEST", "['mini_val']"]


def json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file with one a line, as ``metrics.json`` of a run is."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def results_of(folder: str | Path) -> list[dict[str, Any]]:
    """Return the detections that the evaluation of a run has written."""
    return json.loads((Path(folder) / "inference/coco_instances_results.json").read_text())


def pycocotools_figures(truth: Path, results: list[dict[str, Any]], iou_type: str = "bbox") -> list[float]:
    """Return pycocotools' twelve :data:`FIGURES`, from 0 to 1, -1 where there are none."""
    if iou_type == "segm":  # else it tells small from large by the box
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    api = COCO(str(truth))
    oracle = COCOeval(api, api.loadRes(results), iou_type)
    oracle.evaluate(), oracle.accumulate(), oracle.summarize()
    return list(oracle.stats)


def assert_same_tensors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    """Demand the same names and the same bits."""
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def photograph(height: int, width: int) -> torch.Tensor:
    """Return something with edges at every size, uint8 (3, height, width), RGB."""
    generator = torch.Generator().manual_seed(height * width)
    noise = [torch.rand(1, 3, side, side, generator=generator) for side in (3, 9, 20)]
    return (sum(F.interpolate(one, (height, width), mode="nearest")[0] for one in noise) * 85).byte()


def spread_norms(model: nn.Module, most: float = 1.0, std: float = 0.1, variance: float = 0.5) -> nn.Module:
    """Make batch norms unlike the identity and each other, so that one in the wrong place shows.

    Args:
        model: of any library.
        most: of the weights, of which the least is 0.5.
        std: of biases and means.
        variance: how far the variances lie from 1 at the most.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, most)
            nn.init.normal_(module.bias, std=std)
            nn.init.normal_(module.running_mean, std=std)
            nn.init.uniform_(module.running_var, 1 - variance, 1 + variance)
    return model


class Stopped(Exception):
    """A training that a test has ended."""


@contextmanager
def stopping_at(trainer: type, iteration: int) -> Iterator[None]:
    """Let trainings end with :class:`Stopped` before a step, and demand that one does."""
    step = trainer._step

    def stop(self: Any, *args: Any) -> Any:
        if self.iteration == iteration:
            raise Stopped
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer, "_step", stop)
        yield


def load_training(training: Training, overrides: Sequence[str] = ()) -> CfgNode:
    """Return the config of a training of a table as its tool reads it, that of detectors on the torchvision engine."""
    return (load_classifier_config if training.classifier else load_config)(training.config, overrides)


FAMILY = [arch for arch, layout in LAYOUTS.items() if layout.is_d or (layout.groups, layout.width_per_group) != (1, 64)]
SMALL_OF_FAMILY = ("resnet18d", "resnet50d", "resnext50_32x4d")
LARGE_OF_FAMILY = [arch for arch in FAMILY if arch not in SMALL_OF_FAMILY]


def quickly(archs: Iterable[str], keep: Sequence[str] = SMALL_OF_FAMILY) -> list[Any]:
    """Return parameters for pytest: those of the family are slow but for some, which stand for the others."""
    slow = {*FAMILY} - {*keep}
    return [pytest.param(arch, marks=pytest.mark.slow) if arch in slow else arch for arch in archs]


def published_model(arch: str, **options: Any) -> nn.Module:
    """Return torchvision's network with random weights, or timm's where torchvision has none."""
    torch.manual_seed(0)
    if hasattr(torchvision.models, arch):
        return getattr(torchvision.models, arch)(weights=None, **options)
    return pytest.importorskip("timm", reason="timm is not installed").create_model(arch, **options)
