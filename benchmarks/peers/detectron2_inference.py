"""Detectron2's own detectors, and ours inside Detectron2."""

from __future__ import annotations

from collections.abc import Callable

from detectron2 import model_zoo
from detectron2.modeling import build_model
from torch import Tensor

from benchmarks.detector_inference import scratch, tensors_for_detectron2
from resnet_backbone.detectron2_plugin.config import load_config
from resnet_backbone.models.acceleration import finish_for_inference


def build(
    name: str, zoo: str, *, ours: bool = False, precision: str = ""
) -> Callable[[list[Tensor]], list[dict[str, Tensor]]]:
    """Return what detects in images from 0 to 255, on the weights that ours has on the torchvision engine.

    Args:
        name: of our config.
        zoo: of Detectron2's.
        ours: with our backbone and config, finished for inference, instead of Detectron2's own.
        precision: of our backbone.
    """
    if ours:
        cfg = load_config(f"{name}.yaml", scratch(name, "MODEL.RESNET_BACKBONE.PRECISION", precision))
    else:
        cfg = model_zoo.get_config(zoo)
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(cfg).eval()
    model.load_state_dict(tensors_for_detectron2(name), strict=False)
    if ours:
        finish_for_inference(model)

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = model([{"image": image, "height": image.shape[1], "width": image.shape[2]} for image in images])
        instances = [one["instances"] for one in found]
        return [{"boxes": one.pred_boxes.tensor, "scores": one.scores, "labels": one.pred_classes} for one in instances]

    return detect
