"""How strongly each layer of a network responds: the standard deviations of the paper's Figure 7.

"The responses are the outputs of each 3x3 layer, after BN and before other nonlinearity (ReLU/addition)" (He et al.
2015, arXiv 1512.03385). Here that is every 3x3 convolution, with the norm that belongs to it:

- of a bottleneck the middle convolution; of DeepLab's stem, and of CIFAR's, the stem's, too; not ImageNet's 7x7 stem;
- of VGG without norms the convolution itself, with its bias;
- of a pre-activated block every convolution after the norm that follows it, and the last, which none follows before the
  addition, as it is. (The norm in front of a block belongs to no convolution.)

Stochastic depth's factor on the residual is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation
from resnet_backbone.models.trunk import Trunk

_MOST_AT_ONCE = 2**22  # values


@dataclass(frozen=True)
class LayerResponse:
    """The responses of one layer over all images, positions and channels."""

    name: str  # of the convolution, such as res2.0.conv1
    mean: float
    std: float  # of the population: divided by the number of values


@dataclass(frozen=True)
class Responses:
    """The responses of one network.

    Attributes:
        name: for tables and plots.
        arch: name in the registry.
        has_shortcuts: False for plain networks and VGG.
        num_images: how many were measured.
        layers: in the order they run.
    """

    name: str
    arch: str
    has_shortcuts: bool
    num_images: int
    layers: tuple[LayerResponse, ...]

    @property
    def by_magnitude(self) -> tuple[LayerResponse, ...]:
        """The layers, largest standard deviation first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.std))


def measure_responses(model: Trunk, batches: Iterable[Tensor], name: str = "") -> Responses:
    """Measure the responses of every 3x3 layer, in evaluation mode.

    Args:
        model: a network of the registry; it stays as it is.
        batches: images (N, in_channels, H, W), normalised as the network wants them, on its device. No more than one
            batch is kept, so that their number costs time and no memory.
        name: for tables and plots; by default the architecture's.

    Raises:
        ValueError: no images, or responses that are not finite.
    """
    layers = {
        layer: module
        for layer, module in model.named_modules()
        if isinstance(module, ConvNormActivation) and module.kernel_size == (3, 3)
    }
    meters = {layer: _Meter() for layer in layers}
    num_images = 0
    with _measured(layers, meters), _in_evaluation_mode(model), torch.no_grad():
        for images in batches:
            model(images)
            num_images += len(images)
    if not num_images:
        raise ValueError("there are no images to measure responses with; give one batch or more")
    broken = [layer for layer, meter in meters.items() if not math.isfinite(meter.std)]
    if broken:
        raise ValueError(f"{model.arch} responds in {broken[0]} with values that are not finite: it has diverged")
    measured = tuple(LayerResponse(layer, meter.mean, meter.std) for layer, meter in meters.items())
    return Responses(name or model.arch, model.arch, bool(model.shortcut), num_images, measured)


class _Meter:
    """Mean and standard deviation of all values that were added, in float64.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # of the distances from the mean

    @property
    def std(self) -> float:
        """Of the population; 0 without values."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def add(self, values: Tensor) -> None:
        """Add a batch, in parts: float64 takes twice the memory."""
        for part in values.split(max(1, _MOST_AT_ONCE // max(1, values[:1].numel()))):
            self._add(part.double())

    def _add(self, values: Tensor) -> None:
        variance, mean = torch.var_mean(values, correction=0)
        added = values.numel()
        total = self.count + added
        step = mean.item() - self.mean
        self._squares += variance.item() * added + step**2 * self.count * added / total
        self.mean += step * added / total
        self.count = total


@contextmanager
def _measured(layers: Mapping[str, ConvNormActivation], meters: Mapping[str, _Meter]) -> Iterator[None]:
    """Let the meters see their layers' outputs before the ReLU, which is done in place, inside the layer.

    For as long, a layer leaves its ReLU to the hook, so that the network computes what it always does.
    """
    activations = {name: layer.activation for name, layer in layers.items()}
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(_measure(meters[name], activations[name])))
            layer.activation = False
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.activation = activations[name]


def _measure(meter: _Meter, activation: bool) -> Callable[..., Tensor]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        meter.add(output)
        return F.relu_(output) if activation else output

    return hook


@contextmanager
def _in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Modes are each module's own: a frozen part may be in evaluation mode inside a network that is trained."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
