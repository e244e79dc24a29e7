"""Region features: RoIAlign or RoIPool over one or several feature maps, as Detectron2's ROIPooler does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool
from torchvision.ops.boxes import box_area


class ROIPooler(nn.Module):
    """Crop each box from the feature map whose scale suits it.

    Args:
        features: names of the feature maps, finest first.
        strides: pixels per cell of each.
        resolution: side of the crops, in cells.
        sampling_ratio: samples per cell side; 0 adapts to the box.
        pooler_type: ``ROIAlignV2`` (half-pixel aligned), ``ROIAlign`` or ``ROIPool``.

    Source: Detectron2, ``modeling/poolers.py``; the level of a box is equation 1 of FPN (arXiv 1612.03144).
    """

    def __init__(
        self, features: Sequence[str], strides: Sequence[int], resolution: int, sampling_ratio: int, pooler_type: str
    ) -> None:
        super().__init__()
        self.features = tuple(features)
        self.strides = tuple(strides)
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.pooler_type = pooler_type
        self.min_level = int(math.log2(strides[0]))
        self.max_level = int(math.log2(strides[-1]))
        if 2**self.min_level != strides[0] or self.max_level - self.min_level != len(strides) - 1:
            raise ValueError(
                f"strides of MODEL.ROI_HEADS.IN_FEATURES must double from level to level, got {self.strides}"
            )

    def forward(
        self, feature_maps: Mapping[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Return (sum of R, C, resolution, resolution) for the boxes (R, 4), XYXY in pixels, of each image."""
        maps = [feature_maps[name] for name in self.features]
        rois = torch.cat([torch.cat([b.new_full((b.shape[0], 1), i), b], dim=1) for i, b in enumerate(boxes)])
        if len(maps) == 1:
            return self._pool(maps[0], rois, self.strides[0])
        levels = self._levels(rois[:, 1:])
        output = maps[0].new_zeros(rois.shape[0], maps[0].shape[1], self.resolution, self.resolution)
        for level, (feature, stride) in enumerate(zip(maps, self.strides, strict=True)):
            chosen = torch.where(levels == level)[0]
            output.index_put_((chosen,), self._pool(feature, rois[chosen], stride))
        return output

    def _levels(self, boxes: Tensor) -> Tensor:
        size = box_area(boxes).sqrt()
        level = torch.floor(4 + torch.log2(size / 224 + 1e-8))
        return level.clamp(self.min_level, self.max_level).long() - self.min_level

    def _pool(self, feature: Tensor, rois: Tensor, stride: int) -> Tensor:
        # In float32 also under mixed precision: bfloat16 would round the boxes to whole pixels and worse.
        with torch.autocast(feature.device.type, enabled=False):
            if self.pooler_type == "ROIPool":
                pooled = roi_pool(feature.float(), rois, self.resolution, 1 / stride)
            else:
                aligned = self.pooler_type == "ROIAlignV2"
                pooled = roi_align(feature.float(), rois, self.resolution, 1 / stride, self.sampling_ratio, aligned)
        return pooled.to(feature.dtype)
