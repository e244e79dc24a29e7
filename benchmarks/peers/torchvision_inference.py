"""torchvision's own detectors, with random weights that find something."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor

from benchmarks.detector_inference import smooth, spread

SIZE = (256, 320)  # of the image on which the weights are drawn


def model_of(name: str) -> Any:
    """Build ``torchvision/BUILDER`` on random weights."""
    torch.manual_seed(0)
    builder = getattr(torchvision.models.detection, name.rpartition("/")[2])
    model = builder(weights=None, weights_backbone=None, min_size=SIZE[0], max_size=SIZE[1]).eval()
    spread(model, lambda: model([smooth((1, *SIZE), seed=1)[0]]))
    if hasattr(model, "roi_heads"):  # ids of no class, which a training leaves without scores
        of_no_class = [0 < number and kind == "N/A" for number, kind in enumerate(_CATEGORIES)]
        with torch.no_grad():
            model.roi_heads.box_predictor.cls_score.bias[of_no_class] = -30
    return model


def tensors_of(name: str) -> dict[str, Tensor]:
    """Return its weights."""
    return model_of(name).state_dict()


def build(name: str, size: tuple[int, int]) -> Callable[[list[Tensor]], list[dict[str, Tensor]]]:
    """Return what detects in images from 0 to 255; labels are those of 80 classes, from 0."""
    model = model_of(name)
    model.transform.min_size, model.transform.max_size = (min(size),), max(size)
    ids = [i for i, kind in enumerate(_CATEGORIES) if kind != "N/A"][1:]
    from_id = torch.full((len(_CATEGORIES),), -1)
    from_id[ids] = torch.arange(len(ids))

    def detect(images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = model([image / 255 for image in images])
        return [{**one, "labels": from_id[one["labels"]]} for one in found]

    return detect


_CATEGORIES = torchvision.models.detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
