"""Heads: parts of the ImageNet classifier (res5 of a ResNet, fc6 and fc7 of VGG), and global context.

With global context (MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT, in ``ContextROIHeads`` and ``ImageNetRes5ROIHeads``) the
predictors read behind each region's vector that of the whole image.

Source: He et al. 2015 (arXiv 1512.03385), appendix B, "Global context".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
    select_foreground_proposals,
)
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config import build_trunk
from resnet_backbone.detectron2_plugin.backbone import StrictModule, register
from resnet_backbone.models.layers import scale_weights
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights.architecture import has_res5


class Res5(StrictModule, nn.Sequential):
    """The blocks of res5, with the stride of the first: maps crops of res4 (R, C, 14, 14) to (R, 2 C, 7, 7)."""

    strict_stages = ("res5",)
    strict_prefix = "res5."


def res5_of(trunk: Trunk, *, strict_weights: bool = True) -> Res5:
    """Return res5 of a trunk that was built with it, as a head; raise ValueError where there is none."""
    blocks = getattr(trunk, "res5", None)
    if blocks is None:
        raise ValueError(f"{trunk.arch} has no res5 here: build a ResNet with out_features=['res5']")
    res5 = Res5(*blocks.children())
    res5.arch = f"res5 of {trunk.arch}"
    res5.strict_weights = strict_weights
    return res5


class ImageNetRes5ROIHeads(Res5ROIHeads):
    """The trunk's own res5 on crops of res4, then the mean over the cells ("C4"), for every ResNet.

    Detectron2's ``Res5ROIHeads`` always builds bottlenecks; this builds what MODEL.RESNET_BACKBONE describes, which
    is the same, parameter for parameter, for ResNet-50, 101 and 152. Masks (MODEL.MASK_ON) share the crops, as there.

    Args:
        global_context: whether the whole image goes through res5 as one more region, whose vector the predictor reads
            behind each region's own; ``box_predictor`` must be one for twice as many channels.
        **parts: those of ``Res5ROIHeads``.

    Source: He et al. 2015, appendices A and B; Detectron2, ``modeling/roi_heads/roi_heads.py``.
    """

    @configurable
    def __init__(self, *, global_context: bool = False, **parts: Any) -> None:
        super().__init__(**parts)
        self.global_context = global_context

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = super().from_config(cfg, input_shape)
        if cfg.MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT:
            parts |= {"global_context": True, "box_predictor": context_predictor(cfg, parts["box_predictor"])}
        return parts

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See ``ROIHeads.forward``."""
        if not self.global_context:
            return super().forward(images, features, proposals, targets)
        if self.training:
            proposals = self.label_and_sample_proposals(proposals, targets)
        boxes = [found.proposal_boxes for found in proposals]
        regions, vectors = region_vectors(self, features, boxes, [found.image_size for found in proposals])
        predictions = self.box_predictor(vectors)
        if not self.training:
            found, _ = self.box_predictor.inference(predictions, proposals)
            return self.forward_with_given_boxes(features, found), {}
        losses = self.box_predictor.losses(predictions, proposals)
        if self.mask_on:
            proposals, foreground = select_foreground_proposals(proposals, self.num_classes)
            losses |= self.mask_head(regions[torch.cat(foreground)], proposals)
        return [], losses

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Module, int]:
        node = cfg.MODEL.RESNET_BACKBONE
        if not has_res5(node.ARCH) or list(cfg.MODEL.ROI_HEADS.IN_FEATURES) != ["res4"]:
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME ImageNetRes5ROIHeads runs res5 on crops of res4: it needs a ResNet (not "
                f"{node.ARCH}) and MODEL.ROI_HEADS.IN_FEATURES: [res4]"
            )
        trunk = build_trunk(cfg, out_features=["res5"], freeze_at=0)
        scale_weights(trunk, node.FOLD_NORMS)
        return res5_of(trunk, strict_weights=node.STRICT_WEIGHTS), trunk.feature_info["res5"].channels


class VGGBoxHead(StrictModule):
    """fc6 and fc7 of the ImageNet classifier on 7x7 crops of conv5, with MODEL.ROI_BOX_HEAD.DROPOUT after each.

    Maps crops (R, 512, 7, 7) to (R, 4096). Source: Girshick 2015, "Fast R-CNN" (arXiv 1504.08083), section 2.2.

    Raises:
        ValueError: no VGG, or other crops.
    """

    strict_stages = ("fc6", "fc7")

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, arch: str, dropout: float = 0.0, strict_weights: bool = True) -> None:
        super().__init__()
        self.arch = arch
        self.strict_weights = strict_weights
        self.dropout = dropout
        crop = (input_shape.channels, input_shape.height, input_shape.width)
        if not arch.startswith("vgg") or crop != (512, 7, 7):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.NAME VGGBoxHead runs fc6 and fc7 on crops of conv5, 512x7x7: it needs a VGG (not "
                f"{arch}), MODEL.ROI_HEADS.IN_FEATURES: [conv5] and POOLER_RESOLUTION: 7; got crops of {crop}"
            )
        self.fc6 = nn.Linear(512 * 7 * 7, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        for linear in (self.fc6, self.fc7):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.RESNET_BACKBONE
        return {
            "arch": node.ARCH,
            "input_shape": input_shape,
            "dropout": cfg.MODEL.ROI_BOX_HEAD.DROPOUT,
            "strict_weights": node.STRICT_WEIGHTS,
        }

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(x, 1)
        for linear in (self.fc6, self.fc7):
            x = F.dropout(F.relu_(linear(x)), self.dropout, self.training)
        return x

    @property
    def output_shape(self) -> ShapeSpec:
        return ShapeSpec(channels=4096)


def region_vectors(
    heads: ROIHeads, features: Mapping[str, Tensor], boxes: list[Boxes], sizes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Crop regions and run the box head on them, with context where the heads have it.

    The context is the vector of the whole image as one more region: on a pyramid at the level of such a box.

    Args:
        heads: StandardROIHeads or Res5ROIHeads, or heads of ours on them.
        features: of the backbone.
        boxes: (R, 4) of each image, in pixels.
        sizes: height and width of each image in pixels, without padding.

    Returns:
        What a mask head can share: the crops, or what res5 makes of them, (sum of R, C', H, W); and the vectors that
        the predictors read, (sum of R, C), with context (sum of R, 2 C).
    """
    maps = [features[name] for name in heads.in_features]
    pooler = heads.box_pooler if isinstance(heads, StandardROIHeads) else heads.pooler
    with_context = getattr(heads, "global_context", False)
    regions = pooler(maps, boxes)
    if with_context:  # in one batch with the regions, for norms that take its statistics
        images = [Boxes(own.tensor.new_tensor([[0, 0, w, h]])) for own, (h, w) in zip(boxes, sizes, strict=True)]
        regions = torch.cat([regions, pooler(maps, images)])
    if isinstance(heads, StandardROIHeads):
        vectors = heads.box_head(regions).flatten(1)
    else:
        regions = heads.res5(regions)
        vectors = regions.mean(dim=[2, 3])
    if not with_context:
        return regions, vectors
    vectors, of_images = vectors.split([len(vectors) - len(boxes), len(boxes)])
    counts = torch.tensor([len(own) for own in boxes], device=vectors.device)
    return regions[: len(vectors)], torch.cat([vectors, of_images.repeat_interleave(counts, dim=0)], dim=1)


def context_predictor(cfg: CfgNode, without: FastRCNNOutputLayers) -> FastRCNNOutputLayers:
    """Return the predictor of vectors with context, of the same names as that of vectors ``without``."""
    return FastRCNNOutputLayers(cfg, ShapeSpec(channels=2 * without.cls_score.in_features))


class ContextROIHeads(StandardROIHeads):
    """StandardROIHeads with global context, for a pyramid, C5 and VGG; masks stay as they are there.

    The whole image goes through the pooler and the box head as one more region. Parameters have the names that they
    have without context; ``box_predictor`` reads twice as many channels.

    Raises:
        ValueError: MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT is off, or a key does not go with it.
    """

    global_context = True

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        box = cfg.MODEL.ROI_BOX_HEAD
        if not box.GLOBAL_CONTEXT:
            raise ValueError(
                "MODEL.ROI_HEADS.NAME ContextROIHeads needs MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT: True; without context "
                "write MODEL.ROI_HEADS.NAME: StandardROIHeads"
            )
        if box.TRAIN_ON_PRED_BOXES:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES does not go with GLOBAL_CONTEXT; write one of both as False"
            )
        parts = super()._init_box_head(cfg, input_shape)
        return {**parts, "box_predictor": context_predictor(cfg, parts["box_predictor"])}

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        boxes = [found.proposal_boxes for found in proposals]
        _, vectors = region_vectors(self, features, boxes, [found.image_size for found in proposals])
        predictions = self.box_predictor(vectors)
        if self.training:
            return self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0]


register(ROI_HEADS_REGISTRY, ImageNetRes5ROIHeads)
register(ROI_HEADS_REGISTRY, ContextROIHeads)
register(ROI_BOX_HEAD_REGISTRY, VGGBoxHead)
