"""Training batches: what each one holds depends on the seed and its number alone; errors in fetching them."""

from __future__ import annotations

import hashlib
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from resnet_backbone.engine.command_line import plain_text

Draw = tuple[int, int]  # (how many samples were drawn before, index of the sample)
_DEAD_WORKER = "DataLoader worker"  # how torch's message begins


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


class SeededDataset(Dataset[Any]):
    """``dataset`` indexed by draws: the n-th draw transforms its sample with random numbers of its own.

    Args:
        dataset: transformed with random numbers of torch, NumPy or Python.
        seed: of all of them.
        channel_order: of samples that are (RGB image (3, H, W), target): in which images are returned, RGB or BGR; None
            returns samples as they are.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, channel_order: str | None = None) -> None:
        self.dataset = dataset
        self.seed = seed
        self.channel_order = channel_order

    def __getitem__(self, draw: Draw) -> Any:
        position, index = draw
        # The CPU's generator alone: torch.manual_seed would reach into the GPU's, too.
        generator = torch.default_generator
        states = random.getstate(), np.random.get_state(), generator.get_state()
        own = derive_seed(self.seed, position)
        random.seed(own)
        np.random.seed(own % 2**32)
        generator.manual_seed(own)
        try:
            sample = self.dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            generator.set_state(states[2])
        if self.channel_order is None:
            return sample
        image, target = sample
        return reorder_channels(image, self.channel_order), target


def reorder_channels(image: Tensor, channel_order: str) -> Tensor:
    """Turn an RGB image (3, H, W) into ``channel_order``, RGB or BGR; how it lies in memory stays."""
    if channel_order != "BGR":
        return image
    pixels = image.permute(1, 2, 0)
    if not pixels.is_contiguous():
        return image.flip(0)
    # Three channels are too few to reverse quickly: reverse whole rows of H x W x 3, and put the pixels back in order.
    rows = pixels.flatten(1).flip(1)
    return rows.view(pixels.shape).permute(2, 0, 1).flip(2)


def images_per_pass(cfg: CfgNode, world_size: int) -> int:
    """Return how many images one process takes in one forward pass.

    Raises:
        ValueError: SOLVER.IMS_PER_BATCH cannot be shared out evenly.
    """
    solver = cfg.SOLVER
    shares = world_size * solver.ACCUMULATION_STEPS
    if solver.IMS_PER_BATCH % shares:
        below = solver.IMS_PER_BATCH // shares * shares
        nearest = f"{below} or {below + shares}" if below else shares
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} must be a multiple of the {world_size} processes times "
            f"SOLVER.ACCUMULATION_STEPS {solver.ACCUMULATION_STEPS}: write SOLVER.IMS_PER_BATCH {nearest}, and "
            f"SOLVER.BASE_LR in proportion, or take another number of processes"
        )
    return solver.IMS_PER_BATCH // shares


class DataError(OSError):
    """A batch cannot be had: an image is missing or broken, or a process that loads images has died."""


def fetch(batches: Iterator[Any]) -> Any:
    """Return the next batch; raise DataError where it cannot be had, StopIteration where there is none."""
    try:
        return next(batches)
    except (OSError, ValueError, RuntimeError) as error:
        text = plain_text(error)
        if text.startswith(_DEAD_WORKER):
            text = (
                f"a process that loads images has died ({text}). Mostly memory has run out (the system's log says so); "
                f"fewer such processes need less: DATALOADER.NUM_WORKERS"
            )
        raise DataError(text) from error


class BatchLoader:
    """The batches of a loader, each by :func:`fetch`, and their number."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Raises: DataError, see there."""
        batches = iter(self.loader)
        for _ in range(len(self)):
            yield fetch(batches)


def restore_sigchld() -> None:
    """Take back torch's handler of SIGCHLD, which raises in the middle of whatever the process does then.

    :func:`fetch` finds a dead worker within seconds, and always between two steps. To be called once loaders run.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
