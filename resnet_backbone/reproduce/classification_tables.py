"""The classification tables that tools/reproduce.py knows, and the list of all tables."""

from __future__ import annotations

from resnet_backbone.metrics.paper_classification import classification_row
from resnet_backbone.reproduce.estimate import Cost, counted_cost
from resnet_backbone.reproduce.tables import Row, Table, Training, detection_tables

TOOL = "train_classifier.py"
TEN_CROP = ("TEST.VIEWS", "10-crop")
MULTI_SCALE = ("TEST.VIEWS", "multi-scale")


def _cost(billions: float, name: str) -> Cost:
    """Of one image forward and backward: three times the multiply-adds of classifying it."""
    return counted_cost(3 * billions * 1e9, f"training {name} at 224 pixels")


# Multiply-adds with the paper's options; tests/reproduce holds them to resnet_backbone.models.complexity.
_BILLIONS = {
    "plain18": 1.795,
    "plain34": 3.644,
    "resnet18_a": 1.795,
    "resnet34_a": 3.644,
    "resnet34_b": 3.664,
    "resnet34_c": 3.831,
    "resnet50": 3.858,
    "resnet101": 7.570,
    "resnet152": 11.282,
    "vgg16": 15.470,
}
IMAGENET = {
    name: Training(f"imagenet_{name}", f"configs/classification/imagenet_{name}.yaml", _cost(billions, name))
    for name, billions in _BILLIONS.items()
}

_PLATEAUS = (
    "The paper divides the learning rate when the error plateaus, in up to 600,000 iterations; the configs divide it "
    "after 150,000, 300,000 and 450,000."
)
_MEAN = "The paper subtracts the mean of each pixel, the configs the mean of each channel."
_VALIDATION = (
    "The paper's ensemble of six was scored on the test set of ILSVRC 2015 by its server, yours on the validation set. "
    "The paper says of its members that their depths differ and that two have 152 layers; the others are a guess."
)
_JPEG = (
    "cifar10_jpeg_* is a JPEG copy of CIFAR-10, on which errors are somewhat higher. The original: add to the commands "
    "DATASETS.TRAIN \"['torchvision://CIFAR10/train']\" DATASETS.TEST \"['torchvision://CIFAR10/test']\"."
)
_FIVE = "Of ResNet-110 the paper prints the best of five runs, and 6.61 ± 0.16 over them."
_PLAIN = (
    "The paper shows the plain networks' curves alone (Figure 6), and says of 110 layers that the error exceeds 60 %."
)
_BEYOND = (
    "The paper leaves open what helps 1202 layers; pre-activation (arXiv 1603.05027) and stochastic depth (arXiv "
    "1603.09382) were proposed for it. Their papers' own schedules are longer."
)
_SHORT = "A sixteenth of the paper's schedule, 4,000 iterations, in bfloat16: the paper has no such figures."


def _row(table: int, key: str, training: str, test: tuple[str, ...]) -> Row:
    paper = classification_row(table, key)
    # Named by the training, so that tables which evaluate the same share its folder.
    name = f"{training}_{test[1].replace('-', '_')}"
    return Row(name, paper.name, IMAGENET[training], test, paper=paper)


def _pairs(test: tuple[str, ...], *pairs: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    suffix = test[1].replace("-", "_")
    return tuple((f"{first}_{suffix}", f"{second}_{suffix}") for first, second in pairs)


def _imagenet_table(
    number: int, title: str, test: tuple[str, ...], rows: tuple[Row, ...], pairs: tuple[tuple[str, str], ...]
) -> Table:
    return Table(
        str(number),
        title,
        rows,
        _pairs(test, *pairs),
        ("top1_error",) if number == 2 else ("top1_error", "top5_error"),
        "classification",
        TOOL,
        notes=(_PLATEAUS, _MEAN),
    )


def _cifar(layers: str, suffix: str = "") -> Training:
    name = f"cifar10_{layers}{suffix}"
    return Training(name, f"configs/classification/{name}.yaml", reference_gpus=1)


def classification_tables() -> tuple[Table, ...]:
    """Return Tables 2 to 6 and ``cifar``."""
    table3 = ("plain34", "resnet34_a", "resnet34_b", "resnet34_c", "resnet50", "resnet101", "resnet152")
    six = tuple((IMAGENET[name], 0) for name in ("resnet101", "resnet50", "resnet34_c", "resnet34_b"))
    depths = (20, 32, 44, 56, 110)
    return (
        _imagenet_table(
            2,
            "ImageNet validation, 10-crop: plain against residual networks",
            TEN_CROP,
            tuple(
                _row(2, key, training, TEN_CROP)
                for key, training in (
                    ("plain18", "plain18"),
                    ("resnet18", "resnet18_a"),
                    ("plain34", "plain34"),
                    ("resnet34", "resnet34_a"),
                )
            ),
            (
                ("plain18", "plain34"),
                ("resnet18_a", "resnet34_a"),
                ("plain18", "resnet18_a"),
                ("plain34", "resnet34_a"),
            ),
        ),
        _imagenet_table(
            3,
            "ImageNet validation, 10-crop: shortcuts and depth",
            TEN_CROP,
            tuple(_row(3, key, key, TEN_CROP) for key in ("vgg16", *table3)),
            tuple(zip(table3, table3[1:], strict=False)),
        ),
        _imagenet_table(
            4,
            "ImageNet validation, fully convolutional at five scales",
            MULTI_SCALE,
            tuple(_row(4, key, key, MULTI_SCALE) for key in table3[2:]),
            tuple(zip(table3[2:], table3[3:], strict=False)),
        ),
        Table(
            "5",
            "ImageNet, ensemble of six at five scales",
            (
                Row(
                    "ensemble_multi_scale",
                    classification_row(5, "ensemble").name,
                    IMAGENET["resnet152"],
                    MULTI_SCALE,
                    paper=classification_row(5, "ensemble"),
                    members=((IMAGENET["resnet152"], 1), *six),
                ),
            ),
            (),
            ("top5_error",),
            "classification",
            TOOL,
            notes=(_VALIDATION, _PLATEAUS, _MEAN),
        ),
        Table(
            "6",
            "CIFAR-10 test",
            (
                *(Row(f"plain{depth}", f"plain-{depth}", _cifar(f"plain{depth}")) for depth in depths),
                *(
                    Row(
                        f"resnet{depth}",
                        f"ResNet-{depth}",
                        _cifar(f"resnet{depth}"),
                        paper=classification_row(6, f"resnet{depth}"),
                    )
                    for depth in (*depths, 1202)
                ),
                *(
                    Row(
                        f"resnet{depth}_{option}",
                        f"ResNet-{depth}, {option.replace('_', ' ')}",
                        _cifar(f"resnet{depth}", f"_{option}"),
                    )
                    for depth in (110, 1202)
                    for option in ("preactivation", "stochastic_depth")
                ),
            ),
            (
                ("plain20", "plain56"),
                ("resnet20", "resnet56"),
                *((f"plain{depth}", f"resnet{depth}") for depth in depths),
                ("resnet56", "resnet110"),
                ("resnet110", "resnet1202"),
                ("resnet1202", "resnet1202_preactivation"),
                ("resnet1202", "resnet1202_stochastic_depth"),
            ),
            ("top1_error",),
            "classification",
            TOOL,
            notes=(_JPEG, _FIVE, _PLAIN, _BEYOND, _MEAN),
        ),
        Table(
            "cifar",
            "CIFAR-10 test, a sixteenth of the schedule: plain against residual networks",
            tuple(
                Row(key, name, _cifar(key, "_short"))
                for key, name in (
                    ("plain20", "plain-20"),
                    ("plain56", "plain-56"),
                    ("resnet20", "ResNet-20"),
                    ("resnet56", "ResNet-56"),
                )
            ),
            (("plain20", "plain56"), ("resnet20", "resnet56"), ("plain20", "resnet20"), ("plain56", "resnet56")),
            ("top1_error",),
            "classification",
            TOOL,
            on_cpu=True,
            notes=(_SHORT, _JPEG),
        ),
    )


def all_tables() -> dict[str, Table]:
    """Return them in the paper's order, then those that are not the paper's."""
    tables = (*classification_tables(), *detection_tables())
    return {table.name: table for table in sorted(tables, key=lambda table: not table.name[0].isdigit())}
