"""The data sets that a config names, in Detectron2's catalog."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from fvcore.common.config import CfgNode

from resnet_backbone.config.keys import fit_num_classes
from resnet_backbone.data.catalog import DatasetSpec, check_dataset_files, check_same_classes, get_dataset
from resnet_backbone.data.coco import CocoDataset
from resnet_backbone.data.findings import report_findings
from resnet_backbone.data.image_checks import compare_images
from resnet_backbone.data.image_files import ImageFiles
from resnet_backbone.evaluation.coco import check_ground_truth

logger = logging.getLogger(__name__)

_registered: set[str] = set()  # the names that this module has entered, whose files may be others in the next run


def register_datasets(cfg: CfgNode, *, training: bool) -> list[str]:
    """Enter what DATASETS.TRAIN and TEST name, and Detectron2 does not know, into its catalog; check that it is there.

    Our own names (``shapes_train``, ``bccd_test``, ...) and those of DATASETS.OWN are read and checked whole.

    Args:
        cfg: reads DATASETS (with CHECK_IMAGES every image is opened), MODEL.MASK_ON and INPUT.MASK_FORMAT.
        training: False leaves DATASETS.TRAIN alone.

    Returns:
        The names of the classes; none for stuff only.

    Raises:
        FileNotFoundError: a file or folder is missing; the message says how to get it.
        ValueError: an unknown name, a malformed file, or sets of different classes.
    """
    if training and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name the data set to train on")
    classes: dict[str, list[str]] = {}
    files: dict[str, dict[str, ImageFiles]] = {"TRAIN": {}, "TEST": {}}
    for key, names in (("TRAIN", cfg.DATASETS.TRAIN if training else ()), ("TEST", cfg.DATASETS.TEST)):
        if isinstance(names, str):
            raise ValueError(f'DATASETS.{key} is the text {names!r}; write a list of names: ["{names}"]')
        for name in names:
            classes[name], dataset = _enter(cfg, name, training=key == "TRAIN")
            if dataset is not None:
                files[key][name] = dataset.files
    first = next(iter(classes.values()), [])
    for name, found in classes.items():
        check_same_classes(name, found, first)
    if comm.is_main_process():  # the others wait for it where they next talk to it
        compared = compare_images(files["TRAIN"], files["TEST"], deep=cfg.DATASETS.CHECK_IMAGES)
        for name, findings in compared:
            report_findings(name, findings)
    return first


def register_dataset(cfg: CfgNode, name: str, *, training: bool) -> list[str]:
    """Do for one data set what :func:`register_datasets` does for all; return its classes."""
    return _enter(cfg, name, training=training)[0]


def set_num_classes(cfg: CfgNode, num_classes: int) -> None:
    """Write the number of classes, in place, where the detector reads it: ROI_HEADS or RETINANET."""
    if num_classes == 0:
        return
    for section in ("ROI_HEADS", "RETINANET"):
        fit_num_classes(cfg, section, num_classes)


def _enter(cfg: CfgNode, name: str, *, training: bool) -> tuple[list[str], CocoDataset | None]:
    """Return the classes, and the data set where it is not one of Detectron2's own, which Detectron2 alone reads."""
    own = _own_names(cfg)
    dataset = None
    if name in DatasetCatalog and name not in (*own, *_registered):
        _check_files(name)
    else:
        dataset = _register(get_dataset(name, cfg.DATASETS.OWN if name in own else ()), cfg, training=training)
    return list(getattr(MetadataCatalog.get(name), "thing_classes", [])), dataset


def _own_names(cfg: CfgNode) -> list[str]:
    for index, entry in enumerate(cfg.DATASETS.OWN):
        if not isinstance(entry, dict) or "NAME" not in entry:
            get_dataset("", cfg.DATASETS.OWN)  # says what is wrong
            raise ValueError(f"DATASETS.OWN[{index}] has no NAME")
    return [entry["NAME"] for entry in cfg.DATASETS.OWN]


def _register(spec: DatasetSpec, cfg: CfgNode, *, training: bool) -> CocoDataset:
    check_dataset_files(spec)
    masks = {"with_masks": cfg.MODEL.MASK_ON and training, "mask_format": cfg.INPUT.MASK_FORMAT}
    dataset = CocoDataset(spec.json_path, spec.image_folder, None, training=training, **masks)
    dataset.check_images()
    if not training:  # what the evaluation refuses, it refuses before the training
        check_ground_truth(spec.json_path, ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",))
    if spec.name in DatasetCatalog:
        DatasetCatalog.remove(spec.name)
        MetadataCatalog.remove(spec.name)
    _registered.add(spec.name)
    register_coco_instances(spec.name, {}, str(spec.json_path), str(spec.image_folder))
    metadata = MetadataCatalog.get(spec.name)
    metadata.thing_classes = list(dataset.class_names)
    metadata.num_images = len(dataset)
    metadata.voc_eleven_points = spec.voc_eleven_points
    try:
        DatasetCatalog.get(spec.name)
    except (AssertionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{spec.json_path}: Detectron2 cannot read it ({type(error).__name__}: {error}); it wants an 'id' of "
            f"its own for every annotation, and no 'ignore': 1"
        ) from error
    return dataset


def _check_files(name: str) -> None:
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
