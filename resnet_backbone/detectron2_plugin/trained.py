"""A detector of Detectron2's that was trained before, with all that it takes to use it."""

from __future__ import annotations

from typing import NamedTuple

from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.config import fit_input, required_by_source
from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.config.weights_input import refuse_unknown_input
from resnet_backbone.detectron2_plugin.checkpoint import fill_detector, local_file
from resnet_backbone.detectron2_plugin.config import as_built, check_context
from resnet_backbone.detectron2_plugin.datasets import set_num_classes
from resnet_backbone.models.acceleration import accelerate_heads, finish_for_inference
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.read import RawFile, read_file


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


class Trained(NamedTuple):
    """What :func:`load_trained` returns."""

    cfg: CfgNode  # with the classes and the input format of the checkpoint
    model: nn.Module  # in eval mode, on MODEL.DEVICE, finished for inference
    class_names: tuple[str, ...]


def load_trained(cfg: CfgNode) -> Trained:
    """Build the detector that a config describes, and fill it whole with MODEL.WEIGHTS.

    Args:
        cfg: of the training, MODEL.WEIGHTS being its checkpoint; see ``load_config``. It stays as it is. A checkpoint
            that names no classes, as those of Detectron2's model zoo, has the classes of DATASETS.TEST.

    Raises:
        FileNotFoundError, OSError: the checkpoint is not there, or cannot be downloaded.
        ValueError: it cannot be read safely, is of another detector than the config describes, or nobody says which
            classes it detects or which input it needs.
    """
    source = cfg.MODEL.WEIGHTS
    cfg = cfg.clone()
    raw = _read_detector(source)
    class_names = _class_names(cfg, raw)
    set_num_classes(cfg, len(class_names))
    arch = cfg.MODEL.RESNET_BACKBONE.ARCH
    required = required_by_source(source, arch) or required_by_source(local_file(source), arch)
    if not required:
        refuse_unknown_input(cfg, source)
    fit_input(cfg, required, source)
    model = build_detector(cfg).eval()
    node = cfg.MODEL.RESNET_BACKBONE
    fill_detector(model, source, arch=node.ARCH if node.STRICT_WEIGHTS else None, whole=True)
    finish_for_inference(model)
    return Trained(cfg, model, class_names)


def _read_detector(source: str) -> RawFile:
    if not source:
        raise ValueError("MODEL.WEIGHTS is empty; name the checkpoint of a training")
    raw = read_file(local_file(source))
    if not holds_detector(raw.tensors):
        raise ValueError(f"{source} is a classifier; name the checkpoint of a trained detector")
    return raw


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
