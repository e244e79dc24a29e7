"""The figures of a table: the paper's, today's, and those of the finished runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from resnet_backbone.config.merge import differences, read_run_config
from resnet_backbone.files.checkpoints import LAST
from resnet_backbone.metrics.paper import Gain, ReferenceRow, gain
from resnet_backbone.metrics.results import read_figures
from resnet_backbone.metrics.run_facts import FACTS_NAME, RunFacts, read_facts
from resnet_backbone.reproduce.jobs import Job, Jobs
from resnet_backbone.reproduce.tables import Row, Table

FINISHED, STARTED, NOT_RUN, OTHER = "finished", "started", "not run", "other settings"

_OLDER = "its figures are older than the detector, which was trained again, or copied without its time: cp -p keeps it"


@dataclass(frozen=True)
class RunState:
    """What was found of one job."""

    job: Job
    status: str  # FINISHED, STARTED, NOT_RUN or OTHER
    detail: str = ""  # how far it got, or which settings are others
    figures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # inference/metrics.json, percent
    facts: RunFacts | None = None


def read_state(job: Job) -> RunState:
    """Look into a job's folder; nothing is written.

    Raises:
        ValueError: a file there is not what tools/train_net.py writes.
    """
    config_path = job.folder / "config.yaml"
    if not config_path.is_file():
        return RunState(job, NOT_RUN)
    if others := list(differences(read_run_config(config_path), job.cfg)):
        return RunState(job, OTHER, "; ".join(one.text("the folder", "the plan") for one in others))
    inference = job.folder / "inference"
    metrics = inference / "metrics.json"
    evaluation = metrics if metrics.is_file() else inference / FACTS_NAME
    if _ended(job, evaluation):
        figures = read_figures(metrics) if metrics.is_file() else {}
        facts = read_facts(inference) if (inference / FACTS_NAME).is_file() else None
        return RunState(job, FINISHED, figures=figures, facts=facts)
    if job.evaluates:
        return RunState(job, NOT_RUN, _OLDER if evaluation.is_file() else "")
    return RunState(job, STARTED, f"iteration {last_iteration(job.folder):,} of {job.schedule.max_iter:,}")


def _ended(job: Job, evaluation: Path) -> bool:
    """Whether the file of an evaluation is there and is that of the final detector, or detectors.

    A test set without annotations has facts and no figures.
    """
    if not evaluation.is_file():
        return False
    if job.evaluates:  # weights may have been deleted since; those of a later training are others
        members = (Path(folder) / "model_final.pth" for folder in job.cfg.TEST.ENSEMBLE)
        weights = [path for path in (Path(job.cfg.MODEL.WEIGHTS), *members) if path.is_file()]
    else:
        final = job.folder / "model_final.pth"
        if not final.is_file():
            return False
        weights = [final] if job.cfg.TEST.EVAL_PERIOD else []
    return all(path.stat().st_mtime <= evaluation.stat().st_mtime for path in weights)


def can_resume(folder: Path) -> bool:
    """Return whether a run in this folder has a checkpoint to resume from."""
    return (folder / LAST).is_file()


def last_iteration(folder: Path) -> int:
    """Return how many iterations the records of a run tell of, 0 where there are none."""
    path = folder / "metrics.json"
    last = 0
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                last = max(last, int(json.loads(line)["iteration"]) + 1)
            except (ValueError, KeyError, TypeError):
                continue  # the line that a killed run was writing, or one of another kind
    return last


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds that ran, in percent."""

    mean: float
    std: float | None  # of the sample (n - 1); None for one run
    n: int


@dataclass(frozen=True)
class RowResult:
    """What is known of one row."""

    row: Row
    runs: tuple[RunState, ...]  # one a seed

    def ours(self, metric: str, figure: str) -> Spread | None:
        """Return a figure over the runs that have it, or None."""
        return spread([value for run in self.runs if (value := run.figures.get(metric, {}).get(figure)) is not None])

    @property
    def status(self) -> str:
        """The status of the runs, with how many where they differ."""
        counted = {run.status: 0 for run in self.runs}
        for run in self.runs:
            counted[run.status] += 1
        if len(counted) == 1:
            return next(iter(counted))
        return ", ".join(f"{number} {status}" for status, number in counted.items())


@dataclass(frozen=True)
class PairResult:
    """The gain of one row over another in one figure: of the paper, of others today, and ours."""

    first: Row
    second: Row
    figure: str
    paper: Gain | None
    today: tuple[tuple[ReferenceRow, Gain], ...]  # the first row's, and the gain of the same source
    ours: Gain | None  # of the means
    by_seed: tuple[float, ...]  # ours, of the seeds that both rows have, in percentage points


@dataclass(frozen=True)
class TableResult:
    """One table."""

    table: Table
    rows: tuple[RowResult, ...]
    pairs: tuple[PairResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return {
            "table": self.table.name,
            "title": self.table.title,
            "rows": [self._row(row) for row in self.rows],
            "gains": [
                {
                    "first": pair.first.key,
                    "second": pair.second.key,
                    "figure": pair.figure,
                    "paper": asdict(pair.paper) if pair.paper else None,
                    "today": [{"source": reference.source, **asdict(value)} for reference, value in pair.today],
                    "ours": asdict(pair.ours) if pair.ours else None,
                    "ours_by_seed": list(pair.by_seed),
                }
                for pair in self.pairs
            ],
            "notes": list(self.table.notes),
        }

    def _row(self, result: RowResult) -> dict[str, Any]:
        row, metric = result.row, self.table.metric
        names = [*self.table.figures, *class_figures(self)]
        ours = {name: value for name in names if (value := result.ours(metric, name))}
        return {
            "key": row.key,
            "name": row.name,
            "status": result.status,
            "paper": {**asdict(row.paper), "source": row.paper.source} if row.paper else None,
            "today": [asdict(reference) for reference in row.today],
            "ours": {name: asdict(value) for name, value in ours.items()},
            "runs": [
                {
                    "name": run.job.name,
                    "folder": str(run.job.folder),
                    "config": run.job.config,
                    "seed": run.job.seed,
                    "status": run.status,
                    "detail": run.detail,
                    "figures": run.figures,
                    "facts": asdict(run.facts) if run.facts else None,
                }
                for run in result.runs
            ],
        }


def collect(jobs: Jobs) -> TableResult:
    """Read every run's folder.

    Raises:
        ValueError: a folder holds what no run writes.
    """
    table = jobs.table
    rows = tuple(RowResult(row, tuple(map(read_state, jobs.of_row(row.key)))) for row in table.rows)
    by_key = {result.row.key: result for result in rows}
    pairs = tuple(
        _pair(table, by_key[first], by_key[second], figure) for first, second in table.pairs for figure in table.figures
    )
    return TableResult(table, rows, pairs)


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and sample standard deviation, or None of nothing."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def class_figures(result: TableResult) -> list[str]:
    """Return the names of the figures of single classes, such as ``AP-person``, in the order they come."""
    names: dict[str, None] = {}
    for row in result.rows:
        for run in row.runs:
            names |= dict.fromkeys(key for key in run.figures.get(result.table.metric, {}) if key.startswith("AP-"))
        if result.table.per_class and row.row.paper:
            names |= dict.fromkeys(f"AP-{name}" for name in row.row.paper.per_class)
    return list(names)


def _pair(table: Table, first: RowResult, second: RowResult, figure: str) -> PairResult:
    ours = (first.ours(table.metric, figure), second.ours(table.metric, figure))
    by_seed = [
        {
            run.job.seed: value
            for run in row.runs
            if (value := run.figures.get(table.metric, {}).get(figure)) is not None
        }
        for row in (first, second)
    ]
    return PairResult(
        first.row,
        second.row,
        figure,
        _paper_gain(first.row, second.row, figure),
        tuple(_today_gains(first.row, second.row, figure)),
        gain(ours[0].mean, ours[1].mean) if ours[0] and ours[1] else None,
        tuple(by_seed[1][seed] - by_seed[0][seed] for seed in by_seed[0] if seed in by_seed[1]),
    )


def _paper_gain(first: Row, second: Row, figure: str) -> Gain | None:
    """The paper's gain, where both rows were trained and scored on the same data."""
    if not first.paper or not second.paper or first.paper.data != second.paper.data:
        return None
    if figure not in first.paper.figures or figure not in second.paper.figures:
        return None
    return gain(first.paper.figures[figure], second.paper.figures[figure])


def _today_gains(first: Row, second: Row, figure: str) -> list[tuple[ReferenceRow, Gain]]:
    """The gains within one source, data set and setting."""
    return [
        (one, gain(one.figures[figure], other.figures[figure]))
        for one in first.today
        for other in second.today
        if (one.source, one.data, one.setting) == (other.source, other.data, other.setting)
        and figure in one.figures
        and figure in other.figures
    ]
