"""Detectron2, and our mapper in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.datasets import load_coco_json


def training_samples(
    json_path: Path,
    image_folder: Path,
    sizes: tuple[int, ...],
    max_size: int,
    mapper: type[DatasetMapper] = DatasetMapper,
) -> Sequence[Any]:
    """What ``build_detection_train_loader`` reads, in a BGR model's channel order, Detectron2's default."""
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = sizes, max_size
    records = [record for record in load_coco_json(str(json_path), str(image_folder)) if record["annotations"]]
    return MapDataset(DatasetFromList(records), mapper(cfg, True))
