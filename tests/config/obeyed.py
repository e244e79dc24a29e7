"""For every config key another value, and what must be seen to change: a row a key, for either engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# Small detectors, each a config file and what is written over it. Scores of random weights are low, and all are kept.
_TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNET_BACKBONE.ARCH": "resnet18",
    "MODEL.RESNET_BACKBONE.NORM": "BN",
    "MODEL.RESNET_BACKBONE.FOLD_NORMS": False,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.FPN.OUT_CHANNELS": 8,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 24,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 60,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 60,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
    "MODEL.RETINANET.NUM_CLASSES": 3,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 40,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MAX_SIZE_TRAIN": 96,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 96,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TRAIN": ["shapes_train"],
    "DATASETS.TEST": ["shapes_val"],
    "SEED": 3,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.STEPS": [3],
    "SOLVER.BASE_LR": 0.1,
    "SOLVER.CHECKPOINT_PERIOD": 4,
}
# Dilated convolutions in channels_last take seconds on the CPU.
_DILATED = {"MODEL.RESNET_BACKBONE.MEMORY_FORMAT": "contiguous", "MODEL.RESNET_BACKBONE.RES5_DILATION": 2}
_R50 = {"MODEL.RESNET_BACKBONE.ARCH": "resnet50"}
_DEFORMED = {"MODEL.RESNET_BACKBONE.DEFORM_ON_PER_STAGE": [False, True, False, False]}
_ANCHORS = {"MODEL.ANCHOR_GENERATOR.SIZES": [[16]]}
_MASKS = {
    **_ANCHORS,
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
}
# A config that both architectures, and both pyramids, can be built from.
_EITHER = {
    **_ANCHORS,
    "MODEL.RESNET_BACKBONE.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
}
BASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "fpn": ("Base-RCNN-FPN.yaml", _TINY | _ANCHORS),
    "mask": ("Base-RCNN-FPN.yaml", _TINY | _MASKS),
    "c4": ("Base-RCNN-C4.yaml", _TINY | _ANCHORS | {"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4}),
    "vgg": (
        "Base-RCNN-VGG-C5.yaml",
        _TINY | _ANCHORS | {"MODEL.RESNET_BACKBONE.ARCH": "vgg16", "MODEL.RESNET_BACKBONE.NORM": ""},
    ),
    "retinanet": ("Base-RetinaNet.yaml", _TINY | _EITHER),
}


def _own(split: str) -> list[dict[str, str]]:
    return [{"NAME": "own", "JSON": f"{{shapes}}/annotations/{split}.json", "IMAGES": f"{{shapes}}/{split}"}]


class Row(NamedTuple):
    """A legal value other than that of the base, and where it must be seen.

    Attributes:
        value: of the key.
        observer: a method of the engine's ``Observer``.
        base: a key of ``BASES``.
        both: written into the base, and stays when the key has its value.
        every: a pattern of names of losses that must all change, where a key acts on several.
    """

    value: Any
    observer: str = "detector"
    base: str = "fpn"
    both: Mapping[str, Any] = {}
    every: str = ""


def _rows(observer: str, values: Mapping[str, Any], base: str = "fpn", **both: Any) -> dict[str, Row]:
    return {
        key: Row(value, observer, base, {k.replace("__", "."): v for k, v in both.items()})
        for key, value in values.items()
    }


ROWS: dict[str, Row] = {
    **_rows("run", {"OUTPUT_DIR": "{folder}/other", "SEED": 4}),
    **_rows("process", {"CUDNN_BENCHMARK": True, "TF32": "nowhere", "KEEP_FREED_MEMORY": False}),
    "MODEL.META_ARCHITECTURE": Row("GeneralizedRCNN", base="retinanet"),
    "MODEL.RPN.LOSS_WEIGHT": Row(2.0, every="rpn|objectness"),
    "MODEL.FPN.IN_FEATURES": Row(
        ["res3", "res4", "res5"],
        both={"MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5"], "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4", "p5"]},
    ),
    "MODEL.BACKBONE.NAME": Row("build_imagenet_retinanet_fpn_backbone", both=_EITHER),
    "MODEL.ROI_HEADS.NAME": Row(
        "ImageNetRes5ROIHeads",
        base="c4",
        both={
            "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
            "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
        },
    ),
    "MODEL.ROI_BOX_HEAD.NAME": Row("FastRCNNConvFCHead", base="vgg", both={"MODEL.ROI_BOX_HEAD.NUM_FC": 1}),
    "MODEL.ROI_BOX_HEAD.DROPOUT": Row(0.5, base="vgg", both={"MODEL.ROI_BOX_HEAD.NUM_FC": 1}),
    "MODEL.ANCHOR_GENERATOR.NAME": Row("AnchorGenerator"),
    "MODEL.RETINANET.CLIP_BEFORE_NMS": Row(True, base="retinanet", both={"MODEL.ANCHOR_GENERATOR.SIZES": [[64, 100]]}),
    "MODEL.FPN.NORM": Row("GN", both={"MODEL.FPN.OUT_CHANNELS": 32}),
    "MODEL.RETINANET.NORM": Row("GN", base="retinanet", both={"MODEL.FPN.OUT_CHANNELS": 32}),
    "MODEL.ROI_MASK_HEAD.NORM": Row("GN", base="mask", both={"MODEL.ROI_MASK_HEAD.CONV_DIM": 32}),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": Row(12, both={"MODEL.ROI_BOX_HEAD.NUM_CONV": 1}),
    "MODEL.ROI_BOX_HEAD.NORM": Row("GN", both={"MODEL.ROI_BOX_HEAD.NUM_CONV": 1, "MODEL.ROI_BOX_HEAD.CONV_DIM": 32}),
    "MODEL.RESNETS.STRIDE_IN_1X1": Row(True, both={"MODEL.RESNET_BACKBONE.ARCH": "resnet50"}),
    "MODEL.WEIGHTS": Row("{classifier}", "run", both={"MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS": False}),
    "MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS": Row(False, "run", both={"MODEL.WEIGHTS": "{classifier}"}),
    "MODEL.RESNET_BACKBONE.SHORTCUT": Row("A"),
    "MODEL.RESNET_BACKBONE.DEFORM_ON_PER_STAGE": Row([False, True, False, False], both=_R50),
    "MODEL.RESNET_BACKBONE.DEFORM_MODULATED": Row(True, both=_R50 | _DEFORMED),
    "MODEL.RESNET_BACKBONE.DEFORM_NUM_GROUPS": Row(2, both=_R50 | _DEFORMED),
    "MODEL.RESNET_BACKBONE.RES4_DILATION": Row(
        2, base="c4", both=_DILATED | {"MODEL.RESNET_BACKBONE.RES5_DILATION": 4}
    ),
    "MODEL.RESNET_BACKBONE.RES5_DILATION": Row(1, base="c4", both=_DILATED),
    "MODEL.RESNET_BACKBONE.RES5_MULTI_GRID": Row([1, 2], base="c4", both=_DILATED),
    "MODEL.RESNET_BACKBONE.FOLD_NORMS": Row(True, both={"MODEL.RESNET_BACKBONE.NORM": "FrozenBN"}),
    "MODEL.RESNET_BACKBONE.OUT_FEATURES": Row(
        ["res3", "res4", "res5"],
        both={
            "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
            **_EITHER,
            "MODEL.RESNET_BACKBONE.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        },
    ),
    **_rows(
        "detector",
        {
            "MODEL.PIXEL_MEAN": [100.0, 110.0, 120.0],
            "MODEL.PIXEL_STD": [50.0, 60.0, 70.0],
            "MODEL.MASK_ON": True,
            "MODEL.BACKBONE.FREEZE_AT": 2,
            "MODEL.FPN.OUT_CHANNELS": 16,
            "MODEL.ANCHOR_GENERATOR.SIZES": [[24]],
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.7, 1.0, 2.0]],
            "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
            "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5"],
            "MODEL.RPN.IOU_THRESHOLDS": [0.1, 0.2],
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 16,
            "MODEL.RPN.POSITIVE_FRACTION": 0.0,
            "MODEL.RPN.SMOOTH_L1_BETA": 1.0,
            "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 2.0,
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 5,
            "MODEL.RPN.PRE_NMS_TOPK_TEST": 5,
            "MODEL.RPN.POST_NMS_TOPK_TRAIN": 5,
            "MODEL.RPN.POST_NMS_TOPK_TEST": 5,
            "MODEL.RPN.NMS_THRESH": 0.1,
            "MODEL.ROI_HEADS.NUM_CLASSES": 4,
            "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4"],
            "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.1],
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 12,
            "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.05,
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.7,
            "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.1,
            "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [5.0, 5.0, 2.0, 2.0],
            "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
            "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.0,
            "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
            "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
            "MODEL.RPN.CONV_DIMS": [12, -1],
            "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
            "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
            "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 5,
            "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 1,
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
            "MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT": True,
            "MODEL.RESNET_BACKBONE.ARCH": "resnet34",
            "MODEL.RESNET_BACKBONE.NORM": "GN",
            "MODEL.RESNET_BACKBONE.STEM": "deeplab",
            "MODEL.RESNET_BACKBONE.MEMORY_FORMAT": "contiguous",
            "MODEL.RESNET_BACKBONE.PRECISION": "bfloat16",
            "MODEL.RESNET_BACKBONE.COMPILE": "default",
            "MODEL.RESNET_BACKBONE.PAD_TO": 128,
            "MODEL.RESNET_BACKBONE.CHECKPOINT_STAGES": ["res2"],
            "TEST.DETECTIONS_PER_IMAGE": 3,
        },
    ),
    **_rows(
        "detector",
        {
            "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 7,
            "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 3,
            "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIPool",
            "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
            "MODEL.ROI_MASK_HEAD.CONV_DIM": 12,
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
        },
        base="mask",
    ),
    **_rows(
        "detector",
        {
            "MODEL.RETINANET.NUM_CLASSES": 4,
            "MODEL.RETINANET.NUM_CONVS": 2,
            "MODEL.RETINANET.IOU_THRESHOLDS": [0.1, 0.2],
            "MODEL.RETINANET.PRIOR_PROB": 0.1,
            "MODEL.RETINANET.SCORE_THRESH_TEST": 0.5,
            "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 4,
            "MODEL.RETINANET.NMS_THRESH_TEST": 0.1,
            "MODEL.RETINANET.BBOX_REG_WEIGHTS": [2.0, 2.0, 1.0, 1.0],
            "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 1.0,
            "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.5,
            "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 1.0,
        },
        base="retinanet",
    ),
    # torchvision's reads all levels: another pyramid has others.
    "MODEL.RETINANET.IN_FEATURES": Row(["p4", "p5", "p6", "p7"], "refusal", "retinanet"),
    **_rows(
        "data",
        {
            "INPUT.MIN_SIZE_TRAIN": [48],
            "INPUT.MAX_SIZE_TRAIN": 70,
            "INPUT.MIN_SIZE_TEST": 48,
            "INPUT.MAX_SIZE_TEST": 70,
            "INPUT.RANDOM_FLIP": "vertical",
            "INPUT.CROP.ENABLED": True,
            "INPUT.LARGE_SCALE_JITTER.ENABLED": True,
            "INPUT.COLOR_JITTER": [0.4, 0.0, 0.0, 0.0],
            "INPUT.FORMAT": "BGR",
            "DATASETS.TRAIN": ["shapes_val"],
            "DATASETS.TEST": ["shapes_train"],
            "DATALOADER.NUM_WORKERS": 1,
            "DATALOADER.ASPECT_RATIO_GROUPING": False,
            "SOLVER.IMS_PER_BATCH": 3,
        },
    ),
    **_rows("data", {"INPUT.CROP.TYPE": "relative", "INPUT.CROP.SIZE": [0.5, 0.5]}, INPUT__CROP__ENABLED=True),
    **_rows(
        "data",
        {"INPUT.LARGE_SCALE_JITTER.SCALE": [0.5, 1.0], "INPUT.LARGE_SCALE_JITTER.SIZE": 80},
        INPUT__LARGE_SCALE_JITTER__ENABLED=True,
    ),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": Row("range", "data", both={"INPUT.MIN_SIZE_TRAIN": [48, 80]}),
    "INPUT.MASK_FORMAT": Row("polygon", "data", "mask", both={"INPUT.MASK_FORMAT": "bitmask"}),
    "DATASETS.OWN": Row(_own("val"), "data", both={"DATASETS.OWN": _own("train"), "DATASETS.TRAIN": ["own"]}),
    "DATASETS.CHECK_IMAGES": Row(
        True,
        "data",
        both={
            "DATASETS.OWN": [{"NAME": "broken", "JSON": "{broken}/val.json", "IMAGES": "{broken}/val"}],
            "DATASETS.TEST": ["broken"],
        },
    ),
    **_rows(
        "training",
        {
            "SOLVER.MAX_ITER": 5,
            "SOLVER.BASE_LR": 0.05,
            "SOLVER.MOMENTUM": 0.5,
            "SOLVER.NESTEROV": True,
            "SOLVER.WEIGHT_DECAY": 0.1,
            "SOLVER.WEIGHT_DECAY_NORM": 0.1,
            "SOLVER.GAMMA": 0.5,
            "SOLVER.STEPS": [4],
            "SOLVER.WARMUP_FACTOR": 0.5,
            "SOLVER.WARMUP_ITERS": 1,
            "SOLVER.WARMUP_METHOD": "constant",
            "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "SOLVER.ACCUMULATION_STEPS": 2,
            "SOLVER.BIAS_LR_FACTOR": 2.0,
            "SOLVER.WEIGHT_DECAY_BIAS": 0.1,
            "SOLVER.OPTIMIZER": "AdamW",
            "SOLVER.TRUNK_LR_FACTOR": 0.5,
            "SOLVER.LAYER_DECAY": 0.5,
            "SOLVER.EMA.ENABLED": True,
            "TEST.EVAL_PERIOD": 2,
        },
    ),
    "SOLVER.EMA.DECAY": Row(0.01, "training", both={"SOLVER.EMA.ENABLED": True}),
    "TEST.PATIENCE": Row(1, "training", both={"TEST.EVAL_PERIOD": 1}),
    "SOLVER.BASE_LR_END": Row(0.05, "training", both={"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR"}),
    "SOLVER.CLIP_GRADIENTS.ENABLED": Row(True, "training", both={"SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01}),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Row(
        "norm", "training", both={"SOLVER.CLIP_GRADIENTS.ENABLED": True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01}
    ),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": Row(0.01, "training", both={"SOLVER.CLIP_GRADIENTS.ENABLED": True}),
    "SOLVER.AMP.ENABLED": Row(True, "training", both={"SOLVER.AMP.DTYPE": "bfloat16"}),
    "SOLVER.AMP.DTYPE": Row("float16", "refusal", both={"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"}),
    "TEST.BOX_REFINEMENT.ENABLED": Row(True, "improved"),
    **_rows(
        "improved",
        {"TEST.BOX_REFINEMENT.NMS_THRESH": 0.8, "TEST.BOX_REFINEMENT.VOTE_THRESH": 0.9},
        TEST__BOX_REFINEMENT__ENABLED=True,
    ),
    "TEST.MULTI_SCALE.ENABLED": Row(True, "improved", both={"TEST.MULTI_SCALE.SIZES": [48, 80]}),
    "TEST.MULTI_SCALE.SIZES": Row(
        [48, 64], "improved", both={"TEST.MULTI_SCALE.ENABLED": True, "TEST.MULTI_SCALE.SIZES": [48, 80]}
    ),
    "TEST.MULTI_SCALE.MAX_SIZE": Row(
        70, "improved", both={"TEST.MULTI_SCALE.ENABLED": True, "TEST.MULTI_SCALE.SIZES": [48, 80]}
    ),
    "TEST.ENSEMBLE": Row(["{folder}/no_run"], "improved"),
    "MODEL.DEVICE": Row("no_device", "refusal"),
}

# Keys that several kinds of detectors read, each in its own code.
ALSO: tuple[tuple[str, Row], ...] = (
    ("MODEL.ANCHOR_GENERATOR.SIZES", Row([[24]], base="retinanet")),
    ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", Row([[0.7, 1.0, 2.0]], base="retinanet")),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", Row(0.5, base="retinanet")),
    ("MODEL.FPN.OUT_CHANNELS", Row(16, base="retinanet")),
    ("MODEL.RESNET_BACKBONE.PAD_TO", Row(128, base="c4")),
    ("MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", Row(True, base="c4")),
    ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", Row(6, base="c4")),
    ("MODEL.MASK_ON", Row(True, base="c4")),
    ("MODEL.MASK_ON", Row(True, "data", both={"INPUT.MASK_FORMAT": "bitmask"})),
    ("TEST.DETECTIONS_PER_IMAGE", Row(3, base="retinanet")),
    ("TEST.DETECTIONS_PER_IMAGE", Row(3, "improved", both={"TEST.BOX_REFINEMENT.ENABLED": True})),
    ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", Row(0.7, "improved", both={"TEST.BOX_REFINEMENT.ENABLED": True})),
    ("INPUT.MIN_SIZE_TEST", Row(48, "improved", both={"TEST.BOX_REFINEMENT.ENABLED": True})),
)

# What Detectron2 obeys otherwise, or alone.
DETECTRON2_ROWS: dict[str, Row] = {
    **ROWS,
    **_rows("process", {"FLOAT32_PRECISION": "highest"}),
    **_rows(
        "detector",
        {
            "MODEL.FPN.FUSE_TYPE": "avg",
            "MODEL.RPN.BOUNDARY_THRESH": 0,
        },
    ),
    "MODEL.RETINANET.IOU_LABELS": Row([0, 1, 1], base="retinanet", both={"MODEL.RETINANET.IOU_THRESHOLDS": [0.1, 0.6]}),
    **_rows(
        "detector",
        {
            "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou",
            "MODEL.RETINANET.IN_FEATURES": ["p4", "p5", "p6", "p7"],
        },
        base="retinanet",
    ),
    "DATALOADER.SAMPLER_TRAIN": Row("RepeatFactorTrainingSampler", "data"),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": Row(
        False,
        "data",
        both={
            "DATASETS.OWN": [{"NAME": "empty", "JSON": "{broken}/empty.json", "IMAGES": "{shapes}/val"}],
            "DATASETS.TRAIN": ["empty"],
        },
    ),
    "MODEL.RETINANET.CLIP_BEFORE_NMS": Row(True, "refusal"),
    "SOLVER.EMA.ENABLED": Row(True, "refusal"),
    "SOLVER.EMA.DECAY": Row(0.5, "refusal"),
    "TEST.PATIENCE": Row(1, "refusal"),
    "MODEL.RESNET_BACKBONE.STRICT_WEIGHTS": Row(
        False, "run", both={"MODEL.WEIGHTS": "{partial}", "MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS": False}
    ),
    "SOLVER.AMP.ENABLED": Row(True, "refusal"),  # on the CPU
    "SOLVER.ACCUMULATION_STEPS": Row(2, "refusal"),
    "MODEL.DEVICE": Row("cuda:1000", "refusal"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Row(
        1.0,
        "training",
        both={
            "SOLVER.CLIP_GRADIENTS.ENABLED": True,
            "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm",
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
        },
    ),
    **_rows(
        "refusal",
        dict.fromkeys(
            (
                *("MODEL.ANCHOR_GENERATOR.NAME", "MODEL.PROPOSAL_GENERATOR.NAME", "MODEL.RPN.HEAD_NAME"),
                "MODEL.ROI_MASK_HEAD.NAME",
            ),
            "NobodyHasRegisteredIt",
        ),
    ),
}
# Of what Detectron2 does not build here: boxes that turn, precomputed proposals, keypoints, and what needs a GPU.
# WarmupStepWithFixedGammaLR, which reads NUM_DECAYS, is refused.
NOT_SEEN_ON_DETECTRON2 = (
    *("MODEL.ANCHOR_GENERATOR.ANGLES", "DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.PROPOSAL_FILES_TEST"),
    *("TEST.KEYPOINT_OKS_SIGMAS", "SOLVER.AMP.DTYPE", "SOLVER.NUM_DECAYS"),
)
