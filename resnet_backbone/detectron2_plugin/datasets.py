"""The data sets that a config names, in Detectron2's catalog."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from fvcore.common.config import CfgNode

from resnet_backbone.data.catalog import DatasetSpec, check_dataset_files, get_dataset
from resnet_backbone.data.coco import CocoDataset
from resnet_backbone.evaluation.coco_input import read_ground_truth

logger = logging.getLogger(__name__)


def register_datasets(cfg: CfgNode, *, training: bool) -> None:
    """Enter what DATASETS.TRAIN and TEST name, and Detectron2 does not know, into its catalog; check that it is there.

    Our own names (``shapes_train``, ``bccd_test``, ...) and those of DATASETS.OWN are read and checked whole.

    Raises:
        FileNotFoundError: a file or folder is missing; the message says how to get it.
        ValueError: an unknown name, a malformed file, or sets of different classes.
    """
    if training and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name the data set to train on")
    own = {entry["NAME"]: get_dataset(entry["NAME"], cfg.DATASETS.OWN) for entry in _entries(cfg)}
    classes: dict[str, list[str]] = {}
    for key, names in (("TRAIN", cfg.DATASETS.TRAIN if training else ()), ("TEST", cfg.DATASETS.TEST)):
        if isinstance(names, str):
            raise ValueError(f'DATASETS.{key} is the text {names!r}; write a list of names: ["{names}"]')
        for name in names:
            if name in own or name not in DatasetCatalog:
                _register(own.get(name) or get_dataset(name), training=key == "TRAIN")
            else:
                check_files(name)
            classes[name] = _classes(name)
    _check_same_classes(classes)


def class_names(cfg: CfgNode) -> list[str]:
    """Return the classes of the data that :func:`register_datasets` has registered; none for stuff only."""
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    return next((_classes(name) for name in names if name in DatasetCatalog and _classes(name)), [])


def set_num_classes(cfg: CfgNode, num_classes: int) -> None:
    """Write the number of classes, in place, where the detector reads it: ROI_HEADS or RETINANET."""
    if num_classes == 0:
        return
    for node_name in ("ROI_HEADS", "RETINANET"):
        node = cfg.MODEL[node_name]
        if node.NUM_CLASSES != num_classes:
            logger.info("MODEL.%s.NUM_CLASSES: %d, from the data (was %d)", node_name, num_classes, node.NUM_CLASSES)
            node.NUM_CLASSES = num_classes


def _entries(cfg: CfgNode) -> list[dict[str, Any]]:
    for index, entry in enumerate(cfg.DATASETS.OWN):
        if not isinstance(entry, dict) or "NAME" not in entry:
            get_dataset("", cfg.DATASETS.OWN)  # says what is wrong
            raise ValueError(f"DATASETS.OWN[{index}] has no NAME")
    return list(cfg.DATASETS.OWN)


def _register(spec: DatasetSpec, *, training: bool) -> None:
    check_dataset_files(spec)
    dataset = CocoDataset(spec.json_path, spec.image_folder, None, training=training)
    dataset.check_images()
    read_ground_truth(spec.json_path, "bbox")  # what the evaluation refuses, it refuses before the training
    if spec.name in DatasetCatalog:
        DatasetCatalog.remove(spec.name)
        MetadataCatalog.remove(spec.name)
    register_coco_instances(spec.name, {}, str(spec.json_path), str(spec.image_folder))
    MetadataCatalog.get(spec.name).thing_classes = list(dataset.class_names)


def check_files(name: str) -> None:
    """Look for what the metadata of one of Detectron2's own data sets points to."""
    metadata = MetadataCatalog.get(name)
    for key in ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "dirname"):
        path = getattr(metadata, key, None)
        if path is not None and "://" not in path and not Path(path).exists():
            try:
                check_dataset_files(get_dataset(name))
            except ValueError:
                raise FileNotFoundError(
                    f"data set {name!r} is not there: no {path}; Detectron2's datasets/README.md says how to get it "
                    f"(below $DETECTRON2_DATASETS, or ./datasets)"
                ) from None


def _classes(name: str) -> list[str]:
    return list(getattr(MetadataCatalog.get(name), "thing_classes", []))


def _check_same_classes(classes: dict[str, list[str]]) -> None:
    items = list(classes.items())
    for name, names in items[1:]:
        first_name, first = items[0]
        if names != first:
            other = sorted(set(names) ^ set(first)) or "the same in another order"
            raise ValueError(
                f"data set {name!r} has the classes {names[:8]}, {first_name!r} has {first[:8]} (in one of them only: "
                f"{other[:8]}); both need the same categories"
            )
