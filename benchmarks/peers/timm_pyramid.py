"""timm's trunk, ``features_only``, with torchvision's pyramid: timm has none of its own."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from benchmarks.pyramids import OUT_CHANNELS, channels_of, classifier_state, pyramid_state, timm_body


class _Pyramid(nn.Module):
    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(number): feature for number, feature in enumerate(self.body(x))})


def build_pyramid(arch: str) -> nn.Module:
    """Build a ResNet, or a network of timm's, whose batch norms are as timm leaves them: for inference."""
    body = timm_body(arch) if arch.startswith("timm/") else timm_body(f"timm/{arch}")
    state = {name: tensor for name, tensor in classifier_state(arch).items() if not name.startswith("fc.")}
    body.load_state_dict(state)
    channels = channels_of(arch)
    fpn = FeaturePyramidNetwork(channels, OUT_CHANNELS, extra_blocks=LastLevelMaxPool())
    fpn.load_state_dict(pyramid_state(channels))
    return _Pyramid(body, fpn)
