"""The keys that Detectron2 does not have, and the trunk that they describe."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fvcore.common.config import CfgNode

from resnet_backbone.config.acceleration import add_acceleration_keys
from resnet_backbone.models.registry import create_model, list_models
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import Weights, load_weights
from resnet_backbone.weights.architecture import has_bottlenecks

logger = logging.getLogger(__name__)

_DEFAULT_NUM_CLASSES = 80  # COCO's, in Detectron2 as here


def add_backbone_keys(cfg: CfgNode) -> None:
    """Add to ``cfg``, in place, the keys of the backbones and their heads."""
    cfg.MODEL.RESNET_BACKBONE = type(cfg)()
    node = cfg.MODEL.RESNET_BACKBONE
    node.ARCH = "resnet50"  # a name of resnet_backbone.list_models()
    node.NORM = "FrozenBN"  # BN, FrozenBN, SyncBN, GN or "" (VGG without batch norm)
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # VGG: conv1 ... conv5, pool5
    node.SHORTCUT = ""  # A, B or C of the paper; empty for what the architecture was published with
    node.STEM = "basic"  # or deeplab, three 3x3 convolutions, which needs weights of its own
    node.RES4_DILATION = 1  # 2, with RES5_DILATION 4, for stride 8
    node.RES5_DILATION = 1  # 2 for DC5, and for DeepLab at stride 16
    node.RES5_MULTI_GRID = [1, 1, 1]  # DeepLab's [1, 2, 4]: factors on the dilation of the blocks of res5
    node.INPUT_FROM_WEIGHTS = True  # take INPUT.FORMAT, PIXEL_MEAN, PIXEL_STD and STRIDE_IN_1X1 from MODEL.WEIGHTS
    node.STRICT_WEIGHTS = True  # a load that leaves the trunk partly unfilled raises
    add_acceleration_keys(node)
    cfg.MODEL.ROI_BOX_HEAD.DROPOUT = 0.0  # after fc6 and fc7 of VGGBoxHead, from 0 to 1
    cfg.MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT = False  # the whole image's vector behind each region's, as a RoI of its own


def add_run_keys(cfg: CfgNode) -> None:
    """Add to ``cfg``, in place, the keys that tools/train_net.py knows and Detectron2 does not."""
    # Own data in COCO's format: [{NAME: my_train, JSON: path/to.json, IMAGES: folder}, ...]
    cfg.DATASETS.OWN = []
    cfg.DATASETS.CHECK_IMAGES = False  # open every image before the training: can it be read, is it in both sets?
    cfg.SOLVER.ACCUMULATION_STEPS = 1  # forward passes an optimizer step; IMS_PER_BATCH counts the images of all
    cfg.SOLVER.AMP.DTYPE = "float16"  # or bfloat16
    cfg.TF32 = "convolutions"  # which float32 operations round to TF32 on GPUs; or everywhere, or nowhere
    cfg.KEEP_FREED_MEMORY = True  # on the CPU: the next step gets the memory of this one, not the system
    _add_improvement_keys(cfg)


def _add_improvement_keys(cfg: CfgNode) -> None:
    """Keys of the test-time improvements: of the last evaluation and of --eval-only, not of TEST.EVAL_PERIOD's."""
    node = type(cfg)
    # Pool each regressed box anew; overlaps above NMS_THRESH vanish, and those from VOTE_THRESH up share in the box.
    cfg.TEST.BOX_REFINEMENT = node({"ENABLED": False, "NMS_THRESH": 0.3, "VOTE_THRESH": 0.5})
    # Lengths of the shorter side; of them each region takes the two that bring it nearest to 224 x 224 pixels.
    cfg.TEST.MULTI_SCALE = node({"ENABLED": False, "SIZES": [200, 400, 600, 800, 1000], "MAX_SIZE": 1666})
    cfg.TEST.ENSEMBLE = []  # folders of other finished runs of this engine: their config.yaml and model_final.pth


def fit_num_classes(cfg: CfgNode, section: str, num_classes: int) -> None:
    """Write MODEL.<section>.NUM_CLASSES from the data, in place; a config that says another number is told."""
    node = cfg.MODEL[section]
    if node.NUM_CLASSES == num_classes:
        return
    level = logging.INFO if node.NUM_CLASSES == _DEFAULT_NUM_CLASSES else logging.WARNING
    text = "MODEL.%s.NUM_CLASSES: %d, from the data; the config says %d: write %d, or take the line out"
    logger.log(level, text, section, num_classes, node.NUM_CLASSES, num_classes)
    node.NUM_CLASSES = num_classes


def build_trunk(
    cfg: CfgNode,
    *,
    out_features: Sequence[str],
    num_classes: int = 0,
    weights: Weights | None = None,
    freeze_at: int | None = None,
) -> Trunk:
    """Build the classifier that ``cfg.MODEL`` describes, filled with ``weights`` if there are any.

    Args:
        cfg: reads MODEL.RESNET_BACKBONE, BACKBONE.FREEZE_AT, RESNETS.STRIDE_IN_1X1 and the length of PIXEL_MEAN.
        out_features: feature maps to return.
        num_classes: 0 for a trunk; VGG's fc6 and fc7 exist with the head only.
        weights: ImageNet weights of the architecture.
        freeze_at: in place of MODEL.BACKBONE.FREEZE_AT; 0 for stages that become a head, which it does not count.

    Raises:
        ValueError: options or weights that do not fit the architecture.
    """
    node = cfg.MODEL.RESNET_BACKBONE
    if node.ARCH not in list_models():
        raise ValueError(f"MODEL.RESNET_BACKBONE.ARCH {node.ARCH!r} must be one of {', '.join(list_models())}")
    trunk = create_model(
        node.ARCH,
        num_classes=num_classes,
        out_features=out_features,
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT if freeze_at is None else freeze_at,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1 if has_bottlenecks(node.ARCH) else False,
        shortcut=node.SHORTCUT or None,
        stem=node.STEM,
        res4_dilation=node.RES4_DILATION,
        res5_dilation=node.RES5_DILATION,
        res5_multi_grid=node.RES5_MULTI_GRID,
        in_channels=len(cfg.MODEL.PIXEL_MEAN),
    )
    if weights is not None:
        logger.info("loaded %s", load_weights(trunk, weights).summary())
    return trunk
