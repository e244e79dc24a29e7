"""A trained detector of Detectron2's, ready to be called on images."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Instances
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor

from resnet_backbone.detectron2_plugin.detector import load_trained
from resnet_backbone.detectron2_plugin.improvements import build_improved
from resnet_backbone.metrics.drawing import check_image
from resnet_backbone.metrics.results import Detections


class Predictor:
    """See :class:`~resnet_backbone.metrics.results.Predictor`. The weights are read once, here.

    With the improvements that TEST asks for, as the evaluation at the end of a training has them; with
    TEST.AUG.ENABLED it augments, as the one into ``inference_TTA/`` does.

    Args:
        cfg: of the training, MODEL.WEIGHTS being its checkpoint; see ``load_config`` and ``load_trained``.

    Raises:
        FileNotFoundError, OSError, ValueError: as ``load_trained`` and ``build_improved``.
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
