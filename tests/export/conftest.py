"""Small detectors of every kind, and what an exported file must say of an image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from resnet_backbone.export.detector import load_unaccelerated
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.torchvision_plugin.inference import rescale

TINY = [
    *("MODEL.WEIGHTS", "", "MODEL.RPN.POST_NMS_TOPK_TEST", "15", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_HEADS.NUM_CLASSES", "5", "MODEL.RETINANET.NUM_CLASSES", "5"),
]
R18 = ["MODEL.RESNET_BACKBONE.ARCH", "resnet18"]
TWO_LEVELS = [
    *("MODEL.RESNET_BACKBONE.OUT_FEATURES", "['res4', 'res5']", "MODEL.FPN.IN_FEATURES", "['res4', 'res5']"),
    *("MODEL.RPN.IN_FEATURES", "['p4', 'p5', 'p6']", "MODEL.ROI_HEADS.IN_FEATURES", "['p4', 'p5']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128]]"),
]
ONE_MAP = [
    *("MODEL.RESNET_BACKBONE.OUT_FEATURES", "['res5']", "MODEL.FPN.IN_FEATURES", "['res5']"),
    *("MODEL.RETINANET.IN_FEATURES", "['p5', 'p6', 'p7']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128]]"),
]
GN = ["MODEL.FPN.OUT_CHANNELS", "32"]
CONTEXT = ["MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", "True", "INPUT.FORMAT", "BGR"]
ROI_POOL = [
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
]
# How much larger the weights of the scores are than new ones, so that scores lie far apart, and none at 0 or 1.
DETECTORS = {
    "mask_fpn": ("mask/r18_fpn.yaml", TWO_LEVELS, 20),
    "mask_c4_context": ("mask/r50_c4.yaml", [*R18, *CONTEXT], 1),
    "dc5": ("Base-RCNN-DC5.yaml", [*R18, "MODEL.RESNET_BACKBONE.NORM", "BN"], 20),
    "vgg_c5_roi_pool": ("Base-RCNN-VGG-C5.yaml", ROI_POOL, 100),
    "torchvision_mask": ("torchvision/maskrcnn_resnet50_fpn_v2.yaml", [*R18, *TWO_LEVELS], 20),
    "torchvision_retinanet": ("torchvision/retinanet_resnet50_fpn_v2.yaml", [*R18, *GN, *ONE_MAP], 10),
    "retinanet": ("retinanet/r18_fpn.yaml", ONE_MAP, 100_000),
}


@pytest.fixture(autouse=True)
def _no_trace_log() -> Iterator[None]:
    """torch formats a record of every step of tracing where any handler would take it, and pytest's does."""
    logger = logging.getLogger("torch.__trace")
    level = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(level)


@pytest.fixture
def build() -> Callable:
    """Builds one of DETECTORS with its config, from a seed, with scores that are far from each other."""

    def make(name: str, *overrides: str) -> tuple:
        torch.manual_seed(0)
        config, own, factor = DETECTORS[name]
        cfg = load_unaccelerated(config, [*TINY, *own, *overrides])
        detector = build_detector(cfg).eval()
        with torch.no_grad():
            for key, parameter in detector.named_parameters():
                if key.endswith(("cls_score.weight", "cls_logits.weight")):
                    parameter.mul_(factor)
                elif key.endswith("bbox_pred.weight"):
                    parameter.mul_(20)
            for module in detector.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(std=0.1)
                    module.running_var.uniform_(0.5, 2)
        return cfg, detector

    return make


@pytest.fixture
def eager() -> Callable:
    """Detects one image in PyTorch: boxes, labels, scores and masks, as an exported file must return them."""

    @torch.no_grad()
    def detect(detector: nn.Module, image: Tensor) -> list[Tensor]:
        size = (image.shape[1], image.shape[2])
        found = detector([image])[0]
        masks = found.pop("masks", None)
        kept = rescale(found, size, size)
        return [kept[name] for name in ("boxes", "labels", "scores")] + ([] if masks is None else [masks])

    return detect
