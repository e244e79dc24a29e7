"""Every config key once: its default, its type, which values it may have on which engine, and what it does.

Keys of Detectron2's have its names, defaults and meaning; the trees of both engines and all checks of single values are
made from these tables. What several keys must be together is in :mod:`resnet_backbone.config.checks` and
:mod:`resnet_backbone.config.combinations`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fvcore.common.config import CfgNode

from resnet_backbone.models.acceleration import COMPILE_MODES
from resnet_backbone.models.layers import NORMS

TF32 = ("convolutions", "everywhere", "nowhere")  # the first is the default
FLOAT32_PRECISION = {"highest": "nowhere", "high": "everywhere", "medium": "everywhere"}  # Detectron2's key, as TF32
DETECTRON2 = "Detectron2"  # the name of that engine in messages
Choices = tuple[object, ...]


class ConfigError(ValueError):
    """A config that cannot be obeyed.

    Args:
        message: what was found, what was expected, and what to write.
        keys: the dotted keys that it speaks of.
    """

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True)
class Range:
    """The numbers that a key, or a list of them, may have.

    Attributes:
        least, most: bounds that are allowed themselves.
        above, below: bounds that are not.
        order: of a list, ``increasing``, or ``ascending`` where equal numbers may follow each other.
        nonempty: whether a list must hold something.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    order: str = ""
    nonempty: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a number, or a list of numbers, is allowed."""
        if not isinstance(value, (list, tuple)):
            return self.least <= value <= self.most and self.above < value < self.below
        numbers = list(value)
        in_order = sorted(set(numbers)) if self.order == "increasing" else sorted(numbers)
        ordered = not self.order or numbers == in_order
        return ordered and all(map(self.holds, numbers)) and (bool(numbers) or not self.nonempty)

    def text(self, value: Any) -> str:
        """Say what is wanted in place of ``value``."""
        bounds = {
            f"{self.least:g} or more": self.least,
            f"above {self.above:g}": self.above,
            f"{self.most:g} or less": self.most,
            f"below {self.below:g}": self.below,
        }
        told = f"be {', and '.join(text for text, bound in bounds.items() if math.isfinite(bound))}"
        if math.isfinite(self.least) and math.isfinite(self.most):
            told = f"lie between {self.least:g} and {self.most:g}"
        if not isinstance(value, (list, tuple)):
            return f"it must {told}"
        return f"{'its numbers must' if len(value) else 'it needs numbers, which must'} {told}" + (
            ", and increase" if self.order else ""
        )


@dataclass(frozen=True)
class Key:
    """What is known of one config key."""

    name: str  # dotted
    default: Any  # its value where nobody sets it, and its type; None for a number or None
    about: str = ""  # what it does, in a few words that stand behind an error about its value
    range: Range | None = None  # the numbers that it may have
    choices: Choices = ()  # the only values that every engine knows
    torchvision: Choices = ()  # likewise the torchvision engine, and the training of classifiers
    detectron2: Choices = ()  # likewise Detectron2
    length: int | None = None  # how many values a list has; on Detectron2 other keys may decide that
    element: Any = None  # an example of what a list holds, where the default does not show it

    def choices_on(self, engine: str) -> Choices:
        """Return the only values that an engine knows; none where it knows all of the type."""
        return self.choices or (self.detectron2 if engine == DETECTRON2 else self.torchvision)

    def first_element(self) -> Any:
        """Return an example of what a list holds; None where anything may be in it."""
        shows = self.element is None and isinstance(self.default, (list, tuple)) and len(self.default)
        return self.default[0] if shows else self.element

    def check(self, value: Any, engine: str) -> None:
        """Raise ConfigError for a value, of the key's type, that the engine cannot obey."""
        about = f" ({self.about})" if self.about else ""
        choices = self.choices_on(engine)
        if choices and value not in choices:
            known = " or ".join(map(repr, choices))
            raise ConfigError(f"{self.name} is {value!r}, of which the {engine} engine knows only {known}", self.name)
        is_list = isinstance(value, (list, tuple))
        shown = list(value) if is_list else value
        if self.length is not None and engine != DETECTRON2 and len(value) != self.length:
            raise ConfigError(f"{self.name} is {shown}; it must have {self.length} values{about}", self.name)
        if self.range is not None and value is not None and not self.range.holds(value):
            example = f", such as {self.default}" if self.default is not None and self.range.holds(self.default) else ""
            raise ConfigError(f"{self.name} is {shown}; {self.range.text(value)}{example}{about}", self.name)


# Ranges that many keys have.
COUNT = Range(least=1)
NOT_NEGATIVE = Range(least=0)
POSITIVE = Range(above=0)
FRACTION = Range(least=0, most=1)
BELOW_ONE = Range(least=0, below=1)
OVERLAPS = Range(least=0, most=1, order="ascending")
LENGTHS = Range(least=1, order="increasing", nonempty=True)
PYRAMIDS = tuple(f"build_imagenet_{kind}fpn_backbone" for kind in ("", "retinanet_", "fcos_"))
POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool")
DEFAULT_ANCHORS, TORCHVISION_ANCHORS = "DefaultAnchorGenerator", "AnchorGenerator"  # the second is torchvision's

# Keys of Detectron2's (after v0.6, config/defaults.py) that both engines obey.
SHARED = (
    Key("VERSION", 2, choices=(2,)),
    Key("OUTPUT_DIR", "./output", "the folder of the run"),
    Key("SEED", -1, "of everything random; negative: another one each time"),
    Key("CUDNN_BENCHMARK", False, "try cuDNN's algorithms on each size of images"),
    Key("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", torchvision=("GeneralizedRCNN", "RetinaNet")),
    Key("MODEL.WEIGHTS", "", "what to start from: a catalog name, a file or an address; empty: random"),
    Key("MODEL.DEVICE", "cuda", torchvision=("cpu", "cuda", "mps")),
    Key("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675], "per channel, of images from 0 to 255", length=3),
    Key("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], "images are divided by it", Range(above=0, nonempty=True), length=3),
    Key("MODEL.MASK_ON", False, "whether there are masks"),
    Key("MODEL.BACKBONE.NAME", PYRAMIDS[0], torchvision=("build_imagenet_backbone", *PYRAMIDS)),
    Key("MODEL.BACKBONE.FREEZE_AT", 2, "so many stages are not trained, counted from the stem"),
    Key("MODEL.RESNETS.STRIDE_IN_1X1", True, "whether a bottleneck's first convolution has its stride"),
    Key("MODEL.FPN.IN_FEATURES", [], "feature maps that the pyramid reads", element="res4"),
    Key("MODEL.FPN.OUT_CHANNELS", 256, "of every level", COUNT),
    Key("MODEL.FPN.NORM", "", "behind its convolutions", torchvision=NORMS),
    Key("MODEL.FPN.FUSE_TYPE", "sum", torchvision=("sum",), detectron2=("sum", "avg")),
    Key("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", torchvision=("RPN",)),
    Key("MODEL.ANCHOR_GENERATOR.NAME", DEFAULT_ANCHORS, torchvision=(DEFAULT_ANCHORS, TORCHVISION_ANCHORS)),
    Key("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64, 128, 256, 512]], "pixels, a list for each level", element=[32.0]),
    Key("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[0.5, 1.0, 2.0]], "height / width, a list for each level"),
    Key("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0, "of the first centre in its cell, in cells", FRACTION),
    Key("MODEL.RPN.HEAD_NAME", "StandardRPNHead", torchvision=("StandardRPNHead",)),
    Key("MODEL.RPN.IN_FEATURES", ["res4"], "feature maps that it reads"),
    Key("MODEL.RPN.CONV_DIMS", [-1], "channels of its convolutions; -1: as before", Range(least=-1, nonempty=True)),
    Key("MODEL.RPN.BOUNDARY_THRESH", -1, torchvision=(-1,)),
    Key("MODEL.RPN.IOU_THRESHOLDS", [0.3, 0.7], "IoU: background below, object above", OVERLAPS, length=2),
    Key("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 256, "anchors in the losses", COUNT),
    Key("MODEL.RPN.POSITIVE_FRACTION", 0.5, "most of these anchors that are objects, as a fraction", FRACTION),
    Key("MODEL.RPN.SMOOTH_L1_BETA", 0.0, "where the box loss turns from L2 to L1", NOT_NEGATIVE),
    Key("MODEL.RPN.LOSS_WEIGHT", 1.0, "of both losses"),
    Key("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 1.0, "of the box loss, times LOSS_WEIGHT"),
    Key("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 12000, "proposals of a level before NMS", COUNT),
    Key("MODEL.RPN.PRE_NMS_TOPK_TEST", 6000, "proposals of a level before NMS", COUNT),
    Key("MODEL.RPN.POST_NMS_TOPK_TRAIN", 2000, "proposals after NMS; 0: the true boxes alone", NOT_NEGATIVE),
    Key("MODEL.RPN.POST_NMS_TOPK_TEST", 1000, "proposals after NMS", COUNT),
    Key("MODEL.RPN.NMS_THRESH", 0.7, "IoU above which the proposal of lower score goes", FRACTION),
    Key("MODEL.ROI_HEADS.NAME", "StandardROIHeads", torchvision=("StandardROIHeads", "ImageNetRes5ROIHeads")),
    Key("MODEL.ROI_HEADS.NUM_CLASSES", 80, "written from the data", COUNT),
    Key("MODEL.ROI_HEADS.IN_FEATURES", ["res4"], "feature maps that regions are cropped from"),
    Key("MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.5], "IoU from which a proposal is an object", OVERLAPS, length=1),
    Key("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 512, "proposals in the losses", COUNT),
    Key("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.25, "most of these that are objects, as a fraction", FRACTION),
    Key("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.05, "detections have scores above it", FRACTION),
    Key("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.5, "IoU above which the detection of lower score goes", FRACTION),
    Key("MODEL.ROI_BOX_HEAD.NAME", "", torchvision=("", "FastRCNNConvFCHead", "VGGBoxHead")),
    Key("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [10.0, 10.0, 5.0, 5.0], "on x, y, width, height", POSITIVE, length=4),
    Key("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.0, "where the box loss turns from L2 to L1", NOT_NEGATIVE),
    Key("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 1.0, "of the box loss"),
    Key("MODEL.ROI_BOX_HEAD.NUM_FC", 0, "hidden layers of FastRCNNConvFCHead", NOT_NEGATIVE),
    Key("MODEL.ROI_BOX_HEAD.FC_DIM", 1024, "their width", COUNT),
    Key("MODEL.ROI_BOX_HEAD.NUM_CONV", 0, "convolutions of FastRCNNConvFCHead before these", NOT_NEGATIVE),
    Key("MODEL.ROI_BOX_HEAD.CONV_DIM", 256, "their width", COUNT),
    Key("MODEL.ROI_BOX_HEAD.NORM", "", "behind these convolutions", torchvision=NORMS),
    Key("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14, "side of the crops, in cells", COUNT),
    Key("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0, "samples per cell side; 0 adapts to the box", NOT_NEGATIVE),
    Key("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2", torchvision=POOLERS),
    Key("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "one box for all classes"),
    Key("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead", torchvision=("MaskRCNNConvUpsampleHead",)),
    Key("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14, "side of the crops, in cells", COUNT),
    Key("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 0, "samples per cell side; 0 adapts to the box", NOT_NEGATIVE),
    Key("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2", torchvision=POOLERS),
    Key("MODEL.ROI_MASK_HEAD.NUM_CONV", 0, "convolutions before the upsampling", NOT_NEGATIVE),
    Key("MODEL.ROI_MASK_HEAD.CONV_DIM", 256, "their width", COUNT),
    Key("MODEL.ROI_MASK_HEAD.NORM", "", "behind these convolutions", torchvision=NORMS),
    Key("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False, "one mask for all classes"),
    Key("MODEL.RETINANET.NUM_CLASSES", 80, "written from the data", COUNT),
    Key("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"], "levels that the heads read"),
    Key("MODEL.RETINANET.NUM_CONVS", 4, "hidden layers of both heads", COUNT),
    Key("MODEL.RETINANET.NORM", "", "behind these", torchvision=("", "GN")),
    Key("MODEL.RETINANET.IOU_THRESHOLDS", [0.4, 0.5], "IoU: background below, object above", OVERLAPS, length=2),
    Key("MODEL.RETINANET.IOU_LABELS", [0, -1, 1], torchvision=([0, -1, 1],)),
    Key("MODEL.RETINANET.PRIOR_PROB", 0.01, "the score that training starts from", Range(above=0, below=1)),
    Key("MODEL.RETINANET.SCORE_THRESH_TEST", 0.05, "detections have scores above it", FRACTION),
    Key("MODEL.RETINANET.TOPK_CANDIDATES_TEST", 1000, "of a level before NMS", COUNT),
    Key("MODEL.RETINANET.NMS_THRESH_TEST", 0.5, "IoU above which the detection of lower score goes", FRACTION),
    Key("MODEL.RETINANET.BBOX_REG_WEIGHTS", [1.0, 1.0, 1.0, 1.0], "on x, y, width, height", POSITIVE, length=4),
    Key("MODEL.RETINANET.FOCAL_LOSS_GAMMA", 2.0, "exponent of the focal loss", NOT_NEGATIVE),
    Key("MODEL.RETINANET.FOCAL_LOSS_ALPHA", 0.25, "weight of the objects in it, from 0; -1: none", Range(most=1)),
    Key("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.1, "where the box loss turns from L2 to L1", NOT_NEGATIVE),
    Key("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1", torchvision=("smooth_l1",)),
    Key("INPUT.MIN_SIZE_TRAIN", [800], "lengths in pixels of the shorter side", Range(least=0, nonempty=True)),
    Key("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "one of MIN_SIZE_TRAIN, or from it", choices=("choice", "range")),
    Key("INPUT.MAX_SIZE_TRAIN", 1333, "most pixels of the longer side", COUNT),
    Key("INPUT.MIN_SIZE_TEST", 800, "pixels of the shorter side; 0: as large as the files are", NOT_NEGATIVE),
    Key("INPUT.MAX_SIZE_TEST", 1333, "most pixels of the longer side", COUNT),
    Key("INPUT.RANDOM_FLIP", "horizontal", choices=("horizontal", "vertical", "none")),
    Key("INPUT.CROP.ENABLED", False, "cut out a random part of each image before the resize"),
    Key("INPUT.CROP.TYPE", "relative_range", choices=("relative", "relative_range", "absolute", "absolute_range")),
    Key("INPUT.CROP.SIZE", [0.9, 0.9], "of the part, as TYPE says", POSITIVE, length=2),
    Key("INPUT.FORMAT", "BGR", "order of the channels", choices=("BGR", "RGB")),
    Key("INPUT.MASK_FORMAT", "polygon", "of annotations", choices=("polygon", "bitmask")),
    Key("DATASETS.TRAIN", [], "names", element="my_train"),
    Key("DATASETS.TEST", [], "names", element="my_val"),
    Key("DATALOADER.NUM_WORKERS", 4, "processes that read images", NOT_NEGATIVE),
    Key("DATALOADER.ASPECT_RATIO_GROUPING", True, "batches of upright or of lying images"),
    Key(
        "DATALOADER.SAMPLER_TRAIN",
        "TrainingSampler",
        torchvision=("TrainingSampler",),
        detectron2=("TrainingSampler", "RepeatFactorTrainingSampler"),
    ),
    Key("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True, torchvision=(True,)),
    Key("SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", choices=("WarmupMultiStepLR", "WarmupCosineLR")),
    Key("SOLVER.MAX_ITER", 40000, "optimizer steps", COUNT),
    Key("SOLVER.BASE_LR", 0.001, "the learning rate after the warm-up", POSITIVE),
    Key("SOLVER.BASE_LR_END", 0.0, "where the cosine ends", NOT_NEGATIVE),
    Key("SOLVER.MOMENTUM", 0.9, "of SGD", BELOW_ONE),
    Key("SOLVER.NESTEROV", False, "Nesterov's momentum"),
    Key("SOLVER.WEIGHT_DECAY", 0.0001, "of all parameters but those of norms", NOT_NEGATIVE),
    Key("SOLVER.WEIGHT_DECAY_NORM", 0.0, "of the parameters of norms", NOT_NEGATIVE),
    Key("SOLVER.WEIGHT_DECAY_BIAS", None, "of biases, where it is set", NOT_NEGATIVE),
    Key("SOLVER.BIAS_LR_FACTOR", 1.0, "on the learning rate of biases", NOT_NEGATIVE),
    Key("SOLVER.GAMMA", 0.1, "factor on the learning rate at each of STEPS", NOT_NEGATIVE),
    Key("SOLVER.STEPS", [30000], "iterations at which the learning rate falls", Range(least=1, order="increasing")),
    Key("SOLVER.WARMUP_FACTOR", 0.001, "of BASE_LR, where the warm-up starts", FRACTION),
    Key("SOLVER.WARMUP_ITERS", 1000, "iterations of the warm-up", NOT_NEGATIVE),
    Key("SOLVER.WARMUP_METHOD", "linear", choices=("linear", "constant")),
    Key("SOLVER.CHECKPOINT_PERIOD", 5000, "iterations from one checkpoint to the next", COUNT),
    Key("SOLVER.IMS_PER_BATCH", 16, "images of an optimizer step, on all processes", COUNT),
    Key("SOLVER.CLIP_GRADIENTS.ENABLED", False),
    Key(
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE",
        "value",
        torchvision=("value", "norm", "full_model"),
        detectron2=("value", "norm"),
    ),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "the most that is left", POSITIVE),
    Key("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 2.0, "", POSITIVE, torchvision=(2.0,)),
    Key("SOLVER.AMP.ENABLED", False, "train in half precision"),
    Key("TEST.EVAL_PERIOD", 0, "iterations from one evaluation to the next; 0: at the end alone", NOT_NEGATIVE),
    Key("TEST.DETECTIONS_PER_IMAGE", 100, "the best, of all classes", COUNT),
)

# Keys that Detectron2 does not have; both engines obey them. Those of MODEL are what the registered builders read.
ADDED = (
    Key("MODEL.RESNET_BACKBONE.ARCH", "resnet50", "a name of resnet_backbone.list_models(), or timm/NAME"),
    Key("MODEL.RESNET_BACKBONE.NORM", "FrozenBN", "empty for VGG without norms, and for timm's own", choices=NORMS),
    Key("MODEL.RESNET_BACKBONE.OUT_FEATURES", ["res2", "res3", "res4", "res5"], "of a VGG conv1 to conv5 and pool5"),
    Key("MODEL.RESNET_BACKBONE.SHORTCUT", "", "of the paper; empty: as published", choices=("", "A", "B", "C")),
    Key("MODEL.RESNET_BACKBONE.STEM", "basic", "deeplab's needs weights of its own", choices=("basic", "deeplab")),
    Key("MODEL.RESNET_BACKBONE.RES4_DILATION", 1, "2, with RES5_DILATION 4, for stride 8", choices=(1, 2)),
    Key("MODEL.RESNET_BACKBONE.RES5_DILATION", 1, "2 for DC5, and for DeepLab at stride 16", choices=(1, 2, 4)),
    Key("MODEL.RESNET_BACKBONE.RES5_MULTI_GRID", [1, 1, 1], "factors on it, by block; DeepLab's: [1, 2, 4]"),
    Key("MODEL.RESNET_BACKBONE.DEFORM_ON_PER_STAGE", [False] * 4, "deformable convolutions: res2 to res5", length=4),
    Key("MODEL.RESNET_BACKBONE.DEFORM_MODULATED", False, "weigh their samples, too"),
    Key("MODEL.RESNET_BACKBONE.DEFORM_NUM_GROUPS", 1, "of channels with offsets of their own", COUNT),
    Key("MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", True, "take FORMAT, PIXEL_* and STRIDE_IN_1X1 from WEIGHTS"),
    Key("MODEL.RESNET_BACKBONE.STRICT_WEIGHTS", True, "weights must fill the whole trunk", torchvision=(True,)),
    Key("MODEL.RESNET_BACKBONE.FOLD_NORMS", True, "frozen norms scale weights, not feature maps"),
    Key("MODEL.RESNET_BACKBONE.MEMORY_FORMAT", "auto", choices=("auto", "channels_last", "contiguous")),
    Key("MODEL.RESNET_BACKBONE.PRECISION", "", "of trunk and pyramid alone", choices=("", "bfloat16", "float16")),
    Key("MODEL.RESNET_BACKBONE.COMPILE", "", "a mode of torch.compile", choices=COMPILE_MODES),
    Key("MODEL.RESNET_BACKBONE.PAD_TO", 0, "pad images to multiples of so many pixels", NOT_NEGATIVE),
    Key("MODEL.RESNET_BACKBONE.CHECKPOINT_STAGES", [], "computed again in the backward pass", element="res4"),
    Key("MODEL.RETINANET.CLIP_BEFORE_NMS", False, "cut boxes at the image's edge, as torchvision", detectron2=(False,)),
    Key("MODEL.ROI_BOX_HEAD.DROPOUT", 0.0, "after fc6 and fc7 of VGGBoxHead", BELOW_ONE),
    Key("MODEL.ROI_BOX_HEAD.GLOBAL_CONTEXT", False, "the image's vector behind each region's"),
    Key("INPUT.LARGE_SCALE_JITTER.ENABLED", False, "scale, crop and pad to a square, in place of MIN_SIZE_TRAIN"),
    Key("INPUT.LARGE_SCALE_JITTER.SCALE", [0.1, 2.0], "of SIZE", Range(above=0, order="ascending"), length=2),
    Key("INPUT.LARGE_SCALE_JITTER.SIZE", 1024, "side of the square in pixels", COUNT),
    Key("INPUT.COLOR_JITTER", [0.0] * 4, "brightness, contrast, saturation, hue; 0 leaves it", FRACTION, length=4),
    Key(
        "DATASETS.OWN",
        [],
        "data in COCO's format",
        element={"NAME": "my_train", "JSON": "my/train.json", "IMAGES": "my/images"},
    ),
    Key("DATASETS.CHECK_IMAGES", False, "open every image before the training"),
    Key("SOLVER.OPTIMIZER", "SGD", "AdamW has no MOMENTUM", choices=("SGD", "AdamW")),
    Key("SOLVER.TRUNK_LR_FACTOR", 1.0, "on the learning rate of the trunk", NOT_NEGATIVE),
    Key("SOLVER.LAYER_DECAY", 1.0, "on it, from each stage of the trunk to the one before", Range(above=0, most=1)),
    Key("SOLVER.EMA.ENABLED", False, "evaluate the running mean of the weights", detectron2=(False,)),
    Key("SOLVER.EMA.DECAY", 0.999, "of it, an iteration", Range(above=0, below=1), detectron2=(0.999,)),
    Key("SOLVER.ACCUMULATION_STEPS", 1, "forward passes of an optimizer step", COUNT, detectron2=(1,)),
    Key("SOLVER.AMP.DTYPE", "float16", choices=("float16", "bfloat16")),
    Key("TF32", TF32[0], "float32 operations that round to TF32 on GPUs", choices=TF32),
    Key("KEEP_FREED_MEMORY", True, "on the CPU, for the next step"),
    Key("TEST.PATIENCE", 0, "evaluations without a better one that end a training", NOT_NEGATIVE, detectron2=(0,)),
    # Test-time improvements: of the last evaluation and of --eval-only, not of TEST.EVAL_PERIOD's.
    Key("TEST.BOX_REFINEMENT.ENABLED", False, "pool each regressed box again, and vote"),
    Key("TEST.BOX_REFINEMENT.NMS_THRESH", 0.3, "IoU above which the lower box goes", FRACTION),
    Key("TEST.BOX_REFINEMENT.VOTE_THRESH", 0.5, "IoU from which a box shares in the kept one", FRACTION),
    Key("TEST.MULTI_SCALE.ENABLED", False, "each region from the two sizes that bring it nearest to 224 x 224 pixels"),
    Key("TEST.MULTI_SCALE.SIZES", [200, 400, 600, 800, 1000], "pixels of the shorter side", LENGTHS),
    Key("TEST.MULTI_SCALE.MAX_SIZE", 1666, "most pixels of the longer side", COUNT),
    Key("TEST.ENSEMBLE", [], "folders of other finished runs of this engine", element="output/other"),
)

# Keys that Detectron2 alone obeys, as far as something is to be said of them here.
_DETECTRON2_CHECKED = (
    Key("FLOAT32_PRECISION", "", choices=("", *FLOAT32_PRECISION)),
    Key("MODEL.KEYPOINT_ON", False, choices=(False,)),
    Key("MODEL.LOAD_PROPOSALS", False, choices=(False,)),
    Key("MODEL.ANCHOR_GENERATOR.ANGLES", [[-90, 0, 90]], element=[0.0]),
    Key("DATASETS.PROPOSAL_FILES_TRAIN", (), element="proposals.pkl"),
    Key("DATASETS.PROPOSAL_FILES_TEST", (), element="proposals.pkl"),
    Key("TEST.EXPECTED_RESULTS", [], choices=([],)),
    Key("TEST.KEYPOINT_OKS_SIGMAS", [], element=0.1),
)
# The others: keys outside of sections; then sections, and the keys in each.
_DETECTRON2_OTHERS = """
VIS_PERIOD
DATALOADER: REPEAT_SQRT REPEAT_THRESHOLD
DATASETS: PRECOMPUTED_PROPOSAL_TOPK_TEST PRECOMPUTED_PROPOSAL_TOPK_TRAIN
GLOBAL: HACK
MODEL.PANOPTIC_FPN.COMBINE: ENABLED INSTANCES_CONFIDENCE_THRESH OVERLAP_THRESH STUFF_AREA_LIMIT
MODEL.PANOPTIC_FPN: INSTANCE_LOSS_WEIGHT
MODEL.PROPOSAL_GENERATOR: MIN_SIZE
MODEL.RESNETS: DEFORM_MODULATED DEFORM_NUM_GROUPS DEFORM_ON_PER_STAGE DEPTH NORM NUM_GROUPS OUT_FEATURES
  RES2_OUT_CHANNELS RES5_DILATION STEM_OUT_CHANNELS WIDTH_PER_GROUP
MODEL.ROI_BOX_CASCADE_HEAD: BBOX_REG_WEIGHTS IOUS
MODEL.ROI_BOX_HEAD: BBOX_REG_LOSS_TYPE FED_LOSS_FREQ_WEIGHT_POWER FED_LOSS_NUM_CLASSES
  TRAIN_ON_PRED_BOXES USE_FED_LOSS USE_SIGMOID_CE
MODEL.ROI_HEADS: IOU_LABELS PROPOSAL_APPEND_GT
MODEL.ROI_KEYPOINT_HEAD: CONV_DIMS LOSS_WEIGHT MIN_KEYPOINTS_PER_IMAGE NAME NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS
  NUM_KEYPOINTS POOLER_RESOLUTION POOLER_SAMPLING_RATIO POOLER_TYPE
MODEL.RPN: BBOX_REG_LOSS_TYPE BBOX_REG_WEIGHTS IOU_LABELS
MODEL.SEM_SEG_HEAD: COMMON_STRIDE CONVS_DIM IGNORE_VALUE IN_FEATURES LOSS_WEIGHT NAME NORM NUM_CLASSES
SOLVER: NUM_DECAYS REFERENCE_WORLD_SIZE RESCALE_INTERVAL
TEST.AUG: ENABLED FLIP MAX_SIZE MIN_SIZES
TEST.PRECISE_BN: ENABLED NUM_ITER
"""

TORCHVISION_KEYS: Mapping[str, Key] = {key.name: key for key in (*SHARED, *ADDED)}
DETECTRON2_KEYS: Mapping[str, Key] = {**TORCHVISION_KEYS, **{key.name: key for key in _DETECTRON2_CHECKED}}


def detectron2_alone() -> frozenset[str]:
    """Return the dotted names of the keys that only Detectron2 obeys."""
    names, section = [key.name for key in _DETECTRON2_CHECKED], ""
    for word in _DETECTRON2_OTHERS.split():
        if word.endswith(":"):
            section = word.replace(":", ".")
        else:
            names.append(section + word)
    return frozenset(names)


def add_keys(cfg: CfgNode, keys: Iterable[Key]) -> CfgNode:
    """Add keys with their defaults to a tree, in place, and return it; a key that is there keeps its value."""
    for key in keys:
        *sections, name = key.name.split(".")
        node = cfg
        for section in sections:
            node = node.setdefault(section, type(cfg)())
        node.setdefault(name, copy.deepcopy(key.default))
    return cfg


def add_backbone_keys(cfg: CfgNode) -> None:
    """Add to ``cfg``, in place, the keys of the backbones and their heads that Detectron2 does not have."""
    add_keys(cfg, (key for key in ADDED if key.name.startswith("MODEL.")))


def add_run_keys(cfg: CfgNode) -> None:
    """Add to ``cfg``, in place, the keys that tools/train_net.py knows and Detectron2 does not."""
    add_keys(cfg, (key for key in ADDED if not key.name.startswith("MODEL.")))
