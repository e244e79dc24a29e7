"""GoogLeNet, the comparator of the ResNet paper's Tables 3 to 5, as torchvision has it: a classifier alone, no trunk.

Source: Szegedy et al. 2014, "Going Deeper with Convolutions" (arXiv 1409.4842); torchvision, ``models/googlenet.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from resnet_backbone.models.layers import check_images
from resnet_backbone.models.trunk import FeatureInfo, Trunk


class GoogLeNet(Trunk, torchvision.models.GoogLeNet):
    """torchvision's layers, names and arithmetic, without what only training has: auxiliary classifiers and dropout.

    It takes images normalised as torchvision's other networks, and moves them itself to the values from -1 to 1 that it
    was trained on.
    """

    fc: nn.Linear
    _transform_input: Callable[[Tensor], Tensor]
    in_channels = 3
    stage_names = ("inception5b",)

    def __init__(self, arch: str, num_classes: int) -> None:
        super().__init__(num_classes=num_classes, aux_logits=False, transform_input=True, init_weights=False)
        self.arch, self.num_classes = arch, num_classes
        self.feature_info = {"inception5b": FeatureInfo(1024, 32)}

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        x = self._transform_input(x)
        for name, layer in self.named_children():  # torchvision registers them in the order they run
            if name == "avgpool":
                break
            x = layer(x)
        return {"inception5b": x}

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))

    def forward_dense_head(self, x: Tensor, window: int) -> Tensor:
        return F.conv2d(F.avg_pool2d(x, window, stride=1), self.fc.weight[:, :, None, None], self.fc.bias)
