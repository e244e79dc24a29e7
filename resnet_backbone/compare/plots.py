"""The plots of the page, as SVG: gains, precision-recall curves, errors, and the course of the trainings."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_backbone.compare.compare import Comparison, Measured
from resnet_backbone.compare.tables import IOU_TYPE_NOUNS, number
from resnet_backbone.metrics.error_types import KINDS
from resnet_backbone.metrics.matching import FIGURES
from resnet_backbone.metrics.run_facts import Series

WIDTH, HEIGHT = 5.2, 3.3  # inches
MOST_CLASSES = 20  # in the plot of the gains
MOST_CURVES = 6  # classes with a plot of their own

INK, SOFT, GRID = "#1c2430", "#5b6675", "#dfe4ea"
# Told apart by color-blind readers, too (Okabe and Ito 2008).
RUN_COLORS = ("#0072b2", "#d55e00", "#009e73", "#b0508a", "#7a6a00", "#3a3f47")
_DASHES = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (1, 1)), (0, (9, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_STYLE: Any = {
    "svg.hashsalt": "resnet_backbone",  # the same bytes every time
    "text.parse_math": False,  # names are names, also with a dollar in them
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.pad": 7,
    "ytick.major.pad": 5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """One plot."""

    title: str
    svg: bytes


def gain_plots(comparison: Comparison) -> list[Plot]:
    """The gains over the first run in COCO's figures, with their intervals."""
    return [
        _gain_plot(comparison, measured, f"Difference in AP, {IOU_TYPE_NOUNS[kind]}", list(FIGURES))
        for kind, measured in comparison.measured.items()
    ]


def class_gain_plots(comparison: Comparison) -> list[Plot]:
    """The gains over the first run in single classes, those with the most objects, with their intervals."""
    plots = []
    for kind, measured in comparison.measured.items():
        figures = [f"AP-{name}" for name in _most_frequent(measured, MOST_CLASSES)]
        some = f" (the {len(figures)} with the most objects)" if len(figures) < len(measured.class_names) else ""
        title = f"Difference in AP by class, {IOU_TYPE_NOUNS[kind]}{some}"
        plots.append(_gain_plot(comparison, measured, title, figures))
    return plots


def curve_plots(comparison: Comparison) -> list[Plot]:
    """Precision over recall: the mean of the classes at two overlaps, then the classes with the most objects."""
    measured = comparison.main
    plots = []
    for iou, curves in measured.curves.items():
        title = f"Precision and recall, mean of the classes, overlap {iou:.2f}"
        plots.append(_curve_plot(comparison, title, [curve.mean for curve in curves]))
    for name in _most_frequent(measured, MOST_CURVES):
        index = measured.class_names.index(name)
        title = f"Precision and recall, {name}, overlap 0.50"
        heights = [curve.precision[index] for curve in measured.curves[0.5]]
        plots.append(_curve_plot(comparison, title, heights))
    return plots


def _curve_plot(comparison: Comparison, title: str, heights: Sequence[np.ndarray]) -> Plot:
    def draw(axes: Axes) -> None:
        for index, (run, height) in enumerate(zip(comparison.runs, heights, strict=True)):
            axes.plot(np.linspace(0, 1, len(height)), height, **_line(index), label=run.name)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("recall: share of the objects found")
        axes.set_ylabel("precision: share that is right")

    return _plot(title, draw)


def training_plots(comparison: Comparison) -> list[Plot]:
    """Loss, learning rate and AP over the iterations, of the runs that have a training."""
    trainings = [run.training for run in comparison.runs]
    if not any(trainings):
        return []
    dataset = comparison.runs[0].facts.dataset
    courses: list[tuple[str, str, list[Series]]] = [  # title, unit, a curve for each run
        ("Training loss", "loss", [one.loss if one else () for one in trainings]),
        ("Learning rate", "learning rate", [one.lr if one else () for one in trainings]),
        ("AP while training", "AP, percent", [one.ap.get(dataset, ()) if one else () for one in trainings]),
    ]
    return [_course_plot(comparison, *course) for course in courses if any(len(points) > 1 for points in course[2])]


def error_plot(comparison: Comparison) -> Plot:
    """The AP50 that each kind of mistake costs; the table has their numbers, too."""
    errors = comparison.main.errors

    def draw(axes: Axes) -> None:
        thickness = 0.8 / len(errors)
        for index, (run, of_run) in enumerate(zip(comparison.runs, errors, strict=True)):
            places = [place + thickness * (index - (len(errors) - 1) / 2) for place in range(len(KINDS))]
            costs = [of_run.costs[kind] for kind in KINDS]
            bars = axes.barh(places, costs, thickness * 0.9, color=_color(index), label=run.name)
            axes.bar_label(bars, [number(cost) for cost in costs], padding=3, color=SOFT, fontsize=8)
        axes.set_yticks(range(len(KINDS)), KINDS)
        axes.set_ylim(len(KINDS) - 0.4, -0.6)
        axes.set_xlabel("points of AP50")
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)

    height = max(HEIGHT, 1.0 + 0.27 * len(KINDS) * len(errors))
    return _plot("AP50 lost to each kind of mistake", draw, height=height)


def _most_frequent(measured: Measured, count: int) -> list[str]:
    """The classes with the most objects, in the order of the data set; those without any are left out."""
    chosen = sorted(measured.class_names, key=lambda name: -measured.num_objects[name])[:count]
    return [name for name in measured.class_names if name in chosen and measured.num_objects[name]]


def _gain_plot(comparison: Comparison, measured: Measured, title: str, figures: list[str]) -> Plot:
    first, *names = [run.name for run in comparison.runs]
    differences = [[of_run.gains[figure].difference for figure in figures] for of_run in measured.bootstrap.runs[1:]]
    labels = [figure.removeprefix("AP-") for figure in figures]

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        for index, (name, of_run) in enumerate(zip(names, differences, strict=True), start=1):
            shift = 0.22 * (index - (len(names) + 1) / 2)
            known = {place + shift: won for place, won in enumerate(of_run) if math.isfinite(won.value)}
            lows, highs = [won.low for won in known.values()], [won.high for won in known.values()]
            axes.hlines(list(known), lows, highs, color=_color(index), linewidth=2.2, capstyle="round", zorder=2)
            marks = [won.value for won in known.values()]
            axes.plot(
                marks, list(known), _MARKERS[index % len(_MARKERS)], color=_color(index), markersize=6, label=name
            )
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlabel(f"difference from {_cut(first)}, points of AP")
        axes.grid(axis="y", visible=False)

    height = max(HEIGHT, 1.0 + len(figures) * (0.24 if len(names) == 1 else 0.32))
    return _plot(title, draw, height=height)


def _course_plot(comparison: Comparison, title: str, unit: str, series: Sequence[Series]) -> Plot:
    def draw(axes: Axes) -> None:
        for index, points in enumerate(series):
            if points:
                few = len(points) < 12
                marks: dict[str, Any] = {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 5} if few else {}
                axes.plot(*zip(*points, strict=True), **_line(index), **marks, label=comparison.runs[index].name)
        axes.set_xlabel("iteration")
        axes.set_ylabel(unit)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    return _plot(title, draw)


def _color(index: int) -> str:
    return RUN_COLORS[index % len(RUN_COLORS)]


def _line(index: int) -> dict[str, Any]:
    return {"color": _color(index), "linestyle": _DASHES[index % len(_DASHES)], "linewidth": 2}


def _plot(title: str, draw: Callable[[Axes], None], *, height: float = HEIGHT) -> Plot:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            columns = min(len(labels), 3)
            figure.legend(handles, [_cut(label) for label in labels], loc="outside upper left", ncols=columns)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Plot(title, file.getvalue())


def _cut(name: str, length: int = 32) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}\N{HORIZONTAL ELLIPSIS}"
