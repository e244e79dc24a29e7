"""Box refinement, multi-scale testing and ensembles around Detectron2's Faster R-CNN; and its ``Predictor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn

from resnet_backbone.config.checks import is_improved
from resnet_backbone.detectron2_plugin.checkpoint import load_trained
from resnet_backbone.detectron2_plugin.config import load_config
from resnet_backbone.detectron2_plugin.mapper import read_image, size_of, to_tensor
from resnet_backbone.detectron2_plugin.roi_heads import ContextROIHeads, ImageNetRes5ROIHeads, region_vectors
from resnet_backbone.engine.improvements import ImprovedDetector, Scale, Settings, improvement_settings, load_ensemble
from resnet_backbone.metrics.drawing import check_image
from resnet_backbone.metrics.results import Detections
from resnet_backbone.models.acceleration import clone_if_reused

# What a subclass of these heads may not have of its own: the way from regions to boxes.
_BOX_PARTS = {
    StandardROIHeads: ("_forward_box", (StandardROIHeads._forward_box, ContextROIHeads._forward_box)),
    Res5ROIHeads: ("forward", (Res5ROIHeads.forward, ImageNetRes5ROIHeads.forward)),
}


class TwoStage:
    """A Faster R-CNN as :class:`~resnet_backbone.engine.improvements.TwoStageDetector`.

    Args:
        cfg: of the detector; reads INPUT.
        model: GeneralizedRCNN with StandardROIHeads or Res5ROIHeads, or heads of ours on them, without masks.

    Raises:
        ValueError: another detector.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        if not _is_faster_rcnn(model):
            raise ValueError(
                f"TEST.BOX_REFINEMENT, TEST.MULTI_SCALE and TEST.ENSEMBLE improve boxes of two stages: of "
                f"MODEL.META_ARCHITECTURE GeneralizedRCNN with MODEL.ROI_HEADS.NAME StandardROIHeads or Res5ROIHeads "
                f"(ContextROIHeads, ImageNetRes5ROIHeads) on an RPN, without MODEL.MASK_ON; found "
                f"{cfg.MODEL.META_ARCHITECTURE} with {cfg.MODEL.ROI_HEADS.NAME}, PROPOSAL_GENERATOR.NAME "
                f"{cfg.MODEL.PROPOSAL_GENERATOR.NAME} and MASK_ON {cfg.MODEL.MASK_ON}. Write ENABLED: False and "
                f"TEST.ENSEMBLE: [], or another detector"
            )
        self.test_size = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self._channel_order = cfg.INPUT.FORMAT
        self._model: Any = model

    def scale(self, image: Tensor, height: int, width: int) -> Scale:
        pixels = image if self._channel_order == "RGB" else image.flip(0)
        resize = T.ResizeTransform(image.shape[-2], image.shape[-1], height, width)
        resized = resize.apply_image(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
        batch = self._model.preprocess_image([{"image": to_tensor(resized)}])
        backbone = self._model.backbone
        return Scale((height, width), (batch, clone_if_reused(backbone, backbone(batch.tensor))))

    def propose(self, scale: Scale) -> Tensor:
        batch, features = scale.features
        found, _ = self._model.proposal_generator(batch, features, None)
        return found[0].proposal_boxes.tensor

    def region_vectors(self, scale: Scale, boxes: Tensor) -> Tensor:
        _, features = scale.features
        return region_vectors(self._model.roi_heads, features, [Boxes(boxes)], [scale.size])[1]

    def predict(self, vectors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        predictor = self._model.roi_heads.box_predictor
        regions = [Instances((0, 0), proposal_boxes=Boxes(boxes))]
        predictions = predictor(vectors)
        probabilities = predictor.predict_probs(predictions, regions)[0][:, :-1]
        regressed = predictor.predict_boxes(predictions, regions)[0]
        regressed = regressed.reshape(len(boxes), regressed.shape[1] // 4, 4)  # one box for all classes, or one each
        return probabilities, regressed.expand(-1, probabilities.shape[1], -1)


class ImprovedRCNN(nn.Module):
    """Detectors under box refinement, multi-scale testing and in an ensemble, to be evaluated in place of the first.

    Called as Detectron2's own are, it reads the original images from their files and resizes them itself, as their
    test transform does. In a project of your own, for ``inference_on_dataset``::

        settings = Settings(score_thresh=0.05, nms_thresh=0.5, max_detections=100, refinement=BoxRefinement(0.3, 0.5))
        model = ImprovedRCNN([(cfg, model)], settings)

    Args:
        parts: each detector with its config, whose INPUT is its own; of the same classes.
        settings: for all of them.

    Raises:
        ValueError: one of them is no Faster R-CNN, see :class:`TwoStage`.
    """

    def __init__(self, parts: Sequence[tuple[CfgNode, nn.Module]], settings: Settings) -> None:
        super().__init__()
        self.detectors = nn.ModuleList(model for _, model in parts)
        self._improved = ImprovedDetector([TwoStage(*part) for part in parts], settings)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect in eval mode.

        Args:
            batched_inputs: of Detectron2's test loader; ``file_name``, ``height`` and ``width`` count.

        Returns:
            For each image ``{"instances": ...}``, with ``pred_boxes``, ``scores`` and ``pred_classes`` in its pixels.

        Raises:
            ValueError: a file whose image has not the ``height`` and ``width`` of the data set.
        """
        images = [to_tensor(read_image(record["file_name"], "RGB", size_of(record))) for record in batched_inputs]
        return [{"instances": self.detect(image)} for image in images]

    def detect(self, image: Tensor) -> Instances:
        """Detect in one original image, uint8 (3, H, W), RGB; see :meth:`forward`."""
        found = self._improved(image)
        size = (image.shape[-2], image.shape[-1])
        return Instances(size, pred_boxes=Boxes(found.boxes), scores=found.scores, pred_classes=found.labels)


def build_improved(cfg: CfgNode, model: nn.Module, class_names: Sequence[str]) -> ImprovedRCNN | None:
    """Return the detector of a run with what TEST asks for around it, or None where it asks for nothing.

    Raises:
        FileNotFoundError, ValueError: see :func:`~resnet_backbone.engine.improvements.load_ensemble`; or a detector is
            no Faster R-CNN.
    """
    if not is_improved(cfg):
        return None
    members = load_ensemble(
        cfg, class_names, "detectron2", lambda config_file, overrides: load_trained(load_config(config_file, overrides))
    )
    return ImprovedRCNN([(cfg, model), *members], improvement_settings(cfg))


def _is_faster_rcnn(model: nn.Module) -> bool:
    if not isinstance(model, GeneralizedRCNN) or type(model).inference is not GeneralizedRCNN.inference:
        return False
    heads = model.roi_heads
    if model.proposal_generator is None or getattr(heads, "mask_on", False) or getattr(heads, "keypoint_on", False):
        return False
    return any(
        isinstance(heads, kind) and getattr(type(heads), name) in known for kind, (name, known) in _BOX_PARTS.items()
    )


class Predictor:
    """See :class:`~resnet_backbone.metrics.results.Predictor`. ``load_trained`` reads the weights once, here.

    With the improvements that TEST asks for, as the evaluation at the end of a training has them; with
    TEST.AUG.ENABLED it augments, as the one into ``inference_TTA/`` does.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, model, self.class_names = load_trained(cfg)
        self._improved = build_improved(self.cfg, model, self.class_names)
        self.model = GeneralizedRCNNWithTTA(self.cfg, model) if self.cfg.TEST.AUG.ENABLED else model
        self._augmentations = T.AugmentationList(build_augmentation(self.cfg, is_train=False))

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Detections:
        check_image(image)
        found = (self._improved.detect(image) if self._improved else self._detect(image)).to("cpu")
        masks = found.pred_masks.bool() if found.has("pred_masks") else None
        return Detections(found.pred_boxes.tensor.float(), found.scores.float(), found.pred_classes, masks)

    def _detect(self, image: Tensor) -> Instances:
        height, width = image.shape[-2:]
        pixels = convert_PIL_to_numpy(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()), self.cfg.INPUT.FORMAT)
        resized = T.AugInput(pixels)
        self._augmentations(resized)
        tensor = torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        output = self.model([{"image": tensor, "height": height, "width": width}])[0]
        if "instances" not in output:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE {self.cfg.MODEL.META_ARCHITECTURE} finds no objects, it gives "
                f"{', '.join(sorted(output))}; name a config of a detector"
            )
        return output["instances"]
