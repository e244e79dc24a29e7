"""Heads that are a part of the ImageNet classifier: res5 of a ResNet, fc6 and fc7 of VGG."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config import build_trunk
from resnet_backbone.detectron2_plugin.registration import register
from resnet_backbone.detectron2_plugin.strict import StrictModule


class _Res5(StrictModule, nn.Sequential):
    """The blocks of res5."""

    strict_stages = ("0", "1", "2")


class ImageNetRes5ROIHeads(Res5ROIHeads):
    """The trunk's own res5 on crops of res4, then the mean over the cells ("C4"), for every ResNet.

    Detectron2's ``Res5ROIHeads`` always builds bottlenecks; this builds what MODEL.RESNET_BACKBONE describes, which
    is the same, parameter for parameter, for ResNet-50, 101 and 152. Masks (MODEL.MASK_ON) share the crops, as there.

    Source: He et al. 2015, appendix A; Detectron2, ``modeling/roi_heads/roi_heads.py``.
    """

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        node = cfg.MODEL.RESNET_BACKBONE
        if node.ARCH.startswith("vgg") or list(cfg.MODEL.ROI_HEADS.IN_FEATURES) != ["res4"]:
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME ImageNetRes5ROIHeads runs res5 on crops of res4: it needs a ResNet (not "
                f"{node.ARCH}) and MODEL.ROI_HEADS.IN_FEATURES: [res4]"
            )
        classifier = build_trunk(cfg, out_features=["res5"])
        res5 = _Res5(*classifier.get_submodule("res5").children())
        res5.arch = f"res5 of {node.ARCH}"
        res5.strict_weights = node.STRICT_WEIGHTS
        return res5, classifier.feature_info["res5"].channels


class VGGBoxHead(StrictModule):
    """fc6 and fc7 of the ImageNet classifier on 7x7 crops of conv5, with MODEL.ROI_BOX_HEAD.DROPOUT after each.

    Maps crops (R, 512, 7, 7) to (R, 4096). Source: Girshick 2015, "Fast R-CNN" (arXiv 1504.08083), section 2.2.

    Raises:
        ValueError: no VGG, or other crops.
    """

    strict_stages = ("fc6", "fc7")

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.arch = cfg.MODEL.RESNET_BACKBONE.ARCH
        self.strict_weights = cfg.MODEL.RESNET_BACKBONE.STRICT_WEIGHTS
        self.dropout = cfg.MODEL.ROI_BOX_HEAD.DROPOUT
        crop = (input_shape.channels, input_shape.height, input_shape.width)
        if not self.arch.startswith("vgg") or crop != (512, 7, 7):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.NAME VGGBoxHead runs fc6 and fc7 on crops of conv5, 512x7x7: it needs a VGG (not "
                f"{self.arch}), MODEL.ROI_HEADS.IN_FEATURES: [conv5] and POOLER_RESOLUTION: 7; got crops of {crop}"
            )
        self.fc6 = nn.Linear(512 * 7 * 7, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        for linear in (self.fc6, self.fc7):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        for linear in (self.fc6, self.fc7):
            x = F.dropout(F.relu_(linear(x)), self.dropout, self.training)
        return x

    @property
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=4096)


register(ROI_HEADS_REGISTRY, ImageNetRes5ROIHeads)
register(ROI_BOX_HEAD_REGISTRY, VGGBoxHead)
