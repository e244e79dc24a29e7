"""Detectron2's ResNet and its checkpointer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from resnet_backbone import create_model, load_weights


def build_and_read(path: Path) -> Callable[[], None]:
    """Return a call that builds ResNet-101 and fills it from a file with Detectron2's names."""
    model = create_model("resnet101")
    load_weights(model, path)
    converted = path.with_name("detectron2.pth")
    torch.save({"model": model.state_dict()}, converted)

    def call() -> None:
        stages = ResNet.make_default_stages(101, stride_in_1x1=False, norm="BN")
        DetectionCheckpointer(ResNet(BasicStem(norm="BN"), stages, num_classes=1000)).load(str(converted))

    return call
