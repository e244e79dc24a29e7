"""The improvements of Table 9 on this engine: its detector taken apart, and the one that evaluates original images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from resnet_backbone.engine.batches import reorder_channels
from resnet_backbone.engine.checkpoint import engine_of, find_run
from resnet_backbone.engine.improvements.second_stage import Detections, ImprovedDetector, Scale
from resnet_backbone.engine.improvements.settings import is_improved, settings_of
from resnet_backbone.models.acceleration import lasting_features
from resnet_backbone.torchvision_plugin.checkpoint import load_trained
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import Detector
from resnet_backbone.torchvision_plugin.retinanet import RetinaNet

_MIN_SIDE = 0.01  # pixels: what torchvision's RoIHeads drop


class TwoStage:
    """A detector as :class:`~resnet_backbone.engine.improvements.second_stage.TwoStageDetector`.

    Args:
        cfg: of the detector; reads INPUT.
        detector: Faster R-CNN.
    """

    def __init__(self, cfg: CfgNode, detector: Detector) -> None:
        self.test_size = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self._channel_order = cfg.INPUT.FORMAT
        self._detector = detector

    def scale(self, image: Tensor, height: int, width: int) -> Scale:
        device = self._detector.transform.pixel_mean.device
        # On the CPU, where the loader's workers resize: a GPU rounds pixels otherwise.
        resized = resize(image.cpu(), [height, width], antialias=True)
        batch, _ = self._detector.transform([reorder_channels(resized, self._channel_order).to(device)])
        backbone = self._detector.backbone
        return Scale((height, width), (batch, lasting_features(backbone, backbone(batch.tensors))))

    def propose(self, scale: Scale) -> Tensor:
        batch, features = scale.features
        proposals, _ = self._detector.rpn(batch, features)
        return proposals[0]

    def region_vectors(self, scale: Scale, boxes: Tensor) -> Tensor:
        _, features = scale.features
        return self._detector.roi_heads.region_vectors(features, [boxes], [scale.size])[1]

    def predict(self, vectors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        heads = self._detector.roi_heads
        logits, deltas = heads.box_predictor(vectors)
        return F.softmax(logits, -1)[:, 1:], heads.box_coder.decode(deltas, [boxes])[:, 1:]


class Improved(nn.Module):
    """A detector, alone or with others, under TEST.BOX_REFINEMENT, TEST.MULTI_SCALE and TEST.ENSEMBLE.

    It is called as :class:`~resnet_backbone.torchvision_plugin.detector.Detector` is, in eval mode, but with original
    images, which it resizes itself.

    Args:
        cfg: of the run, whose INPUT.FORMAT the images have.
        detector: of the run.
        members: the others of an ensemble, each with its config.
    """

    def __init__(self, cfg: CfgNode, detector: Detector, members: Sequence[tuple[CfgNode, Detector]]) -> None:
        super().__init__()
        parts = [(cfg, detector), *members]
        self.detectors = nn.ModuleList(part for _, part in parts)
        self._channel_order = cfg.INPUT.FORMAT
        settings = settings_of(cfg, min_side=_MIN_SIDE, first_label=1)
        self._improved = ImprovedDetector([TwoStage(*part) for part in parts], settings)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return for each original image, uint8 (3, H, W), what ``Detector`` does, in its pixels."""
        found = [self._improved(reorder_channels(image, self._channel_order)) for image in images]  # and back to RGB
        return [_as_torchvision(detections) for detections in found]


def build_improved(cfg: CfgNode, detector: Detector | RetinaNet, class_names: Sequence[str]) -> Improved | None:
    """Return the detector with what TEST asks for around it, or None where it asks for nothing.

    The other detectors of an ensemble are read from the runs that TEST.ENSEMBLE names, onto the CPU. Each has its own
    channel order, pixel mean and test size; nothing else of TEST in their configs counts.

    Args:
        cfg: of the run; checked.
        detector: of the run.
        class_names: of the run, which the others must have learned, in this order.

    Raises:
        FileNotFoundError: a folder has no ``config.yaml`` or no checkpoint.
        ValueError: a detector has no second stage, or one for masks; or one of the others is of the other engine, of
            other classes, or its files do not fit each other.
    """
    if not is_improved(cfg):
        return None
    members = []
    for name in cfg.TEST.ENSEMBLE:
        try:
            members.append(_load_member(name, class_names, cfg.MODEL.DEVICE))
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"TEST.ENSEMBLE {name}: {error}") from error
    return Improved(cfg, _two_stages(cfg, detector), members)


def _load_member(folder: str, class_names: Sequence[str], device: str) -> tuple[CfgNode, Detector]:
    config_file, weights = find_run(folder)
    if engine_of(weights) != "torchvision":
        raise ValueError(f"{weights} is of Detectron2; evaluate with --engine detectron2")
    trained = load_trained(load_config(config_file, ["MODEL.WEIGHTS", str(weights), "MODEL.DEVICE", device]))
    if trained.class_names != tuple(class_names):
        raise ValueError(f"it learned the classes {list(trained.class_names)}, this run has {list(class_names)}")
    return trained.cfg, _two_stages(trained.cfg, trained.detector)


def _two_stages(cfg: CfgNode, detector: Detector | RetinaNet) -> Detector:
    if not isinstance(detector, Detector) or cfg.MODEL.MASK_ON:
        raise ValueError(
            f"improvements are for boxes of two stages, not for MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} with MODEL.MASK_ON {cfg.MODEL.MASK_ON}"
        )
    return detector


def _as_torchvision(detections: Detections) -> dict[str, Tensor]:
    """Labels count from 1."""
    return {"boxes": detections.boxes, "scores": detections.scores, "labels": detections.labels + 1}
