"""The mask branch of Mask R-CNN: its network, its loss and its masks in the image, with Detectron2's arithmetic."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import roi_align

from resnet_backbone.data.coco.masks import crop_polygons
from resnet_backbone.models.layers import norm_layer

# Of one image: masks (N, H, W), 0 or 1, or for each instance its polygons [x1, y1, x2, y2, ...].
InstanceMasks = Tensor | Sequence[Sequence[np.ndarray]]


class MaskHead(nn.Sequential):
    """Convolutions, a transposed one that doubles the resolution, and a mask for each class.

    torchvision's ``MaskRCNNHeads``, and its ``MaskRCNNPredictor`` with Detectron2's initialisation and without a mask
    of the background.

    Args:
        in_channels: of the regions' features.
        num_conv: 3x3 convolutions before the transposed one, from 0 up.
        conv_dim: their channels, and the transposed one's.
        num_masks: the classes without background; 1 where one mask serves all.
        norm: behind each of the 3x3 convolutions, as for ``make_norm``.
    """

    def __init__(self, in_channels: int, num_conv: int, conv_dim: int, num_masks: int, norm: str = "") -> None:
        deconv = nn.ConvTranspose2d(conv_dim if num_conv else in_channels, conv_dim, 2, stride=2)
        nn.init.kaiming_normal_(deconv.weight, mode="fan_out", nonlinearity="relu")
        predictor = nn.Conv2d(conv_dim, num_masks, 1)
        nn.init.normal_(predictor.weight, std=0.001)
        for layer in (deconv, predictor):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        super().__init__(
            OrderedDict(
                convs=MaskRCNNHeads(in_channels, [conv_dim] * num_conv, dilation=1, norm_layer=norm_layer(norm)),
                deconv=deconv,
                relu=nn.ReLU(inplace=True),
                predictor=predictor,
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map features (R, C, M, M) to logits, float32 (R, num_masks, 2M, 2M)."""
        return super().forward(x).float()


def build_mask_head(cfg: CfgNode, in_channels: int) -> MaskHead:
    """Build the head that MODEL.ROI_MASK_HEAD describes."""
    node = cfg.MODEL.ROI_MASK_HEAD
    num_masks = 1 if node.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return MaskHead(in_channels, node.NUM_CONV, node.CONV_DIM, num_masks, node.NORM)


def mask_loss(
    logits: Tensor,
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    matches: Sequence[Tensor],
    truth: Sequence[InstanceMasks],
) -> Tensor:
    """Binary cross-entropy of each region's mask of its true class, the mean over regions and cells.

    Args:
        logits: (sum of R, num_masks, M, M), of the foreground regions of all images.
        boxes: for each image the regions (R, 4), XYXY in pixels.
        labels: for each image the true classes (R,), from 1.
        matches: for each image (R,), which instance a region is of.
        truth: for each image the masks of its instances.

    Returns:
        A scalar; 0 where there is no region.

    Source: Detectron2, ``modeling/roi_heads/mask_head.py``.
    """
    if not len(logits):
        return logits.sum() * 0
    size = logits.shape[-1]
    targets = [crop_masks(masks, box, match, size) for masks, box, match in zip(truth, boxes, matches, strict=True)]
    return F.binary_cross_entropy_with_logits(masks_of(logits, torch.cat(list(labels))), torch.cat(targets))


def masks_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Return of (R, num_masks, M, M) the mask of each label (R,), which counts from 1; (R, M, M)."""
    channels = labels - 1 if logits.shape[1] > 1 else torch.zeros_like(labels)
    return logits[torch.arange(logits.shape[0], device=logits.device), channels]


def crop_masks(masks: InstanceMasks, boxes: Tensor, matches: Tensor, size: int) -> Tensor:
    """Return what each region should predict: the mask of the instance that it ``matches`` in its box, 0 or 1.

    Boxes are (R, 4), XYXY in pixels, matches (R,); returns float32 (R, size, size).
    Source: ``crop_and_resize`` of Detectron2's ``BitMasks`` and ``PolygonMasks``.
    """
    if isinstance(masks, Tensor):
        with torch.autocast(boxes.device.type, enabled=False):
            # To roi_align, every mask is an image with one channel.
            rois = torch.cat([matches[:, None].to(boxes), boxes], dim=1)
            crops = roi_align(masks[:, None].to(boxes), rois, size, aligned=True)
        return (crops[:, 0] >= 0.5).float()
    crops = torch.zeros(len(boxes), size, size)
    for crop, box, match in zip(crops, boxes.cpu().numpy(), matches.tolist(), strict=True):
        crop.copy_(torch.from_numpy(crop_polygons(masks[match], box, size)))
    return crops.to(boxes.device)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5) -> Tensor:
    """Stretch each mask over its box, in continuous coordinates, and threshold it.

    torchvision's ``paste_masks_in_image`` rounds the boxes to whole pixels first; this is Detectron2's arithmetic.

    Args:
        masks: (R, M, M), probabilities.
        boxes: (R, 4), XYXY in pixels of an image of ``height`` x ``width``.

    Returns:
        bool (R, height, width).

    Source: Detectron2, ``layers/mask_ops.py``.
    """
    pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=masks.device)
    frames = boxes.detach().cpu()
    low = (frames[:, :2].floor() - 1).clamp(min=0).int()
    high = torch.minimum(frames[:, 2:].ceil() + 1, torch.tensor([float(width), float(height)])).int()
    # One by one, and each around its box only: far fewer pixels than the whole image for every mask.
    for row, mask, box, (x0, y0), (x1, y1) in zip(pasted, masks, boxes, low.tolist(), high.tolist(), strict=True):
        x = _in_box(x0, x1, box[0], box[2])
        y = _in_box(y0, y1, box[1], box[3])
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        values = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        row[y0:y1, x0:x1] = values >= threshold
    return pasted


def _in_box(start: int, end: int, low: Tensor, high: Tensor) -> Tensor:
    """Centres of the pixels from ``start`` to ``end``, where the box from ``low`` to ``high`` spans -1 to 1."""
    centres = torch.arange(start, end, device=low.device, dtype=torch.float32) + 0.5
    return (centres - low) / (high - low) * 2 - 1
