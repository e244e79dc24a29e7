"""Evaluators by data set, writing the files that the torchvision engine writes."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import (
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
    inference_on_dataset,
)
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.data.coco.masks import draw_masks
from resnet_backbone.data.images.read import read_image
from resnet_backbone.detectron2_plugin.datasets import complete_metadata, read_truth
from resnet_backbone.detectron2_plugin.mapper import TensorMapper, boxes_of
from resnet_backbone.engine.batches import BatchLoader
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.coco import CocoMetrics
from resnet_backbone.metrics.drawing import PictureSample, evenly_spaced, save_comparison_pictures
from resnet_backbone.metrics.results import ImageResults, decode_masks
from resnet_backbone.metrics.run_facts import CostMeter, write_facts
from resnet_backbone.metrics.voc import score_images

logger = logging.getLogger(__name__)

_KINDS = ("coco", "pascal_voc", "sem_seg", "coco_panoptic_seg")
_IDS = "thing_dataset_id_to_contiguous_id"


class CocoEvaluator(DatasetEvaluator):
    """COCO's figures of boxes and masks, by ``evaluate_coco``: those that the torchvision engine reports.

    Args:
        dataset_name: of a registered data set in COCO's format.
        folder: gets ``coco_instances_results.json`` and ``pictures/``.
        with_masks: whether the detector gives masks.
        pictures: whether to draw ground truth beside predictions.
    """

    def __init__(self, dataset_name: str, folder: Path, *, with_masks: bool, pictures: bool) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self.dataset_name = dataset_name
        self.folder = folder
        self.with_masks = with_masks
        self.pictures = pictures
        self.json_path = Path(metadata.json_file)
        complete_metadata(dataset_name, _IDS)
        ids = metadata.thing_dataset_id_to_contiguous_id
        self.category_ids = sorted(ids, key=lambda category_id: ids[category_id])
        self.metrics: CocoMetrics | None = None
        self.num_images = 0  # how many were evaluated

    def reset(self) -> None:
        self._found: dict[int, ImageResults] = {}

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            self._found[image["image_id"]] = ImageResults.hold(
                image["image_id"],
                instances.pred_boxes.tensor,
                instances.scores,
                instances.pred_classes,
                len(self.category_ids),
                instances.pred_masks if self.with_masks else None,
            )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return ``{"bbox": {"AP": ..., ...}, "segm": ...}`` in percent on the main process, nothing on the others.

        Nor does a test set without annotations give any; its results are written.
        """
        comm.synchronize()
        gathered = comm.gather(self._found, dst=0)
        if not comm.is_main_process():
            return {}
        found = {image_id: image for part in gathered for image_id, image in part.items()}
        self.metrics = score_images(
            found.values(),
            self.category_ids,
            read_truth(self.dataset_name, with_masks=self.with_masks),
            self.folder / "coco_instances_results.json",
            ("bbox", "segm") if self.with_masks else ("bbox",),
            voc_rule=MetadataCatalog.get(self.dataset_name).get("voc_rule"),
        )
        self.num_images = len(found)
        if self.pictures:
            self._draw(found)
        return {} if self.metrics is None else {kind: part.summary() for kind, part in self.metrics.by_type().items()}

    def _draw(self, found: Mapping[int, ImageResults]) -> None:
        """Draw evenly spaced images, ground truth beside detections."""
        records = [record for record in DatasetCatalog.get(self.dataset_name) if record["image_id"] in found]
        samples = []
        for record in evenly_spaced(records):
            truth = [note for note in record.get("annotations", []) if not note.get("iscrowd")]
            detections = found[record["image_id"]]
            size = (record["height"], record["width"])
            samples.append(
                PictureSample(
                    name=Path(record["file_name"]).name,
                    image=read_image(record["file_name"], size),
                    gt_boxes=boxes_of(truth),
                    gt_labels=torch.tensor([note["category_id"] for note in truth], dtype=torch.int64),
                    boxes=detections.boxes,
                    labels=detections.labels,
                    scores=detections.scores,
                    gt_masks=torch.from_numpy(draw_masks([note["segmentation"] for note in truth], *size))
                    if self.with_masks
                    else None,
                    masks=None if detections.masks is None else decode_masks(detections.masks, *size),
                )
            )
        if samples:
            names = MetadataCatalog.get(self.dataset_name).thing_classes
            for path in save_comparison_pictures(self.folder / "pictures", samples, names):
                logger.info("wrote %s", path)


def evaluate(cfg: CfgNode, model: nn.Module, folder: Path, *, pictures: bool) -> dict[str, dict[str, Any]]:
    """Score ``model`` on every data set of DATASETS.TEST; only the main process gets figures.

    Args:
        cfg: reads DATASETS, INPUT, DATALOADER and MODEL.MASK_ON.
        model: a detector; it is in eval mode meanwhile.
        folder: gets the files; with several data sets, a folder for each.
        pictures: whether to draw ground truth beside predictions, of data sets in COCO's format.

    Returns:
        By data set, what ``metrics.json`` holds, too: ``{"bbox": {"AP": ..., "AP-person": ...}}``, percent.

    Raises:
        DataError: an image cannot be read.
    """
    figures = {}
    for name in cfg.DATASETS.TEST:
        own_folder = folder if len(cfg.DATASETS.TEST) == 1 else folder / name
        evaluator = build_evaluator(name, own_folder, with_masks=cfg.MODEL.MASK_ON, pictures=pictures)
        with CostMeter(model, torch.device(cfg.MODEL.DEVICE)) as meter:
            loader = build_detection_test_loader(cfg, name, mapper=TensorMapper(cfg, is_train=False))
            results = inference_on_dataset(model, BatchLoader(loader), evaluator)
        if not comm.is_main_process():
            continue
        if isinstance(evaluator, CocoEvaluator):
            _write_facts(cfg, evaluator, meter)
            if evaluator.metrics is None:
                (own_folder / "metrics.json").unlink(missing_ok=True)  # of an earlier evaluation
                continue
            figures[name] = evaluator.metrics.to_dict()
        else:
            own_folder.mkdir(parents=True, exist_ok=True)
            figures[name] = _without_nan(results)
        write_text(own_folder / "metrics.json", json.dumps(figures[name], indent=2) + "\n")
        logger.info("wrote %s", own_folder / "metrics.json")
    return figures


def _write_facts(cfg: CfgNode, evaluator: CocoEvaluator, meter: CostMeter) -> None:
    metadata = MetadataCatalog.get(evaluator.dataset_name)
    write_facts(
        evaluator.folder,
        meter,
        engine="detectron2",
        device=torch.device(cfg.MODEL.DEVICE),
        processes=comm.get_world_size(),
        dataset=evaluator.dataset_name,
        annotations=evaluator.json_path,
        image_folder=Path(metadata.image_root),
        num_images=evaluator.num_images,
        class_names=metadata.thing_classes,
    )


def check_evaluator(dataset_name: str) -> None:
    """Raise ValueError where a registered data set cannot be scored."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _KINDS:
        raise ValueError(
            f"no evaluator for data set {dataset_name!r} of the kind {kind!r}; take it out of DATASETS.TEST"
        )
    if kind.startswith("coco"):
        complete_metadata(dataset_name, _IDS)
        missing = [key for key in ("json_file", "image_root", _IDS) if not MetadataCatalog.get(dataset_name).get(key)]
        if missing:
            raise ValueError(
                f"data set {dataset_name!r} is to be scored as COCO's, and its metadata lack {', '.join(missing)}: "
                f"register it by detectron2.data.datasets.register_coco_instances (convert_to_coco_json writes such a "
                f"file), or take it out of DATASETS.TEST"
            )
    if kind == "coco_panoptic_seg" and importlib.util.find_spec("panopticapi") is None:
        raise ValueError(
            f"data set {dataset_name!r} is scored by panopticapi, which is not installed; "
            f"pip install git+https://github.com/cocodataset/panopticapi.git"
        )


def build_evaluator(dataset_name: str, folder: Path, *, with_masks: bool, pictures: bool) -> DatasetEvaluator:
    """Return what scores a data set that :func:`check_evaluator` accepted: figures of COCO, VOC or segmentation.

    The other arguments are those of :class:`CocoEvaluator`.
    """
    kind = MetadataCatalog.get(dataset_name).evaluator_type
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    if kind == "sem_seg":
        return SemSegEvaluator(dataset_name, output_dir=str(folder))
    instances = CocoEvaluator(dataset_name, folder, with_masks=with_masks, pictures=pictures)
    if kind == "coco":
        return instances
    stuff, panoptic = (
        evaluator(dataset_name, output_dir=str(folder)) for evaluator in (SemSegEvaluator, COCOPanopticEvaluator)
    )
    return DatasetEvaluators([stuff, instances, panoptic])


def _without_nan(value: Any) -> Any:
    """Figures as JSON has them, which knows neither nan nor 0-d arrays."""
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, int | float | np.number):
        return None if math.isnan(float(value)) else float(value)
    return str(value)
