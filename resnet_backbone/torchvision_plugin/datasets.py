"""The data sets that a config names, with its transforms, and their loaders for training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from resnet_backbone.config.weights_input import fit_num_classes
from resnet_backbone.data.catalog import check_dataset_files, check_same_classes, get_dataset
from resnet_backbone.data.coco.dataset import CocoDataset, Sample, Target
from resnet_backbone.data.coco.findings import report_findings
from resnet_backbone.data.coco.read import IouType
from resnet_backbone.data.images.checks import compare_images
from resnet_backbone.data.transforms import test_transforms, train_transforms
from resnet_backbone.engine.batches import BatchSampler, SeededDataset, images_per_pass, reorder_channels
from resnet_backbone.engine.signals import outlive_signal

logger = logging.getLogger(__name__)


class TrainSet(NamedTuple):
    """What DATASETS.TRAIN names, as one data set."""

    dataset: Dataset[Sample]
    sizes: np.ndarray  # (N, 2), height and width of each image in pixels
    class_names: tuple[str, ...]
    parts: Mapping[str, CocoDataset]  # by name, in the order of the data set


def check_files(cfg: CfgNode, *, training: bool) -> None:
    """Raise FileNotFoundError for the first file or folder that a run would miss, with the command that gets it."""
    for name in (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST):
        check_dataset_files(get_dataset(name, cfg.DATASETS.OWN))
    if training and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name the data set to train on")


def open_train_set(cfg: CfgNode) -> TrainSet:
    """Open what DATASETS.TRAIN names (see :func:`check_files`), one after another, with the training transforms.

    Raises:
        ValueError: a malformed file (with MODEL.MASK_ON, one without masks, or masks that are not of
            INPUT.MASK_FORMAT), sets of different classes, or no image with a box.
    """
    crop, jitter = cfg.INPUT.CROP, cfg.INPUT.LARGE_SCALE_JITTER
    transforms = train_transforms(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        cfg.INPUT.RANDOM_FLIP,
        crop=(crop.TYPE, crop.SIZE) if crop.ENABLED else None,
        large_scale_jitter=(*jitter.SCALE, jitter.SIZE) if jitter.ENABLED else None,
        color_jitter=cfg.INPUT.COLOR_JITTER,
    )
    parts: list[CocoDataset] = []
    for name in cfg.DATASETS.TRAIN:
        spec = get_dataset(name, cfg.DATASETS.OWN)
        part = CocoDataset(
            spec.json_path,
            spec.image_folder,
            transforms,
            with_masks=cfg.MODEL.MASK_ON,
            mask_format=cfg.INPUT.MASK_FORMAT,
        )
        part.check_images()
        parts.append(part)
        check_same_classes(name, part.class_names, parts[0].class_names)
    sizes = np.concatenate([part.sizes for part in parts])
    named = dict(zip(cfg.DATASETS.TRAIN, parts, strict=True))
    return TrainSet(ConcatDataset(parts), sizes, parts[0].class_names, named)


def open_test_sets(
    cfg: CfgNode, class_names: tuple[str, ...] | None, train_set: TrainSet | None = None
) -> dict[str, CocoDataset]:
    """Open what DATASETS.TEST names with the test transforms of INPUT, and check the images of all sets of the run.

    Classes must be ``class_names``, those of the training; None takes those of the first set.

    Raises:
        ValueError: a malformed file, other classes, or, with DATASETS.CHECK_IMAGES, images that cannot be used.
    """
    transforms = test_transforms(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    sets = {}
    for name in cfg.DATASETS.TEST:
        spec = get_dataset(name, cfg.DATASETS.OWN)
        opened = CocoDataset(spec.json_path, spec.image_folder, with_masks=cfg.MODEL.MASK_ON, training=False)
        opened.check_images()
        sets[name] = opened.with_other(transforms, masks=False)  # masks are compared, and the network needs none
        check_same_classes(name, opened.class_names, class_names or opened.class_names)
        class_names = class_names or opened.class_names
    _check_images(cfg, train_set, sets)
    return sets


def _check_images(cfg: CfgNode, train_set: TrainSet | None, test_sets: Mapping[str, CocoDataset]) -> None:
    """On the main process: the others wait for it where they next talk to it."""
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    train = {} if train_set is None else {name: part.files for name, part in train_set.parts.items()}
    test = {name: dataset.files for name, dataset in test_sets.items()}
    for name, findings in compare_images(train, test, deep=cfg.DATASETS.CHECK_IMAGES):
        report_findings(name, findings)


def iou_types(cfg: CfgNode) -> tuple[IouType, ...]:
    """Return what the evaluation compares: boxes, and masks where the detector has them."""
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


def set_num_classes(cfg: CfgNode, class_names: tuple[str, ...]) -> None:
    """Write NUM_CLASSES of MODEL.ROI_HEADS, or of MODEL.RETINANET, in place, from the classes of the data."""
    section = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    fit_num_classes(cfg, section, len(class_names))


def build_train_loader(
    cfg: CfgNode, dataset: Dataset[Sample], sizes: np.ndarray, *, seed: int, rank: int, world_size: int, start: int
) -> DataLoader[Any]:
    """Return an endless loader of (images, targets), lists of one process's share of a forward pass.

    Args:
        cfg: reads SOLVER.IMS_PER_BATCH, SOLVER.ACCUMULATION_STEPS, DATALOADER and INPUT.FORMAT.
        dataset: with training transforms.
        sizes: (N, 2) height and width of its samples.
        seed, rank, world_size, start: see :class:`BatchSampler`; ``start`` counts forward passes.

    Raises:
        ValueError: the images of a batch cannot be shared out evenly.
    """
    sampler = BatchSampler(
        sizes[:, 1] / sizes[:, 0],
        images_per_pass(cfg, world_size),
        group=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start=start,
    )
    return DataLoader(
        SeededDataset(dataset, seed, cfg.INPUT.FORMAT),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_collate,
        worker_init_fn=outlive_signal,
        pin_memory=cfg.MODEL.DEVICE == "cuda",
    )


def build_test_loader(cfg: CfgNode, dataset: CocoDataset, *, rank: int, world_size: int) -> DataLoader[Any]:
    """Return a loader of one image at a time, its channels in the order of INPUT.FORMAT, over this process's share of
    ``dataset``, every image once overall."""
    return DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=partial(_collate, channel_order=cfg.INPUT.FORMAT),
        worker_init_fn=outlive_signal,
    )


def _collate(samples: list[Sample], channel_order: str = "RGB") -> tuple[list[Tensor], list[Target]]:
    return [reorder_channels(image, channel_order) for image, _ in samples], [target for _, target in samples]
