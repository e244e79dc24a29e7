"""Which sizes of an image a region takes its features from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops.boxes import box_area

from resnet_backbone.data.transforms import shortest_edge_size

_IDEAL_AREA = 224**2  # pixels: what the classifier was trained on


def resized(size: tuple[int, int], short_edge: int, max_size: int) -> tuple[int, int]:
    """Return what an image of ``size``, (height, width), becomes; 0 for ``short_edge`` keeps it."""
    return shortest_edge_size(*size, short_edge, max_size) if short_edge else size


def pyramid(size: tuple[int, int], short_edges: Sequence[int], max_size: int) -> list[tuple[int, int]]:
    """Return the sizes, (height, width), of an image, ascending; those that ``max_size`` makes equal come once."""
    return list(dict.fromkeys(shortest_edge_size(*size, edge, max_size) for edge in short_edges))


def adjacent_scales(boxes: Tensor, size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return for each box the one or two sizes that suit it, as indices (R, 1 or 2) into ``sizes``.

    The first is where the box has the number of pixels nearest to 224 x 224 (SPPnet); the second is the neighbour, next
    smaller or next larger, that comes nearer to it. Of two that are equally near, the smaller one. Where there is one
    size, it alone.

    Args:
        boxes: (R, 4), XYXY in pixels of the image at ``size``.
        size: (height, width).
        sizes: of the image, ascending, each once.

    Source: He et al. 2014, "Spatial Pyramid Pooling" (arXiv 1406.4729), section 4.1; Ren et al. 2015, "Object Detection
    Networks on Convolutional Feature Maps" (arXiv 1504.06066), "Maxout for Scale Selection".
    """
    factors = torch.tensor([h * w / (size[0] * size[1]) for h, w in sizes], dtype=torch.float64, device=boxes.device)
    distances = (box_area(boxes).double()[:, None] * factors - _IDEAL_AREA).abs()
    best = distances.argmin(dim=1, keepdim=True)
    if len(sizes) == 1:
        return best
    # Outside of the list there is nothing: infinitely far.
    far = distances.new_full((len(boxes), 1), torch.inf)
    padded = torch.cat([far, distances, far], dim=1)
    below, above = padded.gather(1, best), padded.gather(1, best + 2)
    return torch.cat([best, torch.where(below <= above, best - 1, best + 1)], dim=1)
