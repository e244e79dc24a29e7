"""Detectron2's augmentation as ``torchvision.transforms.v2``, for images with boxes and masks, and the way back.

Boxes, polygons and masks are Detectron2's to the bit: boxes move in double precision, and are rounded once.
All randomness comes from torch's global generator: seed it, and the sample is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from fvcore.transforms.transform import CropTransform
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from resnet_backbone.data.coco.dataset import Sample, Target, as_points, coordinates, draw_masks

_NO_LENGTH = 1e-5  # pixels; a box that is no longer than that has no area


def train_transforms(
    min_sizes: Sequence[int],
    max_size: int,
    sampling: Literal["choice", "range"] = "choice",
    flip: Literal["horizontal", "vertical", "none"] = "horizontal",
    *,
    crop: tuple[str, Sequence[float]] | None = None,
    large_scale_jitter: tuple[float, float, int] | None = None,
    color_jitter: Sequence[float] = (),
) -> v2.Compose:
    """Colour jitter, random crop, random resize, random flip (probability 0.5), then removal of what has vanished.

    Args: as the config keys ``INPUT.MIN_SIZE_TRAIN``, ``MAX_SIZE_TRAIN``, ``MIN_SIZE_TRAIN_SAMPLING`` and
        ``RANDOM_FLIP`` of Detectron2; sizes in pixels.
        crop: ``INPUT.CROP.TYPE`` and ``SIZE``, see :func:`random_crop`.
        large_scale_jitter: arguments of :class:`LargeScaleJitter`, which is in place of the crop and the resize then.
        color_jitter: those of torchvision's ``ColorJitter``, which draws first, and so on both engines the same.

    Returns:
        A callable ``(image, target) -> (image, target)`` over the samples of a ``CocoDataset``.
    """
    steps: list[Callable[..., Any]] = [v2.ToDtype({tv_tensors.BoundingBoxes: torch.float64, "others": None})]
    if any(color_jitter):
        steps.append(v2.ColorJitter(*color_jitter))
    if crop:
        steps.append(partial(random_crop, crop_type=crop[0], crop_size=crop[1]))
    jitter = LargeScaleJitter(*large_scale_jitter) if large_scale_jitter else None
    steps.append(jitter or ResizeShortestEdge(min_sizes, max_size, sampling))
    if flip != "none":
        steps.append(v2.RandomHorizontalFlip(0.5) if flip == "horizontal" else v2.RandomVerticalFlip(0.5))
    if crop or jitter:
        steps.append(_tighten_boxes)
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


class _Resize(v2.Transform):
    """Resize to ``params["size"]``: antialiased bilinear for images; of masks the pixels in whose middle the new ones
    have theirs, as Pillow takes them."""

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


class ResizeShortestEdge(_Resize):
    """Resize to a random length of the shorter side.

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


class LargeScaleJitter(_Resize):
    """Resize to fit into a square that is scaled at random; then cut out, or pad with gray at the right and the bottom,
    to the square itself.

    Args:
        low, high: bounds of the factor on ``size``, the side of the square in pixels.

    Source: Ghiasi et al. 2021, arXiv 2012.07177; ``ResizeScale`` and ``FixedSizeCrop`` of Detectron2.
    """

    def __init__(self, low: float, high: float, size: int) -> None:
        super().__init__()
        self.low, self.high, self.size = low, high, size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        sides = v2.query_size(flat_inputs)
        target = self.size * (self.low + (self.high - self.low) * float(torch.rand((), dtype=torch.float64)))
        return {"size": tuple(max(round(side * min(target / other for other in sides)), 1) for side in sides)}

    def forward(self, image: torch.Tensor, target: Target) -> Sample:
        image, target = super().forward(image, target)
        part = float(torch.rand((), dtype=torch.float64))
        top, left = (round(max(side - self.size, 0) * part) for side in image.shape[-2:])
        return _cut_out(image, target, top, left, self.size, self.size)


def random_crop(image: torch.Tensor, target: Target, crop_type: str, crop_size: Sequence[float]) -> Sample:
    """Cut out a random part of an image.

    Args:
        image, target: a sample of a ``CocoDataset``.
        crop_type, crop_size: ``relative``: parts of height and width, up to 1; ``relative_range``: the least of these;
            ``absolute``: height and width, pixels; ``absolute_range``: least and largest length of either, pixels.

    Source: ``RandomCrop`` of Detectron2.
    """
    sides = np.array(image.shape[-2:])
    if crop_type == "absolute":
        size = np.minimum(crop_size, sides)
    elif crop_type == "absolute_range":
        limits = np.minimum.outer(sides, crop_size).tolist()
        size = np.array([int(torch.randint(low, high + 1, ())) for low, high in limits])
    else:
        parts = np.array(crop_size)
        if crop_type == "relative_range":
            least = parts.astype(np.float32)  # as there
            parts = least + torch.rand(2, dtype=torch.float64).numpy() * (1 - least)
        size = np.maximum(sides * parts + 0.5, 1).astype(int)
    top, left = (int(torch.randint(beyond + 1, ())) for beyond in (sides - size).tolist())
    return _cut_out(image, target, top, left, *size.tolist())


def _cut_out(image: torch.Tensor, target: Target, top: int, left: int, height: int, width: int) -> Sample:
    """Cut a window out of an image and its target; what lies right of the image and below it is padded."""
    cut = torch.full((height, width, 3), 128, dtype=image.dtype).permute(2, 0, 1)  # Detectron2's gray
    inside = image[:, top : top + height, left : left + width]
    cut[:, : inside.shape[1], : inside.shape[2]] = inside
    boxes = target["boxes"].as_subclass(torch.Tensor) - torch.tensor([left, top] * 2)
    found = {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"], canvas_size=(height, width))}
    if "masks" in target:
        found["masks"] = v2.functional.crop(target["masks"], top, left, height, width)
    window = CropTransform(left, top, width, height)
    for key in found.keys() & {"polygons", "to_draw"}:
        given = [own and [points[:, :2].numpy() for points in own] for own in target[key]]
        found[key] = [own and [as_points(p, (height, width)) for p in window.apply_polygons(own)] for own in given]
    return tv_tensors.wrap(cut, like=image), found


def _nearest(length: int, new_length: int) -> torch.Tensor:
    """Return for ``new_length`` pixels in a row which of ``length`` Pillow's NEAREST takes, whose rounding decides."""
    row = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return torch.from_numpy(np.array(row.resize((new_length, 1), Image.Resampling.NEAREST))[0].astype(np.int64))


def _tighten_boxes(image: torch.Tensor, target: Target) -> Sample:
    """Make boxes those of the masks, where there are any. Source: ``recompute_boxes`` of Detectron2's mapper."""
    target = draw_masks(target, (image.shape[-2], image.shape[-1]))
    boxes = target["boxes"].clone()
    if "masks" in target:
        seen = target["masks"].flatten(1).any(dim=1).bool()
        boxes[seen] = (masks_to_boxes(target["masks"][seen]) + torch.tensor([0, 0, 1, 1])).to(boxes)
    for box, polygons in zip(boxes, target.get("polygons", ()), strict=False):
        if polygons:
            points = torch.cat(polygons)
            box[:] = torch.cat([points.amin(0)[:2], points.amax(0)[2:]])
    return image, {**target, "boxes": tv_tensors.wrap(boxes, like=target["boxes"])}


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
        if "polygons" in target:
            keep &= torch.tensor(list(map(bool, target["polygons"])), dtype=torch.bool)
        kept: Target = {
            key: tv_tensors.wrap(target[key][keep], like=target[key])
            for key in ("boxes", "labels", "masks", "iscrowd")
            if key in target
        }
        if "polygons" in target:
            kept["polygons"] = [list(map(coordinates, own)) for own in compress(target["polygons"], keep.tolist())]
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
    """
    pixels = batch.cpu() * torch.tensor(std).reshape(-1, 1, 1) + torch.tensor(mean).reshape(-1, 1, 1)
    pixels = pixels.round().clamp(0, 255).to(torch.uint8)
    return pixels.flip(1) if channel_order == "BGR" else pixels


def pad_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Give masks (N, h, w) the size of the padded image, bool (N, height, width)."""
    return F.pad(masks.bool(), (0, width - masks.shape[-1], 0, height - masks.shape[-2]))
