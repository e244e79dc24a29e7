"""Every table of the report, once, for the page and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_backbone.evaluation.comparison.compare import Comparison
from resnet_backbone.evaluation.comparison.measure import Measured
from resnet_backbone.evaluation.comparison.runs import FinishedRun
from resnet_backbone.evaluation.comparison.words import (
    ERROR_WORDS,
    FIGURE_WORDS,
    KIND_WORDS,
    arrows,
    duration,
    is_clear,
    level_text,
    listed,
    number,
    paper_pair,
    percent,
    signed,
    span,
)
from resnet_backbone.evaluation.errors import KINDS
from resnet_backbone.evaluation.matching import FIGURES
from resnet_backbone.evaluation.paper import gain

Tone = Literal["", "good", "bad", "quiet", "warning"]


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""  # in small letters after it
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """Text in rows. The first column is a heading, the others are aligned to the right where they hold numbers."""

    key: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: bool = True


def figure_tables(comparison: Comparison) -> list[Table]:
    """AP, AP50, AP75 and by size, of boxes and masks; VOC's mAP where it was recorded."""
    tables = []
    for kind, measured in comparison.measured.items():
        rows = [_figure_row(measured, figure, figure, FIGURE_WORDS[figure]) for figure in FIGURES]
        title = f"Average precision of {KIND_WORDS[kind]}, percent"
        tables.append(Table(f"figures-{kind}", title, _columns(comparison, "figure"), tuple(rows)))
    if all("voc" in run.figures for run in comparison.runs):
        tables.append(_voc_table(comparison))
    return tables


def class_tables(comparison: Comparison) -> list[Table]:
    """AP of every class."""
    tables = []
    for kind, measured in comparison.measured.items():
        rows = [
            _figure_row(measured, f"AP-{name}", name, f"{count:,} object{'s' * (count != 1)}")
            for name, count in measured.num_objects.items()
        ]
        title = f"AP of every class, {KIND_WORDS[kind]}, percent"
        tables.append(Table(f"classes-{kind}", title, _columns(comparison, "class"), tuple(rows)))
    return tables


def paper_table(comparison: Comparison) -> Table:
    """The gain of each run beside the paper's."""
    before, after = paper_pair(comparison)
    rows: list[tuple[Cell, ...]] = []
    for figure in before.figures:
        won = gain(before.figures[figure], after.figures[figure])
        rows.append(
            (
                Cell("the paper", f"{before.network} to {after.network}, {arrows(before.data)}"),
                Cell(figure),
                Cell(number(before.figures[figure])),
                Cell(number(after.figures[figure])),
                Cell(signed(won.absolute)),
                Cell(percent(won.relative)),
            )
        )
    baseline, *others = zip(comparison.runs, comparison.main.bootstrap.runs, strict=True)
    for run, of_run in others:
        if "mAP" in before.figures and all("voc" in one.figures for one in (baseline[0], run)):
            rows.append(_voc_gain_row(baseline[0], run))
        for figure in ("AP50", "AP"):
            first, second = baseline[1].figures[figure], of_run.figures[figure]
            here = of_run.gains[figure]
            rows.append(
                (
                    Cell("here", f"{baseline[0].name} to {run.name}, {run.facts.dataset}"),
                    Cell(figure),
                    Cell(number(first.value)),
                    Cell(number(second.value)),
                    _tinted_cell(here.difference.value, is_clear(here), span(here.difference)),
                    Cell(percent(here.relative.value), span(here.relative)),
                )
            )
    columns = ("whose", "figure", "before", "after", "gain", "relative gain")
    return Table("paper", "The gain beside the paper's", columns, tuple(rows))


def error_table(comparison: Comparison) -> Table:
    """How often each kind of mistake is made, and what it costs."""
    errors = comparison.main.errors
    rows = []
    for kind in KINDS:
        cells = [
            cell
            for of_run in errors
            for cell in (Cell(f"{of_run.counts[kind]:,}"), Cell(number(of_run.costs[kind], 2)))
        ]
        rows.append((Cell(kind, ERROR_WORDS[kind]), *cells))
    hits = [cell for of_run in errors for cell in (Cell(f"{of_run.hits:,}"), Cell("\N{EN DASH}", tone="quiet"))]
    rows.append((Cell("(right)", f"of {errors[0].objects:,} objects"), *hits))
    columns = [name for run in comparison.runs for name in (f"{run.name}: count", f"{run.name}: AP50 lost")]
    return Table("errors", "Mistakes by kind", ("kind", *columns), tuple(rows))


def cost_table(comparison: Comparison) -> Table:
    """What each run costs, with the ratio to the first."""
    runs = comparison.runs
    adds = [run.facts.multiply_adds for run in runs]
    trainings = [run.training for run in runs]
    seconds = [training.seconds or None if training else None for training in trainings]
    iterations = [float(training.iterations) or None if training else None for training in trainings]
    rows = [
        _cost_row("parameters, millions", "", [run.facts.parameters / 1e6 for run in runs], 2),
        _cost_row(
            "multiply-adds an image, billions",
            "convolutions and matrix products, test size",
            [value / 1e9 if value is not None else None for value in adds],
            1,
        ),
        _cost_row("images a second", "the detector alone, testing", [run.facts.images_per_s for run in runs], 1),
        _cost_row(
            "peak memory, MiB",
            "of tensors on a GPU, of the whole process on a CPU; of its training, too, where that ended with it",
            [run.facts.peak_memory_mib for run in runs],
            0,
        ),
        _cost_row("training iterations", "", iterations, 0),
        _cost_row("seconds an iteration", "", [_ratio(a, b) for a, b in zip(seconds, iterations, strict=True)], 3),
    ]
    times = [Cell(duration(value)) if value else Cell("not recorded", tone="quiet") for value in seconds]
    rows.append((Cell("training time", "evaluation and saving not counted"), *times))
    return Table("cost", "Size, speed, memory, time", ("", *(run.name for run in runs)), tuple(rows))


def shared_table(comparison: Comparison) -> Table:
    rows = tuple((Cell(words), Cell(value)) for words, value in comparison.settings.shared.items())
    return Table("shared", "The same in all runs, in short", ("setting", "value"), rows, numeric=False)


def difference_table(comparison: Comparison) -> Table:
    """Every config key that differs; flagged where a backbone does not ask for it."""
    words = {
        "backbone": Cell("comes with the backbone", tone="quiet"),
        "place": Cell("changes no figure", tone="quiet"),
        "other": Cell("not forced by the backbone", tone="warning"),
    }
    rows = tuple(
        (Cell(one.key), *(Cell(value) for value in one.values), words[one.kind])
        for one in comparison.settings.differences
    )
    columns = ("key", *(run.name for run in comparison.runs), "why")
    return Table("differences", "Every setting that differs", columns, rows, numeric=False)


def condition_table(comparison: Comparison) -> Table:
    """Data, machine, versions and commands."""
    facts = [run.facts for run in comparison.runs]
    rows = [
        ("folder", [str(run.folder) for run in comparison.runs]),
        ("backbone", [run.arch or "not recorded" for run in comparison.runs]),
        ("test set", [f"{one.dataset}, {one.num_images:,} images" for one in facts]),
        ("classes", [listed(one.class_names) for one in facts]),
        ("annotations, SHA-256", [one.annotations_sha256[:16] for one in facts]),
        ("engine", [one.engine for one in facts]),
        ("machine", [f"{one.device}, {one.processes} process{'es' * (one.processes != 1)}" for one in facts]),
        ("resnet_backbone", [f"{one.resnet_backbone}, commit {one.commit or 'not recorded'}" for one in facts]),
        ("torch, torchvision", [f"{one.torch}, {one.torchvision}" for one in facts]),
        ("command of the evaluation", [one.command for one in facts]),
    ]
    cells = tuple((Cell(what), *map(Cell, values)) for what, values in rows)
    return Table("conditions", "Conditions", ("", *(run.name for run in comparison.runs)), cells, numeric=False)


def all_tables(comparison: Comparison) -> list[Table]:
    """Every table, in the order of the report."""
    return [
        *figure_tables(comparison),
        paper_table(comparison),
        *class_tables(comparison),
        error_table(comparison),
        cost_table(comparison),
        shared_table(comparison),
        difference_table(comparison),
        condition_table(comparison),
    ]


def _columns(comparison: Comparison, first: str) -> tuple[str, ...]:
    level = level_text(comparison.main.bootstrap.level)
    baseline, *others = (run.name for run in comparison.runs)
    gains = [column for name in others for column in (name, f"gain ({level})", "relative")]
    return (first, baseline, *gains)


def _figure_row(measured: Measured, figure: str, label: str, note: str) -> tuple[Cell, ...]:
    cells = [Cell(label, note)]
    for of_run in measured.bootstrap.runs:
        value = of_run.figures[figure]
        cells.append(Cell(number(value.value, 2)))
        if figure in of_run.gains:
            won = of_run.gains[figure]
            cells.append(_tinted_cell(won.difference.value, is_clear(won), span(won.difference)))
            cells.append(Cell(percent(won.relative.value)))
    return tuple(cells)


def _voc_gain_row(baseline: FinishedRun, run: FinishedRun) -> tuple[Cell, ...]:
    """VOC's mAP as recorded, the figure that the paper has; no interval is computed for it."""
    first, second = (_or_nan(one.figures["voc"].get("mAP")) for one in (baseline, run))
    won = gain(first, second)
    return (
        Cell("here", f"{baseline.name} to {run.name}, {run.facts.dataset}"),
        Cell("mAP"),
        Cell(number(first)),
        Cell(number(second)),
        Cell(signed(won.absolute)),
        Cell(percent(won.relative)),
    )


def _voc_table(comparison: Comparison) -> Table:
    """As recorded by the evaluations; no interval is computed for VOC's own figure."""
    rows = []
    for figure in comparison.runs[0].figures["voc"]:
        first, *values = [_or_nan(run.figures["voc"].get(figure)) for run in comparison.runs]
        cells = [Cell(figure.removeprefix("AP-")), Cell(number(first, 2))]
        for value in values:
            cells += [Cell(number(value, 2)), Cell(signed(value - first))]
        rows.append(tuple(cells))
    others = [column for run in comparison.runs[1:] for column in (run.name, "gain")]
    columns = ("figure", comparison.runs[0].name, *others)
    return Table("voc", "Pascal VOC's own average precision, percent", columns, tuple(rows))


def _cost_row(what: str, note: str, values: Sequence[float | None], digits: int) -> tuple[Cell, ...]:
    first = values[0]
    cells = [Cell(what, note)]
    for index, value in enumerate(values):
        if value is None:
            cells.append(Cell("not recorded", tone="quiet"))
        else:
            ratio = _ratio(value, first)
            note = f"x {number(ratio, 2)}" if index and ratio is not None else ""
            cells.append(Cell(number(value, digits), note))
    return tuple(cells)


def _ratio(value: float | None, to: float | None) -> float | None:
    return value / to if value is not None and to else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _tinted_cell(value: float, clear: bool, note: str) -> Cell:
    tone: Tone = ""
    if clear:
        tone = "good" if value > 0 else "bad"
    return Cell(signed(value), "" if math.isnan(value) else note, tone)
