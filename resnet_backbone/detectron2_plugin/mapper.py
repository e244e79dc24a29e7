"""Detectron2's ``DatasetMapper`` with our reader of images and quick resizing, and batches that can be resumed.

    loader = build_detection_train_loader(cfg, mapper=TensorMapper(cfg, is_train=True))

The mapper reads no key of this package's, and so serves any project of Detectron2's; :func:`train_mapper` reads them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import (
    DatasetFromList,
    DatasetMapper,
    MapDataset,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from fvcore.common.config import CfgNode
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from resnet_backbone.data.images.read import open_image, read_interleaved
from resnet_backbone.engine.batches import (
    BatchSampler,
    SeededDataset,
    fetch,
    images_per_pass,
    restore_sigchld,
)
from resnet_backbone.engine.signals import outlive_signal

logger = logging.getLogger(__name__)

_FROM_RGB = ("RGB", "BGR", "L", "YUV-BT.601")


class TensorMapper(DatasetMapper):
    """Map a record of a data set to what a model takes: what ``DatasetMapper`` gives under the same random draws.

    It is built like ``DatasetMapper``, from a config or from arguments, takes every augmentation, and returns the same
    dictionary: equal boxes, classes, masks, keypoints, proposals and semantic segmentation. These things are done
    otherwise, and everything that is not named here by Detectron2:

    * images are read by ``data/images/read.py``, as on the torchvision engine: one of 16 bits keeps its high
      byte; an EXIF orientation is applied unless the record has the size of the stored pixels; formats are bounded;
    * in training, ``ResizeTransform`` on uint8 images of three channels is torchvision's antialiased bilinear filter,
      on tensors. It is Pillow's filter in other rounding: pixels differ by 2 of 255 levels at most, and seldom by 2;
    * masks that are given as RLE are padded with 0 (Detectron2 pads them, too, with what a label image is padded with);
    * boxes and polygons of whole numbers are moved to fractions of a pixel (Detectron2 rounds them down);
    * annotations whose box has a negative width or height are left out (Detectron2 turns such a box round);
    * of label images with a palette the indices count, not the lightness of their colors.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record in Detectron2's format, which stays as it is.

        Returns:
            The record without ``annotations``, with ``image``, a tensor (C, H, W) in INPUT.FORMAT, in memory H x W x C,
            and in training with ``instances``; ``sem_seg`` (int64 (H, W)) and ``proposals`` where the record has what
            they are made from.

        Raises:
            ValueError: the image has another height or width than the record says, or a label image has more than one
                number a pixel, or numbers above 255.
            OSError: the image cannot be read.
        """
        dataset_dict = self._copy(dataset_dict)
        image = read_image(dataset_dict["file_name"], self.image_format, size_of(dataset_dict))
        utils.check_image_size(dataset_dict, image)
        stuff = dataset_dict.pop("sem_seg_file_name", None)
        labels = None if stuff is None else _read_labels(stuff, image.shape[:2])
        inputs = (TensorAugInput if self.is_train else T.AugInput)(image, sem_seg=labels)
        transforms = self.augmentations(inputs)
        size = inputs.image.shape[:2]
        dataset_dict["image"] = to_tensor(inputs.image)
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
                {key: _COPIES.get(key, lambda value: value)(note[key]) for key in note if key not in unused}
                for note in dataset_dict["annotations"]
                if note.get("iscrowd", 0) == 0 and not self._is_reversed(note, dataset_dict)
            ]
        return copied

    @staticmethod
    def _is_reversed(note: dict[str, Any], dataset_dict: dict[str, Any]) -> bool:
        box, mode = note["bbox"], note["bbox_mode"]
        if mode == BoxMode.XYWH_ABS:
            width, height = box[2], box[3]
        elif mode == BoxMode.XYXY_ABS:
            width, height = box[2] - box[0], box[3] - box[1]
        else:
            return False
        is_reversed = width < 0 or height < 0
        if is_reversed:
            message = f"{dataset_dict['file_name']}: left out a box of negative width or height, {list(box)}"
            log_first_n(logging.WARNING, message, n=5, name=__name__)
        return is_reversed

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace ``annotations`` by ``instances``. Source: the method of this name of Detectron2's."""
        notes = dataset_dict.pop("annotations")
        for padding in (step for step in transforms.transforms if isinstance(step, T.PadTransform)):
            padding.seg_pad_value = 0  # label images have been padded already
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
        if self.recompute_boxes and instances.has("gt_masks"):  # without an instance there are none
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)


def _floats(box: Any) -> Any:
    if isinstance(box, np.ndarray):
        return box if box.dtype.kind == "f" else box.astype(np.float64)
    return list(map(float, box))


def _float_polygons(segmentation: Any) -> Any:
    if isinstance(segmentation, list):
        return [np.array(polygon, dtype=np.float64) for polygon in segmentation]
    return copy.deepcopy(segmentation)


# Of what transforms move, some in place: whole numbers stay whole in Detectron2, and are rounded down.
_COPIES = {"bbox": _floats, "segmentation": _float_polygons, "keypoints": copy.deepcopy}


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
        self.image = _by_tensor(partial(F.resize, size=[tfm.new_h, tfm.new_w], antialias=True), image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)


def train_mapper(cfg: CfgNode) -> TensorMapper:
    """Build the mapper of a training, with INPUT.LARGE_SCALE_JITTER and COLOR_JITTER, which Detectron2 has not."""
    arguments = DatasetMapper.from_config(cfg, is_train=True)
    augmentations, jitter = arguments["augmentations"], cfg.INPUT.LARGE_SCALE_JITTER
    if jitter.ENABLED:
        square, ignored = (jitter.SIZE, jitter.SIZE), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        augmentations[:1] = [T.ResizeScale(*jitter.SCALE, *square), T.FixedSizeCrop(square, seg_pad_value=ignored)]
        arguments["recompute_boxes"] = cfg.MODEL.MASK_ON
    if any(cfg.INPUT.COLOR_JITTER):
        step = -1 if cfg.INPUT.FORMAT == "BGR" else 1
        change = partial(_jitter, by=v2.ColorJitter(*cfg.INPUT.COLOR_JITTER), step=step)
        augmentations.insert(0, T.ColorTransform(change))  # which draws as on the torchvision engine
    return TensorMapper(**arguments)


def boxes_of(notes: list[dict[str, Any]]) -> torch.Tensor:
    """Return the corners x1 y1 x2 y2 of annotations in Detectron2's format, float32 (N, 4)."""
    corners = [BoxMode.convert(note["bbox"], note["bbox_mode"], BoxMode.XYXY_ABS) for note in notes]
    return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def size_of(record: dict[str, Any]) -> tuple[int, int] | None:
    """Return (height, width) in pixels as a record in Detectron2's format says it; None where it does not."""
    return (record["height"], record["width"]) if "height" in record and "width" in record else None


def read_image(file_name: str, image_format: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as :func:`resnet_backbone.data.images.read.read_image` does, into a format of Detectron2's.

    Args:
        file_name: a path, or what Detectron2's ``PathManager`` resolves.
        image_format: as INPUT.FORMAT. Of others than RGB, BGR, L and YUV-BT.601 the pixels are Detectron2's.
        size: (height, width) that the boxes are for, see there.

    Returns:
        An array of shape (H, W, C), uint8 for RGB and BGR; BGR is a view of RGB.

    Raises:
        FileNotFoundError, OSError, ValueError: as there.
    """
    path = PathManager.get_local_path(file_name)
    if image_format not in _FROM_RGB:
        return _read(path, lambda image: utils.read_image(path, format=image_format))
    rgb = np.ascontiguousarray(read_interleaved(path, size).permute(1, 2, 0).numpy())
    if image_format in ("RGB", "BGR"):
        return rgb if image_format == "RGB" else rgb[..., ::-1]
    return utils.convert_PIL_to_numpy(Image.fromarray(rgb), image_format)


def _read_labels(file_name: str, size: tuple[int, int]) -> np.ndarray:
    """Read a number a pixel, uint8 (H, W), for an image of that size."""
    labels = _read(PathManager.get_local_path(file_name), np.array)
    if labels.ndim != 2 or labels.min() < 0 or labels.max() > 255:
        what = f"{labels.shape[2]} channels" if labels.ndim == 3 else f"values from {labels.min()} to {labels.max()}"
        raise ValueError(f"{file_name}: {what}; expected labels from 0 to 255, one a pixel, as a gray or palette image")
    if labels.shape != size:
        raise ValueError(f"{file_name}: labels of {labels.shape} pixels (height, width) for an image of {size}")
    return labels.astype(np.uint8)


def _read(path: str, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Open a file as an image of one of the formats of :mod:`resnet_backbone.data.images.read`, and read it."""
    try:
        with open_image(path) as image:
            return read(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except Exception as error:  # of a broken file Pillow's decoders raise nearly anything
        raise OSError(f"{path}: cannot be read as an image ({error}); replace it or take it out") from error


def _is_resizable(image: np.ndarray, tfm: T.ResizeTransform) -> bool:
    is_color = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    return is_color and image.shape[:2] == (tfm.h, tfm.w) and tfm.interp == Image.Resampling.BILINEAR


def _by_tensor(change: Callable[[torch.Tensor], torch.Tensor], image: np.ndarray) -> np.ndarray:
    """Change an array (H, W, 3) as a tensor (3, H, W) of its channels in the order in which they lie in memory."""
    if image.strides[2] < 0:  # a tensor has no negative strides; each channel is changed by itself
        return _by_tensor(change, image[..., ::-1])[..., ::-1]
    return change(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)).permute(1, 2, 0).numpy()


def _jitter(image: np.ndarray, by: v2.ColorJitter, step: int) -> np.ndarray:
    return _by_tensor(by, np.ascontiguousarray(image[..., ::step]))[..., ::step]  # of RGB


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Turn an array (H, W, C), which may be a mirrored or reordered view, into a tensor (C, H, W)."""
    if image.shape[2] != 3 or not image.flags.writeable:  # as Pillow's are
        return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)
    mirrored, reordered = image.strides[1] < 0, image.strides[2] < 0
    pixels = torch.from_numpy(np.ascontiguousarray(image[:, :: -1 if mirrored else 1, :: -1 if reordered else 1]))
    if reordered:  # three channels are too few to reverse quickly; whole rows are, which mirrors them, too
        pixels = pixels.flatten(1).flip(1).view(pixels.shape)
    tensor = pixels.permute(2, 0, 1)
    return tensor.flip(2) if mirrored != reordered else tensor


def _boxes_suffice(notes: list[dict[str, Any]]) -> bool:
    """Whether all notes are boxes and classes alone, in one mode."""
    modes = {note["bbox_mode"] for note in notes}
    return (
        len(modes) == 1
        and modes <= {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS}
        and all(
            "segmentation" not in note
            and "keypoints" not in note
            and isinstance(note["bbox"], list)
            and len(note["bbox"]) == 4
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


Batch = list[dict[str, Any]]
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class ResumableLoader:
    """Endless batches of one process. Detectron2's own loader begins with its first image again after a resume.

    Other samplers than TrainingSampler are Detectron2's, and do that. ``mapper`` is by default a :func:`train_mapper`.

    Attributes:
        seed: of the order and of all that is random, the same in all processes.
        start: number of the first batch. Both count from the moment when the first batch is asked for.
        image_ids: of the batch that was fetched last.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper | None = None) -> None:
        self.cfg = cfg
        self.mapper = train_mapper(cfg) if mapper is None else mapper
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.start = 0
        self.image_ids: list[Any] = []
        logger.info("images are read as on the torchvision engine, and resized by torchvision (TensorMapper)")

    def __iter__(self) -> Iterator[Batch]:
        """Raises: DataError for images that cannot be read, and loading processes that died."""
        batches = iter(self._loader())
        restore_sigchld()
        while True:
            batch: Batch = fetch(batches)
            self.image_ids = [sample.get("image_id", sample.get("file_name")) for sample in batch]
            yield batch

    def _loader(self) -> Any:
        cfg, mapper = self.cfg, self.mapper
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            if self.start:
                logger.warning("DATALOADER.SAMPLER_TRAIN %s begins again", cfg.DATALOADER.SAMPLER_TRAIN)
            return build_detection_train_loader(cfg, mapper=mapper)
        records = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        # Records of semantic segmentation may be without their size.
        sampler = BatchSampler(
            [record.get("width", 1) / record.get("height", 1) for record in records],
            images_per_pass(cfg, comm.get_world_size()),
            group=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            seed=self.seed,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            start=self.start,
        )
        return DataLoader(
            SeededDataset(MapDataset(DatasetFromList(records, copy=False), mapper), self.seed),
            batch_sampler=sampler,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            worker_init_fn=outlive_signal,
            generator=torch.Generator(),  # whose numbers nobody uses; a loader takes the network's otherwise
        )
