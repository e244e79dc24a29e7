"""Why a training has diverged: what can be measured on the spot, then the usual causes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config.checks import suspicions, usual_rate

_SHOWN = 4


def explain_divergence(
    cfg: CfgNode, what: str, image_ids: Sequence[Any], last: Path | None, found: Sequence[str] = ()
) -> str:
    """Return the message of a detector's training that cannot continue.

    It says ``what`` is not finite and when, the ids of the batch's images, what was ``found`` by the functions below
    beside the config's suspicious values, the usual causes, and the last checkpoint.
    """
    solver = cfg.SOLVER
    causes = (
        f"the learning rate: SOLVER.BASE_LR is {solver.BASE_LR:g}; usual for {solver.OPTIMIZER} and "
        f"IMS_PER_BATCH {solver.IMS_PER_BATCH} is {usual_rate(cfg):g}; a longer WARMUP_ITERS "
        f"(now {solver.WARMUP_ITERS}) or SOLVER.CLIP_GRADIENTS helps, too",
        f"the input: INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)} and "
        f"PIXEL_STD {list(cfg.MODEL.PIXEL_STD)} must be those that the weights were trained with",
        "the norms: FrozenBN on random weights does not normalise; without MODEL.WEIGHTS write "
        "MODEL.RESNET_BACKBONE.NORM BN and MODEL.BACKBONE.FREEZE_AT 0",
        "the boxes of these images: resnet-backbone check looks at all of them",
    )
    return _explanation(f"{what} on images {list(image_ids)}", [*suspicions(cfg), *found], causes, last)


def explain_classifier_divergence(cfg: CfgNode, what: str, last: Path | None) -> str:
    """Return the message of a classifier's training that cannot continue; see :func:`explain_divergence`."""
    solver = cfg.SOLVER
    causes = (
        f"the learning rate: SOLVER.BASE_LR is {solver.BASE_LR:g} for IMS_PER_BATCH {solver.IMS_PER_BATCH}; with batch "
        f"norm the paper takes 0.1 for 256 images of ImageNet and for 128 of CIFAR-10; without it (vgg16, vgg19) take "
        f"a tenth; SOLVER.WARMUP_ITERS (now {solver.WARMUP_ITERS}) helps deep networks",
        f"the input: MODEL.PIXEL_MEAN {cfg.MODEL.PIXEL_MEAN} and PIXEL_STD {cfg.MODEL.PIXEL_STD} must be on the scale "
        f"of 0 to 255",
    )
    return _explanation(what, (), causes, last)


def _explanation(what: str, found: Sequence[str], causes: Sequence[str], last: Path | None) -> str:
    lines = [f"{what}."]
    for title, texts in (("Found:", found), ("Likely causes:", causes)):
        lines += [title, *(f"  - {text}" for text in texts)] if texts else []
    lines.append(
        f"The last good checkpoint is {last}, from before: with another setting, --resume continues from it"
        if last
        else "There is no checkpoint yet: start again with another setting"
    )
    return "\n".join(lines)


def broken_tensors(model: nn.Module) -> list[str]:
    """Say which weights, or running statistics, are not finite."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = [name for name, tensor in tensors if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"not finite are already the tensors {', '.join(names[:_SHOWN])}{more}: an earlier step has spoiled them"]


def unusual_pixels(cfg: CfgNode, images: Sequence[Tensor], image_ids: Sequence[Any]) -> list[str]:
    """Say where pixels, normalised, are far from what networks are trained on: about 0, with a deviation of 1.

    Images are (C, H, W), as the detector gets them. With a PIXEL_STD of 1, as of Caffe's weights, the deviation is 60.
    """
    found = []
    std = torch.tensor(cfg.MODEL.PIXEL_STD).view(-1, 1, 1)
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).view(-1, 1, 1)
    scale = 60.0 if torch.allclose(std, torch.ones(())) else 1.0
    for image, image_id in zip(images, image_ids, strict=True):
        pixels = (image.detach().float().cpu() - mean) / std
        center, spread = float(pixels.mean()), float(pixels.std())
        if not abs(center) < 4 * scale or not spread < 4 * scale:
            found.append(
                f"the pixels of image {image_id}, normalised, have mean {center:.3g} and deviation {spread:.3g}; "
                f"expected about 0 and {scale:g}"
            )
    return found[:_SHOWN]


def invalid_boxes(sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor], image_ids: Sequence[Any]) -> list[str]:
    """Say which boxes, (N, 4) x1 y1 x2 y2 in pixels, are not finite, empty, or outside their (height, width)."""
    found = []
    for (height, width), own, image_id in zip(sizes, boxes, image_ids, strict=True):
        own = own.detach().float().cpu()
        limit = torch.tensor([width, height, width, height]) + 1
        good = (own[:, 2:] > own[:, :2]).all(1) & (own >= -1).all(1) & (own <= limit).all(1)
        found += [
            f"image {image_id} ({height} x {width}) has the box {[round(value, 1) for value in box]}, x1 y1 x2 y2"
            for box in own[~good].tolist()
        ]
    return found[:_SHOWN]


def diverging_images(losses_of: Callable[[int], Tensor], image_ids: Sequence[Any]) -> list[str]:
    """Say on which images of a batch the loss is not finite by itself, where it is so on some of them only.

    Args:
        losses_of: from the position of an image to the sum of its losses.
        image_ids: of these.
    """
    with torch.no_grad():
        bad = [one for k, one in enumerate(image_ids) if not bool(torch.isfinite(losses_of(k)))]
    return [f"by itself, the loss is not finite on images {bad}"] if 0 < len(bad) < len(image_ids) else []
