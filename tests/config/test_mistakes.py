"""Mistakes in a config file: each is told when it is loaded, with its line, what was found and what to write."""

from __future__ import annotations

import pytest

from resnet_backbone.config.checks import suspicions
from resnet_backbone.config.merge import find_config_file
from resnet_backbone.config.reader import value_of
from resnet_backbone.torchvision_plugin.config import get_cfg

KEYS = [
    ("SOLVER: {BASE_LRR: 0.1}", "the key SOLVER.BASE_LRR; the nearest that it obeys is SOLVER.BASE_LR"),
    ("solver: {base_lr: 0.1}", "does not obey the key solver.base_lr; the nearest that it obeys is SOLVER.BASE_LR"),
    ("SOLVER: {NMS_THRESH_TEST: 0.5}", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    (
        "ROI_HEADS: {NUM_CLASSES: 3}",
        "the key ROI_HEADS.NUM_CLASSES; the nearest that it obeys are MODEL.ROI_HEADS.NUM_",
    ),
    ("BASE_LR: 0.1", "SOLVER.BASE_LR"),
    ("MODEL: {ARCH: resnet50}", "a config with that key is for resnet-backbone classify"),
    ("MODEL: 3", "MODEL is a section, of the keys [A-Z_, ]+, ...; found 3"),
    ("MODEL:", "MODEL is a section, of the keys .*nothing is below it: take it out"),
    ("MODEL: {RPN: [1]}", r"MODEL.RPN is a section, of the keys .*found \[1\]"),
    (
        "SOLVER: {BASE_LR: {VALUE: 0.1}}",
        "SOLVER.BASE_LR is a value and no section, so that it has no SOLVER.BASE_LR.VAL",
    ),
    ("SOLVER: {BASE_LR: {}}", "SOLVER.BASE_LR is a value and no section"),
    ("SOLVER: {BASE_LR: 0.1, BASE_LR: 0.2}", "BASE_LR is there twice, first in line 2; keep one"),
    ("SOLVER.BASE_LR: 0.1", r"'SOLVER.BASE_LR' in a file is written as sections: SOLVER: {BASE_LR: \.\.\.}"),
    ("1: 2", "a key must be a word, found 1"),
    ("on: 2", "a key must be a word, found True"),
    ("? [a]\n: 2", "a key must be a word, found 'a list"),
    ("MODEL: {_BASE_: other.yaml}", "does not obey the key MODEL._BASE_"),
]
TYPES = [
    ("SOLVER: {BASE_LR: fast}", "SOLVER.BASE_LR wants a number with a point, such as 0.001, not fast"),
    ('SOLVER: {BASE_LR: "0,5"}', "SOLVER.BASE_LR wants a number with a point, .*: write 0.5"),
    ("SOLVER: {BASE_LR: 1}", "SOLVER.BASE_LR wants a number with a point, .*not 1: write 1.0"),
    ("SOLVER: {BASE_LR: [0.1]}", r"wants a number with a point, .*not \[0.1\]: write 0.1"),
    ("SOLVER: {BASE_LR: }", "SOLVER.BASE_LR wants a number .* and has no value; write one, or leave the key out"),
    ("SOLVER: {BASE_LR: True}", "SOLVER.BASE_LR wants a number with a point, .*not True"),
    ("SOLVER: {BASE_LR: .nan}", "SOLVER.BASE_LR is nan, with which nothing can be computed"),
    ("SOLVER: {BASE_LR: .inf}", "SOLVER.BASE_LR is inf"),
    ("SOLVER: {BASE_LR: 1e999}", "SOLVER.BASE_LR is inf"),
    ("SOLVER: {MAX_ITER: 1e3}", "SOLVER.MAX_ITER wants a whole number, .*: write 1000"),
    ("SOLVER: {MAX_ITER: 10.5}", "SOLVER.MAX_ITER wants a whole number, such as 40000, not 10.5$"),
    ("SOLVER: {MAX_ITER: 99999999999999999999}", "SOLVER.MAX_ITER is 99999999999999999999, which is too large"),
    ("SOLVER: {MAX_ITER: many}", "SOLVER.MAX_ITER wants a whole number, such as 40000, not many"),
    ("SOLVER: {STEPS: 300}", r"SOLVER.STEPS wants a list: \[300\], not 300"),
    ("SOLVER: {STEPS: [a, b]}", "SOLVER.STEPS wants a list of whole numbers, .* not 'a' among"),
    ("SOLVER: {STEPS: [300.0]}", r"SOLVER.STEPS wants a list of whole numbers, such as \[300\], not \[300.0\]"),
    ("MODEL: {MASK_ON: 1}", "MODEL.MASK_ON wants True or False, not 1: write True"),
    ('MODEL: {MASK_ON: "no"}', "MODEL.MASK_ON wants True or False, not no: write False"),
    ("MODEL: {MASK_ON: maybe}", "MODEL.MASK_ON wants True or False, not maybe$"),
    ("OUTPUT_DIR: 2026", "OUTPUT_DIR wants a word, .*not 2026: write it in quotation marks, '2026'"),
    ("MODEL: {WEIGHTS: }", "MODEL.WEIGHTS wants a word, .* for none write ''"),
    ("MODEL: {WEIGHTS: [a.pth]}", "MODEL.WEIGHTS wants a word, .*: write 'a.pth'"),
    ("MODEL: {PIXEL_MEAN: 103.5}", r"MODEL.PIXEL_MEAN wants a list: \[103.5\], not 103.5"),
    ("MODEL: {PIXEL_MEAN: [a, b, c]}", "MODEL.PIXEL_MEAN wants a list of numbers"),
    ("MODEL: {PIXEL_STD: [1.0, 1.0, null]}", "MODEL.PIXEL_STD wants a list of numbers, .*not None among"),
    ("MODEL: {ANCHOR_GENERATOR: {SIZES: [32, 64]}}", r"wants a list of lists of numbers, such as \[\[32, 64\]\]"),
    ("MODEL: {ANCHOR_GENERATOR: {SIZES: 32}}", r"MODEL.ANCHOR_GENERATOR.SIZES wants a list: \[\[32\]\], not 32"),
    ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[a]]}}", "SIZES wants a list of numbers, .*not .'a'."),
    ("MODEL: {RPN: {IN_FEATURES: [1, 2]}}", "MODEL.RPN.IN_FEATURES wants a list of words, .*not 1 among"),
    ("MODEL: {RPN: {IN_FEATURES: p2}}", r"MODEL.RPN.IN_FEATURES wants a list: \['p2'\], not p2"),
    ("MODEL: {FPN: {IN_FEATURES: [2]}}", r"MODEL.FPN.IN_FEATURES wants a list of words, such as \['2'\]"),
    ("DATASETS: {TRAIN: shapes_train}", r"DATASETS.TRAIN wants a list: \['shapes_train'\]"),
    ("DATASETS: {OWN: [mine]}", "DATASETS.OWN wants a list of sections, such as .*'JSON'"),
    ("MODEL: {RESNET_BACKBONE: {ARCH: 50}}", "MODEL.RESNET_BACKBONE.ARCH wants a word, such as 'resnet50', not 50"),
]
VALUES = [
    ("VERSION: 1", "VERSION is 1, of which the .* engine knows only 2"),
    ("MODEL: {RESNET_BACKBONE: {ARCH: resnet19}}", "MODEL.RESNET_BACKBONE.ARCH 'resnet19' must be one of plain18"),
    ("MODEL: {RESNET_BACKBONE: {NORM: LN}}", "MODEL.RESNET_BACKBONE.NORM is 'LN', of which"),
    (
        "MODEL: {PIXEL_STD: [1.0, 0.0, 1.0]}",
        "MODEL.PIXEL_STD is .*its numbers must be above 0.*images are divided by it",
    ),
    ("MODEL: {PIXEL_STD: [1.0, 1.0]}", "MODEL.PIXEL_STD is .1.0, 1.0.; it must have 3 values"),
    ("MODEL: {RPN: {NMS_THRESH: 70.0}}", "MODEL.RPN.NMS_THRESH is 70.0; it must lie between 0 and 1"),
    ("MODEL: {RPN: {POSITIVE_FRACTION: 1.5}}", "MODEL.RPN.POSITIVE_FRACTION is 1.5"),
    ("MODEL: {RPN: {IOU_THRESHOLDS: [0.7, 0.3]}}", "MODEL.RPN.IOU_THRESHOLDS is .0.7, 0.3.; .*increase"),
    ("MODEL: {RPN: {IOU_THRESHOLDS: [0.5]}}", "MODEL.RPN.IOU_THRESHOLDS is .0.5.; it must have 2 values"),
    ("MODEL: {RPN: {POST_NMS_TOPK_TEST: 0}}", "MODEL.RPN.POST_NMS_TOPK_TEST is 0; it must be 1 or more"),
    ("MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: -0.1}}", "MODEL.ROI_HEADS.SCORE_THRESH_TEST is -0.1"),
    ("MODEL: {ROI_HEADS: {NUM_CLASSES: 0}}", "MODEL.ROI_HEADS.NUM_CLASSES is 0; it must be 1 or more"),
    ("MODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: [10.0, 10.0]}}", "BBOX_REG_WEIGHTS is .10.0, 10.0.; it must have 4"),
    ("MODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: [1.0, 1.0, 1.0, 0.0]}}", "BBOX_REG_WEIGHTS is .*above 0"),
    ("MODEL: {ROI_BOX_HEAD: {POOLER_RESOLUTION: 0}}", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION is 0"),
    ("MODEL: {RETINANET: {PRIOR_PROB: 1.0}}", "MODEL.RETINANET.PRIOR_PROB is 1.0"),
    ("MODEL: {FPN: {OUT_CHANNELS: 0}}", "MODEL.FPN.OUT_CHANNELS is 0; it must be 1 or more"),
    ("INPUT: {MIN_SIZE_TRAIN: [800]}", "INPUT.MIN_SIZE_TRAIN is .800.* INPUT.MAX_SIZE_TRAIN 320.* of 800 or more"),
    ("INPUT: {MIN_SIZE_TEST: 800}", "INPUT.MIN_SIZE_TEST is 800.*INPUT.MAX_SIZE_TEST 320"),
    ("INPUT: {MIN_SIZE_TRAIN: []}", "INPUT.MIN_SIZE_TRAIN is ..; it needs numbers, .*lengths in pixels"),
    ("INPUT: {MIN_SIZE_TRAIN_SAMPLING: range}", "INPUT.MIN_SIZE_TRAIN is .192., and .*SAMPLING range draws from two"),
    (
        "INPUT: {CROP: {ENABLED: True, SIZE: [0.9, 1.5]}}",
        "CROP.SIZE is .0.9, 1.5., and .* relative_range wants parts up to",
    ),
    ("INPUT: {CROP: {ENABLED: True, SIZE: [0.9]}}", "INPUT.CROP.SIZE is .0.9.; it must have 2 values"),
    ("INPUT: {CROP: {ENABLED: True, SIZE: [0.0, 0.9]}}", "INPUT.CROP.SIZE is .*above 0"),
    ("INPUT: {CROP: {ENABLED: True, TYPE: absolute}}", "CROP.TYPE absolute wants whole numbers of pixels, .*384, 600"),
    ("INPUT: {CROP: {ENABLED: True, TYPE: absolute_range, SIZE: [600, 384]}}", "CROP.SIZE is .600, 384., and "),
    ("INPUT: {CROP: {TYPE: random}}", "INPUT.CROP.TYPE is 'random', of which"),
    ("INPUT: {CROP: {ENABLED: True}, LARGE_SCALE_JITTER: {ENABLED: True}}", "both ENABLED; write False for one"),
    (
        "INPUT: {LARGE_SCALE_JITTER: {SCALE: [2.0, 0.1]}}",
        "SCALE is .2.0, 0.1.; its numbers must be above 0, and increase",
    ),
    ("INPUT: {LARGE_SCALE_JITTER: {SCALE: [2.0]}}", "INPUT.LARGE_SCALE_JITTER.SCALE is .2.0.; it must have 2 values"),
    ("INPUT: {LARGE_SCALE_JITTER: {SIZE: 0}}", "INPUT.LARGE_SCALE_JITTER.SIZE is 0; it must be 1 or more"),
    ("INPUT: {COLOR_JITTER: [0.4, 0.4, 0.4, 0.6]}", "COLOR_JITTER ends with 0.6, .* the hue; write 0.5 or less"),
    ("INPUT: {COLOR_JITTER: [0.4, 0.4]}", "INPUT.COLOR_JITTER is .0.4, 0.4.; it must have 4 values"),
    ("INPUT: {COLOR_JITTER: [0.4, 1.5, 0.4, 0.0]}", "INPUT.COLOR_JITTER is .*between 0 and 1"),
    ("INPUT: {FORMAT: GBR}", "INPUT.FORMAT is 'GBR', of which .* knows only 'BGR' or 'RGB'"),
    ("SOLVER: {BASE_LR: -0.1}", "SOLVER.BASE_LR is -0.1; it must be above 0, such as 0.001"),
    ("SOLVER: {BASE_LR: 0.0}", "SOLVER.BASE_LR is 0.0; it must be above 0, such as 0.001"),
    (
        "SOLVER: {LR_SCHEDULER_NAME: WarmupCosineLR, BASE_LR: 0.01, BASE_LR_END: 0.1}",
        "BASE_LR_END is 0.1, where the cosine ends, and SOLVER.BASE_LR 0.01, where it begins",
    ),
    ("SOLVER: {CLIP_GRADIENTS: {ENABLED: True, CLIP_TYPE: norm, NORM_TYPE: -1.0}}", "NORM_TYPE is -1.0"),
    ("SOLVER: {WEIGHT_DECAY: -0.1}", "SOLVER.WEIGHT_DECAY is -0.1; it must be 0 or more"),
    ("SOLVER: {MOMENTUM: 1.0}", "SOLVER.MOMENTUM is 1.0; it must be 0 or more, and below 1"),
    ("SOLVER: {OPTIMIZER: SGD, MOMENTUM: 0.0, NESTEROV: True}", "SOLVER.NESTEROV is True, and SOLVER.MOMENTUM is 0"),
    ("SOLVER: {STEPS: [5, 5]}", "SOLVER.STEPS is .5, 5.; its numbers must be 1 or more, and increase"),
    ("SOLVER: {STEPS: [0, 5]}", "SOLVER.STEPS is .0, 5.; its numbers must be 1 or more, and increase"),
    ("SOLVER: {WARMUP_FACTOR: 2.0}", "SOLVER.WARMUP_FACTOR is 2.0; it must lie between 0 and 1"),
    (
        "SOLVER: {CLIP_GRADIENTS: {ENABLED: True, CLIP_VALUE: 0.0}}",
        "CLIP_GRADIENTS.CLIP_VALUE is 0.0; it must be above 0",
    ),
    ("SOLVER: {MAX_ITER: 0}", "SOLVER.MAX_ITER is 0; it must be 1 or more"),
]
# Base, lines, message.
COMBINATIONS = [
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {OUT_FEATURES: [res3, conv5]}}",
        r"resnet18: out_features \('res3', 'conv5'\) must .*OUT_FEATURES: \['res3', 'conv5'\] is set in",
    ),
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {ARCH: vgg16}}",
        "norm 'BN' does not fit vgg16.*'vgg16_bn'.*RESNET_BACKBONE.NORM: 'BN' is set in",
    ),
    (
        "quickstart.yaml",
        "MODEL: {BACKBONE: {FREEZE_AT: 6}}",
        r"freeze_at=6 must be 0 \(nothing\) to 5.*freeze_at is MODEL.BACKBONE.FREEZE_AT\).*FREEZE_AT: 6 is set in",
    ),
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {STEM: deep}}",
        "MODEL.RESNET_BACKBONE.STEM is 'deep', of which .*'basic' or 'deeplab'",
    ),
    ("quickstart.yaml", "MODEL: {RESNET_BACKBONE: {SHORTCUT: D}}", "MODEL.RESNET_BACKBONE.SHORTCUT is 'D', of which"),
    ("quickstart.yaml", "MODEL: {RESNET_BACKBONE: {RES5_DILATION: 3}}", "RES5_DILATION is 3, of which .* 1 or 2 or 4"),
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {RES5_DILATION: 2}}",
        "strides of MODEL.FPN.IN_FEATURES .* must double",
    ),
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {RES4_DILATION: 2}}",
        "after res4_dilation=2 write.*RES4_DILATION: 2 is set in",
    ),
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {RES5_MULTI_GRID: [1, 2]}, FPN: {IN_FEATURES: [res9]}}",
        "IN_FEATURES",
    ),
    (
        "quickstart.yaml",
        "MODEL: {FPN: {IN_FEATURES: [res2, res9]}}",
        "MODEL.FPN.IN_FEATURES .*must be some of what the trunk",
    ),
    ("quickstart.yaml", "MODEL: {FPN: {IN_FEATURES: [res2, res3]}}", "leave res5 unused"),
    ("quickstart.yaml", "MODEL: {FPN: {IN_FEATURES: [res5, res4, res3, res2]}}", "must double"),
    ("quickstart.yaml", "MODEL: {FPN: {IN_FEATURES: []}}", "MODEL.FPN.IN_FEATURES .. must be some"),
    (
        "quickstart.yaml",
        "MODEL: {RPN: {IN_FEATURES: [res4]}}",
        "MODEL.RPN.IN_FEATURES .'res4'., which must be some of .*'p2', 'p3'",
    ),
    (
        "quickstart.yaml",
        "MODEL: {RPN: {IN_FEATURES: [p2, p7]}}",
        "write MODEL.BACKBONE.NAME: build_imagenet_retinanet_fpn",
    ),
    ("quickstart.yaml", "MODEL: {RPN: {IN_FEATURES: [p2, p2, p3, p4, p5]}}", "names a feature map twice"),
    (
        "quickstart.yaml",
        "MODEL: {ROI_HEADS: {IN_FEATURES: []}}",
        "MODEL.ROI_HEADS.IN_FEATURES .., which must be some of",
    ),
    (
        "quickstart.yaml",
        "MODEL: {ROI_HEADS: {IN_FEATURES: [p2, p4]}}",
        r"strides of MODEL.ROI_HEADS.IN_FEATURES .*got .4, 16.",
    ),
    (
        "quickstart.yaml",
        "MODEL: {ANCHOR_GENERATOR: {SIZES: [[32], [64]]}}",
        "SIZES has 2 lists for 5 levels.*: write 1 or 5",
    ),
    (
        "quickstart.yaml",
        "MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: [[1.0], [1.0]]}}",
        "ASPECT_RATIOS has 2 lists for 5",
    ),
    ("quickstart.yaml", "MODEL: {ANCHOR_GENERATOR: {SIZES: [[]]}}", "SIZES .* must hold numbers above 0"),
    ("quickstart.yaml", "MODEL: {ANCHOR_GENERATOR: {SIZES: [[-32]]}}", "SIZES ..-32.. must hold numbers above 0"),
    ("quickstart.yaml", "MODEL: {ANCHOR_GENERATOR: {SIZES: [[1], [1], [1], [1], [1, 2]]}}", "same number of anchors"),
    ("quickstart.yaml", 'MODEL: {ROI_BOX_HEAD: {NAME: ""}}', "StandardROIHeads needs MODEL.ROI_BOX_HEAD.NAME: Fast"),
    (
        "quickstart.yaml",
        "MODEL: {ROI_BOX_HEAD: {NUM_FC: 0}}",
        "MODEL.ROI_BOX_HEAD.NUM_FC or NUM_CONV must be 1 or more",
    ),
    (
        "quickstart.yaml",
        "MODEL: {ROI_BOX_HEAD: {NAME: VGGBoxHead}}",
        r"it needs a VGG \(not MODEL.RESNET_BACKBONE.ARCH resnet18",
    ),
    ("quickstart.yaml", "MODEL: {ROI_HEADS: {NAME: ImageNetRes5ROIHeads}}", "runs res5 on crops of res4"),
    (
        "quickstart.yaml",
        "MODEL: {BACKBONE: {NAME: build_imagenet_backbone}}",
        "MODEL.BACKBONE.NAME: build_imagenet_fpn_b",
    ),
    (
        "quickstart.yaml",
        "MODEL: {META_ARCHITECTURE: RetinaNet}",
        "MODEL.BACKBONE.NAME: build_imagenet_retinanet_fpn_backbone",
    ),
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {CHECKPOINT_STAGES: [res6]}}",
        "CHECKPOINT_STAGES .'res6'. must be stages",
    ),
    (
        "quickstart.yaml",
        "MODEL: {RESNET_BACKBONE: {PAD_TO: 100}}",
        "PAD_TO is 100; this pyramid needs a multiple of 32",
    ),
    ("quickstart.yaml", "MODEL: {ROI_BOX_HEAD: {DROPOUT: 0.5}}", "DROPOUT is 0.5; only NAME: VGGBoxHead has it"),
    (
        "faster/r50_c4.yaml",
        "MODEL: {RPN: {IN_FEATURES: [p4]}}",
        "MODEL.RPN.IN_FEATURES .'p4'.*MODEL.BACKBONE.NAME: build_",
    ),
    ("faster/r50_c4.yaml", "MODEL: {RESNET_BACKBONE: {OUT_FEATURES: [res3]}}", "must be some of what"),
    ("faster/r50_c4.yaml", "MODEL: {RESNET_BACKBONE: {OUT_FEATURES: [res4, res5]}}", "of which res5 would be computed"),
    ("faster/r50_c4.yaml", "MODEL: {ROI_HEADS: {IN_FEATURES: [res5]}}", "runs res5 on crops of res4"),
    (
        "faster/r50_c4.yaml",
        "MODEL: {RESNET_BACKBONE: {OUT_FEATURES: [res3, res4]}, RPN: {IN_FEATURES: [res3, res4]}}",
        "same chann",
    ),
    (
        "faster/r50_dc5.yaml",
        "MODEL: {RESNET_BACKBONE: {ARCH: vgg16, NORM: ''}}",
        "res5_dilation is MODEL.RESNET_BACKBONE.RES5_DILATION.*RESNET_BACKBONE.RES5_DILATION: 2 is set in",
    ),
    ("faster/vgg16_c5.yaml", "MODEL: {ROI_BOX_HEAD: {POOLER_RESOLUTION: 14}}", r"POOLER_RESOLUTION: 7 \(found 14\)"),
    (
        "faster/vgg16_c5.yaml",
        "MODEL: {RESNET_BACKBONE: {ARCH: resnet50}}",
        r"out_features \('conv5',\) must .*OUT_FEATURES: \['conv5'\] is set",
    ),
    ("faster/vgg16_c5.yaml", "MODEL: {ROI_HEADS: {NAME: ImageNetRes5ROIHeads}}", "for others write StandardROIHeads"),
    (
        "retinanet/r50_fpn.yaml",
        "MODEL: {RETINANET: {IN_FEATURES: [p2, p3]}}",
        "MODEL.RETINANET.IN_FEATURES .'p2', 'p3'.",
    ),
    (
        "retinanet/r50_fpn.yaml",
        "MODEL: {BACKBONE: {NAME: build_imagenet_fpn_backbone}}",
        "build_imagenet_retinanet_fpn",
    ),
    ("retinanet/r50_fpn.yaml", "MODEL: {MASK_ON: True}", "MODEL.MASK_ON is True, and .*RetinaNet has no masks"),
    ("retinanet/r50_fpn.yaml", "MODEL: {ANCHOR_GENERATOR: {SIZES: [[32], [64]]}}", "SIZES has 2 lists for 5 levels"),
]
FOR_TORCHVISION = [
    (
        "MODEL: {KEYPOINT_ON: True}",
        "the key MODEL.KEYPOINT_ON; Detectron2 has it: take it out, or write --engine detectron2",
    ),
    ("MODEL: {RESNETS: {NORM: BN}}", "the key MODEL.RESNETS.NORM; Detectron2 has it: .*MODEL.RESNET_BACKBONE.NORM"),
    ("MODEL: {ROI_HEADS: {NAME: CascadeROIHeads}}", "of which the torchvision engine knows only 'StandardROIHeads' or"),
]
FOR_DETECTRON2 = [
    (
        "MODEL: {ROI_HEADS: {NAME: CascadeROIHeads}}",
        "CascadeROIHeads needs MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG: True",
    ),
    ("MODEL: {RESNETS: {DEPTH: 101}}", "MODEL.RESNETS.DEPTH is 101 and MODEL.RESNET_BACKBONE.ARCH is 'resnet18'"),
    ("MODEL: {ROI_HEADS: {NAME: StandardROIHead}}", "which Detectron2 does not know; did you mean StandardROIHeads"),
]


@pytest.mark.parametrize(("text", "message"), KEYS + TYPES + VALUES)
def test_a_mistake_is_told_with_its_line(load, refused, match, text, message):
    match(refused(load, text), message, 2)


@pytest.mark.parametrize(("base", "text", "message"), COMBINATIONS)
def test_what_makes_no_detector_is_told_with_its_line(load, refused, match, base, text, message):
    match(refused(load, text, base=base), message, 2)


@pytest.mark.parametrize(
    ("engine", "text", "message"),
    [
        *(("torchvision", *case) for case in FOR_TORCHVISION),
        *(("detectron2", *case) for case in FOR_DETECTRON2),
    ],
)
def test_a_mistake_on_one_engine(load_on, refused, match, engine, text, message):
    match(refused(load_on(engine), text), message, 2)


def test_all_of_a_file_is_told_at_once(load, refused):
    message = refused(
        load, "SOLVER:\n  BASE_LRR: 0.1\n  MAX_ITERS: 5\nMODEL: {MASK_ONN: True}", "TEST.EVAL_PERIODE", "3"
    )
    lines = [line.partition(": the ")[0].rpartition("/")[2] for line in message.splitlines()]
    assert lines == ["mine.yaml, line 3", "mine.yaml, line 4", "mine.yaml, line 5", "the command line"]
    message = refused(load, "SOLVER:\n  BASE_LR: fast\n  MAX_ITER: long", "TEST.EVAL_PERIOD", "often")
    assert [key for key in ("BASE_LR", "MAX_ITER", "EVAL_PERIOD") if f".{key} wants" in message] == [
        "BASE_LR",
        "MAX_ITER",
        "EVAL_PERIOD",
    ]


def test_each_key_of_a_combination_says_where_it_comes_from(load, refused):
    message = refused(load, "MODEL: {RPN: {IN_FEATURES: [p9]}}", "MODEL.BACKBONE.NAME", "build_imagenet_fpn_backbone")
    assert "MODEL.RPN.IN_FEATURES: ['p9'] is set in " in message and "mine.yaml, line 2" in message
    assert "MODEL.BACKBONE.NAME: 'build_imagenet_fpn_backbone' is set on the command line" in message
    assert "Base-RCNN-FPN.yaml, line 14" in message  # MODEL.FPN.IN_FEATURES
    message = refused(load, "SOLVER: {NESTEROV: True, MOMENTUM: 0.0}")
    assert "SOLVER.NESTEROV: True is set in" in message
    message = refused(load, "INPUT: {MAX_SIZE_TEST: 100}")
    assert "INPUT.MAX_SIZE_TEST: 100 is set in" in message and "quickstart.yaml, line 27" in message


def test_a_default_is_called_one(load, refused):
    message = refused(load, "SOLVER: {NESTEROV: True}", "SOLVER.MOMENTUM", "1.5")
    assert "SOLVER.MOMENTUM: 1.5 is set on the command line" in message
    message = refused(load, "INPUT: {MIN_SIZE_TEST: 1400, MAX_SIZE_TRAIN: 2000}", base="faster/r50_fpn.yaml")
    assert "INPUT.MAX_SIZE_TEST: 1333 is the default" in message


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("SOLVER: {BASE_LR: 1e-3}", "SOLVER.BASE_LR", 0.001),  # a word to YAML
        ("SOLVER:\n  STEPS: (60, 80)", "SOLVER.STEPS", [60, 80]),
        ("MODEL: {MASK_ON: yes}", "MODEL.MASK_ON", True),
        ("MODEL: {ANCHOR_GENERATOR: {SIZES: [[32.5]]}}", "MODEL.ANCHOR_GENERATOR.SIZES", [[32.5]]),
        ("OUTPUT_DIR: 2026-01-02", "OUTPUT_DIR", "2026-01-02"),  # a date to YAML
        ('OUTPUT_DIR: "7"', "OUTPUT_DIR", "7"),
        ("SOLVER: {}", "SOLVER.MAX_ITER", 450),
        ("MODEL: {RPN: &a {NMS_THRESH: 0.6}}\nTEST: {BOX_REFINEMENT: {<<: *a}}", "TEST.BOX_REFINEMENT.NMS_THRESH", 0.6),
    ],
)
def test_what_is_meant_is_taken(load, tmp_path, text, key, value):
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {find_config_file('quickstart.yaml')}\n{text}\n")
    found = value_of(load(tmp_path / "mine.yaml", ["MODEL.DEVICE", "cpu"]), key)
    assert (list(found) if isinstance(found, tuple) else found) == value


SUSPICIOUS = [
    ("SOLVER.BASE_LR", 0.5, "SOLVER.BASE_LR 0.5 is 25 times the usual 0.02 for SGD and SOLVER.IMS_PER_BATCH 16"),
    ("SOLVER.MAX_ITER", 20_000, r"SOLVER.STEPS \[30000\]: \[30000\] never come, .*SOLVER.STEPS \"\[13333, 17778\]\""),
    ("SOLVER.WARMUP_ITERS", 50_000, "SOLVER.WARMUP_ITERS 50000 is more than SOLVER.MAX_ITER 40000"),
    ("MODEL.PIXEL_MEAN", [0.485, 0.456, 0.406], r"PIXEL_MEAN .*from 0 to 255; write \[123.675, 116.28, 103.53\]"),
    ("MODEL.PIXEL_STD", [0.229, 0.224, 0.225], r"PIXEL_STD .*write \[58.395, 57.12, 57.375\]"),
    ("INPUT.FORMAT", "RGB", "PIXEL_MEAN .* is ImageNet's in the order BGR, and INPUT.FORMAT is RGB"),
    (
        "MODEL.PIXEL_MEAN",
        [123.7, 116.8, 103.9],
        "PIXEL_MEAN .* is ImageNet's in the order RGB, and INPUT.FORMAT is BGR",
    ),
]


@pytest.mark.parametrize(("key", "value", "message"), SUSPICIOUS)
def test_what_is_seldom_meant_is_told(match, key, value, message):
    cfg = get_cfg()
    assert suspicions(cfg) == []
    cfg.merge_from_list([key, value])
    (text,) = suspicions(cfg)
    match(text, message)
    of_training = key.startswith("SOLVER.")
    assert suspicions(cfg, training=False) == ([] if of_training else [text])


def test_weights_that_bring_their_input_leave_nothing_to_suspect():
    cfg = get_cfg()
    cfg.MODEL.WEIGHTS, cfg.MODEL.PIXEL_MEAN = "imagenet://resnet50/MSRA", [0.485, 0.456, 0.406]
    assert suspicions(cfg) == []
    cfg.MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS = False
    assert len(suspicions(cfg)) == 1


@pytest.mark.parametrize(("weights", "usual"), [("", 0.001), ("imagenet://resnet50/MSRA", 0.0001)])
def test_a_rate_of_sgd_is_told_under_adamw(weights, usual):
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.MODEL.WEIGHTS, cfg.SOLVER.BASE_LR = "AdamW", weights, 4 * usual
    assert suspicions(cfg) == []
    cfg.SOLVER.BASE_LR = 0.02
    (text,) = suspicions(cfg)
    assert f"is {0.02 / usual:.0f} times the usual {usual:g} for AdamW" in text


@pytest.mark.parametrize(
    ("norm", "meta", "most"),
    [("BN", "GeneralizedRCNN", 0.08), ("", "GeneralizedRCNN", 0.04), ("BN", "RetinaNet", 0.04)],
)
def test_the_linear_rule(norm, meta, most):
    cfg = get_cfg()
    cfg.MODEL.RESNET_BACKBONE.NORM, cfg.MODEL.META_ARCHITECTURE = norm, meta
    for batch in (16, 4):
        cfg.SOLVER.IMS_PER_BATCH = batch
        cfg.SOLVER.BASE_LR = most * batch / 16
        assert suspicions(cfg) == []
        cfg.SOLVER.BASE_LR *= 1.01
        assert len(suspicions(cfg)) == 1
