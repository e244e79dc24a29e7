"""Detectron2's detectors: what a config describes, with random weights or with those of its training."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.config import fit_input
from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.detectron2_plugin.checkpoint import WeightsFile, fill_detector, strict_arch
from resnet_backbone.detectron2_plugin.config import as_built, check_context
from resnet_backbone.detectron2_plugin.datasets import set_num_classes
from resnet_backbone.models.acceleration import accelerate_heads, finish_for_inference
from resnet_backbone.weights.read import RawFile


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the detector that ``cfg`` describes, on MODEL.DEVICE, with random weights; see ``as_built``.

    Raises:
        ValueError: parts that do not fit each other; Detectron2 itself asserts, or fails on the way, and is quoted.
    """
    cfg = as_built(cfg)
    check_context(cfg)
    try:
        model = build_model(cfg)
        accelerate_heads(model, acceleration_of(cfg))
        return model
    except ValueError:
        raise
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"Detectron2 cannot build what the config describes: {type(error).__name__}: {error}"
        ) from error


class TrainedDetector(NamedTuple):
    """What :func:`load_trained` returns."""

    cfg: CfgNode  # with the classes and the input format of the checkpoint
    model: nn.Module  # in eval mode, on MODEL.DEVICE, finished for inference
    class_names: tuple[str, ...]


def load_trained(cfg: CfgNode) -> TrainedDetector:
    """Build the detector that a config describes, and fill every tensor of it from MODEL.WEIGHTS.

    Args:
        cfg: of the training, MODEL.WEIGHTS being its checkpoint; see ``load_config``. It stays as it is. A checkpoint
            that names no classes, as those of Detectron2's model zoo, has the classes of DATASETS.TEST.

    Raises:
        FileNotFoundError, OSError: the checkpoint is not there, or cannot be downloaded.
        ValueError: it cannot be read safely, is of another detector than the config describes, or nobody says which
            classes it detects or which input it needs.
    """
    source = cfg.MODEL.WEIGHTS
    if not source:
        raise ValueError("MODEL.WEIGHTS is empty; name the checkpoint of a training")
    cfg = cfg.clone()
    file = WeightsFile(source, strict_arch(cfg))
    if not file.is_detector:
        raise ValueError(f"{source} is a classifier; name the checkpoint of a trained detector")
    class_names = _class_names(cfg, file.raw)
    set_num_classes(cfg, len(class_names))
    fit_input(cfg, file.required_input(cfg), source)
    model = build_detector(cfg).eval()
    fill_detector(model, file, complete=True)
    finish_for_inference(model)
    return TrainedDetector(cfg, model, class_names)


def _class_names(cfg: CfgNode, raw: RawFile) -> tuple[str, ...]:
    if raw.metadata.get("class_names"):
        return tuple(raw.metadata["class_names"])
    for name in cfg.DATASETS.TEST:
        if name in MetadataCatalog and (names := MetadataCatalog.get(name).get("thing_classes")):
            return tuple(names)
    raise ValueError(
        f"{cfg.MODEL.WEIGHTS} does not name its classes, and DATASETS.TEST {list(cfg.DATASETS.TEST)} is no data set "
        f"that Detectron2 knows; write the one that it was trained for, such as DATASETS.TEST \"['coco_2017_val']\""
    )
