"""The backbones in Detectron2's LazyConfig: what the yaml keys and builders are to a yaml config.

A stock config becomes one with another backbone by these lines in it:

    from resnet_backbone.detectron2_plugin.lazy import fpn_node, trunk_node, use_weights

    model.backbone = fpn_node(trunk_node("resnet34", ["res2", "res3", "res4", "res5"]))
    use_weights("imagenet://resnet34/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)

The ``*_node`` functions return nodes, which hold no number that depends on the architecture: an override such as
``model.backbone.bottom_up.arch=resnet50`` is followed everywhere. The ``build_*`` functions are what they call.
"""

from resnet_backbone.detectron2_plugin.lazy.build import build_res5, build_trunk_backbone, feature_channels
from resnet_backbone.detectron2_plugin.lazy.input import use_weights
from resnet_backbone.detectron2_plugin.lazy.nodes import (
    fpn_node,
    res5_node,
    retinanet_fpn_node,
    rpn_channels_node,
    stock_config,
    trunk_node,
    vgg_box_head_node,
)

__all__ = [
    "build_res5",
    "build_trunk_backbone",
    "feature_channels",
    "fpn_node",
    "res5_node",
    "retinanet_fpn_node",
    "rpn_channels_node",
    "stock_config",
    "trunk_node",
    "use_weights",
    "vgg_box_head_node",
]
