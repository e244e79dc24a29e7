"""A trained detector of this engine, ready to be called on images."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision import tv_tensors

from resnet_backbone.data.transforms import test_transforms
from resnet_backbone.evaluation.detections import Detections
from resnet_backbone.evaluation.drawing import check_image
from resnet_backbone.torchvision_plugin.improvements import build_improved
from resnet_backbone.torchvision_plugin.inference import rescale
from resnet_backbone.torchvision_plugin.trained import load_trained
from resnet_backbone.training.batches import reorder_channels


class Predictor:
    """See :class:`~resnet_backbone.evaluation.detections.Predictor`. The weights are read once, here.

    With the improvements that TEST asks for, as the evaluation at the end of a training has them.

    Args:
        cfg: of the training, MODEL.WEIGHTS being its checkpoint; see ``load_config``. It stays as it is: classes and
            input format are the checkpoint's.

    Raises:
        FileNotFoundError: the checkpoint is not there.
        ValueError: it cannot be read safely, or is of another detector than the config describes.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg, detector, self.class_names = load_trained(cfg)
        cfg = self.cfg
        improved = build_improved(cfg, detector, self.class_names)
        self.detector: nn.Module = (improved or detector).to(cfg.MODEL.DEVICE).eval()
        self._transforms = None if improved else test_transforms(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Detections:
        check_image(image)
        resized = self._transforms(tv_tensors.Image(image)) if self._transforms else image
        resized = reorder_channels(resized, self.cfg.INPUT.FORMAT)
        output = self.detector([resized.to(self.cfg.MODEL.DEVICE)])[0]
        found = rescale(output, (resized.shape[-2], resized.shape[-1]), (image.shape[-2], image.shape[-1]))
        found = {name: value.cpu() for name, value in found.items()}
        return Detections(found["boxes"].float(), found["scores"].float(), found["labels"], found.get("masks"))
