"""The data sets that a config names, in Detectron2's catalog."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_sem_seg
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic
from detectron2.structures import BoxMode
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from pycocotools import mask as coco_mask

from resnet_backbone.config.weights_input import fit_num_classes
from resnet_backbone.data.catalog import DatasetSpec, check_dataset_files, check_same_classes, get_dataset
from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.coco.findings import report_findings
from resnet_backbone.data.coco.read import GroundTruth, read_ground_truth
from resnet_backbone.data.images.checks import compare_images
from resnet_backbone.data.images.files import ImageFiles

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_registered: set[str] = set()  # the names that this module has entered, whose files may be others in the next run
_truths: dict[str, GroundTruth] = {}  # by name, of the sets that the last run evaluates
# By name, what read the records of a data set of Detectron2's where we do now.
_replaced: dict[str, Callable[[], list[Record]]] = {}
_READERS = ("detectron2.data.datasets.coco", "detectron2.data.datasets.coco_panoptic")  # modules that register them


def register_datasets(cfg: CfgNode, *, training: bool) -> list[str]:
    """Enter what DATASETS.TRAIN and TEST name, and Detectron2 does not know, into its catalog; check that it is there.

    Our own names (``shapes_train``, ``bccd_test``, ...), those of DATASETS.OWN and those that Detectron2 reads from
    COCO's JSON (``coco_2017_train``, ...; not for keypoints) are read and checked by us: the catalog gives the
    boxes and masks that the torchvision engine trains on.

    Args:
        cfg: reads DATASETS (with CHECK_IMAGES every image is opened), DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            MODEL.MASK_ON, MODEL.KEYPOINT_ON and INPUT.MASK_FORMAT.
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
        for name in names:
            classes[name], dataset = _enter(cfg, name, training=key == "TRAIN")
            if dataset is not None:
                files[key][name] = dataset.files
    first = next(iter(classes.values()), [])
    for name, found in classes.items():
        if bool(found) != bool(first):
            raise ValueError(
                f"data set {name if first else next(iter(classes))!r} does not name its classes, others of the run do: "
                f"set thing_classes in its metadata, MetadataCatalog.get(...), where it is registered"
            )
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
    """Return the classes, and the data set where it is not one that Detectron2 alone reads."""
    own = _own_names(cfg)
    dataset = None
    _truths.pop(name, None)
    if name in DatasetCatalog and name not in (*own, *_registered):
        _check_files(name)
        dataset = _replace(name, cfg, training=training)
        complete_metadata(name, "thing_classes", "stuff_classes")
    else:
        dataset = _register(get_dataset(name, cfg.DATASETS.OWN if name in own else ()), cfg, training=training)
    if dataset is not None and not training:
        _truths[name] = dataset.ground_truth
    return list(getattr(MetadataCatalog.get(name), "thing_classes", [])), dataset


def complete_metadata(name: str, *keys: str) -> None:
    """Read a registered data set where its metadata have none of ``keys``: many readers add them."""
    if not any(MetadataCatalog.get(name).get(key) for key in keys):
        DatasetCatalog.get(name)


def _own_names(cfg: CfgNode) -> list[str]:
    for index, entry in enumerate(cfg.DATASETS.OWN):
        if not isinstance(entry, dict) or "NAME" not in entry:
            get_dataset("", cfg.DATASETS.OWN)  # says what is wrong
            raise ValueError(f"DATASETS.OWN[{index}] has no NAME")
    return [entry["NAME"] for entry in cfg.DATASETS.OWN]


def _register(spec: DatasetSpec, cfg: CfgNode, *, training: bool) -> CocoDataset:
    check_dataset_files(spec)
    dataset = _open(spec.json_path, spec.image_folder, cfg, training=training)
    if spec.name in DatasetCatalog:
        DatasetCatalog.remove(spec.name)
        MetadataCatalog.remove(spec.name)
    _registered.add(spec.name)
    DatasetCatalog.register(spec.name, partial(_records, dataset))
    MetadataCatalog.get(spec.name).set(
        json_file=str(spec.json_path),
        image_root=str(spec.image_folder),
        evaluator_type="coco",
        thing_classes=list(dataset.class_names),
        num_images=len(dataset),
        thing_dataset_id_to_contiguous_id=_labels(dataset),
        voc_rule=spec.voc_rule,
    )
    return dataset


def _replace(name: str, cfg: CfgNode, *, training: bool) -> CocoDataset | None:
    """Let the catalog give our records of a data set that Detectron2 reads from COCO's JSON, where we can read it."""
    original = DatasetCatalog[name] = _replaced.pop(name, DatasetCatalog[name])
    metadata = MetadataCatalog.get(name)
    json_file, image_root, stuff_root = (metadata.get(key) for key in ("json_file", "image_root", "sem_seg_root"))
    is_instances = getattr(original, "__module__", "") in _READERS and json_file and image_root
    is_segments = metadata.get("panoptic_json") and not stuff_root
    if not is_instances or is_segments or cfg.MODEL.KEYPOINT_ON or "://" in json_file + image_root:
        return None
    dataset = _open(Path(json_file), Path(image_root), cfg, training=training)
    check_same_classes(name, dataset.class_names, metadata.get("thing_classes", dataset.class_names))
    labels = _labels(dataset)
    if (known := metadata.get("thing_dataset_id_to_contiguous_id", labels)) != labels:
        raise ValueError(
            f"{json_file}: the ids of its categories are {list(labels)}; those of {name} are {list(known)}"
        )
    metadata.set(
        thing_classes=list(dataset.class_names), thing_dataset_id_to_contiguous_id=labels, num_images=len(dataset)
    )

    def read() -> list[Record]:
        records = _records(dataset)
        return merge_to_panoptic(records, load_sem_seg(stuff_root, str(Path(image_root)))) if stuff_root else records

    _replaced[name] = original
    DatasetCatalog[name] = read
    return dataset


def _open(json_path: Path, image_folder: Path, cfg: CfgNode, *, training: bool) -> CocoDataset:
    dataset = CocoDataset(
        json_path,
        image_folder,
        None,
        training=training,
        with_masks=cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT if training else "bitmask",
        keep_unlabelled=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    )
    dataset.check_images()
    return dataset


def read_truth(name: str, *, with_masks: bool) -> GroundTruth:
    """Return what detections on a registered data set in COCO's format are compared with; the run may have read it."""
    path, truth = Path(MetadataCatalog.get(name).json_file), _truths.get(name)
    if truth is not None and truth.source == path and (not with_masks or truth.segmentations is not None):
        return truth
    return read_ground_truth(path, ("bbox", "segm") if with_masks else ("bbox",), needs_annotations=False)


def _labels(dataset: CocoDataset) -> dict[int, int]:
    """By category id."""
    return {category_id: label for label, category_id in enumerate(dataset.category_ids)}


def _records(dataset: CocoDataset) -> list[Record]:
    """Return Detectron2's records of what is used of a data set, with masks where it was read with masks."""
    notes = dataset.annotations
    boxes, labels, crowds = notes.boxes.tolist(), notes.labels.tolist(), notes.is_crowd.astype(int).tolist()
    records = []
    for index, (image_id, (height, width)) in enumerate(
        zip(notes.image_ids.tolist(), notes.sizes.tolist(), strict=True)
    ):
        record = {
            "file_name": str(dataset.image_path(index)),
            "height": height,
            "width": width,
            "image_id": image_id,
            "annotations": [
                {
                    "iscrowd": crowds[entry],
                    "bbox": boxes[entry],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": labels[entry],
                }
                for entry in range(notes.first[index], notes.first[index + 1])
            ],
        }
        if notes.segmentations is not None:
            for entry, note in enumerate(record["annotations"], start=notes.first[index]):
                segmentation = json.loads(notes.segmentations[entry])
                if isinstance(segmentation, list):  # Detectron2 rounds whole numbers down wherever they are moved to
                    segmentation = [list(map(float, polygon)) for polygon in segmentation]
                elif isinstance(segmentation["counts"], list):
                    segmentation = coco_mask.frPyObjects(segmentation, height, width)
                note["segmentation"] = segmentation
        records.append(record)
    return records


def _check_files(name: str) -> None:
    """Look for what the metadata of one of Detectron2's own data sets points to."""
    metadata = MetadataCatalog.get(name)
    for key in ("json_file", "image_root", "panoptic_json", "panoptic_root", "sem_seg_root", "dirname", "image_dir"):
        path = getattr(metadata, key, None)
        if path is not None and "://" not in path and not Path(path).exists():
            try:
                check_dataset_files(get_dataset(name))
            except ValueError:
                raise FileNotFoundError(
                    f"data set {name!r} is not there: no {path}; Detectron2's datasets/README.md says how to get it "
                    f"(below $DETECTRON2_DATASETS, or ./datasets)"
                ) from None
