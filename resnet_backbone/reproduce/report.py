"""A table's figures side by side, as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.paper import Gain, ReferenceRow
from resnet_backbone.reproduce.results import FINISHED, RowResult, Spread, TableResult, class_figures

NOTHING = "-"
Citation = tuple[str, str, str]  # source, data, setting


@dataclass(frozen=True)
class ReportSection:
    """One heading with a table, sentences, or commands."""

    title: str
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    sentences: Sequence[str] = ()
    commands: Sequence[str] = ()


def write_report(result: TableResult, folder: Path) -> tuple[Path, Path]:
    """Write ``table_<name>.md`` and ``table_<name>.json`` and return their paths."""
    markdown, values = (folder / f"table_{result.table.name}{suffix}" for suffix in (".md", ".json"))
    write_text(markdown, report_markdown(result))
    write_text(values, json.dumps(result.to_dict(), indent=2) + "\n")
    return markdown, values


def report_markdown(result: TableResult) -> str:
    """Return the report, for a terminal, too."""
    lines = [f"# {_title(result)}"]
    for section in sections(result):
        lines += ["", f"## {section.title}", ""]
        if section.rows:
            rows = [[cell.replace("|", "\\|") for cell in row] for row in section.rows]
            lines += [tabulate(rows, headers=section.headers, tablefmt="github", disable_numparse=True), ""]
        lines += [f"- {sentence}" for sentence in section.sentences]
        if section.commands:
            lines += ["```bash", *section.commands, "```"]
    return "\n".join(lines) + "\n"


def sections(result: TableResult) -> Iterator[ReportSection]:
    """Yield what a report has, in its order."""
    references = _references(result)
    yield _figures(result, references)
    yield _gains(result, references)
    if class_figures(result):
        yield _classes(result)
    if notes := [*result.table.notes]:
        yield ReportSection("Read this with it", sentences=notes)
    if references:
        yield ReportSection(
            "Sources of today's figures",
            sentences=[
                f"[{number}] {source}: {data}, {setting}" for (source, data, setting), number in references.items()
            ],
        )
    yield _runs(result)
    commands = [run.facts.command for row in result.rows for run in row.runs if run.facts]
    if commands:
        yield ReportSection("Commands that made these figures", commands=list(dict.fromkeys(commands)))


def _title(result: TableResult) -> str:
    number = f"Table {result.table.name} of the paper" if result.table.name.isdigit() else f"Table {result.table.name}"
    return f"{number}: {result.table.title}"


def _figures(result: TableResult, references: dict[Citation, int]) -> ReportSection:
    """Paper, today and yours for each figure; what no row has is left out."""
    headers, columns = [""], [[_row_name(result, row) for row in result.rows]]
    for figure in result.table.figures:
        paper = [_number(row.row.paper.figures.get(figure) if row.row.paper else None) for row in result.rows]
        today = [_today(row, figure, references) for row in result.rows]
        ours = [_ours(result, row, figure) for row in result.rows]
        for who, cells in (("paper", paper), ("expected today", today), ("yours", ours)):
            if who == "yours" or set(cells) != {NOTHING}:
                headers.append(f"{figure}, {who}")
                columns.append(cells)
    several = any(len(row.runs) > 1 for row in result.rows)
    sentences = ["Percent."]
    if several:
        sentences = ["Percent. Yours with several seeds: mean ± standard deviation of the sample, n runs."]
    return ReportSection("Figures", headers, list(zip(*columns, strict=True)), sentences)


def _row_name(result: TableResult, row: RowResult) -> str:
    if row.row.paper and _other_data(result, row):
        return f"{row.row.name} (paper: {row.row.paper.data})"
    return row.row.name


def _today(row: RowResult, figure: str, references: dict[Citation, int]) -> str:
    cells = [f"{one.figures[figure]:.1f} [{references[_cited(one)]}]" for one in row.row.today if figure in one.figures]
    return ", ".join(cells) or NOTHING


def _other_data(result: TableResult, row: RowResult) -> bool:
    """Whether the paper scored this row on other data than the table's first of the paper."""
    data = [other.row.paper.data for other in result.rows if other.row.paper]
    return row.row.paper is not None and row.row.paper.data != data[0]


def _ours(result: TableResult, row: RowResult, figure: str) -> str:
    value = row.ours(result.table.metric, figure)
    if value is not None:
        return _spread(value)
    if all(run.status == FINISHED for run in row.runs):
        return "ran, not scored here"
    return row.status


def _gains(result: TableResult, references: dict[Citation, int]) -> ReportSection:
    rows = []
    by_key = {row.row.key: row for row in result.rows}
    for pair in result.pairs:
        today = ", ".join(f"{_gain(value)} [{references[_cited(one)]}]" for one, value in pair.today)
        seeds = ", ".join(_signed(value, 2) for value in pair.by_seed) if len(pair.by_seed) > 1 else NOTHING
        names = f"{pair.first.name} -> {pair.second.name}"
        both = (by_key[pair.first.key], by_key[pair.second.key])
        missing = [_ours(result, row, pair.figure) for row in both if not row.ours(result.table.metric, pair.figure)]
        ours = _gain(pair.ours, "; ".join(dict.fromkeys(missing)))
        rows.append([names, pair.figure, _gain(pair.paper), today or NOTHING, ours, seeds])
    headers = ["from -> to", "figure", "paper", "expected today", "yours", "yours, seed by seed"]
    theirs = {"paper", "expected today"}
    kept = [n for n, name in enumerate(headers) if name not in theirs or any(row[n] != NOTHING for row in rows)]
    return ReportSection(
        "Gains, in points (relative)", [headers[n] for n in kept], [[row[n] for n in kept] for row in rows]
    )


def _classes(result: TableResult) -> ReportSection:
    names = class_figures(result)
    headers = ["class"]
    columns: list[list[str]] = []
    for row in result.rows:
        if result.table.per_class and row.row.paper:
            headers.append(f"{row.row.name}, paper")
            columns.append([_number(row.row.paper.per_class.get(name.removeprefix("AP-"))) for name in names])
        headers.append(f"{row.row.name}, yours")
        ours = [row.ours(result.table.metric, name) for name in names]
        columns.append([_spread(value) if value else NOTHING for value in ours])
    rows = [[name.removeprefix("AP-"), *cells] for name, *cells in zip(names, *columns, strict=True)]
    return ReportSection("Class by class, AP", headers, rows)


def _runs(result: TableResult) -> ReportSection:
    rows = []
    for run in {run.job.name: run for row in result.rows for run in row.runs}.values():
        facts = run.facts
        status = run.status + (f" ({run.detail})" if run.detail else "")
        conditions = [NOTHING] * 5
        if facts:
            conditions = [
                f"{facts.processes} x {facts.device}",
                facts.engine,
                f"{facts.resnet_backbone} {facts.commit or ''}".strip(),
                f"{facts.num_images} of {facts.dataset}",
                NOTHING if facts.images_per_s is None else f"{facts.images_per_s:.2f}",
            ]
        rows.append(
            [str(run.job.folder), status, run.job.schedule.text() if not run.job.evaluates else "", *conditions]
        )
    headers = ["folder", "status", "training", "hardware", "engine", "version", "images", "images/s"]
    return ReportSection("Runs", headers, rows)


def _cited(reference: ReferenceRow) -> Citation:
    return (reference.source, reference.data, reference.setting)


def _references(result: TableResult) -> dict[Citation, int]:
    """Number what the table cites, in the order of the rows."""
    cited = dict.fromkeys(_cited(reference) for row in result.rows for reference in row.row.today)
    return {citation: number for number, citation in enumerate(cited, start=1)}


def _gain(value: Gain | None, otherwise: str = NOTHING) -> str:
    if value is None:
        return otherwise
    relative = "" if value.relative is None else f" ({_signed(value.relative, 0)} %)"
    return f"{_signed(value.absolute, 1)}{relative}"


def _signed(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # no "-0.0"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _spread(value: Spread) -> str:
    if value.std is None:
        return f"{value.mean:.1f}"
    return f"{value.mean:.1f} ± {value.std:.1f} (n = {value.n})"
