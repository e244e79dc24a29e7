"""Feature pyramids on equal weights, for whoever is compared: the weights, and ours with any acceleration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from resnet_backbone import create_model, load_weights
from resnet_backbone.config.acceleration import keep_freed_memory
from resnet_backbone.models.acceleration import Acceleration, accelerate, finish_for_inference
from resnet_backbone.torchvision_plugin.detector import FPNBackbone

OUT_CHANNELS = 256
RESNET_FEATURES = ["res2", "res3", "res4", "res5"]
VGG_FEATURES = ["conv3", "conv4", "conv5", "pool5"]


def features_of(arch: str) -> list[str]:
    """Return the feature maps that the pyramid of an architecture stands on, strides 4 to 32."""
    return VGG_FEATURES if arch.startswith("vgg") else RESNET_FEATURES


def channels_of(arch: str) -> list[int]:
    """Return the channels of :func:`features_of`."""
    trunk = create_model(arch, num_classes=0, out_features=features_of(arch))
    return [info.channels for info in trunk.feature_info.values()]


def classifier_state(arch: str) -> dict[str, Tensor]:
    """Return a state dict of torchvision's classifier, or timm's trunk, whose norms have statistics unlike identity."""
    torch.manual_seed(0)
    model = timm_body(arch) if arch.startswith("timm/") else getattr(torchvision.models, arch)(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.state_dict()


def timm_body(arch: str) -> nn.Module:
    """Return timm's own ``features_only`` of ``"timm/NAME"``, with maps of strides 4 to 32."""
    import timm

    return timm.create_model(arch.removeprefix("timm/"), features_only=True, out_indices=(-4, -3, -2, -1))


def pyramid_state(channels: list[int]) -> dict[str, Tensor]:
    """Return a state dict of torchvision's pyramid: ``inner_blocks.0.0.weight``, ``layer_blocks.0.0.weight``, ..."""
    torch.manual_seed(1)
    return FeaturePyramidNetwork(channels, OUT_CHANNELS, extra_blocks=LastLevelMaxPool()).state_dict()


def build_ours(arch: str, how: Acceleration, *, finish: bool = False, freeze_at: int = 2) -> FPNBackbone:
    """Build our pyramid of the torchvision engine.

    Args:
        arch: of the registry.
        how: see :func:`resnet_backbone.models.acceleration.accelerate`.
        finish: for inference alone.
        freeze_at: how many stages to freeze.
    """
    norm = "" if arch in ("vgg16", "vgg19") or arch.startswith("timm/") else "FrozenBN"
    trunk = create_model(arch, num_classes=0, out_features=features_of(arch), norm=norm, freeze_at=freeze_at)
    load_weights(trunk, classifier_state(arch))
    pyramid = FPNBackbone(trunk, features_of(arch), OUT_CHANNELS)
    pyramid.fpn.load_state_dict(pyramid_state(channels_of(arch)))
    accelerate(pyramid, how, needed=pyramid.size_divisibility)
    if finish:
        finish_for_inference(pyramid.eval())
    return pyramid


def maps(outputs: Any) -> list[Tensor]:
    """Return the levels of a pyramid's outputs, finest first."""
    return list(outputs.values()) if isinstance(outputs, dict) else list(outputs)


def inference(
    build: Callable[[], nn.Module], size: tuple[int, int, int], *, autocast: bool = False, device: str = "cpu"
) -> Callable[[], list[Any]]:
    """Return a call that maps random images, (N, height, width), to the levels, as float32 arrays of NumPy.

    All keep freed memory, as our tools do: what else a process gives back to the system between two calls, and gets
    again page by page, differs by chance and by more than the networks do.

    Args:
        build: the pyramid.
        size: of the images.
        autocast: run in bfloat16 by autocast.
        device: where.
    """
    keep_freed_memory()
    model = build().to(device).eval()
    number, height, width = size
    images = torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(2)).to(device)
    first = True

    def call() -> list[Any]:
        nonlocal first
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=autocast):
            levels = maps(model(images))
        outcome = [level.float().cpu().numpy() for level in levels] if first else []
        first = False
        return outcome

    return call


def training(
    build: Callable[[], nn.Module],
    size: tuple[int, int, int],
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    *,
    autocast: bool = False,
    device: str = "cpu",
) -> Callable[[], float]:
    """Return a call that does one step of SGD on the mean square of all levels; it returns the loss.

    Args: as of :func:`inference`, and
        make_optimizer: of the parameters that are trained.
    """
    model = build().to(device).train()
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
    number, height, width = size
    images = torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(2)).to(device)

    def call() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            levels = maps(model(images))
        loss = torch.stack([level.float().square().mean() for level in levels]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return call
