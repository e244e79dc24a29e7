"""The tables that tools/reproduce.py knows, from ``tables.yaml``: which trainings and evaluations make each row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resnet_backbone.files.text import read_yaml
from resnet_backbone.metrics.paper import PaperRow, ReferenceRow, paper_row, references
from resnet_backbone.reproduce.estimate import COSTS, Cost, classifier_cost

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
    paper: PaperRow | None = None
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
    on_cpu: bool = False  # made for a CPU: hours at most
    per_class: bool = False
    seeds: int = 1  # how many, where the command line does not say
    notes: tuple[str, ...] = ()

    @property
    def tool(self) -> str:
        """The script in tools/ that trains and evaluates the rows."""
        return "train_classifier.py" if self.metric == "classification" else "train_net.py"

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


def all_tables() -> dict[str, Table]:
    """Return the tables by name: the paper's in its order, then those that are not the paper's."""
    values = read_yaml(Path(__file__).with_name("tables.yaml"))
    trainings = _trainings(values["trainings"])
    return {table["name"]: _table(table, values, trainings) for table in values["tables"]}


def _trainings(groups: Collection[Mapping[str, Any]]) -> dict[str, Training]:
    trainings: dict[str, Training] = {}
    for group in groups:
        names = group["names"]
        for name in names:
            full_name = group.get("prefix", "") + name
            trainings[full_name] = Training(
                full_name,
                group["config"].format(name),
                classifier_cost(names[name], name) if isinstance(names, dict) else COSTS.get(group.get("cost", "")),
                trainings.get(group.get("start_from", "")),
                group.get("reference_gpus", 8),
            )
    return trainings


def _table(values: Mapping[str, Any], shared: Mapping[str, Any], trainings: Mapping[str, Training]) -> Table:
    lists = {
        "rows": tuple(_row(row, values["name"], shared["evaluations"], trainings) for row in values["rows"]),
        "pairs": tuple(map(tuple, values.get("pairs", ()))),
        "notes": tuple(shared["notes"][name] for name in values.get("notes", ())),
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
        ensemble=values.get("ensemble", False),
        paper=paper,
        today=tuple(references()[key] for key in values.get("today", ())),
        members=tuple((trainings[name], seed) for name, seed in values.get("members", ())),
    )
