"""What Detectron2's trainer and evaluation feed the network, from their own loaders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import build_detection_test_loader
from detectron2.structures import PolygonMasks
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config import fit_input, required_by_source
from resnet_backbone.data.coco.masks import decode_segmentation
from resnet_backbone.data.transforms import InputImage, InputImages, pad_masks, restore_pixels
from resnet_backbone.detectron2_plugin.datasets import register_datasets, set_num_classes
from resnet_backbone.detectron2_plugin.detector import build_detector
from resnet_backbone.detectron2_plugin.mapper import ResumableLoader, TensorMapper, boxes_of


class _KeepingMapper:
    """The mapper of the run, and beside its output the annotations that went in, ``"notes"``, crowds left out."""

    def __init__(self, cfg: CfgNode, *, training: bool) -> None:
        self.mapper = TensorMapper(cfg, is_train=training)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        notes = [note for note in record.get("annotations", []) if not note.get("iscrowd")]
        return {**self.mapper(record), "notes": notes}


def open_sight(cfg: CfgNode, *, training: bool) -> InputImages:
    """Open the data of a config as a run in one process does.

    Args:
        cfg: see ``load_config``. MODEL.WEIGHTS is not read; what its name says of the input counts.
        training: the endless images of DATASETS.TRAIN, in the batches of the first iterations, which SEED decides (a
            negative one: other images at every call); or else those of DATASETS.TEST, each once, without masks.

    Raises:
        FileNotFoundError, ValueError: data is missing, malformed or of other classes, or has no boxes.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    if training:
        cfg.DATASETS.TEST = ()
    elif not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name the data set to look at")
    class_names = register_datasets(cfg, training=training)
    if not class_names:
        raise ValueError("the data has no classes of objects; boxes cannot be shown")
    set_num_classes(cfg, len(class_names))
    fit_input(cfg, required_by_source(cfg.MODEL.WEIGHTS, cfg.MODEL.RESNET_BACKBONE.ARCH), cfg.MODEL.WEIGHTS)
    model = build_detector(cfg)
    if not hasattr(model, "preprocess_image"):
        raise ValueError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not one of boxes")
    return InputImages(tuple(class_names), _images(cfg, model, training=training))


def _images(cfg: CfgNode, model: nn.Module, *, training: bool) -> Iterator[InputImage]:
    for batch in _batches(cfg, training=training):
        normalised: Any = model.preprocess_image(batch)  # type: ignore[operator]
        pixels = restore_pixels(normalised.tensor, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)
        for row, image in zip(pixels, batch, strict=True):
            yield _seen(row, image)


def _batches(cfg: CfgNode, *, training: bool) -> Iterator[list[dict[str, Any]]]:
    mapper = _KeepingMapper(cfg, training=training)
    if training:
        yield from ResumableLoader(cfg, mapper)
    for name in cfg.DATASETS.TEST:
        yield from build_detection_test_loader(cfg, name, mapper=mapper)


def _seen(row: Tensor, image: dict[str, Any]) -> InputImage:
    size = (image["image"].shape[-2], image["image"].shape[-1])
    original_size = (image["height"], image["width"])
    if "instances" in image:
        boxes, labels = image["instances"].gt_boxes.tensor, image["instances"].gt_classes
    else:  # the mapper of the evaluation gives none
        boxes, labels = _scaled_boxes(image["notes"], original_size, size)
    masks = _masks(image["instances"], *size) if "instances" in image else None
    return InputImage(
        image_id=image["image_id"],
        name=Path(image["file_name"]).name,
        pixels=row,
        size=size,
        original_size=original_size,
        boxes=boxes.float(),
        labels=labels,
        masks=None if masks is None else pad_masks(masks, row.shape[-2], row.shape[-1]),
        annotated=len(image["notes"]),
    )


def _scaled_boxes(
    notes: list[dict[str, Any]], from_size: tuple[int, int], to_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    scale = torch.tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]] * 2, dtype=torch.float64)
    labels = torch.tensor([note["category_id"] for note in notes], dtype=torch.int64)
    return (boxes_of(notes) * scale).float(), labels


def _masks(instances: Any, height: int, width: int) -> Tensor | None:
    if not instances.has("gt_masks"):
        return None
    if not isinstance(instances.gt_masks, PolygonMasks):
        return instances.gt_masks.tensor
    masks = np.zeros((len(instances), height, width), dtype=bool)
    for mask, polygons in zip(masks, instances.gt_masks.polygons, strict=True):
        mask[:] = decode_segmentation([np.asarray(polygon).tolist() for polygon in polygons], height, width)
    return torch.from_numpy(masks)
