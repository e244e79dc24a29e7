"""What tools/doctor.py asks of Detectron2."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

import detectron2
import torch
from detectron2.data.detection_utils import convert_PIL_to_numpy
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from resnet_backbone.detectron2_plugin.backbone import TrunkBackbone
from resnet_backbone.detectron2_plugin.checkpoint import SafeCheckpointer, build_detector
from resnet_backbone.detectron2_plugin.config import REGISTRIES, load_config
from resnet_backbone.detectron2_plugin.datasets import register_dataset, set_num_classes
from resnet_backbone.detectron2_plugin.evaluation import check_evaluator
from resnet_backbone.doctor import DetectorParts, Section
from resnet_backbone.doctor.checkpoint import DETECTOR, Checkpoint
from resnet_backbone.doctor.report import NAME_KEYS, classifier_parts
from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.errors import shorten


class Detectron2Engine:
    """See :class:`~resnet_backbone.doctor.report.Engine`."""

    name = "detectron2"

    def check_versions(self, section: Section) -> None:
        commit = _commit()
        section.facts |= {"detectron2": detectron2.__version__, "detectron2_commit": commit, "compiled_ops": False}
        section.ok(f"detectron2 {detectron2.__version__}, commit {commit or 'unknown'}")
        if importlib.util.find_spec("pkg_resources") is None:
            section.warning(
                "setuptools no longer brings pkg_resources, which detectron2.model_zoo imports; write "
                "pip install 'setuptools<81'"
            )
        try:
            compiled = importlib.import_module("detectron2._C")
        except ImportError as error:
            section.warning(
                f"Detectron2's compiled operators cannot be used ({error}): rotated boxes, deformable convolutions and "
                f"its fast COCO evaluation are missing; build it again for torch {torch.__version__}"
            )
            return
        section.facts["compiled_ops"] = True
        if torch.cuda.is_available() and not compiled.has_cuda():
            section.warning("Detectron2's operators are compiled for the CPU only; build it again with nvcc and a GPU")

    def known_names(self) -> Mapping[str, Sequence[str]]:
        return {key: [name for name, _ in REGISTRIES[key]] for key in NAME_KEYS}

    def load_config(self, config_file: str, overrides: Sequence[str]) -> CfgNode:
        return load_config(config_file, overrides)

    def open_dataset(self, name: str, cfg: CfgNode, *, training: bool) -> tuple[str, ...]:
        class_names = register_dataset(cfg, name, training=training)
        if not training:
            check_evaluator(name)
        return tuple(class_names)

    def loads_detector(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.kind == DETECTOR

    def build(
        self, cfg: CfgNode, checkpoint: Checkpoint | None, class_names: tuple[str, ...], section: Section
    ) -> DetectorParts:
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = "cpu"
        learned = checkpoint.num_detected if checkpoint is not None else None
        set_num_classes(cfg, len(class_names) or learned or 0)
        model = build_detector(cfg).eval()
        if checkpoint is not None:
            _load(model, cfg, checkpoint, section)
        return parts_of(cfg, model)


def parts_of(cfg: CfgNode, model: nn.Module) -> DetectorParts:
    """Take apart a detector that ``build_detector(cfg)`` built on the CPU."""
    backbone: Any = model.get_submodule("backbone")
    bottom_up = getattr(backbone, "bottom_up", backbone)
    if not isinstance(bottom_up, TrunkBackbone):
        raise TypeError(f"expected a backbone of this package, got {type(bottom_up).__name__}")
    roi_heads: Any = getattr(model, "roi_heads", None)
    head_parts = classifier_parts(roi_heads, getattr(roi_heads, "box_head", None))
    prepare = partial(_prepare, model, backbone, cfg.INPUT.FORMAT)
    return DetectorParts(bottom_up.trunk, head_parts, prepare)


class _Reached(Exception):
    """What the backbone was called with."""


def _prepare(model: nn.Module, backbone: nn.Module, channel_order: str, image: Tensor) -> Tensor:
    """Map an RGB image, uint8 (3, H, W), to what the backbone gets: read as by DatasetMapper, then the model's own way.

    The model runs up to its backbone, since not every one has its pre-processing in a method of its own.
    """
    pixels = convert_PIL_to_numpy(Image.fromarray(image.permute(1, 2, 0).numpy()), channel_order)
    height, width = image.shape[-2:]
    batch = [{"image": torch.as_tensor(pixels.transpose(2, 0, 1).copy()), "height": height, "width": width}]

    def stop(module: nn.Module, inputs: tuple[Tensor]) -> None:
        raise _Reached(inputs[0])

    hook = backbone.register_forward_pre_hook(stop)
    try:
        model(batch)
    except _Reached as reached:
        return reached.args[0]
    finally:
        hook.remove()
    raise ValueError(f"{type(model).__name__} does not call its backbone")


def _load(model: nn.Module, cfg: CfgNode, checkpoint: Checkpoint, section: Section) -> None:
    """Load MODEL.WEIGHTS as a run does; of a detector say which tensors are re-initialised.

    Raises:
        WeightsError: the trunk does not fit, or the file cannot be loaded.
    """
    checkpointer = SafeCheckpointer(model, "", arch=cfg.MODEL.RESNET_BACKBONE.ARCH, facts={}, save_to_disk=False)
    try:
        checkpointer.load(checkpoint.source, checkpointables=[])
    except WeightsError:
        raise
    except Exception as error:  # its checkpointer raises nearly anything on a file of another kind
        raise WeightsError(f"Detectron2 cannot load {checkpoint.source}: {type(error).__name__}: {error}") from error
    if checkpoint.kind != DETECTOR:
        return
    match = checkpointer.match
    if missing := [*match.different, *match.missing]:
        section.warning(
            f"{len(missing)} tensors of the detector are missing in the file, or of another shape, and re-initialised: "
            f"{shorten(missing)}"
        )
    if match.left_over:
        section.warning(
            f"{len(match.left_over)} tensors of the file fit nothing in the detector: {shorten(match.left_over)}"
        )


def _commit() -> str:
    """Return the commit that pip installed Detectron2 from; ``""`` where it did not keep it."""
    try:
        text = distribution("detectron2").read_text("direct_url.json")
    except PackageNotFoundError:
        return ""
    return json.loads(text or "{}").get("vcs_info", {}).get("commit_id", "")
