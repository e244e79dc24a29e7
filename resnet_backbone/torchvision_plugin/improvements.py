"""Box refinement, multi-scale testing and ensembles around the torchvision engine's Faster R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize

from resnet_backbone.config.checks import is_improved
from resnet_backbone.engine.batches import reorder_channels
from resnet_backbone.engine.improvements import ImprovedDetector, Scale, improvement_settings, load_ensemble
from resnet_backbone.models.acceleration import clone_if_reused
from resnet_backbone.torchvision_plugin.checkpoint import load_trained
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import Detector
from resnet_backbone.torchvision_plugin.retinanet import RetinaNet
from resnet_backbone.torchvision_plugin.roi_heads import MIN_SIDE


class TwoStage:
    """A Faster R-CNN as :class:`~resnet_backbone.engine.improvements.TwoStageDetector`; of its config INPUT is read."""

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
        return Scale((height, width), (batch, clone_if_reused(backbone, backbone(batch.tensors))))

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
    """A detector, alone or with the others of an ensemble, under TEST.BOX_REFINEMENT and TEST.MULTI_SCALE.

    It is called as :class:`~resnet_backbone.torchvision_plugin.detector.Detector` is, in eval mode, but with original
    images in INPUT.FORMAT of ``cfg``, which it resizes itself.
    """

    def __init__(self, cfg: CfgNode, detector: Detector, members: Sequence[tuple[CfgNode, Detector]]) -> None:
        super().__init__()
        parts = [(cfg, detector), *members]
        self.detectors = nn.ModuleList(part for _, part in parts)
        self._channel_order = cfg.INPUT.FORMAT
        settings = improvement_settings(cfg, min_side=MIN_SIDE, first_label=1)
        self._improved = ImprovedDetector([TwoStage(*part) for part in parts], settings)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return for each original image, uint8 (3, H, W), what ``Detector`` does, in its pixels."""
        found = [self._improved(reorder_channels(image, self._channel_order)) for image in images]  # and back to RGB
        return [{"boxes": one.boxes, "scores": one.scores, "labels": one.labels} for one in found]


def build_improved(cfg: CfgNode, detector: Detector | RetinaNet, class_names: Sequence[str]) -> Improved | None:
    """Return the detector of a run with what TEST asks for around it, or None where it asks for nothing.

    Raises:
        FileNotFoundError, ValueError: see :func:`~resnet_backbone.engine.improvements.load_ensemble`; or a detector has
            no second stage, or one for masks.
    """
    if not is_improved(cfg):
        return None
    return Improved(cfg, _two_stages(cfg, detector), load_ensemble(cfg, class_names, "torchvision", _load))


def _load(config_file: Path, overrides: Sequence[str]) -> tuple[CfgNode, Detector, tuple[str, ...]]:
    cfg, detector, class_names = load_trained(load_config(config_file, overrides))
    return cfg, _two_stages(cfg, detector), class_names


def _two_stages(cfg: CfgNode, detector: Detector | RetinaNet) -> Detector:
    if not isinstance(detector, Detector) or cfg.MODEL.MASK_ON:
        raise ValueError(
            f"improvements are for boxes of two stages, not for MODEL.META_ARCHITECTURE "
            f"{cfg.MODEL.META_ARCHITECTURE} with MODEL.MASK_ON {cfg.MODEL.MASK_ON}"
        )
    return detector
