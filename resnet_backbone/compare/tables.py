"""The tables of the page: figures, classes, the paper beside, errors, cost, settings and conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from resnet_backbone.compare.compare import Comparison, Measured
from resnet_backbone.compare.runs import listed
from resnet_backbone.compare.sentences import (
    ERROR_WORDS,
    FIGURE_WORDS,
    KIND_WORDS,
    MISTAKE_SENTENCE,
    SIZE_SENTENCE,
    arrows,
    cost_sentence,
    duration,
    gain_word,
    is_clear,
    level_text,
    number,
    paper_pair,
    percent,
    signed,
    signed_span,
)
from resnet_backbone.metrics.coco import LARGE, MEDIUM, SMALL
from resnet_backbone.metrics.error_types import KINDS
from resnet_backbone.metrics.matching import FIGURES
from resnet_backbone.metrics.paper import gain

Tone = Literal["", "good", "bad", "quiet", "warning"]

FEWEST_OBJECTS = 30  # of a size; with fewer, a gain on them is left without a color
_SIZES = {"APs": SMALL, "APm": MEDIUM, "APl": LARGE}


@dataclass(frozen=True)
class Cell:
    text: str
    note: str = ""  # in small letters after it
    tone: Tone = ""


@dataclass(frozen=True)
class PageTable:
    """Text in rows. The first column is a heading, the others are aligned to the right where they hold numbers."""

    key: str  # its class in the page
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: bool = True
    sentence: str = ""  # below the table
    spare: frozenset[int] = frozenset()  # columns that a narrow page leaves out, and the notes of the first with them


def figure_tables(comparison: Comparison) -> list[PageTable]:
    """AP, AP50, AP75 and by size, of boxes and masks; VOC's mAP where it was recorded."""
    tables = []
    for kind, measured in comparison.measured.items():
        rows = [
            _figure_row(measured, figure, figure, FIGURE_WORDS[figure]) for figure in FIGURES if figure not in _SIZES
        ]
        rows += [_size_row(measured, figure) for figure in _SIZES]
        title = f"Average precision of {KIND_WORDS[kind]}, percent"
        columns, spare = _columns(measured, comparison, "figure", FIGURES)
        tables.append(PageTable(f"figures-{kind}", title, columns, tuple(rows), sentence=SIZE_SENTENCE, spare=spare))
    if all("voc" in run.figures for run in comparison.runs):
        tables.append(_voc_table(comparison))
    return tables


def class_tables(comparison: Comparison) -> list[PageTable]:
    """AP of every class."""
    tables = []
    for kind, measured in comparison.measured.items():
        rows = [
            _figure_row(measured, f"AP-{name}", name, _objects(count)) for name, count in measured.num_objects.items()
        ]
        title = f"AP of every class, {KIND_WORDS[kind]}, percent"
        figures = [f"AP-{name}" for name in measured.num_objects]
        columns, spare = _columns(measured, comparison, "class", figures)
        tables.append(PageTable(f"classes-{kind}", title, columns, tuple(rows), spare=spare))
    return tables


def paper_table(comparison: Comparison) -> PageTable:
    """The gain of each run beside the paper's."""
    before, after = paper_pair(comparison)
    rows: list[tuple[Cell, ...]] = []
    for figure in before.figures:
        pair = f"{before.network} to {after.network}, {arrows(before.data)}"
        rows.append(_gain_row("the paper", pair, figure, before.figures[figure], after.figures[figure]))
    baseline, *others = zip(comparison.runs, comparison.main.bootstrap.runs, strict=True)
    for run, of_run in others:
        if "mAP" in before.figures and all("voc" in one.figures for one in (baseline[0], run)):
            # as recorded; no interval is computed for VOC's own figure
            recorded = [_or_nan(one.figures["voc"].get("mAP")) for one in (baseline[0], run)]
            pair = f"{baseline[0].name} to {run.name}, {run.facts.dataset}"
            rows.append(_gain_row("here", pair, "mAP", *recorded))
        for figure in ("AP50", "AP"):
            first, second = baseline[1].figures[figure], of_run.figures[figure]
            here = of_run.gains[figure]
            rows.append(
                (
                    Cell("here", f"{baseline[0].name} to {run.name}, {run.facts.dataset}"),
                    Cell(figure),
                    Cell(number(first.value)),
                    Cell(number(second.value)),
                    _tinted_cell(here.difference.value, is_clear(here), signed_span(here.difference)),
                    Cell(percent(here.relative.value), signed_span(here.relative)),
                )
            )
    word = gain_word(of_run.gains[figure] for _, of_run in others for figure in ("AP50", "AP"))
    columns = ("whose", "figure", "before", "after", word, f"relative {word}")
    return PageTable("paper", f"The {word} beside the paper's", columns, tuple(rows))


def error_table(comparison: Comparison) -> PageTable:
    """How often each kind of mistake is made, and what it costs."""
    errors = comparison.main.errors
    rows = []
    for kind in KINDS:
        cells = [Cell(f"{one.counts[kind]:,}", f"cost {number(one.costs[kind], 2)}") for one in errors]
        rows.append((Cell(kind, ERROR_WORDS[kind]), *cells))
    hits = [Cell(f"{of_run.hits:,}") for of_run in errors]
    rows.append((Cell("(right)", f"of {errors[0].objects:,} objects"), *hits))
    columns = ("kind", *(run.name for run in comparison.runs))
    title = "Mistakes by kind, and the points of AP50 that they cost"
    return PageTable("errors", title, columns, tuple(rows), sentence=MISTAKE_SENTENCE)


def cost_table(comparison: Comparison) -> PageTable:
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
    columns = ("", *(run.name for run in runs))
    return PageTable("cost", "Size, speed, memory, time", columns, tuple(rows), sentence=cost_sentence(comparison))


def shared_table(comparison: Comparison) -> PageTable:
    rows = tuple((Cell(words), Cell(value)) for words, value in comparison.settings.shared.items())
    return PageTable("shared", "The same in all runs, in short", ("setting", "value"), rows, numeric=False)


def difference_table(comparison: Comparison) -> PageTable:
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
    return PageTable("differences", "Every setting that differs", columns, rows, numeric=False)


def condition_table(comparison: Comparison) -> PageTable:
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
    return PageTable("conditions", "Conditions", ("", *(run.name for run in comparison.runs)), cells, numeric=False)


def _columns(
    measured: Measured, comparison: Comparison, first: str, figures: Sequence[str]
) -> tuple[tuple[str, ...], frozenset[int]]:
    """The headings, and which of them a narrow page can spare."""
    level = level_text(measured.bootstrap.level)
    columns = [first, comparison.runs[0].name]
    for run, of_run in list(zip(comparison.runs, measured.bootstrap.runs, strict=True))[1:]:
        word = gain_word(of_run.gains[figure] for figure in figures)
        columns += [run.name, f"{word} ({level})", "relative"]
    return tuple(columns), frozenset(range(4, len(columns), 3))


def _objects(count: int) -> str:
    return f"{count:,} object{'s' * (count != 1)}"


def _size_row(measured: Measured, figure: str) -> tuple[Cell, ...]:
    """As of any figure, with the number of objects; with few of them, nothing is said of the gain."""
    count = sum(int(of_class.num_objects[_SIZES[figure]].sum()) for of_class in measured.matches[0].classes)
    note = f"{FIGURE_WORDS[figure]} ({_objects(count)})"
    return _figure_row(measured, figure, figure, note, few=count < FEWEST_OBJECTS)


def _figure_row(measured: Measured, figure: str, label: str, note: str, few: bool = False) -> tuple[Cell, ...]:
    cells = [Cell(label, note)]
    for of_run in measured.bootstrap.runs:
        value = of_run.figures[figure]
        cells.append(Cell(number(value.value, 2)))
        if figure in of_run.gains:
            won = of_run.gains[figure]
            words = "too few to tell" if few else signed_span(won.difference)
            cells.append(_tinted_cell(won.difference.value, is_clear(won) and not few, words))
            cells.append(Cell(percent(won.relative.value)))
    return tuple(cells)


def _gain_row(whose: str, pair: str, figure: str, first: float, second: float) -> tuple[Cell, ...]:
    won = gain(first, second)
    numbers = (number(first), number(second), signed(won.absolute), percent(won.relative))
    return (Cell(whose, pair), Cell(figure), *map(Cell, numbers))


def _voc_table(comparison: Comparison) -> PageTable:
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
    return PageTable("voc", "Pascal VOC's own average precision, percent", columns, tuple(rows))


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
