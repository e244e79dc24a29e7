"""VGG-16 and VGG-19, with and without batch norm.

Source: Simonyan & Zisserman 2014, "Very Deep Convolutional Networks" (arXiv 1409.1556), columns D and E of Table 1.
Parameters are named as in the authors' Caffe models: ``conv1_1`` to ``conv5_4``, ``fc6``, ``fc7``, ``fc8``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation, check_images, freeze
from resnet_backbone.models.trunk import FeatureInfo, Trunk, check_freeze_at, select_features

STAGES = {
    "conv1": FeatureInfo(64, 1),
    "conv2": FeatureInfo(128, 2),
    "conv3": FeatureInfo(256, 4),
    "conv4": FeatureInfo(512, 8),
    "conv5": FeatureInfo(512, 16),
    "pool5": FeatureInfo(512, 32),
}


class VGG(Trunk):
    """Five stages of 3x3 convolutions with a 2x2 max-pooling between each, then fc6, fc7 and fc8.

    The features ``conv1`` to ``conv5`` are taken before the pooling that follows them, ``pool5`` after the last one.

    Args:
        depths: how many convolutions each of the five stages has.
        num_classes: 0 leaves out fc6, fc7 and fc8, and the stages after the last of ``out_features``.
        out_features: some of ``conv1 conv2 conv3 conv4 conv5 pool5``; None is all of them.
        **others: see :func:`~resnet_backbone.models.registry.create_model`.

    Raises:
        ValueError: a value outside of what is said there.
    """

    rounds_down = True

    def __init__(
        self,
        arch: str,
        depths: Sequence[int],
        *,
        num_classes: int = 1000,
        out_features: Sequence[str] | None = None,
        norm: str = "",
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.feature_info = select_features(STAGES, out_features, num_classes)
        last = next(reversed(self.feature_info))
        convolutional = [name for name in STAGES if name.startswith("conv")]
        check_freeze_at(freeze_at, convolutional)

        self.stages: dict[str, tuple[str, ...]] = {}
        channels = in_channels
        for stage, depth in zip(convolutional, depths, strict=True):
            self.stages[stage] = tuple(f"{stage}_{index}" for index in range(1, depth + 1))
            for name in self.stages[stage]:
                out_channels = STAGES[stage].channels
                self.add_module(name, ConvNormActivation(channels, out_channels, 3, bias=True, norm=norm))
                channels = out_channels
            if stage == last:
                break
        self.stage_names = tuple(self.stages)
        if num_classes:
            self.fc6 = nn.Linear(512 * 7 * 7, 4096)
            self.fc7 = nn.Linear(4096, 4096)
            self.fc8 = nn.Linear(4096, num_classes)
            for linear in (self.fc6, self.fc7, self.fc8):
                nn.init.normal_(linear.weight, std=0.01)
                nn.init.zeros_(linear.bias)
        for stage in list(self.stages)[:freeze_at]:
            for name in self.stages[stage]:
                freeze(getattr(self, name))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        features = {}
        for stage, names in self.stages.items():
            convolutions = [getattr(self, name) for name in names]
            x = self.run_stage(stage, partial(_pool_and_convolve, convolutions, pool=stage != "conv1"), x, convolutions)
            if stage in self.feature_info:
                features[stage] = x
        if "pool5" in self.feature_info:
            features["pool5"] = F.max_pool2d(x, kernel_size=2)
        return features

    def forward_head(self, x: Tensor) -> Tensor:
        x = torch.flatten(F.adaptive_avg_pool2d(x, 7), 1)
        x = F.dropout(F.relu_(self.fc6(x)), training=self.training)
        x = F.dropout(F.relu_(self.fc7(x)), training=self.training)
        return self.fc8(x)

    def forward_dense_head(self, x: Tensor, window: int) -> Tensor:
        if window != 7:
            raise ValueError(f"fc6 of {self.arch} reads 7 x 7 cells, not {window} x {window}: images of 224 pixels")
        x = F.relu_(F.conv2d(x, self.fc6.weight.view(-1, STAGES["pool5"].channels, 7, 7), self.fc6.bias))
        x = F.relu_(F.conv2d(x, self.fc7.weight[:, :, None, None], self.fc7.bias))
        return F.conv2d(x, self.fc8.weight[:, :, None, None], self.fc8.bias)


def _pool_and_convolve(convolutions: Sequence[nn.Module], x: Tensor, *, pool: bool) -> Tensor:
    if pool:
        x = F.max_pool2d(x, kernel_size=2)
    for convolution in convolutions:
        x = convolution(x)
    return x
