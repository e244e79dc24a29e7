"""What makes a backbone faster or smaller without changing what it computes, beyond rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from resnet_backbone.models.layers import fold_norms, scale_weights

Features = dict[str, Tensor]
COMPILE_MODES = ("", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
CUDA_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_MOST_SHAPES = 64  # for which torch.compile makes code of their own before it gives up


@dataclass(frozen=True)
class Acceleration:
    """How a backbone runs.

    Attributes:
        scale_weights: frozen norms multiply the weights of their convolutions instead of the feature maps.
        channels_last: memory format of images, weights and feature maps.
        precision: of the backbone alone, ``torch.bfloat16`` or ``torch.float16``; its outputs have the type of its
            inputs all the same. None leaves it to autocast.
        compile_mode: of ``torch.compile``, see its ``mode``; ``""`` does not compile. ``reduce-overhead`` records CUDA
            graphs.
        pad_to: whoever batches images pads them to multiples of so many pixels; 0 for what the backbone needs. With
            ``compile_mode`` each shape is compiled by itself, so that 128 or more keeps them few; with 0 one
            compilation serves all shapes.
        checkpoint_stages: names of stages that recompute their activations in the backward pass.
    """

    scale_weights: bool = False
    channels_last: bool = False
    precision: torch.dtype | None = None
    compile_mode: str = ""
    pad_to: int = 0
    checkpoint_stages: tuple[str, ...] = ()


class Accelerated(nn.Module):
    """Base of the backbones that :func:`accelerate` knows how to run: trunks, and pyramids on top of one."""

    acceleration = Acceleration()

    def accelerated(self, forward: Callable[[Tensor], Features], x: Tensor) -> Features:
        """Return ``forward(x)``, run as :attr:`acceleration` says; an autocast around it decides on the precision."""
        how = self.acceleration
        if how.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if how.precision is None or torch.is_autocast_enabled(x.device.type):
            return forward(x)
        with torch.autocast(x.device.type, dtype=how.precision):
            features = forward(x)
        return {name: feature.to(x.dtype) for name, feature in features.items()}

    def padded_to(self, needed: int) -> int:
        """Return what images are padded to multiples of, where the backbone needs ``needed``."""
        return max(needed, self.acceleration.pad_to)


def accelerate(backbone: Accelerated, how: Acceleration, *, needed: int) -> None:
    """Make ``backbone`` run as ``how`` says, in place; its state dict keeps its names and values.

    Args:
        backbone: a trunk, or a module with one at ``bottom_up``.
        how: see :class:`Acceleration`.
        needed: pixels that the backbone needs images to be multiples of; 0 or 1 for any.

    Raises:
        ValueError: unknown stages or mode, or values that contradict each other or the backbone.
    """
    trunk: Any = getattr(backbone, "bottom_up", backbone)
    if how.compile_mode not in COMPILE_MODES:
        raise ValueError(f"unknown compile mode {how.compile_mode!r}; write one of {COMPILE_MODES}")
    if how.compile_mode and how.checkpoint_stages:
        raise ValueError(
            "torch.compile decides by itself what is recomputed in the backward pass: leave out either the compile "
            "mode or the stages to checkpoint"
        )
    if how.pad_to < 0 or (how.pad_to and how.pad_to % max(needed, 1)):
        raise ValueError(f"images must be padded to multiples of {max(needed, 1)} here, which {how.pad_to} is not")
    unknown = [name for name in how.checkpoint_stages if name not in trunk.stage_names]
    if unknown:
        raise ValueError(f"unknown stages to checkpoint {unknown}; this trunk has {', '.join(trunk.stage_names)}")
    trunk.checkpoint_stages = how.checkpoint_stages
    backbone.acceleration = how
    scale_weights(backbone, how.scale_weights)
    if how.channels_last:
        backbone.to(memory_format=torch.channels_last)
    if how.compile_mode:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_SHAPES)
        backbone.compile(mode=how.compile_mode, dynamic=False if how.pad_to else None)


def accelerate_heads(detector: nn.Module, how: Acceleration) -> None:
    """Let what stands beside the backbone (a C4 model's res5, convolutions of heads) follow it, in place."""
    scale_weights(detector, how.scale_weights)
    if how.channels_last:
        detector.to(memory_format=torch.channels_last)


def clone_if_reused(backbone: nn.Module, features: Features) -> Features:
    """Return ``features``, which ``backbone`` has just computed, as tensors that stay when it or another one runs next.

    CUDA graphs write every output to the same memory.
    """
    how = getattr(backbone, "acceleration", Acceleration())
    if how.compile_mode not in CUDA_GRAPH_MODES:
        return features
    return {name: feature.clone() for name, feature in features.items()}


def finish_for_inference(module: nn.Module) -> None:
    """Make what :func:`accelerate` does in each pass once and for all, in place: ``module`` only infers from then on.

    Norms are folded for good; convolutions and linear layers of backbones with a precision of their own are stored in
    it; in float32 and channels_last, where nothing is compiled, linear layers become convolutions.

    Args:
        module: a detector or a backbone in eval mode, with its weights loaded.
    """
    backbones = [m for m in module.modules() if isinstance(m, Accelerated)]
    if any(backbone.acceleration.scale_weights for backbone in backbones):
        fold_norms(module)
    for backbone in backbones:
        how = backbone.acceleration
        for layer in backbone.modules():
            if type(layer) is nn.Linear and how.channels_last and how.precision is None and not how.compile_mode:
                layer.__class__ = _LinearByConvolution
            if how.precision is not None and isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(how.precision)


class _LinearByConvolution(nn.Linear):
    """A 1x1 convolution of feature maps (N, H, W, C): in float32 on a CPU oneDNN is faster than ``linear`` by BLAS."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.device.type != "cpu":
            return super().forward(x)
        return conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
