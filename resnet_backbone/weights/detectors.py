"""Trained detectors of Detectron2's: those that it publishes, and their tensors in the torchvision engine's names.

The torchvision engine has torchvision's modules with Detectron2's arithmetic, so that only names differ, and where the
background stands: the last class of Detectron2's is the first one here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml
from torch import Tensor

from resnet_backbone.weights.catalog import FAIR_BGR, MSRA_BGR, InputFormat

# Detectron2's name, the torchvision engine's, and the second one's number: factor times the first one's plus this. Of
# a pyramid the number is counted from its first level.
_NAMES = (
    ("backbone.fpn_lateral{}.", "backbone.fpn.inner_blocks.{}.0.", 1, 0),
    ("backbone.fpn_output{}.", "backbone.fpn.layer_blocks.{}.0.", 1, 0),
    ("backbone.top_block.", "backbone.fpn.extra_blocks.", 1, 0),
    ("proposal_generator.rpn_head.conv.", "rpn.head.conv.0.0.", 1, 0),
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.head.cls_logits.", 1, 0),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.head.bbox_pred.", 1, 0),
    ("roi_heads.res5.", "roi_heads.box_head.res5.", 1, 0),
    ("roi_heads.box_head.fc{}.", "roi_heads.box_head.layers.{}.", 2, -1),
    ("roi_heads.mask_head.mask_fcn{}.", "roi_heads.mask_head.convs.{}.0.", 1, -1),
    ("head.cls_subnet.{}.", "head.classification_head.conv.{}.0.", 0.5, 0),
    ("head.bbox_subnet.{}.", "head.regression_head.conv.{}.0.", 0.5, 0),
    ("head.cls_score.", "head.classification_head.cls_logits.", 1, 0),
    ("head.bbox_pred.", "head.regression_head.bbox_reg.", 1, 0),
)
_NO_PARAMETERS = re.compile(r".*anchor_generator\.cell_anchors\.\d+|pixel_(mean|std)")  # in files of older versions
_CLASSES = "roi_heads.box_predictor.cls_score."
_DELTAS = "roi_heads.box_predictor.bbox_pred."
_LEVEL = re.compile(r"backbone\.fpn_lateral(\d)\.")


@dataclass(frozen=True)
class DetectorEntry:
    """A published detector.

    Attributes:
        url: of the file.
        config: the config of this project that describes it, below ``configs/``.
        box_ap, mask_ap: on COCO val2017, in percent; None without masks.
    """

    url: str
    config: str
    box_ap: float
    mask_ap: float | None = None

    @property
    def sha256(self) -> str:
        """The digits that the file's SHA-256 begins with."""
        return self.url.rpartition("_")[2].removesuffix(".pkl")

    @property
    def arch(self) -> str:
        """Of the trunk."""
        return "resnext101_32x8d" if "/x101_" in self.config else "resnet" + re.sub(r".*/r(\d+)_.*", r"\1", self.config)

    @property
    def input_format(self) -> InputFormat:
        """Of the classifier from which it was trained: MSRA's, or Facebook's ResNeXt."""
        return FAIR_BGR if self.arch.startswith("resnext") else MSRA_BGR

    @property
    def stride_in_1x1(self) -> bool:
        """As of that classifier."""
        return not self.arch.startswith("resnext")


@cache
def published_detectors() -> tuple[DetectorEntry, ...]:
    """Return the detectors of ``detectors.yaml``."""
    content = yaml.safe_load(Path(__file__).with_name("detectors.yaml").read_text(encoding="utf-8"))
    return tuple(DetectorEntry(content["url"] + file, *facts) for file, facts in content["files"].items())


def find_detector(sha256: str) -> DetectorEntry | None:
    """Return the published detector whose file has this SHA-256, all 64 hexadecimal digits."""
    return next((entry for entry in published_detectors() if sha256.startswith(entry.sha256)), None)


def coco_classes() -> tuple[str, ...]:
    """Return COCO's 80 class names, in the order of their ids."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


def is_of_detectron2(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a detector have Detectron2's names."""
    return any(name.startswith(("proposal_generator.rpn_head.", "head.cls_subnet.")) for name in tensors)


def is_of_torchvision_engine(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a detector have the names of the torchvision engine."""
    return any(name.startswith(("rpn.head.", "head.classification_head.")) for name in tensors)


def from_detectron2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a detector's tensors in the torchvision engine's names, background first; others keep their names.

    Deltas of the background, which nothing reads, are zeros.
    """
    levels = [int(match[1]) for name in tensors if (match := _LEVEL.match(name))]
    renamed = {}
    for name, tensor in tensors.items():
        if _NO_PARAMETERS.fullmatch(name):
            continue
        if name.startswith(_CLASSES):
            tensor = torch.roll(tensor, 1, 0)
        elif name.startswith(_DELTAS):
            tensor = torch.cat([tensor.new_zeros(4, *tensor.shape[1:]), tensor])
        renamed[_rename(name, 0, min(levels, default=0))] = tensor
    if any(name.startswith("head.") for name in tensors):
        renamed["loss_normalizer"] = torch.tensor(100.0)  # of RetinaNet; Detectron2 begins with it, too, and keeps none
    return renamed


def to_detectron2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`from_detectron2`; the last level of a pyramid is ``fpn_lateral5``, as of a trunk to stride 32."""
    blocks = {name.split(".")[3] for name in tensors if name.startswith("backbone.fpn.inner_blocks.")}
    renamed = {}
    for name, tensor in tensors.items():
        if name == "loss_normalizer":
            continue
        if name.startswith(_CLASSES):
            tensor = torch.roll(tensor, -1, 0)
        elif name.startswith(_DELTAS):
            tensor = tensor[4:]
        renamed[_rename(name, 1, 6 - len(blocks))] = tensor
    return renamed


def _rename(name: str, direction: int, first_level: int) -> str:
    """``direction`` 0 is from Detectron2's names, 1 is to them."""
    for *pair, factor, shift in _NAMES:
        here, there = pair[direction], pair[1 - direction]
        match = re.match(re.escape(here).replace(r"\{\}", r"(\d)"), name)
        if match is None:
            continue
        if "{}" not in here:
            return there + name.removeprefix(here)
        if "fpn_" in pair[0]:
            shift = -first_level
        number = factor * int(match[1]) + shift if direction == 0 else (int(match[1]) - shift) / factor
        return there.format(int(number)) + name[match.end() :]
    return name
