"""Trained detectors of Detectron2 and torchvision: published ones, and their tensors in the torchvision engine's names.

The torchvision engine has torchvision's modules with Detectron2's arithmetic, so that only names differ, and where the
background stands: the last class of Detectron2's is the first one here. Of torchvision's, which count COCO's ids with
their gaps, the outputs for ids that are of no class are left out; :data:`TORCHVISION_KEYS` say its arithmetic.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml
from torch import Tensor

from resnet_backbone.weights.catalog import FAIR_BGR, MSRA_BGR, TORCHVISION_RGB, InputFormat
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.names import to_our_names

# Detectron2's name, the torchvision engine's, and the second one's number: factor times the first one's plus this. Of
# a pyramid the number is counted from its first level.
_NAMES = (
    ("backbone.fpn_lateral{}.norm.", "backbone.fpn.inner_blocks.{}.1.", 1, 0),
    ("backbone.fpn_output{}.norm.", "backbone.fpn.layer_blocks.{}.1.", 1, 0),
    ("backbone.fpn_lateral{}.", "backbone.fpn.inner_blocks.{}.0.", 1, 0),
    ("backbone.fpn_output{}.", "backbone.fpn.layer_blocks.{}.0.", 1, 0),
    ("backbone.top_block.", "backbone.fpn.extra_blocks.", 1, 0),
    ("proposal_generator.rpn_head.conv.", "rpn.head.conv.0.0.", 1, 0),
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.head.cls_logits.", 1, 0),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.head.bbox_pred.", 1, 0),
    ("roi_heads.res5.", "roi_heads.box_head.res5.", 1, 0),
    ("roi_heads.box_head.fc{}.", "roi_heads.box_head.layers.{}.", 2, -1),
    ("roi_heads.box_head.conv{}.norm.", "roi_heads.box_head.convs.{}.1.", 1, -1),
    ("roi_heads.box_head.conv{}.", "roi_heads.box_head.convs.{}.0.", 1, -1),
    ("roi_heads.mask_head.mask_fcn{}.norm.", "roi_heads.mask_head.convs.{}.1.", 1, -1),
    ("roi_heads.mask_head.mask_fcn{}.", "roi_heads.mask_head.convs.{}.0.", 1, -1),
    ("head.cls_subnet.{}.", "head.classification_head.conv.{}.0.", 0.5, 0),
    ("head.bbox_subnet.{}.", "head.regression_head.conv.{}.0.", 0.5, 0),
    ("head.cls_score.", "head.classification_head.cls_logits.", 1, 0),
    ("head.bbox_pred.", "head.regression_head.bbox_reg.", 1, 0),
)
# In place of some of these: of an RPN with several convolutions, of RetinaNet with norms.
_DEEP_RPN = (("proposal_generator.rpn_head.conv.conv{}.", "rpn.head.conv.{}.0.", 1, 0),)
_NORMS_IN_HEADS = tuple(
    (f"head.{theirs}_subnet.{{}}.", f"head.{ours}_head.conv.{{}}.{place}.", 1 / 3, -place / 3)
    for theirs, ours in (("cls", "classification"), ("bbox", "regression"))
    for place in (0, 1)
)
# Likewise torchvision's name; the first ones are of its first releases, whose published files have them still.
_TORCHVISION_NAMES = (
    *(
        (f"{old}.{first}", f"{new}.0.{first}", factor, 0)
        for old, new, factor in (
            ("backbone.fpn.inner_blocks.{}", "backbone.fpn.inner_blocks.{}", 1),
            ("backbone.fpn.layer_blocks.{}", "backbone.fpn.layer_blocks.{}", 1),
            ("rpn.head.conv", "rpn.head.conv.0", 1),
            ("head.classification_head.conv.{}", "head.classification_head.conv.{}", 0.5),
            ("head.regression_head.conv.{}", "head.regression_head.conv.{}", 0.5),
        )
        for first in "wb"  # of weight and bias
    ),
    ("roi_heads.mask_head.mask_fcn{}.", "roi_heads.mask_head.convs.{}.0.", 1, -1),
    ("roi_heads.mask_head.{}.", "roi_heads.mask_head.convs.{}.", 1, 0),
    ("roi_heads.mask_predictor.conv5_mask.", "roi_heads.mask_head.deconv.", 1, 0),
    ("roi_heads.mask_predictor.mask_fcn_logits.", "roi_heads.mask_head.predictor.", 1, 0),
    ("roi_heads.box_head.fc{}.", "roi_heads.box_head.layers.{}.", 2, -11),
    ("roi_heads.box_head.5.", "roi_heads.box_head.layers.1.", 1, 0),  # behind four convolutions
    ("roi_heads.box_head.{}.", "roi_heads.box_head.convs.{}.", 1, 0),
)
_BODY = "backbone.body."  # torchvision's trunk
TORCHVISION = "torchvision://"  # before BUILDER/WEIGHTS of its own names
_BUILDERS = tuple(f"{kind}_resnet50_fpn{v2}" for kind in ("fasterrcnn", "maskrcnn", "retinanet") for v2 in ("", "_v2"))
_FROZEN_EPS = 1e-5  # of FrozenBatchNorm2d; torchvision's first detectors are published for 0
TORCHVISION_KEYS: Mapping[str, object] = {
    "MODEL.ANCHOR_GENERATOR.NAME": "AnchorGenerator",
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.RETINANET.CLIP_BEFORE_NMS": True,
}
"""The config keys of torchvision's arithmetic where it is not Detectron2's."""
_SECTIONS = {
    "fasterrcnn": ("ROI_BOX_HEAD",),
    "maskrcnn": ("ROI_BOX_HEAD", "ROI_MASK_HEAD"),
    "retinanet": ("RETINANET",),
}
_NO_PARAMETERS = re.compile(r".*anchor_generator\.cell_anchors\.\d+|pixel_(mean|std)")  # in files of older versions
_CLASSES = "roi_heads.box_predictor.cls_score."
_DELTAS = "roi_heads.box_predictor.bbox_pred."
_RETINANET_SCORES, _RETINANET_DELTAS = "head.classification_head.cls_logits.", "head.regression_head.bbox_reg."
_LEVEL = re.compile(r"backbone\.fpn_lateral(\d)\.")
_HEAD_CONVOLUTION = re.compile(r"head\.\w+_head\.conv\.\d+\.0\.weight")
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"


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
        return re.split("[-_.]", self.url)[-2]

    @property
    def file_name(self) -> str:
        """Of the file in a cache."""
        return self.url.rpartition("/")[2]

    @property
    def detectron2_name(self) -> str:
        """``detectron2://`` and the path of the file, of one of Detectron2's."""
        return self.url.replace(DETECTRON2_URL, "detectron2://")

    @property
    def is_of_torchvision(self) -> bool:
        """Whether it has torchvision's arithmetic, :data:`TORCHVISION_KEYS`."""
        return self.config.startswith("torchvision/")

    @property
    def arch(self) -> str:
        """Of the trunk."""
        if self.is_of_torchvision:
            return "resnet50"
        return "resnext101_32x8d" if "/x101_" in self.config else "resnet" + re.sub(r".*/r(\d+)_.*", r"\1", self.config)

    @property
    def input_format(self) -> InputFormat:
        """Of the classifier from which it was trained: torchvision's, MSRA's, or Facebook's ResNeXt."""
        if self.is_of_torchvision:
            return TORCHVISION_RGB
        return FAIR_BGR if self.arch.startswith("resnext") else MSRA_BGR

    @property
    def stride_in_1x1(self) -> bool:
        """As of that classifier."""
        return not self.is_of_torchvision and not self.arch.startswith("resnext")


@cache
def published_detectors() -> tuple[DetectorEntry, ...]:
    """Return the detectors of ``detectors.yaml``, and torchvision's."""
    content = yaml.safe_load(Path(__file__).with_name("detectors.yaml").read_text(encoding="utf-8"))
    entries = [DetectorEntry(content["url"] + file, *facts) for file, facts in content["files"].items()]
    return (*entries, *torchvision_detectors().values())


@cache
def torchvision_detectors() -> dict[str, DetectorEntry]:
    """Return torchvision's detectors on ResNet-50, with what it says itself, by ``torchvision://BUILDER/WEIGHTS``."""
    from torchvision.models import get_model_weights

    entries = {}
    for builder in _BUILDERS:
        for weights in get_model_weights(builder):
            figures = weights.meta["_metrics"]["COCO-val2017"]
            entries[f"{TORCHVISION}{builder}/{weights.name}"] = DetectorEntry(
                weights.url, f"torchvision/{builder}.yaml", figures["box_map"], figures.get("mask_map")
            )
    return entries


def named_detector(source: str) -> DetectorEntry:
    """Return the published detector that is named ``torchvision://BUILDER/WEIGHTS``, ``detectron2://`` or by its URL.

    Raises:
        WeightsError: there is none of that name.
    """
    known = {entry.detectron2_name: entry for entry in published_detectors()}
    known |= {entry.url: entry for entry in published_detectors()} | torchvision_detectors()
    if source not in known:
        names = difflib.get_close_matches(source, known, n=6, cutoff=0.3) or torchvision_detectors()
        raise WeightsError(f"no published detector is named {source!r}; write one of {', '.join(names)}")
    return known[source]


def find_detector(sha256: str) -> DetectorEntry | None:
    """Return the published detector whose file has this SHA-256, all 64 hexadecimal digits."""
    return next((entry for entry in published_detectors() if sha256.startswith(entry.sha256)), None)


def coco_classes() -> tuple[str, ...]:
    """Return COCO's 80 class names, in the order of their ids."""
    return tuple(_coco_categories()[index] for index in _coco_outputs()[1:])


def _coco_categories() -> list[str]:
    """COCO's names by their ids, as torchvision has them: the background first, "N/A" for ids of no class."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def _coco_outputs() -> list[int]:
    return [index for index, name in enumerate(_coco_categories()) if name != "N/A"]


def is_of_detectron2(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a detector have Detectron2's names."""
    return any(name.startswith(("proposal_generator.rpn_head.", "head.cls_subnet.")) for name in tensors)


def is_of_torchvision_engine(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a detector have the names of the torchvision engine."""
    return any(name.startswith(("rpn.head.", "head.classification_head.")) for name in tensors)


def is_of_torchvision(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a detector have the names of torchvision's own, not the torchvision engine's."""
    return is_of_torchvision_engine(tensors) and any(name.startswith(_BODY) for name in tensors)


def torchvision_config(tensors: Mapping[str, Tensor]) -> str:
    """Return the config, below ``configs/``, of the detector of torchvision's own that has such tensors."""
    has_masks = any(name.startswith("roi_heads.mask_predictor.") for name in tensors)
    kind = (
        "maskrcnn" if has_masks else "fasterrcnn" if any(name.startswith("rpn.") for name in tensors) else "retinanet"
    )
    norms = ("backbone.fpn.inner_blocks.0.1.weight", "head.classification_head.conv.0.1.weight")
    return f"torchvision/{kind}_resnet50_fpn{'' if tensors.keys().isdisjoint(norms) else '_v2'}.yaml"


def torchvision_keys(config: str) -> dict[str, object]:
    """Return those of :data:`TORCHVISION_KEYS` that the detector of a config, below ``configs/torchvision/``, reads."""
    sections = ("ANCHOR_GENERATOR", *_SECTIONS[config.partition("/")[2].partition("_")[0]])
    return {key: value for key, value in TORCHVISION_KEYS.items() if key.split(".")[1] in sections}


def from_torchvision(
    tensors: Mapping[str, Tensor], entry: DetectorEntry | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors of a detector of torchvision's own in the torchvision engine's names, and its classes.

    91 outputs are those of COCO's ids, of which 80 are classes; the others, which no image of a training had, are left
    out, so that of R-CNNs the scores of the classes grow by what these got. Of other numbers nobody knows the names.

    Args:
        tensors: in the names of any release of torchvision's.
        entry: where it is a published one. The first ones have norms without epsilon, which the variances then make
            up for.

    Raises:
        WeightsError: the trunk is none that we know.
    """
    trunk = {name.removeprefix(_BODY): tensor for name, tensor in tensors.items() if name.startswith(_BODY)}
    found = {f"backbone.bottom_up.{name}": tensor for name, tensor in to_our_names(trunk).items()}
    if entry is not None and not entry.config.endswith("_v2.yaml"):
        found |= {name: found[name] - _FROZEN_EPS for name in found if name.endswith(".running_var")}
    heads = {name: tensor for name, tensor in tensors.items() if not name.startswith(_BODY)}
    found |= {_rename(name, 0, 0, _TORCHVISION_NAMES): tensor for name, tensor in heads.items()}
    one_stage = f"{_RETINANET_DELTAS}bias" in found
    outputs = len(found[f"{_RETINANET_SCORES if one_stage else _CLASSES}bias"])
    if one_stage:  # an output for each anchor and class
        outputs = 4 * outputs // len(found[f"{_RETINANET_DELTAS}bias"])
    of_coco = outputs == len(_coco_categories())
    kept = _coco_outputs() if of_coco else list(range(outputs))
    for name, tensor in found.items():
        if name.startswith(_CLASSES):
            found[name] = tensor[kept]
        elif name.startswith(_DELTAS):
            found[name] = tensor.unflatten(0, (outputs, 4))[kept].flatten(0, 1)
        elif name.startswith("roi_heads.mask_head.predictor."):
            found[name] = tensor[kept[1:]]
        elif name.startswith(_RETINANET_SCORES):
            found[name] = tensor.unflatten(0, (-1, outputs))[:, kept[1:]].flatten(0, 1)
    for name in [name for name in found if _HEAD_CONVOLUTION.fullmatch(name)]:  # whose norm is torchvision's bias
        found.setdefault(name.replace("weight", "bias"), found[name].new_zeros(len(found[name])))
    if one_stage:
        found["loss_normalizer"] = _first_normalizer()
    return found, coco_classes() if of_coco else ()


def from_detectron2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a detector's tensors in the torchvision engine's names, background first; others keep their names.

    Deltas of the background, which nothing reads, are zeros; those of CLS_AGNOSTIC_BBOX_REG are of no class.
    """
    one_class = len(tensors.get(f"{_CLASSES}bias", ())) == 2
    levels = [int(match[1]) for name in tensors if (match := _LEVEL.match(name))]
    renamed = {}
    for name, tensor in tensors.items():
        if _NO_PARAMETERS.fullmatch(name):
            continue
        if name.startswith(_CLASSES):
            tensor = torch.roll(tensor, 1, 0)
        elif name.startswith(_DELTAS) and (len(tensor) > 4 or one_class):
            tensor = torch.cat([tensor.new_zeros(4, *tensor.shape[1:]), tensor])
        renamed[_rename(name, 0, min(levels, default=0), _names_for(tensors))] = tensor
    if any(name.startswith("head.") for name in tensors):
        renamed["loss_normalizer"] = _first_normalizer()
    return renamed


def _first_normalizer() -> Tensor:
    """Of RetinaNet's losses; Detectron2 begins with it, too, and keeps none."""
    return torch.tensor(100.0)


def to_detectron2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`from_detectron2`; the last level of a pyramid is ``fpn_lateral5``, as of a trunk to stride 32."""
    blocks = {name.split(".")[3] for name in tensors if name.startswith("backbone.fpn.inner_blocks.")}
    renamed = {}
    for name, tensor in tensors.items():
        if name == "loss_normalizer":
            continue
        if name.startswith(_CLASSES):
            tensor = torch.roll(tensor, -1, 0)
        elif name.startswith(_DELTAS) and len(tensor) > 4:
            tensor = tensor[4:]
        renamed[_rename(name, 1, 6 - len(blocks), _names_for(tensors))] = tensor
    return renamed


_Names = tuple[tuple[str, str, float, float], ...]


def _names_for(tensors: Mapping[str, Tensor]) -> _Names:
    """The names of a detector, in which some depend on others that there are; the first that fits counts."""
    deep = any(name.startswith(("proposal_generator.rpn_head.conv.conv", "rpn.head.conv.1.")) for name in tensors)
    norms = not tensors.keys().isdisjoint(("head.cls_subnet.1.weight", "head.classification_head.conv.0.1.weight"))
    return (*(_DEEP_RPN if deep else ()), *(_NORMS_IN_HEADS if norms else ()), *_NAMES)


def _rename(name: str, direction: int, first_level: int, names: _Names) -> str:
    """``direction`` 0 is from the names of the first column, 1 is to them."""
    for *pair, factor, shift in names:
        here, there = str(pair[direction]), str(pair[1 - direction])
        match = re.match(re.escape(here).replace(r"\{\}", r"(\d+)"), name)
        if match is None:
            continue
        if "{}" not in here:
            return there + name.removeprefix(here)
        if "fpn_" in str(pair[0]):
            shift = -first_level
        number = factor * int(match[1]) + shift if direction == 0 else (int(match[1]) - shift) / factor
        if abs(number - round(number)) < 0.1:  # or it is of another layer
            return there.format(round(number)) + name[match.end() :]
    return name
