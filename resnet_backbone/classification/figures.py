"""What ``tools/analyze_model.py`` draws: training and test error (Figures 1, 4, 6), responses of layers (Figure 7)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from tabulate import tabulate
from torch import Tensor, nn

from resnet_backbone.classification.evaluate import csv_text
from resnet_backbone.classification.network import weights_file
from resnet_backbone.classification.predict import Classifier, evaluating, load_classifier
from resnet_backbone.classification.transforms import one_crop
from resnet_backbone.compare.plots import GRID, RUN_COLORS
from resnet_backbone.compare.runs import distinct_names
from resnet_backbone.config.acceleration import default_device
from resnet_backbone.data.images.classes import ClassDataset
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.run_facts import Series, TrainingCurves, read_training
from resnet_backbone.models.layers import ConvNormActivation, precise
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import TestTransform

SMOOTHED_SHARE = 0.02  # of the records of a run: the width of the running mean in the plot
BATCH_SIZE = 32
_MOST_AT_ONCE = 2**22  # values
_STYLE: Any = {"text.parse_math": False, "font.size": 10}  # names are names, also with a dollar in them


def read_curves(folders: Sequence[Path], names: Sequence[str] = ()) -> dict[str, TrainingCurves]:
    """Read the courses of classifiers' trainings, finished or not, by name, from the runs' folders.

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
    runs = {}
    for label, folder in zip(labels, folders, strict=True):
        path = folder / "metrics.json"
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; a run's folder is the OUTPUT_DIR of resnet-backbone classify")
        training = read_training(path)
        if training is None or not (training.train_error or any(training.test_error.values())):
            raise ValueError(
                f"{path} has neither train_error nor .../classification/top1_error: it is of a detector, or of a "
                "training that has not come to its first record"
            )
        runs[label] = training
    return runs


def write_curves(runs: Mapping[str, TrainingCurves], folder: Path) -> tuple[Path, Path]:
    """Write ``curves.csv``, all points as they were recorded, and ``curves.png``, and return their paths."""
    table, picture = folder / "curves.csv", folder / "curves.png"
    rows: list[tuple[object, ...]] = [("run", "curve", "test_set", "iteration", "error_percent")]
    for name, run in runs.items():
        rows += [(name, "train", "", *point) for point in run.train_error]
        for test_set, points in run.test_error.items():
            rows += [(name, "test", test_set, *point) for point in points]
    write_text(table, csv_text(rows))
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


def plot_curves(runs: Mapping[str, TrainingCurves], path: Path) -> None:
    """Draw all runs, each in its colour: the training error dashed and thin, the test error bold.

    The training error is of a few batches and noisy: drawn is the running mean over :data:`SMOOTHED_SHARE` of a run's
    records. The axis ends a half above the largest error of the second half of a run: as in the paper's figures, the
    beginning, where every network guesses, is cut off.
    """
    bold: dict[str, Any] = {"linewidth": 2.2}
    with drawing(path, width=8, height=5) as figure:
        axes = figure.add_subplot()
        test_sets = dict.fromkeys(test_set for run in runs.values() for test_set in run.test_error)
        dashes: dict[str, Any] = dict(zip(test_sets, cycle(("solid", "dashdot", "dotted")), strict=False))
        drawn: list[Series] = []
        lines = []  # of the legend
        for (name, run), color in zip(runs.items(), colors(len(runs)), strict=True):
            lines.append(Line2D([], [], color=color, label=name, **bold))
            if run.train_error:
                drawn.append(running_mean(run.train_error, round(SMOOTHED_SHARE * len(run.train_error))))
                axes.plot(*zip(*drawn[-1], strict=True), color=color, linestyle="dashed", linewidth=1.0)
            for test_set, points in run.test_error.items():
                if points:
                    few: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) < 12 else {}
                    axes.plot(*zip(*points, strict=True), color=color, linestyle=dashes[test_set], **bold, **few)
                    drawn.append(points)
        if len(dashes) > 1:
            lines += [
                Line2D([], [], color="black", linestyle=style, label=name, **bold) for name, style in dashes.items()
            ]
        axes.set_title("Training error (dashed) and test error (bold)", loc="left", fontsize=11)
        axes.set_xlabel("iteration")
        axes.set_ylabel("top-1 error, percent")
        start_at_zero(axes)
        late = [value for points in drawn for iteration, value in points if iteration >= points[-1][0] / 2]
        axes.set_ylim(top=min(100.0, max(1.0, 1.5 * max(late))))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.legend(handles=lines, loc="outside lower center", ncols=min(3, len(lines)), frameon=False)


@dataclass(frozen=True)
class LayerResponse:
    """The responses of one layer over all images, positions and channels."""

    name: str  # of the convolution, such as res2.0.conv1
    mean: float
    std: float  # of the population: divided by the number of values


@dataclass(frozen=True)
class Responses:
    """The responses of one network."""

    name: str  # for tables and plots
    arch: str  # name in the registry
    has_shortcuts: bool  # False for plain networks and VGG
    num_images: int  # how many were measured
    layers: tuple[LayerResponse, ...]  # in the order they run

    @property
    def by_magnitude(self) -> tuple[LayerResponse, ...]:
        """The layers, largest standard deviation first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.std))


def measure_responses(model: Trunk, batches: Iterable[Tensor], name: str = "") -> Responses:
    """Measure the responses of every 3x3 layer, in evaluation mode.

    "The responses are the outputs of each 3x3 layer, after BN and before other nonlinearity (ReLU/addition)" (He et al.
    2015, arXiv 1512.03385). Here that is every 3x3 convolution, with the norm that belongs to it:

    - of a bottleneck the middle convolution; of DeepLab's stem, and of CIFAR's, the stem's, too; not ImageNet's 7x7;
    - of VGG without norms the convolution itself, with its bias; of a maxout or highway layer what the layer returns;
    - of a pre-activated block every convolution after the norm that follows it, and the last, which none follows before
      the addition, as it is. (The norm in front of a block belongs to no convolution.)

    Stochastic depth's factor on the residual is not in it.

    Args:
        model: a network of the registry; it stays as it is.
        batches: images (N, in_channels, H, W), normalised as the network wants them, on its device. No more than one
            batch is kept, so that their number costs time and no memory.
        name: for tables and plots; by default the architecture's.

    Raises:
        ValueError: no images, or responses that are not finite.
    """
    layers = {
        layer: module
        for layer, module in model.named_modules()
        if isinstance(module, ConvNormActivation) and module.kernel_size == (3, 3)
    }
    meters = {layer: _Meter() for layer in layers}
    num_images = 0
    device = next(model.parameters()).device
    with _measured(layers, meters), evaluating(model, device, torch.float32):
        for images in batches:
            model(images)
            num_images += len(images)
    if not num_images:
        raise ValueError("there are no images to measure responses with; give one batch or more")
    broken = [layer for layer, meter in meters.items() if not math.isfinite(meter.std)]
    if broken:
        raise ValueError(f"{model.arch} responds in {broken[0]} with values that are not finite: it has diverged")
    measured = tuple(LayerResponse(layer, meter.mean, meter.std) for layer, meter in meters.items())
    return Responses(name or model.arch, model.arch, bool(model.shortcut), num_images, measured)


class _Meter:
    """Mean and standard deviation of all values that were added, see ``precise``.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # of the distances from the mean

    @property
    def std(self) -> float:
        """Of the population; 0 without values."""
        return math.sqrt(self._squares / self.count) if self.count else 0.0

    def add(self, values: Tensor) -> None:
        """Add a batch, in parts: float64 takes twice the memory."""
        for part in values.split(max(1, _MOST_AT_ONCE // max(1, values[:1].numel()))):
            variance, mean = torch.var_mean(precise(part), correction=0)
            added = part.numel()
            total = self.count + added
            step = mean.item() - self.mean
            self._squares += variance.item() * added + step**2 * self.count * added / total
            self.mean += step * added / total
            self.count = total


@contextmanager
def _measured(layers: dict[str, ConvNormActivation], meters: dict[str, _Meter]) -> Iterator[None]:
    """Let the meters see their layers' outputs before the ReLU, which is done in place, inside the layer.

    For as long, a layer leaves its ReLU to the hook, so that the network computes what it always does.
    """
    with ExitStack() as undo:
        for name, layer in layers.items():

            def hook(
                _: nn.Module, __: Any, output: Tensor, meter: _Meter = meters[name], activation: bool = layer.activation
            ) -> Tensor:
                meter.add(output)
                return F.relu_(output) if activation else output

            undo.callback(layer.register_forward_hook(hook).remove)
            undo.callback(setattr, layer, "activation", layer.activation)
            layer.activation = False
        yield


def measure_sources(
    sources: Sequence[str],
    dataset: ClassDataset,
    num_images: int,
    names: Sequence[str] = (),
    test_transform: TestTransform | None = None,
) -> list[Responses]:
    """Measure the responses of several networks to the centres of the same images, on the GPU if there is one.

    Args:
        sources: a catalog name, a packaged weight file, or the folder of a run, which has one.
        dataset: at least one image.
        num_images: how many of them, at equal distances in their order, so that every class has its share; all, where
            there are fewer.
        names: for tables and plots, one for each; by default those of the files, of the folders, or of the catalog.
        test_transform: of the sources that do not say their own.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: names that do not fit or are not distinct, fewer than one image, or what
            :func:`~resnet_backbone.classification.predict.load_classifier` raises.
        DownloadError: published weights could not be had.
    """
    if num_images < 1:
        raise ValueError(f"cannot measure the responses to {num_images} images; write 1 or more")
    labels = distinct_names(names, [_usual_name(source) for source in sources], "networks")
    files = [weights_file(source) for source in sources]
    indices = spread(len(dataset), num_images)
    device = torch.device(default_device())
    measured = []
    for file, label in zip(files, labels, strict=True):
        classifier = load_classifier(file, test_transform=test_transform)
        batches = (batch.to(device) for batch in _batches(classifier, dataset, indices))
        measured.append(measure_responses(classifier.model.to(device), batches, label))
    return measured


def _usual_name(source: str) -> str:
    path = Path(source)
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.is_file() else source.split("://")[-1]


def spread(total: int, count: int) -> list[int]:
    """Return ``count`` indices below ``total`` at equal distances, or all where there are fewer."""
    count = min(count, total)
    return [number * total // count for number in range(count)]


def _batches(classifier: Classifier, dataset: ClassDataset, indices: Sequence[int]) -> Iterator[Tensor]:
    for start in range(0, len(indices), BATCH_SIZE):
        images = [dataset[index][0] for index in indices[start : start + BATCH_SIZE]]
        yield torch.stack([one_crop(image, classifier.input_format, classifier.test_transform) for image in images])


def responses_text(responses: Sequence[Responses]) -> str:
    """Return a summary for a terminal: a row a network."""
    rows = []
    for one in responses:
        stds = [layer.std for layer in one.layers]
        ends = [f"{layer.std:.3f} ({layer.name})" for layer in (one.by_magnitude[0], one.by_magnitude[-1])]
        averages = [f"{average(stds):.3f}" for average in (statistics.mean, statistics.median)]
        rows.append((one.name, one.arch, str(one.num_images), str(len(stds)), *averages, *ends))
    headers = ("network", "architecture", "images", "3x3 layers", "mean std", "median std", "largest", "smallest")
    return tabulate(rows, headers, "simple", disable_numparse=True)


def write_responses(responses: Sequence[Responses], folder: Path) -> tuple[Path, Path]:
    """Write ``responses.csv``, a line a layer, and ``responses.png``, and return their paths."""
    table, picture = folder / "responses.csv", folder / "responses.png"
    rows: list[tuple[object, ...]] = [("network", "arch", "images", "index", "layer", "mean", "std", "rank")]
    for one in responses:
        ranks = {layer.name: rank for rank, layer in enumerate(one.by_magnitude, start=1)}
        for index, layer in enumerate(one.layers, start=1):
            numbers = (layer.mean, layer.std, ranks[layer.name])
            rows.append((one.name, one.arch, one.num_images, index, layer.name, *numbers))
    write_text(table, csv_text(rows))
    plot_responses(responses, picture)
    return table, picture


def plot_responses(responses: Sequence[Responses], path: Path) -> None:
    """Draw all networks, as Figure 7: layers in their order above, sorted below; those without shortcuts dashed."""
    with drawing(path, width=8, height=6.4) as figure:
        above, below = figure.subplots(2, 1, sharey=True)
        for one, color in zip(responses, colors(len(responses)), strict=True):
            style: dict[str, Any] = {
                "color": color,
                "linestyle": "solid" if one.has_shortcuts else "dashed",
                "linewidth": 1.6,
                "marker": "o",
                "markersize": 3 if len(one.layers) < 60 else 0,
            }
            numbers = range(1, len(one.layers) + 1)
            above.plot(numbers, [layer.std for layer in one.layers], label=one.name, **style)
            below.plot(numbers, [layer.std for layer in one.by_magnitude], **style)
        above.set_title("Responses of each 3x3 layer (dashed: networks without shortcuts)", loc="left", fontsize=11)
        above.set_xlabel("layer, in the network's order")
        below.set_xlabel("layer, sorted by magnitude")
        for axes in (above, below):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel("standard deviation of responses")
            start_at_zero(axes)
        figure.legend(loc="outside lower center", ncols=min(3, len(responses)), frameon=False)


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
