"""The networks as registered Detectron2 backbones, with their heads and their weights.

    from resnet_backbone.detectron2_plugin import add_resnet_backbone_config

    cfg = get_cfg()                      # of Detectron2
    add_resnet_backbone_config(cfg)
    cfg.merge_from_file("config.yaml")   # MODEL.BACKBONE.NAME: build_imagenet_fpn_backbone, ...

Importing this module registers the builders ``build_imagenet_backbone``, ``build_imagenet_fpn_backbone``,
``build_imagenet_retinanet_fpn_backbone`` and ``build_imagenet_fcos_fpn_backbone``, the heads ``ImageNetRes5ROIHeads``,
``ContextROIHeads`` and ``VGGBoxHead``, and a handler, by which ``imagenet://ARCH/NAME`` is a path for everything that
Detectron2 loads.
"""

import importlib.util
import logging

import torch

if importlib.util.find_spec("detectron2") is None:
    raise ImportError(
        f"Detectron2 is not installed. It is not on PyPI (the name there is not its own); build it for the torch "
        f"{torch.__version__} that is here, with a C++ compiler"
        + (f" and nvcc of CUDA {torch.version.cuda}" if torch.version.cuda else "")
        + ":\n  pip install 'setuptools<81' wheel\n"
        "  pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'\n"
        "Without it, the same configs train with: resnet-backbone train --engine torchvision"
    )

from resnet_backbone.detectron2_plugin.backbone import (
    ImageNetHandler,
    TrunkBackbone,
    build_imagenet_backbone,
    build_imagenet_fcos_fpn_backbone,
    build_imagenet_fpn_backbone,
    build_imagenet_retinanet_fpn_backbone,
    to_backbone,
)
from resnet_backbone.detectron2_plugin.checkpoint import load_trunk_weights
from resnet_backbone.detectron2_plugin.config import add_resnet_backbone_config
from resnet_backbone.detectron2_plugin.roi_heads import ContextROIHeads, ImageNetRes5ROIHeads, VGGBoxHead

# What is logged here goes where Detectron2's own messages go, as its ``setup_logger`` says.
logging.getLogger("resnet_backbone").parent = logging.getLogger("detectron2")

__all__ = [
    "ContextROIHeads",
    "ImageNetHandler",
    "ImageNetRes5ROIHeads",
    "TrunkBackbone",
    "VGGBoxHead",
    "add_resnet_backbone_config",
    "build_imagenet_backbone",
    "build_imagenet_fcos_fpn_backbone",
    "build_imagenet_fpn_backbone",
    "build_imagenet_retinanet_fpn_backbone",
    "load_trunk_weights",
    "to_backbone",
]
