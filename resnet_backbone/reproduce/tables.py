"""The tables that tools/reproduce.py knows, from ``tables.yaml``: what makes each row, and what its training costs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnet_backbone.files.text import read_yaml
from resnet_backbone.metrics.paper import PaperRow, ReferenceRow, paper_row, references

# Arithmetic a V100 does, floating point operations a second: what Detectron2's zoo implies. Faster R-CNN R101-C4 takes
# 0.619 s for 2 images of 1463 G multiply-adds a GPU, R50-C4 0.543 s for 2 of 1309 G.
V100_FLOPS = 9.45e12


@dataclass(frozen=True)
class Cost:
    """What one image of a training costs, where it was measured or can be counted."""

    basis: str
    v100_seconds: tuple[float, float] | None = None  # on one V100, low and high
    core_seconds: float | None = None  # on one core of a CPU


def counted_cost(billions: float, what: str) -> Cost:
    """Return the cost of a training that nobody measured, from billions of multiply-adds for one training image."""
    seconds = 2 * billions * 1e9 / V100_FLOPS
    basis = (
        f"counted, not measured: {billions:.0f} G multiply-adds an image for {what}, "
        f"at the {V100_FLOPS / 1e12:g} TFLOP/s that Detectron2's zoo reaches on a V100"
    )
    return Cost(basis, (seconds, seconds))


@dataclass(frozen=True)
class Training:
    """A config to train; rows and tables that need the same one share its runs."""

    name: str  # of its run folders
    config: str
    cost: Cost | None = None
    start_from: Training | None = None  # what it is fine-tuned from; None: what the config says
    reference_gpus: int = 8  # those that the config's images a step are for
    classifier: bool = False  # of tools/train_classifier.py; else of tools/train_net.py
    weights: str = ""  # published ones: they are evaluated with the config, and nothing is trained

    @property
    def tool(self) -> str:
        """The script in tools/ that trains and evaluates it."""
        return "train_classifier.py" if self.classifier else "train_net.py"


@dataclass(frozen=True)
class Row:
    """One row: a training, and what its network is evaluated with."""

    key: str
    name: str
    training: Training
    test: tuple[str, ...] = ()  # KEY VALUE pairs; without any, the evaluation that ends the training
    paper: PaperRow | None = None
    today: tuple[ReferenceRow, ...] = ()
    # Trainings and seeds whose networks join that of seed 0 of the training; the row then has one evaluation alone.
    members: tuple[tuple[Training, int], ...] = ()

    @property
    def evaluation_name(self) -> str:
        """Name of the folder of its evaluation, below that of the training's name; ``""`` for the training's own."""
        return self.key if self.test or self.members else ""


@dataclass(frozen=True)
class Table:
    """One table and the pairs of rows whose difference is its point."""

    name: str
    title: str
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]  # keys of rows, the baseline first
    figures: tuple[str, ...] = ("AP", "AP50", "AP75")
    metric: str = "bbox"  # key of inference/metrics.json: "bbox" (COCO's figures), "voc" or "classification"
    on_cpu: bool = False  # made for a CPU: hours at most
    per_class: bool = False
    seeds: int = 1  # how many, where the command line does not say
    notes: tuple[str, ...] = ()
    cited: tuple[PaperRow, ...] = ()  # what the paper compares with, and nobody can train here

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


def cited_tables() -> dict[str, Table]:
    """Return the tables of the paper that can only be cited, by name; they have no rows but those of ``paper_rows``."""
    values = _read()
    return {table["name"]: _table(table, values, {}) for table in values["cited"]}


def _read() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("tables.yaml"))


def all_tables() -> dict[str, Table]:
    """Return the tables by name: the paper's in its order, then those that are not the paper's."""
    values = _read()
    costs = {
        name: counted_cost(cost["billions"], cost["what"])
        if "billions" in cost
        else Cost(cost["basis"], _pair(cost.get("v100_seconds")), cost.get("core_seconds"))
        for name, cost in values["costs"].items()
    }
    trainings: dict[str, Training] = {}
    for group in values["trainings"]:
        for name in group["names"]:
            cost = costs.get(group.get("cost", "").format(name))
            if isinstance(group["names"], dict):  # of a classifier: once forward, and twice that backward
                cost = counted_cost(3 * group["names"][name], f"training {name} at 224 pixels")
            full_name = group.get("prefix", "") + name
            trainings[full_name] = Training(
                full_name,
                group["config"].format(name),
                cost,
                trainings.get(group.get("start_from", "").format(name)),
                group.get("reference_gpus", 8),
                group.get("classifier", False),
                group.get("weights", "").format(name),
            )
    return {table["name"]: _table(table, values, trainings) for table in values["tables"]}


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return (values[0], values[1]) if values else None


def _table(values: Mapping[str, Any], shared: Mapping[str, Any], trainings: Mapping[str, Training]) -> Table:
    lists = {
        "rows": tuple(_row(row, values["name"], shared["evaluations"], trainings) for row in values["rows"]),
        "pairs": tuple(map(tuple, values.get("pairs", ()))),
        "notes": tuple(shared["notes"][name] for name in values.get("notes", ())),
        "cited": tuple(paper_row(int(values["name"]), key) for key in values.get("cited", ())),
    }
    if "figures" in values:
        lists["figures"] = tuple(values["figures"])
    return Table(**{**values, **lists})


def _row(
    values: Mapping[str, Any],
    table: str,
    evaluations: Mapping[str, Collection[str]],
    trainings: Mapping[str, Training],
) -> Row:
    paper = paper_row(int(table), values["paper"]) if "paper" in values else None
    return Row(
        key=values["key"],
        name=values["name"] if paper is None else values.get("name", paper.name),
        training=trainings[values["training"]],
        test=tuple(evaluations[values["test"]]) if "test" in values else (),
        paper=paper,
        today=tuple(references()[key] for key in values.get("today", ())),
        members=tuple((trainings[name], seed) for name, seed in values.get("members", ())),
    )
