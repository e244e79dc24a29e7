"""Training batches whose order and random numbers depend on seed and iteration alone, so that a run goes on exactly."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetFromList, MapDataset, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch.utils.data import DataLoader, Dataset

from resnet_backbone.detectron2_plugin.mapper import TensorMapper
from resnet_backbone.engine.batches import (
    BatchSampler,
    Draw,
    derive_seed,
    fetch,
    images_per_pass,
    let_the_next_fetch_find_dead_workers,
)
from resnet_backbone.engine.signals import stay_for_the_parent

logger = logging.getLogger(__name__)

Batch = list[dict[str, Any]]
Mapper = Callable[[dict[str, Any]], dict[str, Any]]


class ResumableLoader:
    """Endless batches of one process. Detectron2's own loader begins with its first image again after a resume.

    Other samplers than TrainingSampler are Detectron2's, and do that.

    Args:
        cfg: reads DATASETS.TRAIN, DATALOADER, INPUT, SEED and SOLVER.IMS_PER_BATCH.
        mapper: from a record to what the network gets; by default a ``TensorMapper``.

    Attributes:
        seed: of the order and of all that is random, the same in all processes.
        start: number of the first batch. Both count from the moment when the first batch is asked for.
        image_ids: of the batch that was fetched last.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper | None = None) -> None:
        self.cfg = cfg
        self.mapper = TensorMapper(cfg, is_train=True) if mapper is None else mapper
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.start = 0
        self.image_ids: list[Any] = []
        logger.info("images are read as on the torchvision engine, and resized by torchvision (TensorMapper)")

    def __iter__(self) -> Iterator[Batch]:
        """Raises: DataError for images that cannot be read, and loading processes that died."""
        batches = iter(self._loader())
        let_the_next_fetch_find_dead_workers()
        while True:
            batch: Batch = fetch(batches)
            self.image_ids = [sample.get("image_id", sample.get("file_name")) for sample in batch]
            yield batch

    def _loader(self) -> Any:
        cfg, mapper = self.cfg, self.mapper
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            if self.start:
                logger.warning("DATALOADER.SAMPLER_TRAIN %s begins anew", cfg.DATALOADER.SAMPLER_TRAIN)
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
            _Seeded(MapDataset(DatasetFromList(records, copy=False), mapper), self.seed),
            batch_sampler=sampler,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=list,
            worker_init_fn=stay_for_the_parent,
            generator=torch.Generator(),  # whose numbers nobody uses; a loader takes the network's otherwise
        )


class _Seeded(Dataset[dict[str, Any]]):
    """``dataset`` indexed by draws: the n-th draw transforms its sample with random numbers of its own."""

    def __init__(self, dataset: Dataset[dict[str, Any]], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        position, index = draw
        states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
        own = derive_seed(self.seed, position)
        random.seed(own)
        np.random.seed(own % 2**32)
        torch.default_generator.manual_seed(own)
        try:
            return self.dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.default_generator.set_state(states[2])
