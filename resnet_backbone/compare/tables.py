"""The tables of the page: figures, classes, the paper beside, errors, cost, settings, conditions; numbers as text."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Literal

import numpy as np

from resnet_backbone.compare.compare import Comparison, Measured
from resnet_backbone.compare.runs import EvaluatedRun, listed
from resnet_backbone.metrics.bootstrap import GainInterval, Interval
from resnet_backbone.metrics.coco import LARGE, MEDIUM, SMALL
from resnet_backbone.metrics.drawing import PICTURE_SCORE
from resnet_backbone.metrics.error_types import KINDS
from resnet_backbone.metrics.matching import FIGURES
from resnet_backbone.metrics.paper import PaperRow, gain, names_of_data, paper_row

Tone = Literal["", "good", "bad", "quiet", "warning"]

MOST_CONFUSED = 20  # classes in a matrix, or mistakes in a list
FEWEST_OBJECTS = 30  # of a size; with fewer, a gain on them is left without a color
MINUS = "\N{MINUS SIGN}"
IOU_TYPE_NOUNS = {"bbox": "boxes", "segm": "masks"}
_SIZES = {"APs": SMALL, "APm": MEDIUM, "APl": LARGE}
_FIGURE_NOTES = {
    "AP": "all overlaps from 0.50 to 0.95",
    "AP50": "an overlap of 0.50 is enough",
    "AP75": "an overlap of 0.75 is needed",
    "APs": "small objects, under 32 x 32 pixels",
    "APm": "medium objects",
    "APl": "large objects, over 96 x 96 pixels",
}
_ERROR_NOTES = {
    "classification": "right place, wrong class",
    "localisation": "right class, box not exact enough",
    "both": "wrong class and box not exact enough",
    "duplicate": "an object found a second time",
    "background": "nothing there",
    "missed": "an object that nothing was found for",
}
_SIZE_SENTENCE = (
    "APs, APm and APl: each is a mean over the classes that have such objects, so a class with one or two weighs as "
    "much as any; they need not surround AP."
)
_MISTAKE_SENTENCE = (
    "All detections count here, down to the lowest score that the test kept, so the numbers are larger than in the "
    f"pictures below, which show scores from {PICTURE_SCORE:g}."
)


def number(value: float | None, digits: int = 1) -> str:
    """The value with a true minus; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "\N{EN DASH}"
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def signed(value: float | None, digits: int = 1) -> str:
    """As :func:`number`, with a plus where it is above zero."""
    text = number(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and float(f"{value:.{digits}f}") > 0 else text


def signed_percent(value: float | None) -> str:
    """``+28.3 %``."""
    return signed(value) if value is None or not math.isfinite(value) else f"{signed(value)} %"


def signed_span(interval: Interval) -> str:
    """``+0.3 to +2.1``, of a gain."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def is_clear(of_run: GainInterval) -> bool:
    """Whether the interval over the images, and over the seeds if there are several, leave out zero on the same side.

    Never where all resamples are the same.
    """
    intervals = [of_run.difference, *([of_run.over_seeds] if of_run.over_seeds else [])]
    above, below = (all(sign * one.low > 0 and sign * one.high > 0 for one in intervals) for sign in (1, -1))
    return (above or below) and of_run.difference.low < of_run.difference.high


def tone_of(won: GainInterval) -> Tone:
    """The color of a gain: none where an interval has zero in it."""
    if not is_clear(won):
        return ""
    return "good" if won.difference.value > 0 else "bad"


def level_text(level: float) -> str:
    """``95 %``."""
    return f"{100 * level:g} %"


def paper_pair(comparison: Comparison) -> tuple[PaperRow, PaperRow]:
    """The paper's own pair, VGG-16 and ResNet-101, on the data nearest to this comparison's."""
    dataset = comparison.runs[0].facts.dataset
    if dataset.startswith("voc12"):
        return paper_row(7, "vgg16_0712pp"), paper_row(7, "r101_0712pp")
    if dataset.startswith("voc"):
        return paper_row(7, "vgg16_0712"), paper_row(7, "r101_0712")
    return paper_row(8, "vgg16"), paper_row(8, "r101")


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    note: str = ""  # in small letters after it
    tone: Tone = ""


NOT_RECORDED = Cell("not recorded", tone="quiet")


@dataclass(frozen=True)
class PageTable:
    """Text in rows. The first column is a heading, the others are aligned to the right where they hold numbers."""

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
        classes = measured.matches[0].classes
        counts = {name: sum(int(one.num_objects[size].sum()) for one in classes) for name, size in _SIZES.items()}
        sizes = {figure: f" ({_objects(count)})" for figure, count in counts.items()}
        headings = {figure: Cell(figure, _FIGURE_NOTES[figure] + sizes.get(figure, "")) for figure in FIGURES}
        few = {figure for figure, count in counts.items() if count < FEWEST_OBJECTS}
        title = f"Average precision of {IOU_TYPE_NOUNS[kind]}, percent"
        table = _ap_table(comparison, measured, title, "figure", headings, few)
        tables.append(replace(table, sentence=_SIZE_SENTENCE))
    if all("voc" in run.figures for run in comparison.runs):
        tables.append(_voc_table(comparison))
    return tables


def class_tables(comparison: Comparison) -> list[PageTable]:
    """AP of every class."""
    tables = []
    for kind, measured in comparison.measured.items():
        headings = {f"AP-{name}": Cell(name, _objects(count)) for name, count in measured.num_objects.items()}
        title = f"AP of every class, {IOU_TYPE_NOUNS[kind]}, percent"
        tables.append(_ap_table(comparison, measured, title, "class", headings))
    return tables


def _ap_table(
    comparison: Comparison,
    measured: Measured,
    title: str,
    first_column: str,
    headings: Mapping[str, Cell],
    few: Collection[str] = (),
) -> PageTable:
    """A row for each figure in ``headings``; nothing is said of the gains in those that are of ``few`` objects."""
    level = level_text(measured.bootstrap.level)
    columns = [first_column, comparison.runs[0].name]
    for run in comparison.runs[1:]:
        columns += [run.name, f"difference ({level})", "relative"]
    rows = []
    for figure, heading in headings.items():
        cells = [heading]
        for of_run in measured.bootstrap.runs:
            value = of_run.figures[figure]
            span = f"{number(value.low)} to {number(value.high)}" if len(comparison.runs) == 1 else ""
            cells.append(Cell(number(value.value, 2), span if math.isfinite(value.low) else ""))
            if won := of_run.gains.get(figure):
                cells += [_difference_cell(won, figure in few), Cell(signed_percent(won.relative.value))]
        rows.append(tuple(cells))
    return PageTable(title, tuple(columns), tuple(rows), spare=frozenset(range(4, len(columns), 3)))


def _objects(count: int) -> str:
    return f"{count:,} object{'s' * (count != 1)}"


def _difference_cell(won: GainInterval, few: bool = False) -> Cell:
    """The gain with its interval, in color where that leaves out zero."""
    value = won.difference.value
    note = "too few to tell" if few else signed_span(won.difference)
    return Cell(signed(value), "" if math.isnan(value) else note, "" if few else tone_of(won))


def _voc_table(comparison: Comparison) -> PageTable:
    """As recorded by the evaluations; no interval is computed for VOC's own figure."""
    rows = []
    for figure in comparison.runs[0].figures["voc"]:
        first, *values = [_voc_figure(run, figure) for run in comparison.runs]
        gains = [cell for value in values for cell in (Cell(number(value, 2)), Cell(signed(value - first)))]
        rows.append((Cell(figure.removeprefix("AP-")), Cell(number(first, 2)), *gains))
    others = [column for run in comparison.runs[1:] for column in (run.name, "difference")]
    columns = ("figure", comparison.runs[0].name, *others)
    return PageTable("Pascal VOC's own average precision, percent", columns, tuple(rows))


def _voc_figure(run: EvaluatedRun, figure: str) -> float:
    value = run.figures["voc"].get(figure)
    return math.nan if value is None else value


def paper_table(comparison: Comparison) -> PageTable:
    """The gain of each run beside the paper's."""
    before, after = paper_pair(comparison)
    printed = f"{before.source}: {before.network} to {after.network}, {before.data}"
    rows = [
        _gain_row("the paper", printed, figure, value, after.figures[figure])
        for figure, value in before.figures.items()
    ]
    baseline, *others = zip(comparison.runs, comparison.main.bootstrap.runs, strict=True)
    for run, of_run in others:
        pair = f"{baseline[0].name} to {run.name}, {run.facts.dataset}"
        if "mAP" in before.figures and all("voc" in one.figures for one in (baseline[0], run)):
            rows.append(_gain_row("here", pair, "mAP", _voc_figure(baseline[0], "mAP"), _voc_figure(run, "mAP")))
        for figure in ("AP50", "AP"):
            values = [Cell(number(one.figures[figure].value)) for one in (baseline[1], of_run)]
            won = of_run.gains[figure]
            relative = Cell(signed_percent(won.relative.value), signed_span(won.relative))
            rows.append((Cell("here", pair), Cell(figure), *values, _difference_cell(won), relative))
    columns = ("whose", "figure", "before", "after", "difference", "relative difference")
    return PageTable("The difference beside the paper's", columns, tuple(rows), sentence=paper_sentence(comparison))


def paper_sentence(comparison: Comparison) -> str:
    """The paper's setting, and in what this comparison's is another one."""
    dataset = comparison.runs[0].facts.dataset
    trained_on = {tuple(run.settings.get("DATASETS.TRAIN") or ()) for run in comparison.runs}
    paper_train, paper_test = names_of_data(paper_pair(comparison)[0].data)
    others = []
    if dataset != paper_test:
        others.append(f"other data ({dataset})")
    if {frozenset(names) for names in trained_on} != {paper_train}:
        training_data = "; ".join(sorted(" and ".join(names) or "not recorded" for names in trained_on))
        others.append(f"other training data ({training_data})")
    archs = [run.arch or "not recorded" for run in comparison.runs]
    if archs[:2] != ["vgg16", "resnet101"]:
        others.append(f"other backbones ({', '.join(archs)})")
    near = f" This comparison has {' and '.join(others)}, so the two need not agree." if others else ""
    return f"The paper's is Faster R-CNN on images of 600 pixels.{near}"


def _gain_row(whose: str, pair: str, figure: str, first: float, second: float) -> tuple[Cell, ...]:
    won = gain(first, second)
    numbers = (number(first), number(second), signed(won.absolute), signed_percent(won.relative))
    return (Cell(whose, pair), Cell(figure), *map(Cell, numbers))


def error_table(comparison: Comparison) -> PageTable:
    """How often each kind of mistake is made, and what it costs."""
    errors = comparison.main.errors
    rows = []
    for kind in KINDS:
        cells = [Cell(f"{one.counts[kind]:,}", f"cost {number(one.costs[kind], 2)}") for one in errors]
        rows.append((Cell(kind, _ERROR_NOTES[kind]), *cells))
    hits = [Cell(f"{of_run.hits:,}") for of_run in errors]
    rows.append((Cell("(right)", f"of {errors[0].objects:,} objects"), *hits))
    columns = ("kind", *(run.name for run in comparison.runs))
    title = "Mistakes by kind, and the points of AP50 that they cost"
    return PageTable(title, columns, tuple(rows), sentence=_MISTAKE_SENTENCE)


def confusion_table(matrix: np.ndarray, names: Sequence[str]) -> PageTable:
    """Which classes are taken for which; of more than :data:`MOST_CONFUSED` only the most frequent mistakes."""
    some = f"scores from {PICTURE_SCORE:g}, overlaps of boxes from 0.5, whatever the class"
    if len(names) <= MOST_CONFUSED:
        rows = []
        for true, counts in enumerate(matrix.tolist()):
            cells = [
                Cell(f"{value:,}" if value else "", "", "good" if true == found else "bad" if value else "")
                for found, value in enumerate(counts)
            ]
            heading = Cell(names[true], _objects(sum(counts))) if true < len(names) else Cell("(nothing there)")
            rows.append((heading, *cells))
        columns = ("in truth", *names, "(missed)")
        return PageTable("What objects are taken for, by column", columns, tuple(rows), sentence=f"Counted: {some}.")
    wrong = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    shown = [
        (Cell(names[true]), Cell(names[found]), Cell(f"{wrong[true, found]:,}", f"of {matrix[true].sum():,}"))
        for true, found in pairs
        if wrong[true, found]
    ]
    sentence = f"The most frequent of {wrong.sum():,} such mistakes; {some}."
    return PageTable("Classes taken for others", ("in truth", "found as", "times"), tuple(shown), sentence=sentence)


def cost_table(comparison: Comparison) -> PageTable:
    """What each run costs, with the ratio to the first."""
    facts = [run.facts for run in comparison.runs]
    adds = [one.multiply_adds / 1e9 if one.multiply_adds is not None else None for one in facts]
    trainings = [run.training for run in comparison.runs]
    seconds = [training.seconds or None if training else None for training in trainings]
    iterations = [float(training.iterations) or None if training else None for training in trainings]
    memory = "of tensors on a GPU, of the whole process on a CPU; of its training, too, where that ended with it"
    times = [Cell(str(timedelta(seconds=round(value)))) if value else NOT_RECORDED for value in seconds]
    rows = (
        _cost_row("parameters, millions", "", [one.parameters / 1e6 for one in facts], 2),
        _cost_row("multiply-adds an image, billions", "convolutions and matrix products, test size", adds, 1),
        _cost_row("images a second", "the detector alone, testing", [one.images_per_s for one in facts], 1),
        _cost_row("peak memory, MiB", memory, [one.peak_memory_mib for one in facts], 0),
        _cost_row("training iterations", "", iterations, 0),
        _cost_row("seconds an iteration", "", [_ratio(a, b) for a, b in zip(seconds, iterations, strict=True)], 3),
        (Cell("training time, h:min:s", "evaluation and saving not counted"), *times),
    )
    columns = ("", *(run.name for run in comparison.runs))
    sentence = "Times depend on what else the machine did."
    return PageTable("Size, speed, memory, time", columns, rows, sentence=sentence)


def _cost_row(what: str, note: str, values: Sequence[float | None], digits: int) -> tuple[Cell, ...]:
    cells = [Cell(what, note)]
    for index, value in enumerate(values):
        ratio = _ratio(value, values[0]) if index else None
        times = "" if ratio is None else f"x {number(ratio, 2)}"
        cells.append(NOT_RECORDED if value is None else Cell(number(value, digits), times))
    return tuple(cells)


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def shared_table(comparison: Comparison) -> PageTable:
    """What a reader asks first, where all runs have it alike."""
    rows = tuple((Cell(name), Cell(value)) for name, value in comparison.settings.shared.items())
    title = "In short" if len(comparison.runs) == 1 else "The same in all runs, in short"
    return PageTable(title, ("setting", "value"), rows, numeric=False)


def difference_table(comparison: Comparison) -> PageTable:
    """Every config key that differs; flagged where a backbone does not ask for it."""
    reasons = {
        "backbone": Cell("comes with the backbone", tone="quiet"),
        "place": Cell("changes no figure", tone="quiet"),
        "other": Cell("not forced by the backbone", tone="warning"),
    }
    rows = tuple((Cell(one.key), *map(Cell, one.values), reasons[one.kind]) for one in comparison.settings.differences)
    columns = ("key", *(run.name for run in comparison.runs), "why")
    return PageTable("Every setting that differs", columns, rows, numeric=False)


def condition_table(comparison: Comparison) -> PageTable:
    """Data, machine, versions and commands."""
    facts = [run.facts for run in comparison.runs]
    rows = {
        "folder": [str(run.folder) for run in comparison.runs],
        "backbone": [run.arch or "not recorded" for run in comparison.runs],
        "test set": [f"{one.dataset}, {one.num_images:,} images" for one in facts],
        "classes": [listed(one.class_names) for one in facts],
        "annotations, SHA-256": [one.annotations_sha256[:16] for one in facts],
        "engine": [one.engine for one in facts],
        "machine": [f"{one.device}, {one.processes} process{'es' * (one.processes != 1)}" for one in facts],
        "resnet_backbone": [f"{one.resnet_backbone}, commit {one.commit or 'not recorded'}" for one in facts],
        "torch, torchvision": [f"{one.torch}, {one.torchvision}" for one in facts],
        "command of the evaluation": [one.command for one in facts],
    }
    cells = tuple((Cell(what), *map(Cell, values)) for what, values in rows.items())
    return PageTable("Conditions", ("", *(run.name for run in comparison.runs)), cells, numeric=False)
