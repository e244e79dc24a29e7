"""Parameters, multiply-adds and activations of a network, stage by stage, counted without computing anything.

The count runs on PyTorch's meta device, where tensors have shapes and no values, so that 1202 layers cost nothing.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from resnet_backbone.models.layers import DeformableConv
from resnet_backbone.models.registry import create_model
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights.architecture import stage_of
from resnet_backbone.weights.catalog import TIMM


@dataclass(frozen=True)
class StageComplexity:
    """The cost of one stage for one image."""

    name: str  # stem, res2, ..., linear; conv1, ..., fc8; postact, which ends a pre-activated network; timm's: all
    parameters: int  # numbers that are learned, or frozen by freeze_at; buffers not counted
    multiply_adds: int  # of convolutions and matrix products; a norm, a pooling and an addition count nothing
    # elements of what convolutions and linear layers return (Radosavovic et al. 2020, "Designing Network Design
    # Spaces", arXiv 2003.13678, section 3.2)
    activations: int
    # (channels, height, width), of linear layers (features,). The stem's is after its pooling, that of VGG's stages
    # before the pooling that follows them
    output_size: tuple[int, ...]


@dataclass(frozen=True)
class Complexity:
    """The cost of a network for one image of ``size``, (height, width) in pixels. Stages in the order they run."""

    arch: str
    size: tuple[int, int]
    stages: tuple[StageComplexity, ...]

    @property
    def parameters(self) -> int:
        """Of all stages."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def multiply_adds(self) -> int:
        """Of all stages."""
        return sum(stage.multiply_adds for stage in self.stages)

    @property
    def activations(self) -> int:
        """Of all stages."""
        return sum(stage.activations for stage in self.stages)


def build_on_meta(arch: str, **options: Any) -> Trunk:
    """Build a network without memory for its parameters; arguments and errors as of ``create_model``.

    It has shapes and no values: good for counting, not for computing.
    """
    with torch.device("meta"):
        return create_model(arch, **options)


def usual_size(arch: str) -> int:
    """Return the side of the images that the paper counts ``arch`` with, in pixels: 224, or 32 for ``cifar_*``."""
    return 32 if arch.startswith("cifar_") else 224


def complexity(model: Trunk, size: int | tuple[int, int]) -> Complexity:
    """Count what ``model`` costs for one image, in evaluation mode.

    Args:
        model: a network of the registry, on any device; it stays as it is.
        size: of the image in pixels, the side of a square or (height, width).

    Raises:
        ValueError: an image smaller than one cell of the last feature map.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < model.size_divisibility:
        raise ValueError(
            f"images of {height} x {width} pixels are smaller than a cell of the last feature map of {model.arch}; "
            f"write a size of {model.size_divisibility} or more"
        )
    skeleton = _without_values(model)
    activations: dict[str, int] = defaultdict(int)
    sizes: dict[str, tuple[int, ...]] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d | nn.Linear):
            activations[_stage(name)] += output.numel()
        if "." not in name:  # a stage, or of VGG a convolution
            sizes[_stage(name)] = tuple(output.shape[1:])

    for name, module in skeleton.named_modules():
        if name:
            module.register_forward_hook(partial(note, name))
    mapping: dict[Any, Any] = {}
    if any(isinstance(module, DeformableConv) for module in skeleton.modules()):
        # Counted as the plain convolution, without what interpolating its samples takes.
        own = torch.ops.torchvision.deform_conv2d
        mapping[own] = lambda x, weight, *_, out_shape, **__: conv_flop_count(x, weight, out_shape)
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.no_grad(), counter:
        skeleton(torch.empty(1, model.in_channels, height, width, device="meta"))

    parameters: dict[str, int] = defaultdict(int)
    multiply_adds: dict[str, int] = defaultdict(int)
    counts = counter.get_flop_counts()
    if model.arch.startswith(TIMM):  # whose modules are not the stages
        last = next(reversed(model.feature_info.values()))
        output = (last.channels, height // last.stride, width // last.stride)
        learned, total = sum(one.numel() for one in skeleton.parameters()), counter.get_total_flops() // 2
        whole = StageComplexity("all", learned, total, sum(activations.values()), output)
        return Complexity(model.arch, (height, width), (whole,))
    for name, child in skeleton.named_children():
        parameters[_stage(name)] += sum(parameter.numel() for parameter in child.parameters())
        flops = sum(counts.get(f"{type(skeleton).__name__}.{name}", {}).values())
        multiply_adds[_stage(name)] += flops // 2  # two operations each
    stages = [
        StageComplexity(name, parameters[name], multiply_adds[name], activations[name], output)
        for name, output in sizes.items()
    ]
    return Complexity(model.arch, (height, width), tuple(stages))


def _stage(name: str) -> str:
    """``conv3_2`` -> ``conv3``, ``res2.0.conv1`` -> ``res2``, ``fc6`` -> ``fc6``."""
    return stage_of(f"{name}.")


def _without_values(model: Trunk) -> Trunk:
    """Return a copy on the meta device, in evaluation mode: no tensor of ``model`` is copied, or changed."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to("meta")
    return copy.deepcopy(model, memo).eval()
