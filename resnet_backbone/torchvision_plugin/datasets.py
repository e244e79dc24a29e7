"""The data sets that a config names, opened with its transforms."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from fvcore.common.config import CfgNode
from torch.utils.data import ConcatDataset, Dataset

from resnet_backbone.data.catalog import check_dataset_files, check_same_classes, get_dataset
from resnet_backbone.data.coco import CocoDataset, Sample
from resnet_backbone.data.transforms import test_transforms, train_transforms
from resnet_backbone.evaluation.coco import IouType
from resnet_backbone.evaluation.coco_input import read_ground_truth

logger = logging.getLogger(__name__)


class TrainSet(NamedTuple):
    """What DATASETS.TRAIN names, as one data set."""

    dataset: Dataset[Sample]
    sizes: np.ndarray  # (N, 2), height and width of each image in pixels
    class_names: tuple[str, ...]


def check_files(cfg: CfgNode, *, training: bool) -> None:
    """Raise FileNotFoundError for the first file or folder that a run would miss, with the command that gets it."""
    for key, names in (("TRAIN", cfg.DATASETS.TRAIN if training else ()), ("TEST", cfg.DATASETS.TEST)):
        if isinstance(names, str):
            raise ValueError(f'DATASETS.{key} is the text {names!r}; write a list of names: ["{names}"]')
        for name in names:
            check_dataset_files(get_dataset(name, cfg.DATASETS.OWN))
    if training and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name the data set to train on")


def open_train_set(cfg: CfgNode) -> TrainSet:
    """Open what DATASETS.TRAIN names, one after another, with the training transforms of INPUT.

    Raises:
        ValueError: a malformed file (with MODEL.MASK_ON, one without masks, or masks that are not of
            INPUT.MASK_FORMAT), sets of different classes, or no image with a box.
    """
    transforms = train_transforms(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        cfg.INPUT.RANDOM_FLIP,
    )
    parts = []
    for name in cfg.DATASETS.TRAIN:
        spec = get_dataset(name, cfg.DATASETS.OWN)
        parts.append(
            CocoDataset(
                spec.json_path,
                spec.image_folder,
                transforms,
                with_masks=cfg.MODEL.MASK_ON,
                mask_format=cfg.INPUT.MASK_FORMAT,
            )
        )
        parts[-1].check_images()
        check_same_classes(name, parts[-1].class_names, parts[0].class_names)
    if sum(map(len, parts)) == 0:
        raise ValueError(f"DATASETS.TRAIN {list(cfg.DATASETS.TRAIN)} holds no image with a box to learn from")
    return TrainSet(ConcatDataset(parts), np.concatenate([part.sizes for part in parts]), parts[0].class_names)


def open_test_sets(cfg: CfgNode, class_names: tuple[str, ...]) -> dict[str, CocoDataset]:
    """Open what DATASETS.TEST names with the test transforms of INPUT.

    Raises:
        ValueError: a malformed file, or other classes than ``class_names``, those of the training.
    """
    transforms = test_transforms(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    sets = {}
    for name in cfg.DATASETS.TEST:
        spec = get_dataset(name, cfg.DATASETS.OWN)
        sets[name] = CocoDataset(spec.json_path, spec.image_folder, transforms, training=False)
        sets[name].check_images()
        for iou_type in iou_types(cfg):
            read_ground_truth(spec.json_path, iou_type)  # what the evaluation refuses, it refuses before the training
        check_same_classes(name, sets[name].class_names, class_names)
    return sets


def iou_types(cfg: CfgNode) -> tuple[IouType, ...]:
    """Return what the evaluation compares: boxes, and masks where the detector has them."""
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


def set_num_classes(cfg: CfgNode, class_names: tuple[str, ...]) -> None:
    """Write NUM_CLASSES of MODEL.ROI_HEADS, or of MODEL.RETINANET, in place, from the classes of the data."""
    key = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    if cfg.MODEL[key].NUM_CLASSES != len(class_names):
        logger.info("MODEL.%s.NUM_CLASSES: %d, from the data: %s", key, len(class_names), ", ".join(class_names))
        cfg.MODEL[key].NUM_CLASSES = len(class_names)
