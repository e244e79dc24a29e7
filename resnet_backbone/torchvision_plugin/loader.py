"""Loaders of images with boxes, for training and for evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from resnet_backbone.config.interruption import stay_for_the_parent
from resnet_backbone.data.coco import CocoDataset, Sample, Target
from resnet_backbone.training.batches import BatchSampler, SeededDataset, images_per_pass


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
        collate_fn=collate,
        worker_init_fn=stay_for_the_parent,
        pin_memory=cfg.MODEL.DEVICE != "cpu",
    )


def build_test_loader(cfg: CfgNode, dataset: CocoDataset, *, rank: int, world_size: int) -> DataLoader[Any]:
    """Return a loader of one image at a time over this process's share of ``dataset``, every image once overall."""
    return DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
        worker_init_fn=stay_for_the_parent,
    )


def collate(samples: list[Sample]) -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
