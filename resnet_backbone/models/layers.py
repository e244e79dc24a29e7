"""Layers that all networks are built of: a convolution with its norm and activation; and folding norms into them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.fusion import fuse_conv_bn_weights


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants: ``x * scale + shift``, per channel.

    All four tensors are buffers, so nothing here is trained and training mode changes nothing. A new layer is the
    identity. ``num_batches_tracked`` is None, or the count of the batch norm that :meth:`from_batch_norm` froze.

    Source: Detectron2, ``layers/batch_norm.py``, whose arithmetic and state dict this follows.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight: Tensor
        self.bias: Tensor
        self.running_mean: Tensor
        self.running_var: Tensor
        self.num_batches_tracked: Tensor | None
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, shape (N, num_features, H, W)."""
        if not x.requires_grad:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        # F.batch_norm would keep x for gradients of weight and bias that nobody asks for.
        scale, shift = self.scale_and_shift()
        return x * scale.reshape(1, -1, 1, 1).to(x.dtype) + shift.reshape(1, -1, 1, 1).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return what the layer multiplies by and then adds, of shape (num_features,) each."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
        """Return the frozen layer with the statistics, parameters and names in the state dict that ``norm`` has now."""
        frozen = cls(norm.num_features, norm.eps)
        for name, tensor in norm.state_dict().items():
            setattr(frozen, name, tensor.clone())
        return frozen

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


_NORMS: dict[str, Callable[[int], nn.Module | None]] = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(min(32, channels), channels),
    "": lambda channels: None,
}
NORMS = tuple(_NORMS)


def norm_layer(name: str) -> Callable[[int], nn.Module | None] | None:
    """Return what makes a norm for so many channels, as torchvision's builders take it; None for ``""``."""
    return partial(make_norm, name) if name else None


def make_norm(name: str, channels: int) -> nn.Module | None:
    """Return a norm layer for ``channels`` feature maps, or None for the name ``""``.

    Raises:
        ValueError: ``name`` is none of ``BN``, ``FrozenBN``, ``SyncBN``, ``GN`` (32 groups; 16 of 16 channels), ``""``.
    """
    if name not in _NORMS:
        raise ValueError(f"unknown norm {name!r}; write one of {', '.join(map(repr, NORMS))}")
    return _NORMS[name](channels)


class ConvNormActivation(nn.Conv2d):
    """Convolution -> norm -> ReLU, the last two optional. Parameters: ``weight``, ``bias``, ``norm.*``.

    The weight starts as He et al. propose, N(0, 2 / (out_channels * k * k)), the bias at zero.

    Attributes:
        scales_weight: a frozen norm multiplies the weight, in each forward pass, instead of the feature map. Values and
            gradients are the same up to rounding; what is saved is a pass over the feature map, forward and backward.

    Source: He et al. 2015, "Delving Deep into Rectifiers" (arXiv 1502.01852), equation 14.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: str = "",
        activation: bool = True,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=bias)
        self.norm = make_norm(norm, out_channels)
        self.activation = activation
        self.scales_weight = False
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, *offsets: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        if self.scales_weight and isinstance(self.norm, FrozenBatchNorm2d):
            scale, shift = self.norm.scale_and_shift()
            bias = shift if self.bias is None else self.bias * scale + shift
            x = self._conv_forward(x, _scale_weight(self.weight, scale.reshape(-1, 1, 1, 1)), bias, *offsets)
        else:
            x = self._conv_forward(x, self.weight, self.bias, *offsets)
            if self.norm is not None:
                x = self.norm(x)
        return F.relu_(x) if self.activation else x


class DeformableConv(ConvNormActivation):
    """A 3x3 convolution whose samples are moved by ``offsets``, which another convolution of the same input returns.

    These are (N, 18 * their groups, H / stride, W / stride): vertical and horizontal, in pixels, sample by sample. With
    ``modulated`` 9 more for each group stand behind them, whose sigmoid multiplies the samples; so offsets of zero
    halve what is returned. Computed in float32 at least.

    Source: Dai et al. 2017 (arXiv 1703.06211); Zhu et al. 2018 (arXiv 1811.11168); Detectron2, whose layout this is.
    """

    def __init__(self, *sizes: int, modulated: bool, **others: Any) -> None:
        from torchvision.ops import deform_conv2d  # torchvision takes a second to import

        super().__init__(*sizes, **others)
        self.modulated, self.operator = modulated, deform_conv2d

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, *offsets: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        offset, mask = offsets[0].to(dtype), None
        if self.modulated:
            offset, mask = offset.split([offset.shape[1] // 3 * 2, offset.shape[1] // 3], dim=1)
            mask = mask.sigmoid()
        bias = None if bias is None else bias.to(dtype)
        facts: Any = (self.stride, self.padding, self.dilation, mask)
        return self.operator(x.to(dtype), offset, weight.to(dtype), bias, *facts).to(x.dtype)


class NormActivation(nn.Module):
    """Norm -> ReLU, in front of the convolutions of a pre-activated block. Parameters: ``norm.*``.

    Source: He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv 1603.05027), Figure 4 (e).
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape; ``x`` itself stays as it is."""
        return F.relu(x) if self.norm is None else F.relu_(self.norm(x))


def precise(numbers: Tensor) -> Tensor:
    """Return ``numbers`` in float64, or on MPS, which has none, in float32."""
    return numbers.float() if numbers.device.type == "mps" else numbers.double()


def _scale_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Return ``weight * scale``; under autocast rounded once, to its precision, without a product in float32."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device):
        return weight * scale
    return _RoundedProduct.apply(weight, scale, torch.get_autocast_dtype(device))


class _RoundedProduct(torch.autograd.Function):
    """``(weight * scale).to(dtype)`` in one pass forward and one backward, for a ``scale`` that is not trained."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(scale)
        return torch.mul(weight, scale, out=torch.empty_like(weight, dtype=dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


def freeze(module: nn.Module) -> None:
    """Take ``module`` out of training: no gradients, and every batch norm inside keeps its statistics."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for child in list(module.modules()):
        has_norm = isinstance(child, ConvNormActivation | NormActivation)
        if has_norm and isinstance(child.norm, nn.BatchNorm2d | nn.SyncBatchNorm):
            child.norm = FrozenBatchNorm2d.from_batch_norm(child.norm)


def check_images(x: Tensor, in_channels: int) -> None:
    """Raise ValueError unless ``x`` has the shape (N, in_channels, H, W)."""
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f"expected images of shape (N, {in_channels}, H, W), got {tuple(x.shape)}")


_FOLDED = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


@torch.no_grad()
def fold_norms(module: nn.Module) -> int:
    """Fold every batch norm behind a convolution of :mod:`resnet_backbone.models`, or in a Sequential, in place.

    Each such convolution then has a weight and a bias and no norm, and is not trained any more. Outputs are those of
    evaluation mode up to rounding. The state dict changes, so load weights before; loading others afterwards fails.
    Norms in front of a convolution (pre-activation) and group norms, which depend on the image, stay.

    Returns:
        How many were folded; 0 for a network that is folded already, or has no batch norms.

    Raises:
        ValueError: a batch norm is in training mode, so that its statistics are still moving.
    """
    convolutions = [m for m in module.modules() if isinstance(m, ConvNormActivation) and isinstance(m.norm, _FOLDED)]
    rows = [m for m in module.modules() if isinstance(m, nn.Sequential) and len(m) > 1]  # torchvision's layers
    rows = [row for row in rows if type(row[0]) is nn.Conv2d and isinstance(row[1], _FOLDED)]
    pairs: list[tuple[Any, Any]] = [(m, m.norm) for m in convolutions]
    pairs += [(row[0], row[1]) for row in rows]
    if any(norm.training for _, norm in pairs if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)):
        raise ValueError("the batch norms are in training mode, and what is folded is not trained: call eval() first")
    for convolution, norm in pairs:
        _fold(convolution, norm)
    for convolution in convolutions:
        convolution.norm = None
    for row in rows:
        row[1] = nn.Identity()
    return len(pairs)


def _fold(convolution: nn.Conv2d, norm: Any) -> None:
    # In float64, rounded once: a folded layer is as near to the exact one as the layers that it replaces.
    weight, bias = fuse_conv_bn_weights(
        precise(convolution.weight),
        None if convolution.bias is None else precise(convolution.bias),
        precise(norm.running_mean),
        precise(norm.running_var),
        norm.eps,
        precise(norm.weight),
        precise(norm.bias),
    )
    layout = torch.empty_like(convolution.weight)
    convolution.weight = nn.Parameter(layout.copy_(weight), requires_grad=False)
    convolution.bias = nn.Parameter(bias.to(layout.dtype), requires_grad=False)


def scale_weights(module: nn.Module, enabled: bool = True) -> None:
    """Let frozen norms multiply the weights of their convolutions in each pass, instead of the feature maps, in place.

    What is trained, the state dict and the gradients are as before, up to rounding.
    """
    for layer in module.modules():
        if isinstance(layer, ConvNormActivation):
            layer.scales_weight = enabled
