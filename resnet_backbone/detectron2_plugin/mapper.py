"""Detectron2's ``DatasetMapper`` with quick decoding and resizing.

    loader = build_detection_train_loader(cfg, mapper=TensorMapper(cfg, is_train=True))

It reads no key of this package's, and so serves any project of Detectron2's.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as F

from resnet_backbone.data.images import open_image
from resnet_backbone.data.jpeg import decode_plain_jpeg

_CHANGED_IN_PLACE = ("segmentation", "keypoints")  # by transforms, where they are arrays


class TensorMapper(DatasetMapper):
    """Map a record of a data set to what a model takes: what ``DatasetMapper`` gives under the same random draws.

    It is built like ``DatasetMapper``, from a config or from arguments, takes every augmentation, and returns the same
    dictionary: equal boxes, classes, masks, keypoints, proposals and semantic segmentation. Two things are done
    otherwise, and everything that is not named here by Detectron2:

    * JPEG files of one or three components, without an EXIF orientation, are decoded by torchvision, to equal pixels;
    * ``ResizeTransform`` on uint8 images of three channels is torchvision's antialiased bilinear filter, on tensors.
      It is Pillow's filter in other rounding: pixels differ by 1 of 255 levels at most.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record in Detectron2's format, which stays as it is.

        Returns:
            The record without ``annotations``, with ``image``, a tensor (C, H, W) in INPUT.FORMAT, in memory H x W x C,
            and in training with ``instances``; ``sem_seg`` (int64 (H, W)) and ``proposals`` where the record has what
            they are made from.

        Raises:
            SizeMismatchError: the image has another height or width than the record says.
            OSError: the image cannot be read.
        """
        dataset_dict = self._copy(dataset_dict)
        image = read_image(dataset_dict["file_name"], self.image_format)
        utils.check_image_size(dataset_dict, image)
        stuff = dataset_dict.pop("sem_seg_file_name", None)
        inputs = TensorAugInput(image, sem_seg=None if stuff is None else utils.read_image(stuff, "L").squeeze(2))
        transforms = self.augmentations(inputs)
        size = inputs.image.shape[:2]
        dataset_dict["image"] = _to_tensor(inputs.image)
        if inputs.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(inputs.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, size, transforms, proposal_topk=self.proposal_topk)
        if "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, size)
        return dataset_dict

    def _copy(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy what is used: most of a record are polygons and keypoints, which takes as long as a resize."""
        copied = copy.deepcopy({key: value for key, value in dataset_dict.items() if key != "annotations"})
        if self.is_train and "annotations" in dataset_dict:
            unused = set() if self.use_instance_mask else {"segmentation"}
            unused |= set() if self.use_keypoint else {"keypoints"}
            copied["annotations"] = [
                {
                    key: copy.deepcopy(value) if key in _CHANGED_IN_PLACE else value
                    for key, value in note.items()
                    if key not in unused
                }
                for note in dataset_dict["annotations"]
                if note.get("iscrowd", 0) == 0
            ]
        return copied

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace ``annotations`` by ``instances``. Source: the method of this name of Detectron2's."""
        notes = dataset_dict.pop("annotations")
        if _boxes_suffice(notes):
            instances = _move_boxes(notes, transforms, image_shape)
        else:
            moved = [
                utils.transform_instance_annotations(
                    note, transforms, image_shape, keypoint_hflip_indices=self.keypoint_hflip_indices
                )
                for note in notes
            ]
            instances = utils.annotations_to_instances(moved, image_shape, mask_format=self.instance_mask_format)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)


class TensorAugInput(T.AugInput):
    """Detectron2's ``AugInput``; its image, an array (H, W, C) as there, is resized by torchvision where it can be."""

    image: np.ndarray
    boxes: np.ndarray | None
    sem_seg: np.ndarray | None

    def transform(self, tfm: T.Transform) -> None:
        image = self.image
        if type(tfm) is not T.ResizeTransform or not _is_resizable(image, tfm):
            super().transform(tfm)
            return
        self.image = _resize(image, tfm.new_h, tfm.new_w)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """Read an image as ``detectron2.data.detection_utils.read_image`` does; BGR can be a view of RGB.

    Args:
        file_name: a path, or what Detectron2's ``PathManager`` resolves.
        image_format: as INPUT.FORMAT.

    Returns:
        An array of shape (H, W, C), uint8 for RGB and BGR.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is truncated, or no image of one of the formats of :mod:`resnet_backbone.data.images`.
    """
    try:
        with PathManager.open(file_name, "rb") as file, open_image(file) as image:
            is_plain = image_format in ("RGB", "BGR") and _is_upright(image)
            pixels = decode_plain_jpeg(image) if is_plain else None
        if pixels is None:
            return utils.read_image(file_name, format=image_format)
    except FileNotFoundError:
        raise FileNotFoundError(f"{file_name}: no such image file") from None
    except Exception as error:  # of a broken file Pillow's decoders raise nearly anything
        raise OSError(f"{file_name}: cannot be read as an image ({error}); replace it or take it out") from error
    rgb = pixels.permute(1, 2, 0).numpy()
    return rgb if image_format == "RGB" else rgb[..., ::-1]


def _is_upright(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except Exception:  # noqa: BLE001  of a damaged EXIF block, whatever it is; Detectron2 reads such a file
        return False


def _is_resizable(image: np.ndarray, tfm: T.ResizeTransform) -> bool:
    is_color = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    return is_color and image.shape[:2] == (tfm.h, tfm.w) and tfm.interp == Image.Resampling.BILINEAR


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.strides[2] < 0:  # a tensor has no negative strides; each channel is resized by itself
        return _resize(image[..., ::-1], height, width)[..., ::-1]
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return F.resize(pixels, [height, width], antialias=True).permute(1, 2, 0).numpy()


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    """Turn an array (H, W, C), which may be a mirrored or reordered view, into a tensor (C, H, W)."""
    if image.shape[2] != 3:
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    mirrored, reordered = image.strides[1] < 0, image.strides[2] < 0
    pixels = torch.from_numpy(np.ascontiguousarray(image[:, :: -1 if mirrored else 1, :: -1 if reordered else 1]))
    if reordered:  # three channels are too few to reverse quickly; whole rows are, which mirrors them, too
        pixels = pixels.flatten(1).flip(1).view(pixels.shape)
    tensor = pixels.permute(2, 0, 1)
    return tensor.flip(2) if mirrored != reordered else tensor


def _boxes_suffice(notes: list[dict[str, Any]]) -> bool:
    """Whether all notes are boxes and classes alone, in one mode and of floating-point numbers.

    Detectron2 computes with boxes of four integers in integers.
    """
    modes = {note["bbox_mode"] for note in notes}
    return (
        len(modes) == 1
        and modes <= {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}
        and all(
            "segmentation" not in note
            and "keypoints" not in note
            and isinstance(note["bbox"], list)
            and len(note["bbox"]) == 4
            and any(type(value) is float for value in note["bbox"])
            for note in notes
        )
    )


def _move_boxes(notes: list[dict[str, Any]], transforms: T.TransformList, image_shape: tuple[int, int]) -> Instances:
    """Do for all boxes at once what Detectron2 does for one after another, in the same precision at each step.

    Source: ``transform_instance_annotations`` and ``annotations_to_instances``.
    """
    mode = notes[0]["bbox_mode"]
    boxes = np.array([note["bbox"] for note in notes], dtype=np.float64)
    if mode != BoxMode.XYXY_ABS:
        boxes = BoxMode.convert(boxes.astype(np.float32), mode, BoxMode.XYXY_ABS).astype(np.float64)
    height, width = image_shape
    boxes = np.minimum(transforms.apply_box(boxes).clip(min=0), [width, height, width, height])
    instances = Instances(image_shape)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.tensor([int(note["category_id"]) for note in notes], dtype=torch.int64)
    return instances
