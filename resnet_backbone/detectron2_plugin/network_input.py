"""What Detectron2's trainer and evaluation feed the network, from their own loaders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.data import build_detection_test_loader
from detectron2.structures import PolygonMasks
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config import fit_input, required_by_source
from resnet_backbone.data.coco.masks import draw_masks
from resnet_backbone.data.transforms import InputImage, InputImages, pad_masks, restore_pixels
from resnet_backbone.detectron2_plugin.checkpoint import build_detector
from resnet_backbone.detectron2_plugin.datasets import register_datasets, set_num_classes
from resnet_backbone.detectron2_plugin.mapper import ResumableLoader, TensorMapper, boxes_of, train_mapper


def open_network_input(cfg: CfgNode, *, training: bool) -> InputImages:
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
            yield _input_image(row, image)


def _batches(cfg: CfgNode, *, training: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield those of the run; beside what the mapper returns, the annotations that went in, crowds left out."""
    mapper = train_mapper(cfg) if training else TensorMapper(cfg, is_train=False)

    def keeping(record: dict[str, Any]) -> dict[str, Any]:
        notes = [note for note in record.get("annotations", []) if not note.get("iscrowd")]
        return {**mapper(record), "notes": notes}

    if training:
        yield from ResumableLoader(cfg, keeping)
    for name in cfg.DATASETS.TEST:
        yield from build_detection_test_loader(cfg, name, mapper=keeping)


def _input_image(row: Tensor, image: dict[str, Any]) -> InputImage:
    size = (image["image"].shape[-2], image["image"].shape[-1])
    original_size = (image["height"], image["width"])
    masks = None
    if "instances" in image:
        instances = image["instances"]
        boxes, labels = instances.gt_boxes.tensor, instances.gt_classes
        if instances.has("gt_masks"):
            given = instances.gt_masks
            are_polygons = isinstance(given, PolygonMasks)
            masks = torch.from_numpy(draw_masks(given.polygons, *size)) if are_polygons else given.tensor
    else:  # the mapper of the evaluation gives none
        scale = torch.tensor([size[1] / original_size[1], size[0] / original_size[0]] * 2, dtype=torch.float64)
        boxes = boxes_of(image["notes"]) * scale
        labels = torch.tensor([note["category_id"] for note in image["notes"]], dtype=torch.int64)
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
