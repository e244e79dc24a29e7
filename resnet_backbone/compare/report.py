"""Writing a comparison: one HTML page for a browser, and JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from resnet_backbone.compare.compare import Comparison, Measured
from resnet_backbone.compare.plots import (
    class_gain_plots,
    curve_plots,
    error_plots,
    gain_plots,
    training_plots,
)
from resnet_backbone.compare.sentences import (
    arrows,
    beside_the_paper,
    class_sentence,
    gain_word,
    is_clear,
    level_text,
    number,
    paper_gain,
    paper_pair,
    paper_sentence,
    percent,
    signed,
    signed_span,
    small_print,
    span,
    verdicts,
)
from resnet_backbone.compare.tables import (
    PageTable,
    class_tables,
    condition_table,
    cost_table,
    difference_table,
    error_table,
    figure_tables,
    paper_table,
    shared_table,
)
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.page import render_page


@dataclass(frozen=True)
class Tile:
    """One of the large figures on top."""

    label: str
    value: str
    note: str
    tone: str = ""  # "good", "bad" or ""


def comparison_page(comparison: Comparison) -> str:
    """Return the page as HTML. Names from configs, files and command lines are escaped."""
    facts = comparison.runs[0].facts
    return render_page(
        __package__,
        "page.html.j2",
        title=f"{' and '.join(run.name for run in comparison.runs)} on {facts.dataset}",
        dataset=facts.dataset,
        num_images=facts.num_images,
        runs=comparison.runs,
        verdicts=verdicts(comparison),
        tiles=_tiles(comparison),
        small_print=small_print(comparison),
        paper_sentence=paper_sentence(comparison) if beside_the_paper(comparison) else "",
        class_sentence=class_sentence(comparison),
        cautions=comparison.cautions,
        figures=figure_tables(comparison),
        paper=paper_table(comparison) if beside_the_paper(comparison) else None,
        classes=class_tables(comparison),
        errors=error_table(comparison),
        cost=cost_table(comparison),
        shared=shared_table(comparison),
        differences=difference_table(comparison),
        conditions=condition_table(comparison),
        settings=comparison.settings,
        gain_plots=gain_plots(comparison),
        class_gain_plots=class_gain_plots(comparison),
        curve_plots=curve_plots(comparison),
        error_plots=error_plots(comparison),
        training_plots=training_plots(comparison),
        gallery=comparison.gallery,
    )


def _tiles(comparison: Comparison) -> list[Tile]:
    """AP of every run, the gains over the first, and the paper's where the backbones differ."""
    bootstrap = comparison.main.bootstrap
    level = level_text(bootstrap.level)
    tiles = []
    for run, of_run in zip(comparison.runs, bootstrap.runs, strict=True):
        value = of_run.figures["AP"]
        tiles.append(Tile(run.name, number(value.value), f"AP; {level}: {span(value)}"))
    for run, of_run in list(zip(comparison.runs, bootstrap.runs, strict=True))[1:]:
        won = of_run.gains["AP"]
        tone = ("good" if won.difference.value > 0 else "bad") if is_clear(won) else ""
        word = gain_word([won])
        label = word if len(comparison.runs) == 2 else f"{word} of {run.name}"
        note = f"AP, {percent(won.relative.value)}; {level}: {signed_span(won.difference)}"
        tiles.append(Tile(label, signed(won.difference.value), note, tone))
    if not beside_the_paper(comparison):
        return tiles
    before, after = paper_pair(comparison)
    figure, won_there = paper_gain(comparison)
    note = f"{figure}, {percent(won_there.relative)}; {before.network} to {after.network}, {arrows(before.data)}"
    tiles.append(Tile("gain in the paper", signed(won_there.absolute), note))
    return tiles


@dataclass(frozen=True)
class Written:
    page: Path
    json: Path


def write_comparison(comparison: Comparison, folder: Path) -> Written:
    """Write ``index.html`` and ``comparison.json`` into ``folder``, which is made if it must be.

    The page needs nothing but itself: plots and pictures are in it.
    """
    written = Written(folder / "index.html", folder / "comparison.json")
    write_text(written.page, comparison_page(comparison))
    write_text(written.json, json.dumps(to_dict(comparison), indent=2, allow_nan=False) + "\n")
    return written


def summary(comparison: Comparison) -> str:
    """A short text for the terminal: the figures, and the result in a sentence."""
    tables = [_text_table(table) for table in figure_tables(comparison)]
    warnings = [f"warning: {caution}" for caution in comparison.cautions]
    return "\n\n".join([*tables, "\n".join([*warnings, *verdicts(comparison)])])


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
    return _plain(
        {
            "dataset": facts.dataset,
            "num_images": facts.num_images,
            "class_names": facts.class_names,
            "baseline": comparison.runs[0].name,
            "verdicts": verdicts(comparison),
            "cautions": comparison.cautions,
            "paper": paper if beside_the_paper(comparison) else None,
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
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
    return {
        "bootstrap": {
            "samples": measured.bootstrap.samples,
            "seed": measured.bootstrap.seed,
            "level": measured.bootstrap.level,
        },
        "num_objects": measured.num_objects,
        "runs": {
            run.name: {
                "figures": {key: asdict(interval) for key, interval in of_run.figures.items()},
                "gains": {key: asdict(gain) for key, gain in of_run.gains.items()},
                "precision_recall": {
                    f"{iou}": {"recall": curves[index].recall, "mean": curves[index].mean}
                    for iou, curves in measured.curves.items()
                },
                "errors": asdict(measured.errors[index]),
            }
            for index, (run, of_run) in enumerate(zip(comparison.runs, measured.bootstrap.runs, strict=True))
        },
    }


def _plain(value: Any) -> Any:
    """For JSON, which has neither arrays of NumPy nor nan."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _text_table(table: PageTable) -> str:
    rows = [[_one_line(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in row] for row in table.rows]
    headers = [_one_line(column) for column in table.columns]
    alignment = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers=headers, tablefmt="simple", colalign=alignment, disable_numparse=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
