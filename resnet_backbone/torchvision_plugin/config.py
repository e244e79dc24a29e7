"""The config tree: every key of Detectron2's that this engine obeys, with Detectron2's name, default and meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from fvcore.common.config import CfgNode

from resnet_backbone.config import add_backbone_keys, add_run_keys, merge_config
from resnet_backbone.config.checks import check_batches, check_values
from resnet_backbone.config.combinations import (
    RETINANET_PYRAMID,
    TRUNK_ALONE,
    backbone_features,
    check_combinations,
    trunk_facts,
)
from resnet_backbone.config.merge import naming_origins

# Keys outside of sections; then sections, and the keys in each. Of Detectron2 after v0.6, config/defaults.py.
_KEYS = """
FLOAT32_PRECISION VIS_PERIOD
DATALOADER: REPEAT_SQRT REPEAT_THRESHOLD
DATASETS: PRECOMPUTED_PROPOSAL_TOPK_TEST PRECOMPUTED_PROPOSAL_TOPK_TRAIN PROPOSAL_FILES_TEST PROPOSAL_FILES_TRAIN
GLOBAL: HACK
INPUT.CROP: ENABLED SIZE TYPE
MODEL.ANCHOR_GENERATOR: ANGLES
MODEL: KEYPOINT_ON LOAD_PROPOSALS
MODEL.PANOPTIC_FPN.COMBINE: ENABLED INSTANCES_CONFIDENCE_THRESH OVERLAP_THRESH STUFF_AREA_LIMIT
MODEL.PANOPTIC_FPN: INSTANCE_LOSS_WEIGHT
MODEL.PROPOSAL_GENERATOR: MIN_SIZE
MODEL.RESNETS: DEFORM_MODULATED DEFORM_NUM_GROUPS DEFORM_ON_PER_STAGE DEPTH NORM NUM_GROUPS OUT_FEATURES
  RES2_OUT_CHANNELS RES5_DILATION STEM_OUT_CHANNELS WIDTH_PER_GROUP
MODEL.ROI_BOX_CASCADE_HEAD: BBOX_REG_WEIGHTS IOUS
MODEL.ROI_BOX_HEAD: BBOX_REG_LOSS_TYPE CONV_DIM FED_LOSS_FREQ_WEIGHT_POWER FED_LOSS_NUM_CLASSES NORM
  TRAIN_ON_PRED_BOXES USE_FED_LOSS USE_SIGMOID_CE
MODEL.ROI_HEADS: IOU_LABELS PROPOSAL_APPEND_GT
MODEL.ROI_KEYPOINT_HEAD: CONV_DIMS LOSS_WEIGHT MIN_KEYPOINTS_PER_IMAGE NAME NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS
  NUM_KEYPOINTS POOLER_RESOLUTION POOLER_SAMPLING_RATIO POOLER_TYPE
MODEL.RPN: BBOX_REG_LOSS_TYPE BBOX_REG_WEIGHTS CONV_DIMS IOU_LABELS
MODEL.SEM_SEG_HEAD: COMMON_STRIDE CONVS_DIM IGNORE_VALUE IN_FEATURES LOSS_WEIGHT NAME NORM NUM_CLASSES
SOLVER: BIAS_LR_FACTOR NUM_DECAYS REFERENCE_WORLD_SIZE RESCALE_INTERVAL WEIGHT_DECAY_BIAS
TEST.AUG: ENABLED FLIP MAX_SIZE MIN_SIZES
TEST: EXPECTED_RESULTS KEYPOINT_OKS_SIGMAS
TEST.PRECISE_BN: ENABLED NUM_ITER
"""


def detectron2_keys() -> frozenset[str]:
    """Return their dotted names."""
    keys, section = [], ""
    for word in _KEYS.split():
        if word.endswith(":"):
            section = word.replace(":", ".")
        else:
            keys.append(section + word)
    return frozenset(keys)


# Keys of which this engine knows some values only.
ALLOWED: dict[str, tuple[object, ...]] = {
    "MODEL.RESNET_BACKBONE.STRICT_WEIGHTS": (True,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "RetinaNet"),
    "MODEL.DEVICE": ("cpu", "cuda"),
    "MODEL.BACKBONE.NAME": (
        "build_imagenet_backbone",
        "build_imagenet_fpn_backbone",
        "build_imagenet_retinanet_fpn_backbone",
    ),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "MODEL.FPN.NORM": ("",),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.BOUNDARY_THRESH": (-1,),
    "MODEL.ROI_HEADS.NAME": ("StandardROIHeads", "ImageNetRes5ROIHeads"),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead", "VGGBoxHead"),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0,),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": (False,),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign", "ROIPool"),
    "MODEL.ROI_MASK_HEAD.NAME": ("MaskRCNNConvUpsampleHead",),
    "MODEL.ROI_MASK_HEAD.NORM": ("",),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign", "ROIPool"),
    "MODEL.RETINANET.NUM_CONVS": (4,),
    "MODEL.RETINANET.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.RETINANET.NORM": ("",),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": (True,),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (2.0,),
}

# Images have three channels.
_LENGTHS = {
    "MODEL.PIXEL_MEAN": 3,
    "MODEL.PIXEL_STD": 3,
    "MODEL.RPN.IOU_THRESHOLDS": 2,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": 1,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": 4,
    "MODEL.RETINANET.IOU_THRESHOLDS": 2,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": 4,
}

_DEFAULTS = """
VERSION: 2
OUTPUT_DIR: ./output
SEED: -1
CUDNN_BENCHMARK: False
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: ""
  DEVICE: cuda
  PIXEL_MEAN: [103.53, 116.28, 123.675]
  PIXEL_STD: [1.0, 1.0, 1.0]
  MASK_ON: False
  BACKBONE: {NAME: build_imagenet_fpn_backbone, FREEZE_AT: 2}
  RESNETS: {STRIDE_IN_1X1: True}
  FPN: {IN_FEATURES: [], OUT_CHANNELS: 256, NORM: "", FUSE_TYPE: sum}
  PROPOSAL_GENERATOR: {NAME: RPN}
  ANCHOR_GENERATOR:
    NAME: DefaultAnchorGenerator
    SIZES: [[32, 64, 128, 256, 512]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
    OFFSET: 0.0
  RPN:
    HEAD_NAME: StandardRPNHead
    IN_FEATURES: [res4]
    BOUNDARY_THRESH: -1
    IOU_THRESHOLDS: [0.3, 0.7]
    BATCH_SIZE_PER_IMAGE: 256
    POSITIVE_FRACTION: 0.5
    SMOOTH_L1_BETA: 0.0
    LOSS_WEIGHT: 1.0
    BBOX_REG_LOSS_WEIGHT: 1.0
    PRE_NMS_TOPK_TRAIN: 12000
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TRAIN: 2000
    POST_NMS_TOPK_TEST: 1000
    NMS_THRESH: 0.7
  ROI_HEADS:
    NAME: StandardROIHeads
    NUM_CLASSES: 80
    IN_FEATURES: [res4]
    IOU_THRESHOLDS: [0.5]
    BATCH_SIZE_PER_IMAGE: 512
    POSITIVE_FRACTION: 0.25
    SCORE_THRESH_TEST: 0.05
    NMS_THRESH_TEST: 0.5
  ROI_BOX_HEAD:
    NAME: ""
    BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]
    SMOOTH_L1_BETA: 0.0
    BBOX_REG_LOSS_WEIGHT: 1.0
    NUM_FC: 0
    FC_DIM: 1024
    NUM_CONV: 0
    POOLER_RESOLUTION: 14
    POOLER_SAMPLING_RATIO: 0
    POOLER_TYPE: ROIAlignV2
    CLS_AGNOSTIC_BBOX_REG: False
  ROI_MASK_HEAD:
    NAME: MaskRCNNConvUpsampleHead
    POOLER_RESOLUTION: 14
    POOLER_SAMPLING_RATIO: 0
    POOLER_TYPE: ROIAlignV2
    NUM_CONV: 0
    CONV_DIM: 256
    NORM: ""
    CLS_AGNOSTIC_MASK: False
  RETINANET:
    NUM_CLASSES: 80
    IN_FEATURES: [p3, p4, p5, p6, p7]
    NUM_CONVS: 4
    NORM: ""
    IOU_THRESHOLDS: [0.4, 0.5]
    IOU_LABELS: [0, -1, 1]
    PRIOR_PROB: 0.01
    SCORE_THRESH_TEST: 0.05
    TOPK_CANDIDATES_TEST: 1000
    NMS_THRESH_TEST: 0.5
    BBOX_REG_WEIGHTS: [1.0, 1.0, 1.0, 1.0]
    FOCAL_LOSS_GAMMA: 2.0
    FOCAL_LOSS_ALPHA: 0.25
    SMOOTH_L1_LOSS_BETA: 0.1
    BBOX_REG_LOSS_TYPE: smooth_l1
INPUT:
  MIN_SIZE_TRAIN: [800]
  MIN_SIZE_TRAIN_SAMPLING: choice
  MAX_SIZE_TRAIN: 1333
  MIN_SIZE_TEST: 800
  MAX_SIZE_TEST: 1333
  RANDOM_FLIP: horizontal
  FORMAT: BGR
  MASK_FORMAT: polygon
DATASETS:
  TRAIN: []
  TEST: []
DATALOADER:
  NUM_WORKERS: 4
  ASPECT_RATIO_GROUPING: True
  SAMPLER_TRAIN: TrainingSampler
  FILTER_EMPTY_ANNOTATIONS: True
SOLVER:
  LR_SCHEDULER_NAME: WarmupMultiStepLR
  MAX_ITER: 40000
  BASE_LR: 0.001
  BASE_LR_END: 0.0
  MOMENTUM: 0.9
  NESTEROV: False
  WEIGHT_DECAY: 0.0001
  WEIGHT_DECAY_NORM: 0.0
  GAMMA: 0.1
  STEPS: [30000]
  WARMUP_FACTOR: 0.001
  WARMUP_ITERS: 1000
  WARMUP_METHOD: linear
  CHECKPOINT_PERIOD: 5000
  IMS_PER_BATCH: 16
  CLIP_GRADIENTS: {ENABLED: False, CLIP_TYPE: value, CLIP_VALUE: 1.0, NORM_TYPE: 2.0}
  AMP: {ENABLED: False}
TEST:
  EVAL_PERIOD: 0
  DETECTIONS_PER_IMAGE: 100
"""


def get_cfg() -> CfgNode:
    """Return the tree with its default values; MODEL.DEVICE is ``cuda`` where there is a GPU, else ``cpu``."""
    cfg = CfgNode(yaml.safe_load(_DEFAULTS))
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    add_backbone_keys(cfg)
    add_run_keys(cfg)
    return cfg


def load_config(config_file: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file (and its ``_BASE_`` files), then ``KEY VALUE`` pairs, over the defaults.

    Raises:
        FileNotFoundError: no such config.
        ValueError: a key that this engine does not obey, a value of the wrong type or one that it cannot obey.
    """
    cfg = get_cfg()
    origins = merge_config(cfg, config_file, overrides, "torchvision", detectron2_keys())
    with naming_origins(cfg, origins):
        check_config(cfg)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """Raise ValueError for a value, or a combination of values, that this engine cannot obey."""
    check_values(cfg, ALLOWED, _LENGTHS, "torchvision")
    check_batches(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        _check_retinanet(cfg)
    check_combinations(cfg)


def _check_retinanet(cfg: CfgNode) -> None:
    """torchvision's RetinaNet reads a whole pyramid."""
    if cfg.MODEL.BACKBONE.NAME == TRUNK_ALONE:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE RetinaNet needs a feature pyramid, MODEL.BACKBONE.NAME: {RETINANET_PYRAMID}; "
            f"found {cfg.MODEL.BACKBONE.NAME}"
        )
    names, levels = list(cfg.MODEL.RETINANET.IN_FEATURES), list(backbone_features(cfg, trunk_facts(cfg)))
    if names != levels:
        other = f", or MODEL.BACKBONE.NAME: {RETINANET_PYRAMID}" if cfg.MODEL.BACKBONE.NAME != RETINANET_PYRAMID else ""
        raise ValueError(
            f"MODEL.META_ARCHITECTURE RetinaNet reads MODEL.RETINANET.IN_FEATURES {names}, which must be all levels of "
            f"the pyramid: {levels}; write these{other}"
        )
