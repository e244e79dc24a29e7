"""From every prediction of an image to its detections: suppression of overlaps and box voting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from resnet_backbone.improvements.settings import Settings


class Detections(NamedTuple):
    """Of one image, best first.

    Attributes:
        boxes: float32 (R, 4), XYXY in pixels.
        scores: float32 (R,), from 0 to 1.
        labels: int64 (R,), from 0.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes (..., 4), XYXY, cut at the edges of an image of ``size``, (height, width)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def carry(boxes: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Return boxes (..., 4), XYXY of an image of ``from_size``, (height, width), for the same image at ``to_size``."""
    y, x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def select(probabilities: Tensor, boxes: Tensor, settings: Settings) -> Detections:
    """Take the predictions above the score threshold, suppress overlaps, and vote where there is refinement.

    Args:
        probabilities: (R, K) of the foreground classes.
        boxes: (R, K, 4), XYXY, clipped to the image.
        settings: which thresholds, and how many.
    """
    rows, labels = torch.where(probabilities > settings.score_thresh)
    scores, candidates = probabilities[rows, labels], boxes[rows, labels]
    widths, heights = (candidates[:, 2:] - candidates[:, :2]).unbind(dim=1)
    large = torch.where((widths >= settings.min_side) & (heights >= settings.min_side))[0]
    found = Detections(candidates[large], scores[large], labels[large])
    refinement = settings.refinement
    nms_thresh = settings.nms_thresh if refinement is None else refinement.nms_thresh
    # Boxes of different classes are kept apart by shifts in proportion to these numbers, which round the boxes.
    numbers = found.labels + settings.first_label
    keep = batched_nms(found.boxes, found.scores, numbers, nms_thresh)[: settings.max_detections]
    kept = Detections(*(values[keep] for values in found))
    return kept if refinement is None else kept._replace(boxes=vote(kept, found, refinement.vote_thresh))


def vote(kept: Detections, voters: Detections, threshold: float) -> Tensor:
    """Return for each kept box the mean of the boxes of its class that overlap it, weighted by their scores.

    Args:
        kept: which boxes; each is one of the voters.
        voters: every prediction above the score threshold, suppressed ones too.
        threshold: the IoU from which a box has a vote; a kept box always has one.

    Returns:
        (R, 4); the scores stay as they are.

    Source: Gidaris & Komodakis 2015 (arXiv 1505.01749), section 5, "Box voting".
    """
    votes = (box_iou(kept.boxes, voters.boxes) >= threshold) & (kept.labels[:, None] == voters.labels)
    weights = votes * voters.scores.double()  # which mixed precision leaves alone
    total = weights.sum(dim=1, keepdim=True)
    # A box without area overlaps nothing, not even itself.
    return torch.where(total > 0, weights @ voters.boxes.double() / total, kept.boxes.double()).to(kept.boxes)
