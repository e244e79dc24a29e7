"""The report of a table: the paper's figures, today's and those of the finished runs, as Markdown and JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.paper import Gain, ReferenceRow, gain, paper_rows
from resnet_backbone.reproduce.jobs import FINISHED, Jobs, RunState, read_state
from resnet_backbone.reproduce.tables import Row, Table

NOTHING = "-"
Citations = Mapping[tuple[str, str, str], int]  # source, data and setting of today's figures -> number in the report


@dataclass(frozen=True)
class Spread:
    """One figure over the seeds that ran, in percent."""

    mean: float
    std: float | None  # of the sample (n - 1); None for one run
    n: int

    def text(self) -> str:
        """``51.5``, or with several runs ``51.5 ± 1.8 (n = 3)``."""
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f} (n = {self.n})"


@dataclass(frozen=True)
class RowResult:
    """What is known of one row."""

    row: Row
    runs: tuple[RunState, ...]  # one a seed
    metric: str  # of the table
    classifier: RunState | None = None  # that its detectors start from, where the table has it

    def by_seed(self, figure: str) -> dict[int, float]:
        """Return a figure of the runs that have it, by seed."""
        values = ((run.job.seed, run.figures.get(self.metric, {}).get(figure)) for run in self.runs)
        return {seed: value for seed, value in values if value is not None}

    def ours(self, figure: str) -> Spread | None:
        """Return a figure over the runs that have it, or None."""
        values = list(self.by_seed(figure).values())
        if not values:
            return None
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def classifier_error(self) -> float | None:
        """The top-1 error of its classifier, in percent, where that was evaluated."""
        figures = self.classifier.figures.get("classification", {}) if self.classifier else {}
        return figures.get("top1_error")

    @property
    def status(self) -> str:
        """The status of the runs, with how many where they differ."""
        counted = Counter(run.status for run in self.runs)
        return ", ".join(f"{number} {status}" if len(counted) > 1 else status for status, number in counted.items())


@dataclass(frozen=True)
class PairResult:
    """The gain of one row over another in one figure: of the paper, of others today, and ours."""

    first: RowResult
    second: RowResult
    figure: str
    paper: Gain | None  # where both rows were trained and scored on the same data
    today: tuple[tuple[ReferenceRow, Gain], ...]  # the first row's, and the gain within its source, data and setting
    ours: Gain | None  # of the means
    by_seed: tuple[float, ...]  # ours, of the seeds that both rows have, in percentage points


@dataclass(frozen=True)
class TableResult:
    """One table."""

    table: Table
    rows: tuple[RowResult, ...]
    pairs: tuple[PairResult, ...]

    @property
    def class_figures(self) -> list[str]:
        """The names of the figures of single classes, such as ``AP-person``, in the order they come."""
        names: dict[str, None] = {}
        for row in self.rows:
            for run in row.runs:
                names |= dict.fromkeys(key for key in run.figures.get(self.table.metric, {}) if key.startswith("AP-"))
            if self.table.per_class and row.row.paper:
                names |= dict.fromkeys(f"AP-{name}" for name in row.row.paper.per_class)
        return list(names)


def collect(jobs: Jobs) -> TableResult:
    """Read every run's folder.

    Raises:
        ValueError: a folder holds what no run writes.
    """
    table = jobs.table
    rows = {}
    for row in table.rows:
        classifier = jobs.classifier_of(row.key)
        runs = tuple(map(read_state, jobs.of_row(row.key)))
        rows[row.key] = RowResult(row, runs, table.metric, read_state(classifier) if classifier else None)
    pairs = [(rows[first], rows[second]) for first, second in table.pairs]
    results = (_pair_result(*pair, figure) for pair in pairs for figure in table.figures)
    return TableResult(table, tuple(rows.values()), tuple(results))


def _pair_result(first: RowResult, second: RowResult, figure: str) -> PairResult:
    before, after = (row.ours(figure) for row in (first, second))
    seeds, others = (row.by_seed(figure) for row in (first, second))
    paper = None
    one, other = first.row.paper, second.row.paper
    if one and other and one.data == other.data and figure in one.figures and figure in other.figures:
        paper = gain(one.figures[figure], other.figures[figure])
    return PairResult(
        first=first,
        second=second,
        figure=figure,
        paper=paper,
        today=tuple(
            (one, gain(one.figures[figure], other.figures[figure]))
            for one in first.row.today
            for other in second.row.today
            if _cited(one) == _cited(other) and figure in one.figures and figure in other.figures
        ),
        ours=gain(before.mean, after.mean) if before and after else None,
        by_seed=tuple(others[seed] - value for seed, value in seeds.items() if seed in others),
    )


def write_report(result: TableResult, folder: Path, sentences: Sequence[str] = ()) -> tuple[Path, Path]:
    """Write ``table_<name>.md`` and ``table_<name>.json`` and return their paths; ``sentences`` as in the text."""
    markdown, values = (folder / f"table_{result.table.name}{suffix}" for suffix in (".md", ".json"))
    write_text(markdown, report_markdown(result, sentences))
    write_text(values, json.dumps({**_to_dict(result), "sentences": [*sentences]}, indent=2) + "\n")
    return markdown, values


def _to_dict(result: TableResult) -> dict[str, Any]:
    return {
        "table": result.table.name,
        "title": result.table.title,
        "rows": [_row_to_dict(result, row) for row in result.rows],
        "gains": [
            {
                "first": pair.first.row.key,
                "second": pair.second.row.key,
                "figure": pair.figure,
                "paper": asdict(pair.paper) if pair.paper else None,
                "today": [{"source": reference.source, **asdict(value)} for reference, value in pair.today],
                "ours": asdict(pair.ours) if pair.ours else None,
                "ours_by_seed": pair.by_seed,
            }
            for pair in result.pairs
        ],
        "cited": [{**asdict(row), "source": row.source} for row in result.table.cited],
        "notes": result.table.notes,
    }


def _row_to_dict(result: TableResult, of_row: RowResult) -> dict[str, Any]:
    row = of_row.row
    figures = [*result.table.figures, *result.class_figures]
    return {
        "key": row.key,
        "name": row.name,
        "status": of_row.status,
        "classifier_error": of_row.classifier_error,
        "paper": {**asdict(row.paper), "source": row.paper.source} if row.paper else None,
        "today": [asdict(reference) for reference in row.today],
        "ours": {name: asdict(value) for name in figures if (value := of_row.ours(name))},
        "runs": [
            {
                "name": run.job.name,
                "folder": str(run.job.folder),
                "config": run.job.training.config,
                "seed": run.job.seed,
                "status": run.status,
                "detail": run.detail,
                "figures": run.figures,
                "facts": asdict(run.facts) if run.facts else None,
            }
            for run in of_row.runs
        ],
    }


def report_markdown(result: TableResult, sentences: Sequence[str] = ()) -> str:
    """Return the report, for a terminal, too; ``sentences`` are those of the comparisons of its pairs."""
    table = result.table
    cited = (_cited(one) for row in result.rows for one in row.row.today)
    citations = {citation: number for number, citation in enumerate(dict.fromkeys(cited), start=1)}
    several = any(len(row.runs) > 1 for row in result.rows)
    percent = "Yours with several seeds: mean ± standard deviation of the sample, n runs." if several else ""
    commands = dict.fromkeys(run.facts.command for row in result.rows for run in row.runs if run.facts)
    sources = [f"[{number}] {source}: {data}, {setting}" for (source, data, setting), number in citations.items()]
    sections = {
        "Figures": f"{_figures(result, citations)}\n\n{_list([f'Percent. {percent}'.strip()])}",
        "Gains, in points (relative)": _gains(result, citations),
        "Gains with their intervals": _list(sentences),
        "The paper also cites": _cited_by_paper(table),
        "Class by class, AP": _classes(result) if result.class_figures else "",
        "Read this with it": _list(table.notes),
        "Sources of today's figures": _list(sources),
        "Runs": _runs(result),
        "Commands that made these figures": "\n".join(["```bash", *commands, "```"]) if commands else "",
    }
    title = f"# Table {table.name}{' of the paper' if table.name.isdigit() else ''}: {table.title}"
    return "\n\n".join([title, *(f"## {heading}\n\n{text}" for heading, text in sections.items() if text)]) + "\n"


def cited_markdown(table: Table) -> str:
    """Return what the paper prints in a table that nothing here trains."""
    rows = paper_rows(int(table.name))
    figures = list(dict.fromkeys(figure for row in rows for figure in row.figures))
    cells = [[row.name, row.data, row.testing, *(_number(row.figures.get(one)) for one in figures)] for row in rows]
    text = _table(["", "data", "testing", *(f"{figure}, paper" for figure in figures)], cells)
    title = f"# Table {table.name} of the paper, cited and not run: {table.title}"
    return "\n\n".join([title, text, _list(["Percent.", *table.notes])]) + "\n"


def _list(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True) if cells else ""


def _figures(result: TableResult, citations: Citations) -> str:
    """Paper, today and yours for each figure; what no row has is left out."""
    columns = {"": [_row_name(result, row.row) for row in result.rows]}
    if any(row.classifier for row in result.rows):
        columns["error of its classifier"] = [_number(row.classifier_error) for row in result.rows]
    for figure in result.table.figures:
        paper = [_number(row.row.paper.figures.get(figure) if row.row.paper else None) for row in result.rows]
        today = [_today(row.row, figure, citations) for row in result.rows]
        for who, cells in (("paper", paper), ("expected today", today)):
            if set(cells) != {NOTHING}:
                columns[f"{figure}, {who}"] = cells
        columns[f"{figure}, yours"] = [_ours(row, figure) for row in result.rows]
    return _table(list(columns), zip(*columns.values(), strict=True))


def _cited_by_paper(table: Table) -> str:
    rows = ([row.name, *(_number(row.figures.get(figure), 2) for figure in table.figures)] for row in table.cited)
    return _table(["", *table.figures], rows)


def _row_name(result: TableResult, row: Row) -> str:
    """With the data, where the paper scored this row on other data than the table's first of the paper."""
    papers = [other.row.paper for other in result.rows if other.row.paper]
    return f"{row.name} (paper: {row.paper.data})" if row.paper and row.paper.data != papers[0].data else row.name


def _today(row: Row, figure: str, citations: Citations) -> str:
    cells = [f"{one.figures[figure]:.1f} [{citations[_cited(one)]}]" for one in row.today if figure in one.figures]
    return ", ".join(cells) or NOTHING


def _ours(row: RowResult, figure: str) -> str:
    value = row.ours(figure)
    if value is not None:
        return value.text()
    return "ran, not scored here" if all(run.status == FINISHED for run in row.runs) else row.status


def _gains(result: TableResult, citations: Citations) -> str:
    columns: dict[str, list[str]] = {}
    for pair in result.pairs:
        both = (pair.first, pair.second)
        missing = [_ours(row, pair.figure) for row in both if not row.ours(pair.figure)]
        cells = {
            "from -> to": f"{pair.first.row.name} -> {pair.second.row.name}",
            "figure": pair.figure,
            "paper": _gain(pair.paper) if pair.paper else NOTHING,
            "expected today": ", ".join(f"{_gain(value)} [{citations[_cited(one)]}]" for one, value in pair.today),
            "yours": _gain(pair.ours) if pair.ours else "; ".join(dict.fromkeys(missing)),
            "yours, seed by seed": ", ".join(_signed(value, 2) for value in pair.by_seed if len(pair.by_seed) > 1),
        }
        for header, cell in cells.items():
            columns.setdefault(header, []).append(cell or NOTHING)
    for header in ("paper", "expected today"):
        if set(columns.get(header, ())) == {NOTHING}:
            del columns[header]
    return _table(list(columns), zip(*columns.values(), strict=True))


def _classes(result: TableResult) -> str:
    classes = [name.removeprefix("AP-") for name in result.class_figures]
    headers, columns = ["class"], [classes]
    for row in result.rows:
        if result.table.per_class and row.row.paper:
            headers.append(f"{row.row.name}, paper")
            columns.append([_number(row.row.paper.per_class.get(name)) for name in classes])
        headers.append(f"{row.row.name}, yours")
        ours = [row.ours(f"AP-{name}") for name in classes]
        columns.append([value.text() if value else NOTHING for value in ours])
    return _table(headers, zip(*columns, strict=True))


def _runs(result: TableResult) -> str:
    headers = ["folder", "status", "training", "hardware", "engine", "version", "images", "images/s"]
    rows = []
    for run in {run.job.name: run for row in result.rows for run in row.runs}.values():
        conditions = [NOTHING] * 5
        if facts := run.facts:
            conditions = [
                f"{facts.processes} x {facts.device}",
                facts.engine,
                f"{facts.resnet_backbone} {facts.commit or ''}".strip(),
                f"{facts.num_images} of {facts.dataset}",
                NOTHING if facts.images_per_s is None else f"{facts.images_per_s:.2f}",
            ]
        training = "" if run.job.eval_only else run.job.schedule.text()
        rows.append([str(run.job.folder), run.text, training, *conditions])
    return _table(headers, rows)


def _cited(reference: ReferenceRow) -> tuple[str, str, str]:
    return (reference.source, reference.data, reference.setting)


def _gain(value: Gain) -> str:
    relative = "" if value.relative is None else f" ({_signed(value.relative, 0)} %)"
    return f"{_signed(value.absolute, 1)}{relative}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # no "-0.0"


def _number(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"
