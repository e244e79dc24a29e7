"""Folding norms into the convolutions before them: for inference once and for all, for training in each pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from resnet_backbone.models.layers import ConvNormActivation, FrozenBatchNorm2d

_FOLDED = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


@torch.no_grad()
def fold_norms(module: nn.Module) -> int:
    """Fold every batch norm behind a convolution of :mod:`resnet_backbone.models` into it, in place.

    Each such convolution then has a weight and a bias and no norm, and is not trained any more. Outputs are those of
    evaluation mode up to rounding. The state dict changes, so load weights before; loading others afterwards fails.
    Norms in front of a convolution (pre-activation) and group norms, which depend on the image, stay.

    Returns:
        How many were folded; 0 for a network that is folded already, or has no batch norms.

    Raises:
        ValueError: a batch norm is in training mode, so that its statistics are still moving.
    """
    convolutions = [m for m in module.modules() if isinstance(m, ConvNormActivation) and isinstance(m.norm, _FOLDED)]
    moving = [m for m in convolutions if isinstance(m.norm, nn.BatchNorm2d | nn.SyncBatchNorm) and m.norm.training]
    if moving:
        raise ValueError("the batch norms are in training mode, and what is folded is not trained: call eval() first")
    for convolution in convolutions:
        _fold(convolution, convolution.norm)
    return len(convolutions)


def _fold(convolution: ConvNormActivation, norm: Any) -> None:
    # In float64, rounded once: a folded layer is as near to the exact one as the layers that it replaces.
    weight, bias = fuse_conv_bn_weights(
        convolution.weight.double(),
        None if convolution.bias is None else convolution.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.double(),
        norm.bias.double(),
    )
    layout = torch.empty_like(convolution.weight)
    convolution.weight = nn.Parameter(layout.copy_(weight), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(layout.dtype), requires_grad=False)
    convolution.norm = None


def scale_weights(module: nn.Module, enabled: bool = True) -> None:
    """Let frozen norms multiply the weights of their convolutions in each pass, instead of the feature maps, in place.

    What is trained, the state dict and the gradients are as before, up to rounding.
    """
    for layer in module.modules():
        if isinstance(layer, ConvNormActivation):
            layer.scales_weight = enabled
