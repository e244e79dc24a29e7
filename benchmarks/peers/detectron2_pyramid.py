"""Detectron2's own ResNet with its pyramid, and ours inside Detectron2."""

from __future__ import annotations

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from benchmarks.pyramids import RESNET_FEATURES, channels_of, classifier_state, pyramid_state
from resnet_backbone import create_model, load_weights
from resnet_backbone.detectron2_plugin import add_resnet_backbone_config
from resnet_backbone.detectron2_plugin.config import resnets_keys
from resnet_backbone.models.acceleration import finish_for_inference


def build_pyramid(arch: str, *, ours: bool = False, finish: bool = False) -> nn.Module:
    """Build what a Detectron2 user has: FrozenBN, FREEZE_AT 2, images as they come.

    Args:
        arch: a ResNet of the registry.
        ours: by ``build_imagenet_fpn_backbone`` with its default keys, instead of ``build_resnet_fpn_backbone``.
        finish: ours, for inference alone.
    """
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.RESNETS.OUT_FEATURES = RESNET_FEATURES
    cfg.MODEL.RESNETS.update(resnets_keys(arch))
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNET_BACKBONE.ARCH = arch
    cfg.MODEL.BACKBONE.NAME = "build_imagenet_fpn_backbone" if ours else "build_resnet_fpn_backbone"
    model = build_backbone(cfg, ShapeSpec(channels=3))
    trunk = create_model(arch, num_classes=0, norm="FrozenBN")
    load_weights(trunk, classifier_state(arch))
    state = {f"bottom_up.{name}": tensor for name, tensor in trunk.state_dict().items()}
    for name, tensor in pyramid_state(channels_of(arch)).items():
        kind, level, _, parameter = name.split(".")
        own = {"inner_blocks": "fpn_lateral", "layer_blocks": "fpn_output"}[kind]
        state[f"{own}{int(level) + 2}.{parameter}"] = tensor
    model.load_state_dict(state)
    if finish:
        finish_for_inference(model.eval())
    return model
