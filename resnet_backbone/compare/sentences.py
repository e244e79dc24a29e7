"""The sentences of the page (which run is better, and how sure that is), and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Iterable

from resnet_backbone.compare.compare import Comparison
from resnet_backbone.compare.settings import one_backbone
from resnet_backbone.metrics.bootstrap import GainInterval, Interval
from resnet_backbone.metrics.drawing import PICTURE_SCORE
from resnet_backbone.metrics.paper import Gain, PaperRow, gain, names_of_data, paper_row
from resnet_backbone.metrics.run_facts import RunFacts

MINUS = "\N{MINUS SIGN}"
FIGURE_WORDS = {
    "AP": "all overlaps from 0.50 to 0.95",
    "AP50": "an overlap of 0.50 is enough",
    "AP75": "an overlap of 0.75 is needed",
    "APs": "small objects, under 32 x 32 pixels",
    "APm": "medium objects",
    "APl": "large objects, over 96 x 96 pixels",
}
KIND_WORDS = {"bbox": "boxes", "segm": "masks"}
ERROR_WORDS = {
    "classification": "right place, wrong class",
    "localisation": "right class, box not exact enough",
    "both": "wrong class and box not exact enough",
    "duplicate": "an object found a second time",
    "background": "nothing there",
    "missed": "an object that nothing was found for",
}

SIZE_SENTENCE = (
    "APs, APm and APl: each is a mean over the classes that have such objects, so a class with one or two weighs as "
    "much as any; they need not surround AP."
)
MISTAKE_SENTENCE = (
    "All detections count here, down to the lowest score that the test kept, so the numbers are larger than in the "
    f"pictures below, which show scores from {PICTURE_SCORE:g}."
)
_FASTER_BY_FAR = 1.2  # more than two evaluations of one detector differ on an idle machine


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
    text = signed(value)
    return f"{text} %" if text.strip(f"+{MINUS}")[:1].isdigit() else text


def arrows(text: str) -> str:
    """The text with true arrows."""
    return text.replace("->", "\N{RIGHTWARDS ARROW}")


def span(interval: Interval) -> str:
    """``0.3 to 2.1``."""
    return f"{number(interval.low)} to {number(interval.high)}"


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
    return f"{100 * level:g} %"


def verdicts(comparison: Comparison) -> list[str]:
    """One honest sentence for every run after the first."""
    bootstrap = comparison.main.bootstrap
    level = level_text(bootstrap.level)
    first = comparison.runs[0].name
    sentences = []
    for run, of_run in zip(comparison.runs[1:], bootstrap.runs[1:], strict=True):
        won = of_run.gains["AP"]
        difference = won.difference
        if math.isnan(difference.value):
            sentences.append(f"Nothing can be said of {run.name} and {first}: the test set has no object to find.")
        elif difference.low == difference.high == 0:
            sentences.append(f"{run.name} and {first} reach exactly the same AP.")
        elif difference.low == difference.high:
            sentences.append(
                f"Nothing can be said of {run.name} and {first}: too few test images, or resamples, for an interval."
            )
        elif is_clear(won):
            word = "better" if difference.value > 0 else "worse"
            low, high = sorted((abs(difference.low), abs(difference.high)))
            digits = 1 if low >= 0.05 else 2
            size = number(abs(difference.value), digits)
            bounds = f"{number(low, digits)} to {number(high, digits)}"
            sentences.append(f"{run.name} is {word} than {first} by {size} AP ({level}: {bounds}).")
        else:
            sentences.append(
                f"No difference can be told between {run.name} and {first}: {signed(difference.value)} AP, and "
                f"the {level} interval, {signed_span(difference)}, includes zero."
            )
    return sentences


def small_print(comparison: Comparison) -> str:
    """What the interval covers, and what it does not."""
    bootstrap = comparison.main.bootstrap
    return (
        f"The {level_text(bootstrap.level)} intervals say how far a figure could move had other images been tested: "
        f"the {bootstrap.num_images:,} test images were drawn anew {bootstrap.samples:,} times, the same ones for "
        "every run. They do not cover the chance in training: the same config with another seed ends with another AP, "
        "and on small data that can be more than the difference. To be sure, train each config with several seeds."
    )


def cost_sentence(comparison: Comparison) -> str:
    """What the times are worth, and whether one of the speeds cannot be right."""
    first, *others = [run.facts for run in comparison.runs]
    ratios = [ratio for ratio in (_contradicted(first, other) for other in others) if ratio is not None]
    times = "Times depend on what else the machine did."
    if not ratios:
        return times
    return (
        f"{times} Speed here contradicts the multiply-adds ({', '.join(f'x {number(ratio, 2)}' for ratio in ratios)}), "
        "so one of the runs was probably disturbed: evaluate again on an idle machine."
    )


def _contradicted(first: RunFacts, other: RunFacts) -> float | None:
    """The ratio of the multiply-adds where, on one machine, the run with more of them is faster by far; else None."""
    if (first.engine, first.device) != (other.engine, other.device):
        return None
    if not (first.multiply_adds and other.multiply_adds and first.images_per_s and other.images_per_s):
        return None
    more = other.multiply_adds / first.multiply_adds
    faster = other.images_per_s / first.images_per_s
    strange = (more > 1 and faster > _FASTER_BY_FAR) or (more < 1 and faster < 1 / _FASTER_BY_FAR)
    return more if strange else None


def class_sentence(comparison: Comparison) -> str:
    """How to read the gains of single classes."""
    by_chance = (1 - comparison.main.bootstrap.level) * len(comparison.main.class_names)
    many = (
        f" Of so many classes, about {number(by_chance, 0)} will have an interval that leaves out zero by chance alone."
        if by_chance >= 1
        else ""
    )
    return f"The same, class by class. The fewer objects a class has, the wider its interval.{many}"


def beside_the_paper(comparison: Comparison) -> bool:
    """Whether the paper's gain, of one backbone over another, is of interest: not where all runs have the same."""
    return not one_backbone(comparison.runs)


def paper_pair(comparison: Comparison) -> tuple[PaperRow, PaperRow]:
    """The paper's own pair, VGG-16 and ResNet-101, on the data nearest to this comparison's."""
    dataset = comparison.runs[0].facts.dataset
    if dataset.startswith("voc12"):
        return paper_row(7, "vgg16_0712pp"), paper_row(7, "r101_0712pp")
    if dataset.startswith("voc"):
        return paper_row(7, "vgg16_0712"), paper_row(7, "r101_0712")
    return paper_row(8, "vgg16"), paper_row(8, "r101")


def paper_gain(comparison: Comparison) -> tuple[str, Gain]:
    """The figure that the paper's pair is compared by, and its gain."""
    before, after = paper_pair(comparison)
    figure = "AP" if "AP" in before.figures else "mAP"
    return figure, gain(before.figures[figure], after.figures[figure])


def paper_sentence(comparison: Comparison) -> str:
    """The paper's gain, with its setting, and how near this comparison is to it."""
    before, after = paper_pair(comparison)
    figure, won = paper_gain(comparison)
    same_pair = [run.arch for run in comparison.runs[:2]] == ["vgg16", "resnet101"]
    dataset = comparison.runs[0].facts.dataset
    trained_on = {tuple(run.settings.get("DATASETS.TRAIN") or ()) for run in comparison.runs}
    paper_train, paper_test = names_of_data(before.data)
    others = [
        *([] if dataset == paper_test else [f"other data ({dataset})"]),
        *(
            []
            if {frozenset(names) for names in trained_on} == {paper_train}
            else [f"other training data ({_sets(trained_on)})"]
        ),
        *([] if same_pair else [f"other backbones ({_archs(comparison)})"]),
    ]
    near = f" This comparison has {' and '.join(others)}, so the two need not agree." if others else ""
    return (
        f"The paper: {before.network} {number(before.figures[figure])}, {after.network} "
        f"{number(after.figures[figure])} {figure}, a gain of {signed(won.absolute)} or {number(won.relative, 0)} % "
        f"({before.source}: Faster R-CNN, {arrows(before.data)}, images of 600 pixels).{near}"
    )


def _sets(trained_on: set[tuple[str, ...]]) -> str:
    return "; ".join(sorted(" and ".join(names) or "not recorded" for names in trained_on))


def _archs(comparison: Comparison) -> str:
    return ", ".join(run.arch or "not recorded" for run in comparison.runs)


def duration(seconds: float) -> str:
    """``1 h 20 min``, ``6 min 5 s``, ``40 s``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
