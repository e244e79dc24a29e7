"""Writing a comparison: one HTML page for a browser, JSON, and a short text for the terminal."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from resnet_backbone.compare.compare import Comparison, Measured, ReadImage, compare_runs
from resnet_backbone.compare.plots import class_gain_plots, curve_plots, error_plot, gain_plots, training_plots
from resnet_backbone.compare.runs import EvaluatedRun, evaluate_command, one_backbone, test_sets, train_command
from resnet_backbone.compare.tables import (
    Cell,
    PageTable,
    class_tables,
    condition_table,
    confusion_table,
    cost_table,
    difference_table,
    error_table,
    figure_tables,
    is_clear,
    level_text,
    number,
    paper_pair,
    paper_table,
    shared_table,
    signed,
    signed_percent,
    signed_span,
    tone_of,
)
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.bootstrap import GainInterval
from resnet_backbone.metrics.page import render_page


@dataclass(frozen=True)
class Written:
    """The files of a comparison."""

    page: Path
    json: Path


def write_run_pages(folder: Path, *, read_image: ReadImage, data_root: Path | None = None) -> list[Path]:
    """Write the page of a finished run into its folder: ``index.html``; of several test sets each into its own.

    Args:
        folder: OUTPUT_DIR.
        read_image, data_root: see :func:`~resnet_backbone.compare.compare.compare_runs`.

    Returns:
        The pages; none where nothing was tested.

    Raises:
        FileNotFoundError, OSError, ValueError: see ``compare_runs``, or a page cannot be written.
    """
    pages = []
    tested = test_sets(folder)
    for name in tested:
        place = folder if len(tested) == 1 else folder / "inference" / name
        look = compare_runs([folder], read_image=read_image, dataset=name, data_root=data_root)
        write_text(place / "index.html", comparison_page(look))
        pages.append(place / "index.html")
    return pages


def write_comparison(comparison: Comparison, folder: Path) -> Written:
    """Write ``index.html`` and ``comparison.json`` into ``folder``, which is made if it must be.

    The page needs nothing but itself: plots and pictures are in it.
    """
    written = Written(folder / "index.html", folder / "comparison.json")
    write_text(written.page, comparison_page(comparison))
    write_text(written.json, json.dumps(to_dict(comparison), indent=2, allow_nan=False) + "\n")
    return written


def comparison_page(comparison: Comparison) -> str:
    """Return the page as HTML. Names from configs, files and command lines are escaped."""
    main = comparison.main
    single = len(comparison.runs) == 1
    return render_page(
        __package__,
        "page.html.j2",
        dataset=comparison.runs[0].facts.dataset,
        num_images=comparison.runs[0].facts.num_images,
        runs=comparison.runs,
        verdicts=verdicts(comparison),
        tiles=_tiles(comparison),
        bootstrap=main.bootstrap,
        level=level_text(main.bootstrap.level),
        classes_by_chance=(1 - main.bootstrap.level) * len(main.class_names),
        cautions=comparison.cautions,
        figures=figure_tables(comparison),
        paper=None if single or one_backbone(comparison.runs) else paper_table(comparison),
        classes=class_tables(comparison),
        errors=error_table(comparison),
        cost=cost_table(comparison),
        shared=shared_table(comparison),
        differences=difference_table(comparison),
        conditions=condition_table(comparison),
        settings=comparison.settings,
        confusion=None if main.confusion is None else confusion_table(main.confusion, main.class_names),
        commands=_commands(comparison.runs[0]) if single else {},
        gain_plots=[] if single else gain_plots(comparison),
        class_gain_plots=[] if single else class_gain_plots(comparison),
        curve_plots=curve_plots(comparison),
        error_plot=error_plot(comparison),
        training_plots=training_plots(comparison),
        gallery=comparison.gallery,
    )


def _commands(run: EvaluatedRun) -> dict[str, str]:
    """Return how to go on with a run: what for, and the command."""
    folder, other = shlex.quote(str(run.folder)), shlex.quote(f"{run.folder}_2")
    commands = {
        "see it on other images": f"resnet-backbone predict --run {folder} --input photo.jpg",
        "evaluate it again": evaluate_command(run.folder, run.settings),
        "take it elsewhere, as ONNX": f"resnet-backbone export --run {folder} --output detector.onnx",
        "try another setting": f"{train_command(run.folder, run.settings)} OUTPUT_DIR {other} KEY VALUE",
        "compare both": f"resnet-backbone compare {folder} {other}",
    }
    if run.facts.engine == "detectron2":  # which has its own export
        del commands["take it elsewhere, as ONNX"]
    return commands


def summary(comparison: Comparison) -> str:
    """A short text for the terminal: the figures, and the result in a sentence."""
    tables = [_text_table(table) for table in figure_tables(comparison)]
    warnings = [f"warning: {caution}" for caution in comparison.cautions]
    return "\n\n".join([*tables, "\n".join([*warnings, *verdicts(comparison)])])


def _text_table(table: PageTable) -> str:
    def one_line(text: str) -> str:
        return " ".join(text.split())

    rows = [[one_line(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in row] for row in table.rows]
    headers = [one_line(column) for column in table.columns]
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers=headers, tablefmt="simple", colalign=alignment, disable_numparse=True)


def verdicts(comparison: Comparison) -> list[str]:
    """One honest sentence for every run after the first; of one run alone, what it reaches."""
    bootstrap = comparison.main.bootstrap
    if len(comparison.runs) == 1:
        (run,), value = comparison.runs, bootstrap.runs[0].figures["AP"]
        if math.isnan(value.value):
            return [f"{run.facts.dataset} has no object to find: nothing can be said of {run.name}."]
        return [f"{run.name} reaches {number(value.value)} AP on {run.facts.dataset}."]
    pairs = zip(comparison.runs, bootstrap.runs, strict=True)
    first, _ = next(pairs)
    return [_verdict(run.name, first.name, one.gains["AP"], level_text(bootstrap.level)) for run, one in pairs]


def _verdict(name: str, first: str, won: GainInterval, level: str) -> str:
    difference = won.difference
    if math.isnan(difference.value):
        return f"Nothing can be said of {name} and {first}: the test set has no object to find."
    if difference.low == difference.high == 0:
        return f"{name} and {first} reach exactly the same AP."
    if difference.low == difference.high:
        return f"Nothing can be said of {name} and {first}: too few test images, or resamples, for an interval."
    if won.over_seeds is not None:
        spans = f"{level} over the images: {signed_span(difference)}; over the seeds: {signed_span(won.over_seeds)}"
        if not is_clear(won):
            return f"No difference can be told between {name} and {first}: {signed(difference.value)} AP ({spans})."
        word = "better" if difference.value > 0 else "worse"
        size = number(abs(difference.value))
        return f"{name} is {word} than {first} by {size} AP, the mean of {len(won.by_seed)} seeds ({spans})."
    if not is_clear(won):
        return (
            f"No difference can be told between {name} and {first}: {signed(difference.value)} AP, and "
            f"the {level} interval, {signed_span(difference)}, includes zero."
        )
    word = "better" if difference.value > 0 else "worse"
    low, high = sorted((abs(difference.low), abs(difference.high)))
    digits = 1 if low >= 0.05 else 2
    size, *bounds = (number(value, digits) for value in (abs(difference.value), low, high))
    return f"{name} is {word} than {first} by {size} AP ({level}: {' to '.join(bounds)})."


def _tiles(comparison: Comparison) -> list[tuple[str, Cell]]:
    """The large figures on top, with what they are: AP of every run, and the gains over the first."""
    bootstrap = comparison.main.bootstrap
    level = level_text(bootstrap.level)
    aps, gains = [], []
    for run, of_run in zip(comparison.runs, bootstrap.runs, strict=True):
        value = of_run.figures["AP"]
        seeds = f", mean of {_by_seed(of_run.by_seed['AP'], number)}" if run.other_seeds else ""
        note = f"AP{seeds}; {level}: {number(value.low)} to {number(value.high)}"
        aps.append((run.name, Cell(number(value.value), note)))
        if won := of_run.gains.get("AP"):
            label = "difference" if len(comparison.runs) == 2 else f"difference of {run.name}"
            note = f"AP, {signed_percent(won.relative.value)}; {level}: {signed_span(won.difference)}"
            if won.over_seeds:
                seeds = f"{signed_span(won.over_seeds)} ({_by_seed(won.by_seed, signed)})"
                note += f" over the images, {seeds} over the seeds"
            gains.append((label, Cell(signed(won.difference.value), note, tone_of(won))))
    if len(comparison.runs) == 1:
        own = bootstrap.runs[0].figures
        notes = {"AP50": "an overlap of 0.5 is enough", "AP75": "an overlap of 0.75 is needed"}
        gains = [(figure, Cell(number(own[figure].value), note)) for figure, note in notes.items()]
    return aps + gains


def _by_seed(values: Sequence[float], text: Callable[[float], str]) -> str:
    return ", ".join(map(text, values))


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Every number of the comparison in plain values; percent where the page has percent, None where there is none."""
    facts = comparison.runs[0].facts
    before, after = paper_pair(comparison)
    paper = {
        "source": before.source,
        "data": before.data,
        before.network: before.figures,
        after.network: after.figures,
    }
    return _plain_values(
        {
            "dataset": facts.dataset,
            "num_images": facts.num_images,
            "class_names": facts.class_names,
            "baseline": comparison.runs[0].name,
            "verdicts": verdicts(comparison),
            "cautions": comparison.cautions,
            "paper": None if one_backbone(comparison.runs) else paper,
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
                    "other_seeds": [str(other.folder) for other in run.other_seeds],
                    "arch": run.arch,
                    "facts": asdict(run.facts),
                    "recorded": run.figures,
                    "training": asdict(run.training) if run.training else None,
                }
                for run in comparison.runs
            ],
            "measured": {
                kind: _measured_to_dict(comparison, measured) for kind, measured in comparison.measured.items()
            },
            "settings": asdict(comparison.settings),
            "pictures": [
                {
                    "image_id": one.image_id,
                    "file_name": one.file_name,
                    "objects": one.panels[0].true_positives,
                    "runs": {
                        panel.title: {"hits": panel.true_positives, "false_alarms": panel.false_positives}
                        for panel in one.panels[1:]
                    },
                }
                for one in comparison.gallery
            ],
        }
    )


def _measured_to_dict(comparison: Comparison, measured: Measured) -> dict[str, Any]:
    bootstrap = measured.bootstrap
    return {
        "bootstrap": {"samples": bootstrap.samples, "seed": bootstrap.seed, "level": bootstrap.level},
        "num_objects": measured.num_objects,
        "runs": {
            run.name: {
                "figures": {key: asdict(interval) for key, interval in of_run.figures.items()},
                "by_seed": of_run.by_seed,
                "gains": {key: asdict(won) for key, won in of_run.gains.items()},
                "precision_recall": {
                    f"{iou}": {"recall": curves[index].recall, "mean": curves[index].mean}
                    for iou, curves in measured.curves.items()
                },
                "errors": asdict(measured.errors[index]),
            }
            for index, (run, of_run) in enumerate(zip(comparison.runs, bootstrap.runs, strict=True))
        },
    }


def _plain_values(value: Any) -> Any:
    """For JSON, which has neither arrays of NumPy nor nan."""
    if isinstance(value, dict):
        return {str(key): _plain_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_values(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain_values(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
