"""What the classification tables of "Deep Residual Learning for Image Recognition" print of the networks that we have.

Every error is in percent. Multiply-adds are in billions, parameters in millions, with the digits that are printed.
Source: He, Zhang, Ren, Sun, arXiv 1512.03385. The detection tables are in :mod:`resnet_backbone.metrics.paper`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The data that a row was trained -> measured on.
IMAGENET_VAL = "ImageNet train -> val"
IMAGENET_TEST = "ImageNet train -> test"
CIFAR10_TEST = "CIFAR-10 train -> test"

# How an image is tested.
TEN_CROP = "10-crop"  # of 224 pixels: four corners and the centre, and their mirror images
MULTI_SCALE = "fully convolutional, multi-scale"  # mean of the scores at shorter sides of 224, 256, 384, 480, 640
ONE_VIEW = "single view"  # the 32 x 32 pixels as they are


@dataclass(frozen=True)
class ClassificationRow:
    """One row of a table of the paper.

    Attributes:
        table: its number. Multiply-adds that are printed in the text or in Figure 3 stand with Table 1.
        key: unique in its table.
        name: as printed.
        arch: the network's name in the registry; ``""`` for an ensemble.
        shortcut: the option of the shortcuts, ``"A"``, ``"B"`` or ``"C"``; ``""`` for a network without, or where it is
            not said.
        data: what it was trained -> measured on; ``""`` in Table 1, which measures nothing.
        testing: how an image was tested; ``""`` in Table 1, and in Table 5, which does not say it.
        figures: ``"top1_error"`` and ``"top5_error"``, percent; of the five runs of ResNet-110 also
            ``"top1_error_mean"`` and ``"top1_error_std"``, and ``"top1_error"`` is of the best.
        multiply_adds: billions, as printed; None where they are not.
        parameters: millions, likewise.
        place: where it is printed, if not in the table.
    """

    table: int
    key: str
    name: str
    arch: str
    shortcut: str
    data: str = ""
    testing: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    multiply_adds: float | None = None
    parameters: float | None = None
    place: str = ""

    @property
    def per_class(self) -> Mapping[str, float]:
        """Nothing: the paper has no errors of single classes."""
        return {}

    @property
    def source(self) -> str:
        """Where it is printed."""
        return f"arXiv 1512.03385, {self.place or f'Table {self.table}'}"


def classification_rows(table: int) -> tuple[ClassificationRow, ...]:
    """Return the rows of one table, in the paper's order.

    Raises:
        ValueError: a table of which nothing is kept here.
    """
    rows = tuple(row for row in CLASSIFICATION_ROWS if row.table == table)
    if not rows:
        known = ", ".join(map(str, sorted({row.table for row in CLASSIFICATION_ROWS})))
        raise ValueError(f"no classification rows of the paper's Table {table} are kept here, only of {known}")
    return rows


def classification_row(table: int, key: str) -> ClassificationRow:
    """Return one row by its key.

    Raises:
        ValueError: no such table or row.
    """
    rows = {row.key: row for row in classification_rows(table)}
    if key not in rows:
        raise ValueError(f"Table {table} has no row {key!r}; it has {', '.join(rows)}")
    return rows[key]


def _cost(key: str, name: str, shortcut: str, billions: float, place: str = "") -> ClassificationRow:
    return ClassificationRow(1, key, name, key, shortcut, multiply_adds=billions, place=place)


def _imagenet(
    table: int, key: str, name: str, shortcut: str, top1: float, top5: float | None = None
) -> ClassificationRow:
    arch = key.split("_")[0]
    figures = {"top1_error": top1} if top5 is None else {"top1_error": top1, "top5_error": top5}
    testing = MULTI_SCALE if table == 4 else TEN_CROP
    return ClassificationRow(table, key, name, arch, shortcut, IMAGENET_VAL, testing, figures)


def _cifar(layers: int, millions: float, error: float, **of_five_runs: float) -> ClassificationRow:
    key = f"resnet{layers}"
    figures = {"top1_error": error, **of_five_runs}
    name = f"ResNet-{layers}"
    return ClassificationRow(6, key, name, f"cifar_{key}", "A", CIFAR10_TEST, ONE_VIEW, figures, parameters=millions)


CLASSIFICATION_ROWS: tuple[ClassificationRow, ...] = (
    # Table 1 is of the plain networks, too (section 4.1), and does not say the option of ResNet-18 and 34.
    _cost("plain18", "18-layer", "", 1.8),
    _cost("resnet18", "18-layer", "", 1.8),
    _cost("plain34", "34-layer plain", "", 3.6, "section 3.3 and Figure 3"),
    _cost("resnet34", "34-layer", "", 3.6),
    _cost("resnet50", "50-layer", "B", 3.8),
    _cost("resnet101", "101-layer", "B", 7.6),
    _cost("resnet152", "152-layer", "B", 11.3),
    _cost("vgg16", "VGG-16", "", 15.3, "section 4.1"),
    _cost("vgg19", "VGG-19", "", 19.6, "sections 3.3 and 4.1, Figure 3"),
    _imagenet(2, "plain18", "plain, 18 layers", "", 27.94),
    _imagenet(2, "resnet18", "ResNet, 18 layers", "A", 27.88),
    _imagenet(2, "plain34", "plain, 34 layers", "", 28.54),
    _imagenet(2, "resnet34", "ResNet, 34 layers", "A", 25.03),
    _imagenet(3, "vgg16", "VGG-16", "", 28.07, 9.33),
    _imagenet(3, "plain34", "plain-34", "", 28.54, 10.02),
    _imagenet(3, "resnet34_a", "ResNet-34 A", "A", 25.03, 7.76),
    _imagenet(3, "resnet34_b", "ResNet-34 B", "B", 24.52, 7.46),
    _imagenet(3, "resnet34_c", "ResNet-34 C", "C", 24.19, 7.40),
    _imagenet(3, "resnet50", "ResNet-50", "B", 22.85, 6.71),
    _imagenet(3, "resnet101", "ResNet-101", "B", 21.75, 6.05),
    _imagenet(3, "resnet152", "ResNet-152", "B", 21.43, 5.71),
    # Its rows of VGG do not say which of VGG's networks they are.
    _imagenet(4, "resnet34_b", "ResNet-34 B", "B", 21.84, 5.71),
    _imagenet(4, "resnet34_c", "ResNet-34 C", "C", 21.53, 5.60),
    _imagenet(4, "resnet50", "ResNet-50", "B", 20.74, 5.25),
    _imagenet(4, "resnet101", "ResNet-101", "B", 19.87, 4.60),
    _imagenet(4, "resnet152", "ResNet-152", "B", 19.38, 4.49),
    ClassificationRow(
        5,
        "ensemble",
        "ResNet (ILSVRC'15), six models of different depth, two of them ResNet-152",
        "",
        "",
        IMAGENET_TEST,
        "",
        {"top5_error": 3.57},
    ),
    _cifar(20, 0.27, 8.75),
    _cifar(32, 0.46, 7.51),
    _cifar(44, 0.66, 7.17),
    _cifar(56, 0.85, 6.97),
    _cifar(110, 1.7, 6.43, top1_error_mean=6.61, top1_error_std=0.16),
    _cifar(1202, 19.4, 7.93),
)
