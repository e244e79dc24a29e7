"""The tables of the page: figures, classes, the paper beside, errors, cost, settings, conditions; numbers as text."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from resnet_backbone.compare.compare import Comparison, Measured
from resnet_backbone.compare.runs import listed
from resnet_backbone.metrics.bootstrap import GainInterval, Interval
from resnet_backbone.metrics.coco import LARGE, MEDIUM, SMALL
from resnet_backbone.metrics.drawing import PICTURE_SCORE
from resnet_backbone.metrics.error_types import KINDS
from resnet_backbone.metrics.matching import FIGURES
from resnet_backbone.metrics.paper import PaperRow, gain, paper_row

Tone = Literal["", "good", "bad", "quiet", "warning"]

FEWEST_OBJECTS = 30  # of a size; with fewer, a gain on them is left without a color
MINUS = "\N{MINUS SIGN}"
KIND_WORDS = {"bbox": "boxes", "segm": "masks"}
_SIZES = {"APs": SMALL, "APm": MEDIUM, "APl": LARGE}
_FIGURE_WORDS = {
    "AP": "all overlaps from 0.50 to 0.95",
    "AP50": "an overlap of 0.50 is enough",
    "AP75": "an overlap of 0.75 is needed",
    "APs": "small objects, under 32 x 32 pixels",
    "APm": "medium objects",
    "APl": "large objects, over 96 x 96 pixels",
}
_ERROR_WORDS = {
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


def percent(value: float | None) -> str:
    """``+28.3 %``."""
    return signed(value) if value is None or not math.isfinite(value) else f"{signed(value)} %"


def arrows(text: str) -> str:
    """The text with true arrows."""
    return text.replace("->", "\N{RIGHTWARDS ARROW}")


def signed_span(interval: Interval) -> str:
    """``+0.3 to +2.1``, of a gain."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def gain_word(gains: Iterable[GainInterval]) -> str:
    """``gain``; ``difference`` where one of them is a loss."""
    return "difference" if any(one.difference.value < 0 for one in gains) else "gain"


def is_clear(of_run: GainInterval) -> bool:
    """Whether the interval of the difference leaves out zero; never where all resamples are the same."""
    low, high = of_run.difference.low, of_run.difference.high
    return low < high and (low > 0 or high < 0)


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
        classes = measured.matches[0].classes
        counts = {name: sum(int(one.num_objects[size].sum()) for one in classes) for name, size in _SIZES.items()}
        sizes = {figure: f" ({_objects(count)})" for figure, count in counts.items()}
        headings = {figure: Cell(figure, _FIGURE_WORDS[figure] + sizes.get(figure, "")) for figure in FIGURES}
        few = {figure for figure, count in counts.items() if count < FEWEST_OBJECTS}
        title = f"Average precision of {KIND_WORDS[kind]}, percent"
        table = _ap_table(comparison, measured, f"figures-{kind}", title, "figure", headings, few)
        tables.append(replace(table, sentence=_SIZE_SENTENCE))
    if all("voc" in run.figures for run in comparison.runs):
        tables.append(_voc_table(comparison))
    return tables


def class_tables(comparison: Comparison) -> list[PageTable]:
    """AP of every class."""
    tables = []
    for kind, measured in comparison.measured.items():
        headings = {f"AP-{name}": Cell(name, _objects(count)) for name, count in measured.num_objects.items()}
        title = f"AP of every class, {KIND_WORDS[kind]}, percent"
        tables.append(_ap_table(comparison, measured, f"classes-{kind}", title, "class", headings))
    return tables


def _ap_table(
    comparison: Comparison,
    measured: Measured,
    key: str,
    title: str,
    first_column: str,
    headings: Mapping[str, Cell],
    few: Collection[str] = (),
) -> PageTable:
    """A row for each figure in ``headings``; nothing is said of the gains in those that are of ``few`` objects."""
    level = level_text(measured.bootstrap.level)
    columns = [first_column, comparison.runs[0].name]
    for run, of_run in list(zip(comparison.runs, measured.bootstrap.runs, strict=True))[1:]:
        columns += [run.name, f"{gain_word(of_run.gains[figure] for figure in headings)} ({level})", "relative"]
    rows = []
    for figure, heading in headings.items():
        cells = [heading]
        for of_run in measured.bootstrap.runs:
            cells.append(Cell(number(of_run.figures[figure].value, 2)))
            if won := of_run.gains.get(figure):
                cells += [_difference_cell(won, figure in few), Cell(percent(won.relative.value))]
        rows.append(tuple(cells))
    return PageTable(key, title, tuple(columns), tuple(rows), spare=frozenset(range(4, len(columns), 3)))


def _objects(count: int) -> str:
    return f"{count:,} object{'s' * (count != 1)}"


def _difference_cell(won: GainInterval, few: bool = False) -> Cell:
    """The gain with its interval, in color where that leaves out zero."""
    value = won.difference.value
    tone: Tone = ("good" if value > 0 else "bad") if is_clear(won) and not few else ""
    note = "too few to tell" if few else signed_span(won.difference)
    return Cell(signed(value), "" if math.isnan(value) else note, tone)


def _voc_table(comparison: Comparison) -> PageTable:
    """As recorded by the evaluations; no interval is computed for VOC's own figure."""
    rows = []
    for figure in comparison.runs[0].figures["voc"]:
        first, *values = [_recorded_voc(run.figures, figure) for run in comparison.runs]
        gains = [cell for value in values for cell in (Cell(number(value, 2)), Cell(signed(value - first)))]
        rows.append((Cell(figure.removeprefix("AP-")), Cell(number(first, 2)), *gains))
    others = [column for run in comparison.runs[1:] for column in (run.name, "gain")]
    columns = ("figure", comparison.runs[0].name, *others)
    return PageTable("voc", "Pascal VOC's own average precision, percent", columns, tuple(rows))


def _recorded_voc(figures: Mapping[str, Mapping[str, float | None]], figure: str) -> float:
    value = figures["voc"].get(figure)
    return math.nan if value is None else value


def paper_table(comparison: Comparison) -> PageTable:
    """The gain of each run beside the paper's."""
    before, after = paper_pair(comparison)
    printed = f"{before.network} to {after.network}, {arrows(before.data)}"
    rows = [
        _gain_row("the paper", printed, figure, value, after.figures[figure])
        for figure, value in before.figures.items()
    ]
    baseline, *others = zip(comparison.runs, comparison.main.bootstrap.runs, strict=True)
    for run, of_run in others:
        pair = f"{baseline[0].name} to {run.name}, {run.facts.dataset}"
        if "mAP" in before.figures and all("voc" in one.figures for one in (baseline[0], run)):
            # as recorded; no interval is computed for VOC's own figure
            recorded = [_recorded_voc(one.figures, "mAP") for one in (baseline[0], run)]
            rows.append(_gain_row("here", pair, "mAP", *recorded))
        for figure in ("AP50", "AP"):
            values = [Cell(number(one.figures[figure].value)) for one in (baseline[1], of_run)]
            won = of_run.gains[figure]
            relative = Cell(percent(won.relative.value), signed_span(won.relative))
            rows.append((Cell("here", pair), Cell(figure), *values, _difference_cell(won), relative))
    word = gain_word(of_run.gains[figure] for _, of_run in others for figure in ("AP50", "AP"))
    columns = ("whose", "figure", "before", "after", word, f"relative {word}")
    return PageTable("paper", f"The {word} beside the paper's", columns, tuple(rows))


def _gain_row(whose: str, pair: str, figure: str, first: float, second: float) -> tuple[Cell, ...]:
    won = gain(first, second)
    numbers = (number(first), number(second), signed(won.absolute), percent(won.relative))
    return (Cell(whose, pair), Cell(figure), *map(Cell, numbers))


def error_table(comparison: Comparison) -> PageTable:
    """How often each kind of mistake is made, and what it costs."""
    errors = comparison.main.errors
    rows = []
    for kind in KINDS:
        cells = [Cell(f"{one.counts[kind]:,}", f"cost {number(one.costs[kind], 2)}") for one in errors]
        rows.append((Cell(kind, _ERROR_WORDS[kind]), *cells))
    hits = [Cell(f"{of_run.hits:,}") for of_run in errors]
    rows.append((Cell("(right)", f"of {errors[0].objects:,} objects"), *hits))
    columns = ("kind", *(run.name for run in comparison.runs))
    title = "Mistakes by kind, and the points of AP50 that they cost"
    return PageTable("errors", title, columns, tuple(rows), sentence=_MISTAKE_SENTENCE)


def cost_table(comparison: Comparison) -> PageTable:
    """What each run costs, with the ratio to the first."""
    facts = [run.facts for run in comparison.runs]
    adds = [one.multiply_adds / 1e9 if one.multiply_adds is not None else None for one in facts]
    trainings = [run.training for run in comparison.runs]
    seconds = [training.seconds or None if training else None for training in trainings]
    iterations = [float(training.iterations) or None if training else None for training in trainings]
    memory = "of tensors on a GPU, of the whole process on a CPU; of its training, too, where that ended with it"
    times = [Cell(duration(value)) if value else _not_recorded() for value in seconds]
    rows = (
        _cost_row("parameters, millions", "", [one.parameters / 1e6 for one in facts], 2),
        _cost_row("multiply-adds an image, billions", "convolutions and matrix products, test size", adds, 1),
        _cost_row("images a second", "the detector alone, testing", [one.images_per_s for one in facts], 1),
        _cost_row("peak memory, MiB", memory, [one.peak_memory_mib for one in facts], 0),
        _cost_row("training iterations", "", iterations, 0),
        _cost_row("seconds an iteration", "", [_ratio(a, b) for a, b in zip(seconds, iterations, strict=True)], 3),
        (Cell("training time", "evaluation and saving not counted"), *times),
    )
    columns = ("", *(run.name for run in comparison.runs))
    sentence = "Times depend on what else the machine did."
    return PageTable("cost", "Size, speed, memory, time", columns, rows, sentence=sentence)


def _cost_row(what: str, note: str, values: Sequence[float | None], digits: int) -> tuple[Cell, ...]:
    cells = [Cell(what, note)]
    for index, value in enumerate(values):
        ratio = _ratio(value, values[0]) if index else None
        times = "" if ratio is None else f"x {number(ratio, 2)}"
        cells.append(_not_recorded() if value is None else Cell(number(value, digits), times))
    return tuple(cells)


def _not_recorded() -> Cell:
    return Cell("not recorded", tone="quiet")


def _ratio(value: float | None, to: float | None) -> float | None:
    return value / to if value is not None and to else None


def duration(seconds: float) -> str:
    """``1 h 20 min``, ``6 min 5 s``, ``40 s``."""
    hours, minutes, rest = round(seconds) // 3600, round(seconds) // 60 % 60, round(seconds) % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def shared_table(comparison: Comparison) -> PageTable:
    """What a reader asks first, where all runs have it alike."""
    rows = tuple((Cell(name), Cell(value)) for name, value in comparison.settings.shared.items())
    return PageTable("shared", "The same in all runs, in short", ("setting", "value"), rows, numeric=False)


def difference_table(comparison: Comparison) -> PageTable:
    """Every config key that differs; flagged where a backbone does not ask for it."""
    reasons = {
        "backbone": Cell("comes with the backbone", tone="quiet"),
        "place": Cell("changes no figure", tone="quiet"),
        "other": Cell("not forced by the backbone", tone="warning"),
    }
    rows = tuple((Cell(one.key), *map(Cell, one.values), reasons[one.kind]) for one in comparison.settings.differences)
    columns = ("key", *(run.name for run in comparison.runs), "why")
    return PageTable("differences", "Every setting that differs", columns, rows, numeric=False)


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
    return PageTable("conditions", "Conditions", ("", *(run.name for run in comparison.runs)), cells, numeric=False)
