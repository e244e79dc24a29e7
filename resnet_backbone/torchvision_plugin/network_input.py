"""What the torchvision engine's trainer and evaluation feed the network, from their own loaders."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from resnet_backbone.config import fit_input, required_by_source
from resnet_backbone.data.coco.dataset import Target
from resnet_backbone.data.coco.masks import draw_masks
from resnet_backbone.data.transforms import InputImage, InputImages, pad_masks, restore_pixels
from resnet_backbone.torchvision_plugin.datasets import (
    build_test_loader,
    build_train_loader,
    check_files,
    open_test_sets,
    open_train_set,
)
from resnet_backbone.torchvision_plugin.detector import Preprocess, build_backbone, build_preprocess


def open_network_input(cfg: CfgNode, *, training: bool) -> InputImages:
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
    preprocess = build_preprocess(cfg, build_backbone(cfg, None))
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
                number = bisect_right(parts.cumulative_sizes, index)
                dataset = parts.datasets[number]
                own_index = index - (parts.cumulative_sizes[number - 1] if number else 0)
                untouched = dataset.with_other()[own_index][1]
                yield _input_image(row, image, target, dataset.image_path(own_index), len(untouched["boxes"]))

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
                yield _input_image(row, batch[0], target, dataset.image_path(index), int(single.sum()))

    return InputImages(next(iter(datasets.values())).class_names, images())


def _pixels(cfg: CfgNode, preprocess: Preprocess, batch: list[Tensor]) -> Tensor:
    normalised, _ = preprocess(batch)
    return restore_pixels(normalised.tensors, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)


def _input_image(row: Tensor, image: Tensor, target: Target, path: Path, annotated: int) -> InputImage:
    size = (image.shape[-2], image.shape[-1])
    polygons = target.get("polygons")
    masks = target.get("masks") if polygons is None else torch.from_numpy(draw_masks(polygons, *size))
    return InputImage(
        image_id=target["image_id"],
        name=path.name,
        pixels=row,
        size=size,
        original_size=tuple(target["size"]),
        boxes=target["boxes"].as_subclass(Tensor),
        labels=target["labels"],
        masks=None if masks is None else pad_masks(masks.as_subclass(Tensor), row.shape[-2], row.shape[-1]),
        annotated=annotated,
    )
