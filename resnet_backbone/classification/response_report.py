"""The responses of several networks side by side: a summary, a table of every layer, and the paper's Figure 7."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tabulate import tabulate

from resnet_backbone.classification.curves import STYLE, colors, plain
from resnet_backbone.classification.responses import Responses
from resnet_backbone.files.atomic import write_text


def responses_text(responses: Sequence[Responses]) -> str:
    """Return a summary for a terminal: a row a network."""
    rows = []
    for one in responses:
        stds = [layer.std for layer in one.layers]
        largest, smallest = one.by_magnitude[0], one.by_magnitude[-1]
        rows.append(
            (
                one.name,
                one.arch,
                str(one.num_images),
                str(len(stds)),
                f"{statistics.mean(stds):.3f}",
                f"{statistics.median(stds):.3f}",
                f"{largest.std:.3f} ({largest.name})",
                f"{smallest.std:.3f} ({smallest.name})",
            )
        )
    headers = ("network", "architecture", "images", "3x3 layers", "mean std", "median std", "largest", "smallest")
    return tabulate(rows, headers, "simple", disable_numparse=True)


def write_responses(responses: Sequence[Responses], folder: Path) -> tuple[Path, Path]:
    """Write ``responses.csv``, a line a layer, and ``responses.png``, and return their paths."""
    table, picture = folder / "responses.csv", folder / "responses.png"
    write_text(table, _csv(responses))
    plot_responses(responses, picture)
    return table, picture


def _csv(responses: Sequence[Responses]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("network", "arch", "images", "index", "layer", "mean", "std", "rank"))  # both counted from 1
    for one in responses:
        ranks = {layer.name: rank for rank, layer in enumerate(one.by_magnitude, start=1)}
        for index, layer in enumerate(one.layers, start=1):
            numbers = (layer.mean, layer.std, ranks[layer.name])
            writer.writerow((one.name, one.arch, one.num_images, index, layer.name, *numbers))
    return file.getvalue()


def plot_responses(responses: Sequence[Responses], path: Path) -> None:
    """Draw all networks, as Figure 7: layers in their order above, sorted below; those without shortcuts dashed."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 6.4), layout="constrained")
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
            plain(axes)
        figure.legend(loc="outside lower center", ncols=min(3, len(responses)), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
