"""What the torchvision engine's trainer and evaluation feed the network, from their own loaders."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import ConcatDataset

from resnet_backbone.config import fit_input, required_by_source
from resnet_backbone.data.coco.dataset import CocoDataset, Target
from resnet_backbone.data.coco.masks import decode_segmentation
from resnet_backbone.data.transforms import InputImage, InputImages, pad_masks, restore_pixels
from resnet_backbone.torchvision_plugin.datasets import (
    build_test_loader,
    build_train_loader,
    check_files,
    open_test_sets,
    open_train_set,
)
from resnet_backbone.torchvision_plugin.detector import Preprocess, build_backbone


def open_sight(cfg: CfgNode, *, training: bool) -> InputImages:
    """Open the data of a config as a run in one process does.

    Args:
        cfg: see ``load_config``. MODEL.WEIGHTS is not read; what its name says of the input counts.
        training: the endless images of DATASETS.TRAIN, in the batches of the first iterations, which SEED decides (a
            negative one: other images at every call); or else those of DATASETS.TEST, each once, without masks.

    Raises:
        FileNotFoundError, ValueError: data is missing, malformed or of other classes.
    """
    cfg = cfg.clone()
    if training:
        cfg.DATASETS.TEST = ()
    check_files(cfg, training=training)
    fit_input(cfg, required_by_source(cfg.MODEL.WEIGHTS, cfg.MODEL.RESNET_BACKBONE.ARCH), cfg.MODEL.WEIGHTS)
    divisibility = build_backbone(cfg, None).size_divisibility
    preprocess = Preprocess(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, divisibility)
    return _training_images(cfg, preprocess) if training else _test_images(cfg, preprocess)


def _training_images(cfg: CfgNode, preprocess: Preprocess) -> InputImages:
    train_set = open_train_set(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    loader = build_train_loader(cfg, train_set.dataset, train_set.sizes, seed=seed, rank=0, world_size=1, start=0)
    parts: Any = train_set.dataset  # a ConcatDataset of CocoDatasets

    def images() -> Iterator[InputImage]:
        # The sampler says which samples the loader takes: the same ones every time it is asked.
        for draws, (batch, targets) in zip(loader.batch_sampler or (), loader, strict=False):
            pixels = _pixels(cfg, preprocess, batch)
            for row, image, target, (_, index) in zip(pixels, batch, targets, draws, strict=True):
                dataset, own_index = _locate(parts, index)
                untouched = dataset.with_other()[own_index][1]
                yield _seen(row, image, target, dataset.image_path(own_index), len(untouched["boxes"]))

    return InputImages(train_set.class_names, images())


def _test_images(cfg: CfgNode, preprocess: Preprocess) -> InputImages:
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name the data set to look at")
    datasets = open_test_sets(cfg, None)

    def images() -> Iterator[InputImage]:
        for dataset in datasets.values():
            loader = build_test_loader(cfg, dataset, rank=0, world_size=1)
            for index, (batch, (target,)) in enumerate(loader):
                single = ~target["iscrowd"]
                target = {**target, "boxes": target["boxes"][single], "labels": target["labels"][single]}
                (row,) = _pixels(cfg, preprocess, batch)
                yield _seen(row, batch[0], target, dataset.image_path(index), int(single.sum()))

    return InputImages(next(iter(datasets.values())).class_names, images())


def _locate(parts: ConcatDataset[Any], index: int) -> tuple[CocoDataset, int]:
    number = bisect_right(parts.cumulative_sizes, index)
    dataset = parts.datasets[number]
    if not isinstance(dataset, CocoDataset):
        raise TypeError(f"expected parts of CocoDataset, got {type(dataset).__name__}")
    return dataset, index - (parts.cumulative_sizes[number - 1] if number else 0)


def _pixels(cfg: CfgNode, preprocess: Preprocess, batch: list[Tensor]) -> Tensor:
    normalised, _ = preprocess(batch)
    return restore_pixels(normalised.tensors, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)


def _seen(row: Tensor, image: Tensor, target: Target, path: Path, annotated: int) -> InputImage:
    size = (image.shape[-2], image.shape[-1])
    masks = _masks(target, *size)
    return InputImage(
        image_id=target["image_id"],
        name=path.name,
        pixels=row,
        size=size,
        original_size=tuple(target["size"]),
        boxes=target["boxes"].as_subclass(Tensor),
        labels=target["labels"],
        masks=None if masks is None else pad_masks(masks, row.shape[-2], row.shape[-1]),
        annotated=annotated,
    )


def _masks(target: Target, height: int, width: int) -> Tensor | None:
    if "polygons" in target:
        masks = np.zeros((len(target["polygons"]), height, width), dtype=bool)
        for mask, polygons in zip(masks, target["polygons"], strict=True):
            mask[:] = decode_segmentation([polygon.tolist() for polygon in polygons], height, width)
        return torch.from_numpy(masks)
    return target["masks"].as_subclass(Tensor) if "masks" in target else None
