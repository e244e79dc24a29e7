"""The detection tables that tools/reproduce.py knows: which trainings and evaluations make each row."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from resnet_backbone.metrics.paper import PaperRow, ReferenceRow, paper_row, reference
from resnet_backbone.metrics.paper_classification import ClassificationRow
from resnet_backbone.reproduce.estimate import (
    COST_R101_FPN,
    COST_R101_PAPER,
    COST_VGG16_MODERN,
    COST_VGG16_PAPER,
    Cost,
)

ENSEMBLE_SEEDS = (0, 1, 2)  # the paper's ensemble has three networks


@dataclass(frozen=True)
class Training:
    """A config to train; rows and tables that need the same one share its runs."""

    name: str  # of its run folders
    config: str
    cost: Cost | None = None
    start_from: Training | None = None  # what it is fine-tuned from; None: what the config says
    reference_gpus: int = 8  # those that the config's images a step are for


@dataclass(frozen=True)
class Row:
    """One row: a training, and what its network is evaluated with."""

    key: str
    name: str
    training: Training
    test: tuple[str, ...] = ()  # KEY VALUE words; without any, the evaluation that ends the training
    ensemble: bool = False  # the networks of ENSEMBLE_SEEDS together
    paper: PaperRow | ClassificationRow | None = None
    today: tuple[ReferenceRow, ...] = ()
    members: tuple[tuple[Training, int], ...] = ()  # trainings and seeds whose networks join that of the training

    @property
    def is_ensemble(self) -> bool:
        """Whether several networks make the row, which then has one evaluation whatever the number of seeds."""
        return self.ensemble or bool(self.members)

    @property
    def evaluation_name(self) -> str:
        """Name of the folder of its evaluation, below that of the training's name; ``""`` for the training's own."""
        return self.key if self.test or self.is_ensemble else ""


@dataclass(frozen=True)
class Table:
    """One table and the pairs of rows whose difference is its point."""

    name: str
    title: str
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]  # keys of rows, the baseline first
    figures: tuple[str, ...] = ("AP", "AP50", "AP75")
    metric: str = "bbox"  # key of inference/metrics.json: "bbox" (COCO's figures), "voc" or "classification"
    tool: str = "train_net.py"  # in tools/, what trains and evaluates the rows
    on_cpu: bool = False  # made for a CPU: hours at most
    per_class: bool = False
    seeds: int = 1  # how many, where the command line does not say
    notes: tuple[str, ...] = field(default=())

    def row(self, key: str) -> Row:
        """Return a row by its key."""
        return {row.key: row for row in self.rows}[key]

    def only(self, keys: Collection[str]) -> Table:
        """Return the table with these rows alone, and the pairs that they still make.

        Raises:
            ValueError: there is no such row.
        """
        known = [row.key for row in self.rows]
        if unknown := [key for key in keys if key not in known]:
            raise ValueError(f"table {self.name} has no row {', '.join(unknown)}; it has {', '.join(known)}")
        rows = tuple(row for row in self.rows if row.key in keys)
        return replace(self, rows=rows, pairs=tuple(pair for pair in self.pairs if set(pair) <= set(keys)))

    def usual_gpus(self) -> list[int]:
        """Return the numbers of GPUs worth a plan: eight and one, or one where the data is small."""
        return [8, 1] if any(row.training.reference_gpus > 1 for row in self.rows) else [1]


REFINEMENT = ("TEST.BOX_REFINEMENT.ENABLED", "True")
MULTI_SCALE = ("TEST.MULTI_SCALE.ENABLED", "True")
BCCD_MULTI_SCALE = (*MULTI_SCALE, "TEST.MULTI_SCALE.SIZES", "[200, 240, 280]")
BCCD_PAPERS_SCALES = (*MULTI_SCALE, "TEST.MULTI_SCALE.SIZES", "[80, 160, 240, 320, 400]")  # 240 for the paper's 600

PAPER_VGG16 = Training("paper_frcnn_vgg16", "configs/paper/frcnn_vgg16.yaml", COST_VGG16_PAPER)
PAPER_R101 = Training("paper_frcnn_r101", "configs/paper/frcnn_r101.yaml", COST_R101_PAPER)
PAPER_CONTEXT = Training("paper_frcnn_r101_context", "configs/paper/frcnn_r101_context.yaml", COST_R101_PAPER)
MODERN_VGG16 = Training("frcnn_vgg16", "configs/frcnn_vgg16.yaml", COST_VGG16_MODERN)
MODERN_R101 = Training("frcnn_r101", "configs/frcnn_r101.yaml", COST_R101_FPN)
BCCD_R18 = Training("bccd_r18", "configs/bccd_r18.yaml", reference_gpus=1)
BCCD_R34 = Training("bccd_r34", "configs/bccd_r34.yaml", reference_gpus=1)
BCCD_CONTEXT = Training("bccd_r18_context", "configs/bccd_r18_context.yaml", reference_gpus=1)
BCCD_VGG16 = Training("bccd_vgg16", "configs/bccd_vgg16.yaml", reference_gpus=1)
BCCD_R101 = Training("bccd_r101", "configs/bccd_r101.yaml", reference_gpus=1)


def _voc_training(arch: str, data: str) -> Training:
    cost = COST_VGG16_PAPER if arch == "vgg16" else COST_R101_PAPER
    return Training(f"voc_{arch}_{data}", f"configs/voc/{arch}_{data}.yaml", cost, reference_gpus=4)


def _voc_from_coco(data: str) -> Training:
    name = f"r101_{data}_from_coco"
    return Training(f"voc_{name}", f"configs/voc/{name}.yaml", COST_R101_PAPER, PAPER_CONTEXT, reference_gpus=4)


_VGG16_TODAY = (reference("tff_vgg16"), reference("jwyang_vgg16"), reference("pyf_vgg16"))
_R101_TODAY = (reference("tff_r101"), reference("jwyang_r101"))
_VOC_TODAY = {"vgg16_0712": (reference("tff_voc_vgg16"),), "r101_0712": (reference("tff_voc_r101"),)}
_SETTING = (
    "Today's figures are of other settings than the paper's, each in the list of references; larger images, more RoIs "
    "and proposals alone lift ResNet-50 from 26.3 to 31.6 AP (arXiv 1612.03144, Table 3)."
)
_TEST_DEV = (
    "The paper's ensemble was trained on trainval and scored on test-dev 2015, which only COCO's server can do; yours "
    "is of train2014 and val2014, where the paper's single model has 2.4 AP less."
)
_VOC12 = (
    "The annotations of VOC 2012 test are not public: an evaluation writes the files for the evaluation server at "
    "host.robots.ox.ac.uk, and the mAP comes from there."
)
_BCCD_SCALES = (
    "Multi-scale testing takes 200, 240 and 280 pixels; training had 240. The paper's 200 to 1000 around 600 are 80 to "
    "400 here (far sizes). The near ones were chosen after the far ones had been seen to hurt on this test set."
)
_NO_PAPER = "The paper has no such rows. Its own pair, VGG-16 to ResNet-101 on COCO, gained 6.0 AP, 28 % (Table 8)."


def _voc_row(table: int, arch: str, data: str) -> Row:
    key = f"{arch}_{data}"
    name = paper_row(table, key).name
    return Row(key, name, _voc_training(arch, data), paper=paper_row(table, key), today=_VOC_TODAY.get(key, ()))


def _voc_table(number: int, data: str, title: str, notes: tuple[str, ...]) -> Table:
    key = f"r101_{data}_from_coco"
    paper = paper_row(number, key)
    rows = (
        _voc_row(number, "vgg16", data),
        _voc_row(number, "r101", data),
        Row(key, paper.name, _voc_from_coco(data), paper=paper),
    )
    pairs = ((f"vgg16_{data}", f"r101_{data}"), (f"r101_{data}", key))
    return Table(str(number), title, rows, pairs, ("mAP",), "voc", per_class=True, notes=notes)


def _improvement_rows(base: Training, context: Training, scales: tuple[str, ...], paper: bool) -> tuple[Row, ...]:
    """The rows of Table 9: each improvement on top of those before it, then context and multi-scale testing alone."""

    def of_paper(key: str) -> PaperRow | None:
        return paper_row(9, key) if paper else None

    everything = (*REFINEMENT, *scales)
    return (
        Row("baseline", "baseline", base, paper=of_paper("r101"), today=_R101_TODAY if paper else ()),
        Row("refinement", "+ box refinement", base, REFINEMENT, paper=of_paper("refinement")),
        Row("context", "+ context", context, REFINEMENT, paper=of_paper("context")),
        Row("multiscale", "+ multi-scale testing", context, everything, paper=of_paper("multiscale")),
        Row("ensemble", "+ ensemble of 3", context, everything, True, of_paper("ensemble_testdev")),
        Row("context_alone", "context alone", context),
        Row("multiscale_alone", "multi-scale testing alone", base, scales),
    )


_IMPROVEMENT_PAIRS = (
    ("baseline", "refinement"),
    ("refinement", "context"),
    ("context", "multiscale"),
    ("multiscale", "ensemble"),
    ("baseline", "ensemble"),
    ("baseline", "context_alone"),
    ("baseline", "multiscale_alone"),
)


def _bccd_tables() -> tuple[Table, ...]:
    """The pairs on blood cells, from scratch: one that trains on a CPU, one for a GPU."""
    r18, r34 = Row("r18", "ResNet-18", BCCD_R18), Row("r34", "ResNet-34", BCCD_R34)
    vgg16, r101 = Row("vgg16", "VGG-16", BCCD_VGG16), Row("r101", "ResNet-101", BCCD_R101)
    title, notes = "BCCD test, from scratch:", (_NO_PAPER,)
    return (
        Table(
            "bccd",
            f"{title} ResNet-18 against ResNet-34",
            (r18, r34),
            (("r18", "r34"),),
            seeds=3,
            on_cpu=True,
            notes=notes,
        ),
        Table(
            "bccd-gpu",
            f"{title} VGG-16 against ResNet-101",
            (vgg16, r101),
            (("vgg16", "r101"),),
            seeds=3,
            notes=notes,
        ),
    )


def detection_tables() -> tuple[Table, ...]:
    """Return the tables of detectors."""
    voc7 = (
        _voc_row(7, "vgg16", "0712"),
        _voc_row(7, "r101", "0712"),
        _voc_row(7, "vgg16", "0712pp"),
        _voc_row(7, "r101", "0712pp"),
    )
    return (
        Table(
            "7",
            "Pascal VOC, VGG-16 against ResNet-101",
            voc7,
            (("vgg16_0712", "r101_0712"), ("vgg16_0712pp", "r101_0712pp")),
            ("mAP",),
            "voc",
            notes=(_VOC12,),
        ),
        Table(
            "8",
            "COCO val2014, VGG-16 against ResNet-101, the paper's setting",
            (
                Row("vgg16", "VGG-16", PAPER_VGG16, paper=paper_row(8, "vgg16"), today=_VGG16_TODAY),
                Row("r101", "ResNet-101", PAPER_R101, paper=paper_row(8, "r101"), today=_R101_TODAY),
            ),
            (("vgg16", "r101"),),
            ("AP", "AP50"),
            notes=(_SETTING,),
        ),
        Table(
            "8-modern",
            "COCO val2017, VGG-16 against ResNet-101, feature pyramids and 800 pixels",
            (
                Row("vgg16", "VGG-16-FPN", MODERN_VGG16, today=_VGG16_TODAY[:2]),
                Row(
                    "r101",
                    "ResNet-101-FPN",
                    MODERN_R101,
                    today=(reference("mmdet_r101_fpn"), reference("zoo_r101_fpn"), *_R101_TODAY),
                ),
            ),
            (("vgg16", "r101"),),
            notes=(_NO_PAPER, "No figure of VGG-16 with a feature pyramid on COCO was found; C5 stands for it."),
        ),
        Table(
            "9",
            "COCO val2014, improvements of ResNet-101",
            (
                Row("vgg16", "baseline VGG-16", PAPER_VGG16, paper=paper_row(9, "vgg16"), today=_VGG16_TODAY),
                *_improvement_rows(PAPER_R101, PAPER_CONTEXT, MULTI_SCALE, paper=True),
            ),
            (("vgg16", "baseline"), *_IMPROVEMENT_PAIRS),
            ("AP", "AP50"),
            notes=(_TEST_DEV, _SETTING),
        ),
        _voc_table(10, "0712", "VOC 2007 test, class by class", ()),
        _voc_table(11, "0712pp", "VOC 2012 test, class by class", (_VOC12,)),
        *_bccd_tables(),
        Table(
            "bccd-improvements",
            "BCCD test, the improvements of Table 9 on ResNet-18",
            (
                *_improvement_rows(BCCD_R18, BCCD_CONTEXT, BCCD_MULTI_SCALE, paper=False),
                Row("multiscale_paper", "multi-scale testing alone, far sizes", BCCD_R18, BCCD_PAPERS_SCALES),
                Row("ensemble_alone", "ensemble of 3 alone", BCCD_R18, ensemble=True),
            ),
            (*_IMPROVEMENT_PAIRS, ("baseline", "multiscale_paper"), ("baseline", "ensemble_alone")),
            seeds=3,
            on_cpu=True,
            notes=("The paper has no such rows; its improvements on COCO are in Table 9.", _BCCD_SCALES),
        ),
    )
