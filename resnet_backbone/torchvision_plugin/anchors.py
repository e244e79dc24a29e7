"""Anchors as Detectron2's DefaultAnchorGenerator places them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList


class AnchorGenerator(nn.Module):
    """Boxes of fixed sizes and aspect ratios, centred on every cell of every feature map.

    Unlike torchvision's, corners are not rounded, and strides are given instead of guessed from the sizes at hand.

    Args:
        sizes: for each level the side lengths in pixels; one list serves all levels.
        aspect_ratios: for each level height / width; one list serves all levels.
        strides: pixels per cell, for each level.
        offset: where in its cell the first anchor's centre lies, in cells, from 0 to 1.

    Raises:
        ValueError: the number of lists is neither one nor the number of levels.

    Source: Detectron2, ``modeling/anchor_generator.py``.
    """

    def __init__(
        self,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[Sequence[float]],
        strides: Sequence[int],
        offset: float,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.offset = offset
        sizes = _one_per_level("SIZES", sizes, len(strides))
        aspect_ratios = _one_per_level("ASPECT_RATIOS", aspect_ratios, len(strides))
        for level, (s, r) in enumerate(zip(sizes, aspect_ratios, strict=True)):
            self.register_buffer(f"cell_{level}", _cell_anchors(s, r), persistent=False)

    def cells(self) -> list[Tensor]:
        """Return the anchors around the origin, for each level (A, 4), XYXY in pixels."""
        return [getattr(self, f"cell_{level}") for level in range(len(self.strides))]

    def num_anchors_per_location(self) -> list[int]:
        return [len(cell) for cell in self.cells()]

    def forward(self, image_list: ImageList, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return for each image the anchors of all levels, float32 (sum of H * W * A, 4), XYXY in pixels."""
        return [torch.cat(self.by_level(feature_maps))] * len(image_list.image_sizes)

    def by_level(self, feature_maps: Sequence[Tensor]) -> list[Tensor]:
        """Return for each level its anchors, float32 (H * W * A, 4), XYXY in pixels."""
        anchors = []
        for cell, stride, feature in zip(self.cells(), self.strides, feature_maps, strict=True):
            height, width = feature.shape[-2:]
            x = (torch.arange(width, device=cell.device, dtype=torch.float32) + self.offset) * stride
            y = (torch.arange(height, device=cell.device, dtype=torch.float32) + self.offset) * stride
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1).reshape(-1, 1, 4)
            anchors.append((centres + cell).reshape(-1, 4))
        return anchors


def _one_per_level(key: str, values: Sequence[Sequence[float]], levels: int) -> Sequence[Sequence[float]]:
    if len(values) == 1:
        return list(values) * levels
    if len(values) != levels:
        raise ValueError(
            f"MODEL.ANCHOR_GENERATOR.{key} has {len(values)} lists for {levels} levels: write 1 or {levels}"
        )
    return values


def _cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = (size**2 / ratio) ** 0.5
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(anchors)
