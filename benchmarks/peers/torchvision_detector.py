"""torchvision's ``fasterrcnn_resnet50_fpn``."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d


def build_detector(min_size: int) -> nn.Module:
    """Build it with frozen norms and three trained layers, as it is with ImageNet weights; 80 classes."""
    return fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=81,
        trainable_backbone_layers=3,
        norm_layer=FrozenBatchNorm2d,
        min_size=min_size,
    )
