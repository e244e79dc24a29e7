"""torchvision's own backbones with its pyramid."""

from __future__ import annotations

import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.pyramids import OUT_CHANNELS, channels_of, classifier_state, pyramid_state

# The layers of torchvision's vgg16.features and vgg19.features that end a stage of stride 4, 8, 16, and the last pool.
_VGG_LAYERS = {"vgg16": ("15", "22", "29", "30"), "vgg19": ("17", "26", "35", "36")}


def build_pyramid(arch: str) -> nn.Module:
    """Build what ``fasterrcnn_resnet50_fpn`` stands on, three layers trained; for VGG the like of it."""
    channels, state = channels_of(arch), classifier_state(arch)
    if arch.startswith("vgg"):
        classifier = getattr(torchvision.models, arch)(weights=None)
        classifier.load_state_dict(state)
        layers = {layer: str(number) for number, layer in enumerate(_VGG_LAYERS[arch])}
        model = BackboneWithFPN(classifier.features, layers, channels, OUT_CHANNELS)
    else:
        model = resnet_fpn_backbone(backbone_name=arch, weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
        body = {name: tensor for name, tensor in state.items() if name in model.body.state_dict()}
        model.body.load_state_dict(body)
    model.fpn.load_state_dict(pyramid_state(channels))
    return model
