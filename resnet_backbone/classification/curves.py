"""Training and test error of several runs over the iterations: the paper's Figures 1, 4 and 6."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from resnet_backbone.compare.plots import GRID, RUN_COLORS
from resnet_backbone.compare.runs import distinct_names
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.run_facts import Series, TrainingCurves, read_training

SMOOTHED_SHARE = 0.02  # of the records of a run: the width of the running mean in the plot
_DASHES: tuple[Literal["solid", "dashdot", "dotted"], ...] = ("solid", "dashdot", "dotted")  # of the test sets
_STYLE: Any = {"text.parse_math": False, "font.size": 10}  # names are names, also with a dollar in them


class RunCurves(NamedTuple):
    """One run: its name in the plot, and what was recorded."""

    name: str
    training: TrainingCurves


def read_curves(folders: Sequence[Path], names: Sequence[str] = ()) -> list[RunCurves]:
    """Read the courses of classifiers' trainings, finished or not, from the runs' folders.

    Iterations that were done again after a resume count once, see :func:`read_training`.

    Args:
        folders: one or more; each has a ``metrics.json``.
        names: one for each; by default, the names of the folders.

    Raises:
        FileNotFoundError: a folder without ``metrics.json``.
        ValueError: no folder, names that do not fit or are not distinct, or a run without a classifier's errors.
    """
    if not folders:
        raise ValueError("there are no runs to draw; name the folder of one or more")
    labels = distinct_names(names, [folder.resolve().name for folder in folders], "runs")
    return [RunCurves(name, _read(folder)) for name, folder in zip(labels, folders, strict=True)]


def _read(folder: Path) -> TrainingCurves:
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; a run's folder is the OUTPUT_DIR of tools/train_classifier.py")
    training = read_training(path)
    if training is None or not (training.train_error or any(training.test_error.values())):
        raise ValueError(
            f"{path} has neither train_error nor .../classification/top1_error: it is of a detector, or of a training "
            "that has not come to its first record"
        )
    return training


def write_curves(runs: Sequence[RunCurves], folder: Path) -> tuple[Path, Path]:
    """Write ``curves.csv``, all points as they were recorded, and ``curves.png``, and return their paths."""
    table, picture = folder / "curves.csv", folder / "curves.png"
    rows: list[tuple[object, ...]] = [("run", "curve", "test_set", "iteration", "error_percent")]
    for run in runs:
        rows += [(run.name, "train", "", *point) for point in run.training.train_error]
        for test_set, points in run.training.test_error.items():
            rows += [(run.name, "test", test_set, *point) for point in points]
    write_csv(table, rows)
    plot_curves(runs, picture)
    return table, picture


def running_mean(points: Series, width: int) -> Series:
    """Return the points with, for each value, the mean of the ``width`` records around it; at the ends of fewer.

    An even width takes one record more: as many before as after.
    """
    half = width // 2
    values = [value for _, value in points]
    means = []
    for index, (iteration, _) in enumerate(points):
        reach = min(half, index, len(values) - 1 - index)  # as far to both sides, or a falling curve would be shifted
        around = values[index - reach : index + reach + 1]
        means.append((iteration, sum(around) / len(around)))
    return tuple(means)


def plot_curves(runs: Sequence[RunCurves], path: Path) -> None:
    """Draw all runs, each in its colour: the training error dashed and thin, the test error bold.

    The training error is of a few batches and noisy: drawn is the running mean over :data:`SMOOTHED_SHARE` of a run's
    records. The axis ends a half above the largest error of the second half of a run: as in the paper's figures, the
    beginning, where every network guesses, is cut off.
    """
    with drawing(path, width=8, height=5) as figure:
        axes = figure.add_subplot()
        test_sets = list(dict.fromkeys(name for run in runs for name in run.training.test_error))
        drawn: list[Series] = []
        for run, color in zip(runs, colors(len(runs)), strict=True):
            drawn += _draw(axes, run, color, test_sets)
        axes.set_title("Training error (dashed) and test error (bold)", loc="left", fontsize=11)
        axes.set_xlabel("iteration")
        axes.set_ylabel("top-1 error, percent")
        start_at_zero(axes)
        axes.set_ylim(top=_top(drawn))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        handles = _legend(runs, test_sets)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), frameon=False)


def _draw(axes: Axes, run: RunCurves, color: str, test_sets: Sequence[str]) -> list[Series]:
    drawn: list[Series] = []
    training = run.training.train_error
    if training:
        smooth = running_mean(training, round(SMOOTHED_SHARE * len(training)))
        axes.plot(*zip(*smooth, strict=True), color=color, linestyle="dashed", linewidth=1.0)
        drawn.append(smooth)
    for test_set, points in run.training.test_error.items():
        if points:
            few: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) < 12 else {}
            dashes = _DASHES[test_sets.index(test_set) % len(_DASHES)]
            axes.plot(*zip(*points, strict=True), color=color, linestyle=dashes, linewidth=2.2, **few)
            drawn.append(points)
    return drawn


def _top(drawn: Sequence[Series]) -> float:
    """Where the axis of the errors ends, in percent."""
    late = [value for points in drawn for iteration, value in points if iteration >= points[-1][0] / 2]
    return min(100.0, max(1.0, 1.5 * max(late)))


def _legend(runs: Sequence[RunCurves], test_sets: Sequence[str]) -> list[Line2D]:
    """The runs by their colours, then, where there are several test sets, these by their dashes."""
    lines = [(run.name, color, _DASHES[0]) for run, color in zip(runs, colors(len(runs)), strict=True)]
    if len(test_sets) > 1:
        lines += [(name, "black", _DASHES[index % len(_DASHES)]) for index, name in enumerate(test_sets)]
    return [Line2D([], [], color=color, linestyle=dashes, linewidth=2.2, label=name) for name, color, dashes in lines]


# What the plots and tables of other analyses are made with, too


@contextmanager
def drawing(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """Give a figure of this size, in inches, to draw on, and save it as ``path``, whose folder is made."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def colors(count: int) -> list[str]:
    """Return ``count`` colours: those of the comparison's page, which colour-blind readers tell apart, while they last.

    Those of more than they are, up to twenty, are told apart by most readers; then they begin again.
    """
    if count <= len(RUN_COLORS):
        return list(RUN_COLORS[:count])
    many = matplotlib.colormaps["tab20"]
    return [to_hex(many(index % many.N)) for index in range(count)]


def start_at_zero(axes: Axes) -> None:
    """Begin both axes at 0, with a grid and no frame."""
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the first of which are the names of the columns, as a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
