"""Global context: the predictors read each region's vector beside that of the whole image.

MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT turns it on, in ``ContextROIHeads`` and in ``ImageNetRes5ROIHeads``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from fvcore.common.config import CfgNode
from torch import Tensor

from resnet_backbone.detectron2_plugin.backbone import register


def crops_with_whole_images(
    heads: ROIHeads, features: Mapping[str, Tensor], boxes: Sequence[Boxes], sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Crop the regions, and behind those of all images each whole image: on a pyramid at the level of such a box.

    One batch for the box head, for norms that take its statistics. Args: see :func:`region_vectors`.

    Returns:
        (sum of R + N, C, resolution, resolution) for N images.
    """
    pooler = heads.box_pooler if isinstance(heads, StandardROIHeads) else heads.pooler
    maps = [features[name] for name in heads.in_features]
    whole = [Boxes(own.tensor.new_tensor([[0, 0, w, h]])) for own, (h, w) in zip(boxes, sizes, strict=True)]
    return torch.cat([pooler(maps, list(boxes)), pooler(maps, whole)])


def join_context(vectors: Tensor, boxes: Sequence[Boxes]) -> Tensor:
    """Put behind each region's vector that of its image.

    Args:
        vectors: (sum of R + N, C), of :func:`crops_with_whole_images`.
        boxes: of the regions.

    Returns:
        (sum of R, 2 C), what the predictors read.

    Source: He et al. 2015, appendix B, "Global context".
    """
    counts = torch.tensor([len(own) for own in boxes], device=vectors.device)
    regions, images = vectors.split([len(vectors) - len(boxes), len(boxes)])
    return torch.cat([regions, images.repeat_interleave(counts, dim=0)], dim=1)


def context_predictor(cfg: CfgNode, plain: FastRCNNOutputLayers) -> FastRCNNOutputLayers:
    """Return the predictor for vectors with context, of the same names, where ``plain`` reads them without."""
    return FastRCNNOutputLayers(cfg, ShapeSpec(channels=2 * plain.cls_score.in_features))


def region_vectors(
    heads: ROIHeads, features: Mapping[str, Tensor], boxes: list[Boxes], sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Return what the predictors of ``heads`` read: crops, through the box head, with context where there is any.

    Args:
        heads: StandardROIHeads or Res5ROIHeads, or heads of ours on them.
        features: of the backbone.
        boxes: (R, 4) of each image, in pixels.
        sizes: height and width of each image in pixels, without padding.

    Returns:
        (sum of R, C); with context C is twice that of the box head.
    """
    if getattr(heads, "global_context", False):
        crops = crops_with_whole_images(heads, features, boxes, sizes)
        return join_context(_to_vectors(heads, crops), boxes)
    maps = [features[name] for name in heads.in_features]
    if isinstance(heads, StandardROIHeads):
        return _to_vectors(heads, heads.box_pooler(maps, boxes))
    return _to_vectors(heads, heads.pooler(maps, boxes))


def _to_vectors(heads: ROIHeads, crops: Tensor) -> Tensor:
    if isinstance(heads, StandardROIHeads):
        return heads.box_head(crops).flatten(1)
    return heads.res5(crops).mean(dim=[2, 3])


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
        vectors = region_vectors(self, features, boxes, [found.image_size for found in proposals])
        predictions = self.box_predictor(vectors)
        if self.training:
            return self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0]


register(ROI_HEADS_REGISTRY, ContextROIHeads)
