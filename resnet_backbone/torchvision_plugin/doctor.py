"""What tools/doctor.py asks of the torchvision engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from fvcore.common.config import CfgNode
from torch import Tensor, nn

from resnet_backbone.config import warn_of_random_weights
from resnet_backbone.config.schema import TORCHVISION_KEYS
from resnet_backbone.doctor import DetectorParts, Section
from resnet_backbone.doctor.checkpoint import DETECTOR, Checkpoint
from resnet_backbone.doctor.report import NAME_KEYS, classifier_parts
from resnet_backbone.engine.batches import reorder_channels
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.torchvision_plugin.checkpoint import load_detector, read_detector
from resnet_backbone.torchvision_plugin.config import ENGINE, load_config
from resnet_backbone.torchvision_plugin.datasets import (
    check_files,
    open_test_sets,
    open_train_set,
    set_num_classes,
)
from resnet_backbone.torchvision_plugin.detector import Detector, FPNBackbone, build_detector
from resnet_backbone.weights import WeightsError


class TorchvisionEngine:
    """See :class:`~resnet_backbone.doctor.report.Engine`."""

    name = "torchvision"

    def check_versions(self, section: Section) -> None:
        """Nothing beyond what every engine needs."""

    def known_names(self) -> Mapping[str, Sequence[str]]:
        return {key: [str(name) for name in TORCHVISION_KEYS[key].choices_on(ENGINE) if name] for key in NAME_KEYS}

    def load_config(self, config_file: str, overrides: Sequence[str]) -> CfgNode:
        return load_config(config_file, overrides)

    def open_dataset(self, name: str, cfg: CfgNode, *, training: bool) -> tuple[str, ...]:
        cfg = cfg.clone()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((name,), ()) if training else ((), (name,))
        check_files(cfg, training=training)
        if training:
            return open_train_set(cfg).class_names
        return open_test_sets(cfg, None)[name].class_names

    def loads_detector(self, checkpoint: Checkpoint) -> bool:
        return read_detector(checkpoint.source) is not None

    def build(
        self, cfg: CfgNode, checkpoint: Checkpoint | None, class_names: tuple[str, ...], section: Section
    ) -> DetectorParts:
        cfg = cfg.clone()
        if class_names:
            set_num_classes(cfg, class_names)
        if checkpoint is None:
            warn_of_random_weights(cfg)
        if checkpoint is None or checkpoint.kind != DETECTOR:
            return parts_of(cfg, build_detector(cfg, checkpoint.weights if checkpoint else None).eval())
        state = read_detector(checkpoint.source) or {}
        learned = tuple(state["class_names"])
        new_classes = bool(class_names) and class_names != learned
        if not new_classes:
            set_num_classes(cfg, learned)
        detector = build_detector(cfg)
        try:
            load_detector(detector, state["model"], state["source"], new_classes=new_classes)
        except ValueError as error:
            raise WeightsError(str(error)) from error
        if not new_classes:
            section.ok(f"all {len(state['model'])} tensors of the detector fit")
        return parts_of(cfg, detector.eval())


def parts_of(cfg: CfgNode, detector: nn.Module) -> DetectorParts:
    """Take apart a detector that ``build_detector(cfg)`` built."""
    backbone = detector.get_submodule("backbone")
    trunk = backbone.bottom_up if isinstance(backbone, FPNBackbone) else backbone
    if not isinstance(trunk, Trunk):
        raise TypeError(f"expected a detector of this engine, got one on a {type(trunk).__name__}")
    box_head = detector.roi_heads.box_head if isinstance(detector, Detector) else None
    return DetectorParts(trunk, classifier_parts(box_head), partial(_prepare, detector, cfg.INPUT.FORMAT))


def _prepare(detector: nn.Module, channel_order: str, image: Tensor) -> Tensor:
    """Map an RGB image, uint8 (3, H, W), to what the trunk gets, as ``inference.predict`` does."""
    images, _ = detector.get_submodule("transform")([reorder_channels(image, channel_order)])
    return images.tensors
