"""Batches for training and for evaluation. What a batch holds is a function of the seed and its number alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from resnet_backbone.data.coco import CocoDataset, Sample, Target

Draw = tuple[int, int]  # (how many samples were drawn before, index of the sample)


def derive_seed(*parts: int) -> int:
    """Return a seed of 63 bits that depends on every one of ``parts`` and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class BatchSampler(Sampler[list[Draw]]):
    """Endless batches of one process: every epoch a new permutation, dealt out to the processes in turn.

    Args:
        aspect_ratios: width / height of every sample.
        batch_size: samples a batch.
        group: only samples of one orientation (wide or tall) share a batch, so that padding stays small.
        seed: the same on all processes.
        rank, world_size: which of how many processes this is.
        start: number of the first batch to yield; the ones before it are skipped without reading a sample.

    Source: Detectron2, ``TrainingSampler`` and ``AspectRatioGroupedDataset``.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float] | np.ndarray,
        batch_size: int,
        *,
        group: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ) -> None:
        self.wide = np.asarray(aspect_ratios) > 1 if group else np.zeros(len(aspect_ratios), dtype=bool)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start

    def __iter__(self) -> Iterator[list[Draw]]:
        return islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[Draw]]:
        buckets: dict[bool, list[Draw]] = {False: [], True: []}
        for draw in self._draws():
            bucket = buckets[bool(self.wide[draw[1]])]
            bucket.append(draw)
            if len(bucket) == self.batch_size:
                yield list(bucket)
                bucket.clear()

    def _draws(self) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(self.seed)
        position = 0
        while True:
            for index in torch.randperm(len(self.wide), generator=generator).tolist():
                if position % self.world_size == self.rank:
                    yield position, index
                position += 1


class SeededDataset(Dataset[Sample]):
    """``dataset`` indexed by draws: the n-th draw transforms its sample with random numbers of its own."""

    def __init__(self, dataset: Dataset[Sample], seed: int, channel_order: str) -> None:
        self.dataset = dataset
        self.seed = seed
        self.channel_order = channel_order

    def __getitem__(self, draw: Draw) -> Sample:
        position, index = draw
        # The CPU's generator alone: torch.manual_seed would reach into the GPU's, too.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(derive_seed(self.seed, position))
        try:
            image, target = self.dataset[index]
        finally:
            generator.set_state(state)
        return reorder_channels(image, self.channel_order), target


def reorder_channels(image: Tensor, channel_order: str) -> Tensor:
    """Turn an RGB image (3, H, W) into ``channel_order``, RGB or BGR."""
    return image.flip(0) if channel_order == "BGR" else image


def images_per_pass(cfg: CfgNode, world_size: int) -> int:
    """Return how many images one process takes in one forward pass.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH cannot be shared out evenly.
    """
    solver = cfg.SOLVER
    shares = world_size * solver.ACCUMULATION_STEPS
    if solver.IMS_PER_BATCH % shares:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} must be a multiple of the {world_size} processes times "
            f"SOLVER.ACCUMULATION_STEPS {solver.ACCUMULATION_STEPS}"
        )
    return solver.IMS_PER_BATCH // shares


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
        pin_memory=cfg.MODEL.DEVICE != "cpu",
    )


def build_test_loader(cfg: CfgNode, dataset: CocoDataset, *, rank: int, world_size: int) -> DataLoader[Any]:
    """Return a loader of one image at a time over this process's share of ``dataset``, every image once overall."""
    return DataLoader(
        Subset(dataset, range(rank, len(dataset), world_size)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
    )


def collate(samples: list[Sample]) -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
