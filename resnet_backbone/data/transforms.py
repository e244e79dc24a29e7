"""Detectron2's resize and flip as ``torchvision.transforms.v2``, for images with boxes and masks, and the way back.

Boxes, polygons and masks are Detectron2's to the bit: boxes move in double precision, and are rounded once.
All randomness comes from torch's global generator: seed it, and the sample is decided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from resnet_backbone.data.coco.dataset import Sample, Target, coordinates, draw_masks

_NO_LENGTH = 1e-5  # pixels; a box that is no longer than that has no area


def train_transforms(
    min_sizes: Sequence[int],
    max_size: int,
    sampling: Literal["choice", "range"] = "choice",
    flip: Literal["horizontal", "vertical", "none"] = "horizontal",
) -> v2.Compose:
    """Random resize, random flip (probability 0.5), then removal of what has vanished.

    Args: as the config keys ``INPUT.MIN_SIZE_TRAIN``, ``MAX_SIZE_TRAIN``, ``MIN_SIZE_TRAIN_SAMPLING`` and
        ``RANDOM_FLIP`` of Detectron2; sizes in pixels.

    Returns:
        A callable ``(image, target) -> (image, target)`` over the samples of a ``CocoDataset``.
    """
    steps: list[torch.nn.Module] = [
        v2.ToDtype({tv_tensors.BoundingBoxes: torch.float64, "others": None}),
        ResizeShortestEdge(min_sizes, max_size, sampling),
    ]
    if flip == "horizontal":
        steps.append(v2.RandomHorizontalFlip(0.5))
    elif flip == "vertical":
        steps.append(v2.RandomVerticalFlip(0.5))
    return v2.Compose([*steps, RemoveVanished()])


def test_transforms(min_size: int, max_size: int) -> v2.Compose:
    """Resize to one size (``INPUT.MIN_SIZE_TEST``, ``MAX_SIZE_TEST`` of Detectron2; pixels, 0 keeps the size)."""
    return v2.Compose([ResizeShortestEdge((min_size,), max_size)])


test_transforms.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test


def shortest_edge_size(height: int, width: int, short_edge: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the shorter side at ``short_edge`` and the longer side at most ``max_size``; all in pixels.

    Source: ``ResizeShortestEdge.get_output_shape`` of Detectron2, in its order of floating-point operations; a side
    that it rounds to 0 is 1 here.
    """
    scale = short_edge / min(height, width)
    if height < width:
        new_height, new_width = float(short_edge), scale * width
    else:
        new_height, new_width = scale * height, float(short_edge)
    if max(new_height, new_width) > max_size:
        scale = max_size / max(new_height, new_width)
        new_height *= scale
        new_width *= scale
    return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


class ResizeShortestEdge(v2.Transform):
    """Resize to a random length of the shorter side: antialiased bilinear for images; of masks the pixels in
    whose middle the new ones have theirs, as Pillow takes them.

    Args:
        sizes: lengths in pixels; one is drawn from the list (``choice``), or between its two values, both included
            (``range``). 0 keeps the size of the image, whatever ``max_size``.
        max_size: upper limit of the longer side, pixels.
        sampling: ``"choice"`` or ``"range"``.
    """

    def __init__(self, sizes: Sequence[int], max_size: int, sampling: str = "choice") -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.max_size = max_size
        self.sampling = sampling

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        if self.sampling == "range":
            short_edge = int(torch.randint(self.sizes[0], self.sizes[1] + 1, ()))
        else:
            short_edge = self.sizes[int(torch.randint(len(self.sizes), ()))]
        if short_edge == 0:
            return {"size": (height, width)}
        return {"size": shortest_edge_size(height, width, short_edge, self.max_size)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = params["size"]
        if isinstance(inpt, tv_tensors.BoundingBoxes):
            scale = torch.tensor([width / inpt.canvas_size[1], height / inpt.canvas_size[0]] * 2, dtype=torch.float64)
            moved = (inpt.as_subclass(torch.Tensor) * scale).to(inpt.dtype)
            return tv_tensors.wrap(moved, like=inpt, canvas_size=(height, width))
        if isinstance(inpt, tv_tensors.Mask):
            rows, columns = _nearest(inpt.shape[-2], height), _nearest(inpt.shape[-1], width)
            return tv_tensors.wrap(inpt.as_subclass(torch.Tensor)[..., rows[:, None], columns], like=inpt)
        return v2.functional.resize(inpt, [height, width], antialias=True)


def _nearest(length: int, new_length: int) -> torch.Tensor:
    """Return for ``new_length`` pixels in a row which of ``length`` Pillow's NEAREST takes, whose rounding decides."""
    row = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return torch.from_numpy(np.array(row.resize((new_length, 1), Image.Resampling.NEAREST))[0].astype(np.int64))


class RemoveVanished(torch.nn.Module):
    """Take out of ``target`` every instance whose box has no area left, or whose mask no pixel.

    Boxes become float32 inside the image, masks are drawn, and polygons become arrays ``[x1, y1, x2, y2, ...]``,
    float64, a list of them for each instance.

    Source: ``filter_empty_instances`` of Detectron2.
    """

    def forward(self, image: torch.Tensor, target: Target) -> Sample:
        height, width = image.shape[-2:]
        target = draw_masks(target, (height, width))
        limits = torch.tensor([width, height, width, height])
        boxes = torch.minimum(target["boxes"].as_subclass(torch.Tensor).clamp(min=0), limits).float()
        target = {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"])}
        keep = (boxes[:, 2:] - boxes[:, :2] > _NO_LENGTH).all(dim=1)
        if "masks" in target:
            keep &= target["masks"].flatten(1).any(dim=1).bool()
        kept: Target = {
            key: tv_tensors.wrap(target[key][keep], like=target[key])
            for key in ("boxes", "labels", "masks", "iscrowd")
            if key in target
        }
        if "polygons" in target:
            kept["polygons"] = [
                list(map(coordinates, polygons))
                for polygons, kept_too in zip(target["polygons"], keep.tolist(), strict=True)
                if kept_too
            ]
        return image, {**target, **kept}


@dataclass(frozen=True)
class InputImage:
    """One image as a network reads it: after the transforms, padded to its batch; boxes and masks are in its pixels."""

    image_id: int | str
    name: str  # of the file
    pixels: Tensor  # uint8, (3, H, W), RGB, with the padding, which is of the mean color
    size: tuple[int, int]  # height and width without the padding; the image lies at the top left
    original_size: tuple[int, int]  # height and width of the file
    boxes: Tensor  # float32, (N, 4), x0 y0 x1 y1
    labels: Tensor  # int64, (N,), 0 to K - 1
    masks: Tensor | None  # bool, (N, H, W); None where the network learns none
    annotated: int  # boxes that the annotation file has for the image, crowd regions left out


class InputImages(NamedTuple):
    """The images of a loader, as a network reads them, one after another."""

    class_names: tuple[str, ...]
    images: Iterator[InputImage]


def restore_pixels(batch: Tensor, mean: Sequence[float], std: Sequence[float], channel_order: str) -> Tensor:
    """Undo the normalisation of a batch.

    Args:
        batch: float, (N, 3, H, W), normalised.
        mean, std: in the order of its channels, for 0 to 255.
        channel_order: RGB or BGR.

    Returns:
        uint8, (N, 3, H, W), RGB.

    Raises:
        ValueError: ``channel_order`` is neither.
    """
    if channel_order not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT {channel_order} cannot be shown; expected RGB or BGR")
    pixels = batch.cpu() * torch.tensor(std).reshape(-1, 1, 1) + torch.tensor(mean).reshape(-1, 1, 1)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return pixels.flip(1) if channel_order == "BGR" else pixels


def pad_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Give masks (N, h, w) the size of the padded image, bool (N, height, width)."""
    return F.pad(masks.bool(), (0, width - masks.shape[-1], 0, height - masks.shape[-2]))
