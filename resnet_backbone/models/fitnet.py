"""FitNet-19 and highway networks, which the ResNet paper's Table 6 compares with, for images of 32 x 32 pixels.

Three blocks of convolutions with a 2x2 max-pooling between them, a max-pooling over the whole map, a hidden layer of
500 units and the classifier. None has norms. Of FitNet 4 (Romero et al. 2015, arXiv 1412.6550, its table of
architectures, and yaml/cifar10_fitnet19_all.yaml of adri-romsor/FitNets): the widths, two pieces in a maxout
convolution, pooling, 500 units. That file has five pieces in the hidden layer, which make 2.74M parameters; the paper's
250K, 862K and 2.5M (FitNet 1, 2, 4) are those of two pieces, as here.

Of the highway networks (Srivastava, Greff, Schmidhuber 2015, arXiv 1505.00387 and 1507.06228, section 3.3.1): 19
layers and 2.3M parameters on FitNet 4's architecture; 32 layers, 3x3 and 1x1 in turn, thinner, and 1.25M; ReLU in H;
plain layers where the number of channels changes; a negative bias of the gates. Reconstructed, giving these counts:
that the hidden layer has FitNet's 500 units, with ReLU; the depths and widths of the 32 layers. The bias -2 is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation, check_images, freeze
from resnet_backbone.models.trunk import FeatureInfo, Trunk, check_freeze_at, select_features

HIDDEN_UNITS = 500
GATE_BIAS = -2.0
_FITNET_4 = ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6)
WIDTHS = {  # of the convolutions of each block
    "cifar_fitnet19": _FITNET_4,
    "cifar_highway19": _FITNET_4,
    "cifar_highway32": ((16,) * 8, (48,) * 10, (96,) * 12),
}


def maxout(x: Tensor, dim: int) -> Tensor:
    """Return the larger of the two halves of ``x`` along ``dim``: maxout of two pieces (arXiv 1302.4389)."""
    return torch.maximum(*x.chunk(2, dim))


class MaxoutConv(ConvNormActivation):
    """Two convolutions with bias, the larger value of both. The maximum of two N(0, s^2) has the mean square s^2."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, 2 * out_channels, kernel_size, bias=True, activation=False)
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (N, in_channels, H, W) to (N, out_channels, H, W)."""
        return maxout(super().forward(x), 1)


class HighwayConv(ConvNormActivation):
    """``H(x) T(x) + x (1 - T(x))``: a convolution with ReLU, H, and one with a sigmoid, the transform gate T.

    The first half of ``weight`` and of ``bias`` is H's, the second T's.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, 2 * channels, kernel_size, bias=True, activation=False)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.constant_(self.bias[channels:], GATE_BIAS)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Map (N, channels, H, W) to the same shape."""
        transformed, gate = super().forward(x).chunk(2, 1)
        return torch.lerp(x, F.relu(transformed), gate.sigmoid())


class FitNet(Trunk):
    """A network of :data:`WIDTHS`. Features: ``block1``, ``block2``, ``block3``, each before the pooling that follows.

    Args:
        num_classes: 0 leaves out ``hidden`` and ``linear``, and the blocks after the last of ``out_features``.
        **others: see :func:`~resnet_backbone.models.registry.create_model`.

    Raises:
        ValueError: a value outside of what is said there.
    """

    def __init__(
        self, arch: str, *, num_classes: int, out_features: Sequence[str] | None, freeze_at: int, in_channels: int
    ) -> None:
        super().__init__()
        self.arch, self.num_classes, self.in_channels = arch, num_classes, in_channels
        self.is_highway = "highway" in arch
        info = {f"block{n}": FeatureInfo(widths[-1], 2 ** (n - 1)) for n, widths in enumerate(WIDTHS[arch], start=1)}
        check_freeze_at(freeze_at, tuple(info))
        self.feature_info = select_features(info, out_features, num_classes)
        self.stage_names = tuple(info)[: list(info).index(next(reversed(self.feature_info))) + 1]
        channels, number = in_channels, count()
        for name, widths in zip(self.stage_names, WIDTHS[arch], strict=False):
            block = self._modules[name] = nn.Sequential()
            for width in widths:
                kernel_size = 1 if arch == "cifar_highway32" and next(number) % 2 else 3
                if not self.is_highway:
                    block.append(MaxoutConv(channels, width, kernel_size))
                elif channels == width:
                    block.append(HighwayConv(width, kernel_size))
                else:
                    block.append(ConvNormActivation(channels, width, kernel_size, bias=True))
                channels = width
        if num_classes:
            self.hidden = nn.Linear(channels, HIDDEN_UNITS if self.is_highway else 2 * HIDDEN_UNITS)
            self.linear = nn.Linear(HIDDEN_UNITS, num_classes)
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu" if self.is_highway else "linear")
            nn.init.normal_(self.linear.weight, std=0.01)
            for layer in (self.hidden, self.linear):
                nn.init.zeros_(layer.bias)
        for name in self.stage_names[:freeze_at]:
            freeze(self.get_submodule(name))

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        check_images(x, self.in_channels)
        features = {}
        for name in self.stage_names:
            if name != "block1":
                x = F.max_pool2d(x, 2, ceil_mode=True)
            block = self.get_submodule(name)
            x = self.run_stage(name, block, x, [block])
            if name in self.feature_info:
                features[name] = x
        return features

    def forward_head(self, x: Tensor) -> Tensor:
        return self._classify(torch.flatten(F.adaptive_max_pool2d(x, 1), 1))

    def forward_dense_head(self, x: Tensor, window: int) -> Tensor:
        return self._classify(F.max_pool2d(x, window, stride=1).movedim(1, -1)).movedim(-1, 1)

    def _classify(self, x: Tensor) -> Tensor:
        """Map (..., channels) to logits, (..., num_classes)."""
        hidden = self.hidden(x)
        return self.linear(F.relu(hidden) if self.is_highway else maxout(hidden, -1))
