"""A torch data set over a COCO-format JSON file and a folder of images."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from resnet_backbone.data.coco.masks import decode_segmentation
from resnet_backbone.data.coco.read import GroundTruth, read_coco_json
from resnet_backbone.data.images.files import ImageFiles, find_missing_images
from resnet_backbone.data.images.read import read_interleaved

logger = logging.getLogger(__name__)

Target = dict[str, Any]
Sample = tuple[torch.Tensor, Target]


class CocoDataset(Dataset[Sample]):
    """Images and instances of a COCO-format file, sorted by image id.

    Everything is held in a few NumPy arrays, so forked DataLoader workers share it. All of the JSON is checked on
    construction (see :func:`~resnet_backbone.data.coco.read.read_coco_json`); images are read when asked for.

    Args:
        json_path: the annotation file.
        image_folder: its ``file_name`` entries are relative to this folder.
        transforms: called as ``transforms(image, target)`` on every sample; None leaves it as read.
        with_masks: read instance masks, which every annotation needs then, and give them.
        mask_format: ``bitmask`` draws them; ``polygon`` leaves polygons as they are, which costs less, and refuses RLE.
        training: leave out crowd regions and images without a box. False keeps every image, and crowd regions,
            marked by ``target["iscrowd"]``, and refuses what the evaluation would refuse.
        keep_unlabelled: in training, too, keep images without a box.

    Attributes:
        annotations: what is used of the file, in the order of the samples.
        category_ids: the K ids of the file, ascending; ``category_ids[label]`` turns a label back.
        class_names: K names, one a label.
        image_ids: int64 array of shape (N,).
        sizes: int64 array of shape (N, 2), height and width in pixels as the file states them.

    Raises:
        FileNotFoundError: the file or the folder is missing.
        ValueError: the file is malformed; the message says which entry and what it should be.
    """

    def __init__(
        self,
        json_path: str | Path,
        image_folder: str | Path,
        transforms: Callable[[torch.Tensor, Target], Sample] | None = None,
        with_masks: bool = False,
        training: bool = True,
        mask_format: Literal["bitmask", "polygon"] = "bitmask",
        keep_unlabelled: bool = False,
    ) -> None:
        self.json_path = Path(json_path)
        self.image_folder = Path(image_folder)
        self.transforms = transforms
        self.training = training
        self.mask_format = mask_format
        self.gives_masks = with_masks
        if not self.image_folder.is_dir():
            raise FileNotFoundError(f"{self.image_folder}: no such image folder (annotation file: {self.json_path})")
        self.annotations = read_coco_json(
            self.json_path,
            training=training,
            with_masks=with_masks,
            mask_format=mask_format,
            keep_unlabelled=keep_unlabelled,
        )
        self.category_ids = self.annotations.category_ids
        self.class_names = self.annotations.class_names
        self.num_classes = len(self.class_names)
        self.image_ids = self.annotations.image_ids
        self.sizes = self.annotations.sizes
        counts = len(self), len(self.annotations.boxes), self.num_classes
        logger.info("%s: %d images, %d boxes, %d classes", self.json_path, *counts)

    @property
    def ground_truth(self) -> GroundTruth:
        """What the detections of a set that is evaluated are compared with; ValueError of one to train on."""
        if self.annotations.ground_truth is None:
            raise ValueError(f"{self.json_path} was opened for training; its ground truth is not kept")
        return self.annotations.ground_truth

    def with_other(
        self, transforms: Callable[[torch.Tensor, Target], Sample] | None = None, *, masks: bool | None = None
    ) -> CocoDataset:
        """Return the same data with other ``transforms``, None for original images, and with masks as they are, given
        where they were read (True), or not given (False)."""
        other = copy.copy(self)
        other.transforms = transforms
        if masks is not None:
            other.gives_masks = masks and self.annotations.segmentations is not None
        return other

    def image_path(self, index: int) -> Path:
        """Where the image of sample ``index`` lies."""
        return self.image_folder / self.annotations.file_names[index].decode()

    @property
    def files(self) -> ImageFiles:
        """The image files, in the order of the samples."""
        names = [self.annotations.file_names[index].decode() for index in range(len(self))]
        return ImageFiles(self.image_folder, names, self.image_ids, self.sizes)

    def check_images(self) -> None:
        """Raise FileNotFoundError, naming some, where images are missing; it lists folders and opens no image."""
        for missing in find_missing_images(self.files)[0]:
            names = [example.file_name or "" for example in missing.examples]
            raise FileNotFoundError(
                f"{missing.count} of the {len(self)} images of {self.json_path} are missing in {self.image_folder}: "
                f"{', '.join(names)}{', ...' if missing.count > len(names) else ''}"
                f"{f'; {missing.note}' if missing.note else ''}"
            )

    def __len__(self) -> int:
        return len(self.annotations.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Returns:
            ``(image, target)`` after ``transforms``. ``image`` is a uint8 ``tv_tensors.Image`` of shape (3, H, W), RGB,
            in memory H x W x 3.
            ``target`` holds ``boxes`` (``tv_tensors.BoundingBoxes``, float32 (N, 4), x1 y1 x2 y2 in pixels), ``labels``
            (int64 (N,), 0..K-1), ``iscrowd`` (bool (N,); only when not training), ``image_id`` (int) and ``size``
            ((height, width) of the file on disk). With masks also ``masks`` (``tv_tensors.Mask``, uint8 (N, H, W), 0 or
            1), or ``polygons``: for each instance a list of ``tv_tensors.BoundingBoxes``, float64 (points, 4), whose
            boxes x y x y are the points, so that transforms move them. Masks are drawn after the transforms, at the
            size that the image has then: until :func:`draw_masks`, ``target["to_draw"]`` holds polygons in that form,
            None for an instance with an RLE, and ``masks`` those with an RLE alone.

        Raises:
            IndexError: ``index`` is not in 0..len-1.
            OSError, ValueError: the image cannot be read, or has another size than the annotation file says.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {self.json_path}; it has 0..{len(self) - 1}")
        notes = self.annotations
        height, width = size = tuple(self.sizes[index].tolist())
        own = slice(notes.first[index], notes.first[index + 1])
        image = tv_tensors.Image(read_interleaved(self.image_path(index), size))
        target: Target = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor(notes.boxes[own]), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size
            ),
            "labels": torch.tensor(notes.labels[own]),
            "image_id": int(notes.image_ids[index]),
            "size": size,
        }
        segmentations = notes.segmentations if self.gives_masks else None
        if segmentations is not None and self.mask_format == "polygon":
            target["polygons"] = [
                [as_points(polygon, size) for polygon in json.loads(segmentations[entry])]
                for entry in range(own.start, own.stop)
            ]
        elif segmentations is not None:
            found = [json.loads(segmentations[entry]) for entry in range(own.start, own.stop)]
            decoded = [decode_segmentation(each, height, width) for each in found if isinstance(each, dict)]
            masks = np.stack(decoded) if decoded else np.zeros((0, height, width), dtype=np.uint8)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
            target["to_draw"] = [
                None if isinstance(each, dict) else [as_points(polygon, size) for polygon in each] for each in found
            ]
        if not self.training:
            target["iscrowd"] = torch.tensor(notes.is_crowd[own])
        if self.transforms is not None:
            image, target = self.transforms(image, target)
        return image, draw_masks(target, (image.shape[-2], image.shape[-1]))


def draw_masks(target: Target, size: tuple[int, int]) -> Target:
    """Return a target whose ``masks`` are those of all its instances; as it is, where nothing is left to draw.

    Args:
        target: of :class:`CocoDataset`.
        size: (height, width) of its image in pixels.
    """
    if "to_draw" not in target:
        return target
    masks = np.zeros((len(target["to_draw"]), *size), dtype=np.uint8)
    decoded = iter(target["masks"].numpy())
    for mask, polygons in zip(masks, target["to_draw"], strict=True):
        if polygons is None:
            mask[:] = next(decoded)
        elif polygons:  # a crop may have left none
            mask[:] = decode_segmentation(list(map(coordinates, polygons)), *size)
    drawn = {**target, "masks": tv_tensors.Mask(torch.from_numpy(masks))}
    del drawn["to_draw"]
    return drawn


def coordinates(points: torch.Tensor) -> np.ndarray:
    """Return the polygon ``[x1, y1, x2, y2, ...]``, float64, of points in the form of a target's ``polygons``."""
    return points[:, :2].numpy().reshape(-1)


def as_points(polygon: list[float] | np.ndarray, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Return a polygon as a target's ``polygons`` has it, on an image of ``size``, (height, width)."""
    points = torch.tensor(polygon, dtype=torch.float64).reshape(-1, 2)
    return tv_tensors.BoundingBoxes(
        points.repeat(1, 2), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size, dtype=torch.float64
    )
