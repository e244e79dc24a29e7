"""What the detection tables of "Deep Residual Learning for Image Recognition" print, and what others reached since.

Every figure is in percent. ``AP`` is COCO's mean over IoU 0.50:0.05:0.95 (the paper's mAP@[.5, .95]), ``AP50`` COCO's
mAP@.5, ``mAP`` Pascal VOC's. Source of the paper: He, Zhang, Ren, Sun, arXiv 1512.03385.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# The data that a row was trained -> measured on.
COCO_VAL = "COCO train2014 -> val2014"
COCO_TEST_DEV = "COCO trainval2014 -> test-dev 2015"
COCO_MINIVAL = "COCO trainval35k -> minival 2014"
COCO_2017 = "COCO train2017 -> val2017"
VOC_07 = "VOC 07+12 trainval -> 07 test"
VOC_12 = "VOC 07 trainval+test, 12 trainval -> 12 test"


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper, on one test set."""

    table: int
    key: str  # unique in its table
    name: str
    network: str  # "VGG-16" or "ResNet-101"
    data: str
    method: str  # "baseline", or what was added, cumulatively
    figures: Mapping[str, float]  # "AP" and "AP50", or "mAP"; percent
    per_class: Mapping[str, float] = field(default_factory=dict)  # VOC class -> AP, percent

    @property
    def source(self) -> str:
        """Where it is printed."""
        return f"arXiv 1512.03385, Table {self.table}"


@dataclass(frozen=True)
class ReferenceRow:
    """What somebody else reached: a figure to expect today, with the setting it holds for."""

    key: str  # unique
    network: str
    name: str  # detector and implementation
    data: str
    setting: str
    figures: Mapping[str, float]  # percent
    source: str


@dataclass(frozen=True)
class Gain:
    """What the second of two figures has over the first."""

    absolute: float  # percentage points
    relative: float | None  # percent of the first, None where that is 0


def gain(first: float, second: float) -> Gain:
    """Return what ``second`` has over ``first``, both in percent."""
    return Gain(second - first, 100 * (second - first) / first if first else None)


def paper_rows(table: int) -> tuple[PaperRow, ...]:
    """Return the rows of one table, in the paper's order.

    Raises:
        ValueError: a table of which nothing is kept here.
    """
    rows = tuple(row for row in PAPER_ROWS if row.table == table)
    if not rows:
        known = ", ".join(map(str, sorted({row.table for row in PAPER_ROWS})))
        raise ValueError(f"no rows of the paper's Table {table} are kept here, only of {known}")
    return rows


def paper_row(table: int, key: str) -> PaperRow:
    """Return one row by its key.

    Raises:
        ValueError: no such table or row.
    """
    rows = {row.key: row for row in paper_rows(table)}
    if key not in rows:
        raise ValueError(f"Table {table} has no row {key!r}; it has {', '.join(rows)}")
    return rows[key]


def reference(key: str) -> ReferenceRow:
    """Return one of :data:`REFERENCES` by its key.

    Raises:
        ValueError: no such row.
    """
    rows = {row.key: row for row in REFERENCES}
    if key not in rows:
        raise ValueError(f"no reference {key!r}; there are {', '.join(rows)}")
    return rows[key]


def _voc(table: int, key: str, name: str, network: str, data: str, method: str, mean: float, values: str) -> PaperRow:
    per_class = dict(zip(VOC_CLASSES, map(float, values.split()), strict=True))
    return PaperRow(table, key, name, network, data, method, {"mAP": mean}, per_class)


_ALL = "+ box refinement, context, multi-scale testing; trained on COCO first"

PAPER_ROWS: tuple[PaperRow, ...] = (
    PaperRow(7, "vgg16_0712", "VGG-16, 07+12", "VGG-16", VOC_07, "baseline", {"mAP": 73.2}),
    PaperRow(7, "r101_0712", "ResNet-101, 07+12", "ResNet-101", VOC_07, "baseline", {"mAP": 76.4}),
    PaperRow(7, "vgg16_0712pp", "VGG-16, 07++12", "VGG-16", VOC_12, "baseline", {"mAP": 70.4}),
    PaperRow(7, "r101_0712pp", "ResNet-101, 07++12", "ResNet-101", VOC_12, "baseline", {"mAP": 73.8}),
    PaperRow(8, "vgg16", "VGG-16", "VGG-16", COCO_VAL, "baseline", {"AP50": 41.5, "AP": 21.2}),
    PaperRow(8, "r101", "ResNet-101", "ResNet-101", COCO_VAL, "baseline", {"AP50": 48.4, "AP": 27.2}),
    PaperRow(9, "vgg16", "baseline VGG-16", "VGG-16", COCO_VAL, "baseline", {"AP50": 41.5, "AP": 21.2}),
    PaperRow(9, "r101", "baseline ResNet-101", "ResNet-101", COCO_VAL, "baseline", {"AP50": 48.4, "AP": 27.2}),
    PaperRow(
        9, "refinement", "+ box refinement", "ResNet-101", COCO_VAL, "+ box refinement", {"AP50": 49.9, "AP": 29.9}
    ),
    PaperRow(9, "context", "+ context", "ResNet-101", COCO_VAL, "+ context", {"AP50": 51.1, "AP": 30.0}),
    PaperRow(
        9, "multiscale", "+ multi-scale testing", "ResNet-101", COCO_VAL, "+ multi-scale", {"AP50": 53.8, "AP": 32.5}
    ),
    PaperRow(9, "context_testdev", "+ context", "ResNet-101", COCO_TEST_DEV, "+ context", {"AP50": 53.3, "AP": 32.2}),
    PaperRow(
        9,
        "multiscale_testdev",
        "+ multi-scale testing",
        "ResNet-101",
        COCO_TEST_DEV,
        "+ multi-scale",
        {"AP50": 55.7, "AP": 34.9},
    ),
    PaperRow(
        9, "ensemble_testdev", "ensemble of 3", "ResNet-101", COCO_TEST_DEV, "ensemble", {"AP50": 59.0, "AP": 37.4}
    ),
    _voc(
        10,
        "vgg16_0712",
        "baseline VGG-16, 07+12",
        "VGG-16",
        VOC_07,
        "baseline",
        73.2,
        "76.5 79.0 70.9 65.5 52.1 83.1 84.7 86.4 52.0 81.9 65.7 84.8 84.6 77.5 76.7 38.8 73.6 73.9 83.0 72.6",
    ),
    _voc(
        10,
        "r101_0712",
        "baseline ResNet-101, 07+12",
        "ResNet-101",
        VOC_07,
        "baseline",
        76.4,
        "79.8 80.7 76.2 68.3 55.9 85.1 85.3 89.8 56.7 87.8 69.4 88.3 88.9 80.9 78.4 41.7 78.6 79.8 85.3 72.0",
    ),
    _voc(
        10,
        "r101_0712_from_coco",
        "baseline+++ ResNet-101, COCO+07+12",
        "ResNet-101",
        VOC_07,
        _ALL,
        85.6,
        "90.0 89.6 87.8 80.8 76.1 89.9 89.9 89.6 75.5 90.0 80.7 89.6 90.3 89.1 88.7 65.4 88.1 85.6 89.0 86.8",
    ),
    _voc(
        11,
        "vgg16_0712pp",
        "baseline VGG-16, 07++12",
        "VGG-16",
        VOC_12,
        "baseline",
        70.4,
        "84.9 79.8 74.3 53.9 49.8 77.5 75.9 88.5 45.6 77.1 55.3 86.9 81.7 80.9 79.6 40.1 72.6 60.9 81.2 61.5",
    ),
    _voc(
        11,
        "r101_0712pp",
        "baseline ResNet-101, 07++12",
        "ResNet-101",
        VOC_12,
        "baseline",
        73.8,
        "86.5 81.6 77.2 58.0 51.0 78.6 76.6 93.2 48.6 80.4 59.0 92.1 85.3 84.8 80.7 48.1 77.3 66.5 84.7 65.6",
    ),
    _voc(
        11,
        "r101_0712pp_from_coco",
        "baseline+++ ResNet-101, COCO+07++12",
        "ResNet-101",
        VOC_12,
        _ALL,
        83.8,
        "92.1 88.4 84.8 75.9 71.4 86.3 87.8 94.2 66.8 89.4 69.2 93.9 91.9 90.9 89.6 67.9 88.2 76.8 90.3 80.0",
    ),
)

_JW = "README of jwyang/faster-rcnn.pytorch at f9d984d"
_JW_COCO = "short side 800, RoIAlign, 16 images a step, learning rate 0.01, 6 epochs of 234,500 images"
_TFF = "README of endernewton/tf-faster-rcnn at b4da911"
_TFF_COCO = "short side 600, 1 image a step, 1,190,000 iterations"
_ZOO = "MODEL_ZOO.md of facebookresearch/detectron2 at 02b5c4e"
_ZOO_COCO = "short side 640 to 800, 512 RoIs, 1000 proposals, 16 images a step"

REFERENCES: tuple[ReferenceRow, ...] = (
    ReferenceRow("jwyang_vgg16", "VGG-16", "Faster R-CNN, jwyang", COCO_MINIVAL, _JW_COCO, {"AP": 29.2}, _JW),
    ReferenceRow("jwyang_r101", "ResNet-101", "Faster R-CNN C4, jwyang", COCO_MINIVAL, _JW_COCO, {"AP": 36.2}, _JW),
    ReferenceRow("tff_vgg16", "VGG-16", "Faster R-CNN, tf-faster-rcnn", COCO_MINIVAL, _TFF_COCO, {"AP": 30.2}, _TFF),
    ReferenceRow(
        "tff_r101", "ResNet-101", "Faster R-CNN C4, tf-faster-rcnn", COCO_MINIVAL, _TFF_COCO, {"AP": 35.4}, _TFF
    ),
    ReferenceRow(
        "zoo_r101_c4", "ResNet-101", "Faster R-CNN C4 3x, Detectron2", COCO_2017, _ZOO_COCO, {"AP": 41.1}, _ZOO
    ),
    ReferenceRow(
        "zoo_r101_fpn", "ResNet-101", "Faster R-CNN FPN 3x, Detectron2", COCO_2017, _ZOO_COCO, {"AP": 42.0}, _ZOO
    ),
    ReferenceRow(
        "mmdet_r101_fpn",
        "ResNet-101",
        "Faster R-CNN FPN 1x, mmdetection",
        COCO_2017,
        "short side 800, 16 images a step, torchvision weights",
        {"AP": 39.4},
        "configs/faster_rcnn/README.md of open-mmlab/mmdetection at 0308233",
    ),
    ReferenceRow(
        "fpn_paper_old",
        "ResNet-50",
        "the paper's baseline as trained by its authors",
        COCO_MINIVAL,
        "short side 600, 64 RoIs, 4 anchor scales, 300 proposals",
        {"AP": 26.3, "AP50": 47.3},
        "arXiv 1612.03144 (FPN), Table 3",
    ),
    ReferenceRow(
        "fpn_paper_new",
        "ResNet-50",
        "Faster R-CNN C4, the same authors a year later",
        COCO_MINIVAL,
        "short side 800, 512 RoIs, 5 anchor scales, 1000 proposals",
        {"AP": 31.6, "AP50": 53.1},
        "arXiv 1612.03144 (FPN), Table 3",
    ),
    ReferenceRow(
        "pyf_vgg16",
        "VGG-16",
        "Faster R-CNN, py-faster-rcnn",
        "COCO trainval35k -> test-dev 2015",
        "short side 600, 2 images a step, 490,000 iterations",
        {"AP": 24.2, "AP50": 45.3},
        "models/README.md of rbgirshick/py-faster-rcnn at 781a917",
    ),
    ReferenceRow(
        "tff_voc_vgg16", "VGG-16", "Faster R-CNN, tf-faster-rcnn", VOC_07, "short side 600", {"mAP": 75.7}, _TFF
    ),
    ReferenceRow(
        "tff_voc_r101", "ResNet-101", "Faster R-CNN C4, tf-faster-rcnn", VOC_07, "short side 600", {"mAP": 79.8}, _TFF
    ),
    ReferenceRow(
        "zoo_voc_r50",
        "ResNet-50",
        "Faster R-CNN C4, Detectron2",
        VOC_07,
        "short side 480 to 800, 18,000 iterations of 16 images",
        {"mAP": 80.3},
        _ZOO,
    ),
)
