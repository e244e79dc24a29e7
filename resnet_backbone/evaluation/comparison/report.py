"""Writes a comparison down: one page for a browser, Markdown for a text, JSON for a program."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from resnet_backbone.evaluation.comparison.compare import Comparison
from resnet_backbone.evaluation.comparison.measure import Measured
from resnet_backbone.evaluation.comparison.page import render_page
from resnet_backbone.evaluation.comparison.runs import FinishedRun
from resnet_backbone.evaluation.comparison.tables import Cell, Table, all_tables, figure_tables
from resnet_backbone.evaluation.comparison.words import (
    beside_the_paper,
    paper_pair,
    paper_sentence,
    small_print,
    verdicts,
)
from resnet_backbone.files.whole import write_text


@dataclass(frozen=True)
class Written:
    page: Path
    markdown: Path
    json: Path


def write_comparison(comparison: Comparison, folder: Path) -> Written:
    """Write ``index.html``, ``comparison.md`` and ``comparison.json`` into ``folder``, which is made if it must be.

    The page needs nothing but itself: plots and pictures are in it.
    """
    written = Written(folder / "index.html", folder / "comparison.md", folder / "comparison.json")
    write_text(written.page, render_page(comparison))
    write_text(written.markdown, render_markdown(comparison))
    write_text(written.json, json.dumps(to_dict(comparison), indent=2, allow_nan=False) + "\n")
    return written


def summary(comparison: Comparison) -> str:
    """A short text for the terminal: the figures, and the result in a sentence."""
    tables = [_text_table(table, "simple") for table in figure_tables(comparison)]
    warnings = [f"warning: {caution}" for caution in comparison.cautions]
    return "\n\n".join([*tables, "\n".join([*warnings, *verdicts(comparison)])])


def render_markdown(comparison: Comparison) -> str:
    """Every table, with the sentences around them. Plots and pictures are in the page only."""
    facts = comparison.runs[0].facts
    parts = [
        f"# Comparison on {_escaped(facts.dataset)}",
        *(f"**{_escaped(sentence)}**" for sentence in verdicts(comparison)),
        _escaped(small_print(comparison)),
        *([_escaped(paper_sentence(comparison))] if beside_the_paper(comparison) else []),
    ]
    if comparison.cautions:
        parts.append("\n".join(f"- {_escaped(caution)}" for caution in comparison.cautions))
    for table in [*all_tables(comparison), gallery_table(comparison)]:
        parts += [
            f"## {_escaped(table.title)}",
            _text_table(table, "pipe"),
            *([_escaped(table.sentence)] if table.sentence else []),
        ]
    return "\n\n".join(parts) + "\n"


def gallery_table(comparison: Comparison) -> Table:
    """What the runs find on the images that are drawn in the page."""
    rows = [(Cell(one.file_name), *(Cell(panel.caption) for panel in one.panels)) for one in comparison.gallery]
    columns = ("image", "Ground truth", *(run.name for run in comparison.runs))
    return Table("gallery", "Where the runs differ most", columns, tuple(rows), numeric=False)


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Every number of the comparison in plain values; percent where the page has percent, None where there is none."""
    facts = comparison.runs[0].facts
    return _plain(
        {
            "dataset": facts.dataset,
            "num_images": facts.num_images,
            "class_names": facts.class_names,
            "baseline": comparison.runs[0].name,
            "verdicts": verdicts(comparison),
            "cautions": comparison.cautions,
            "paper": _paper_to_dict(comparison) if beside_the_paper(comparison) else None,
            "runs": [_run_to_dict(run) for run in comparison.runs],
            "measured": {
                kind: _measured_to_dict(comparison, measured) for kind, measured in comparison.measured.items()
            },
            "settings": {
                "shared": comparison.settings.shared,
                "differences": [asdict(difference) for difference in comparison.settings.differences],
                "num_equal": comparison.settings.num_equal,
                "not_compared": comparison.settings.not_compared,
            },
            "pictures": [
                {
                    "image_id": one.image_id,
                    "file_name": one.file_name,
                    "objects": one.panels[0].hits,
                    "runs": {
                        panel.title: {"hits": panel.hits, "false_alarms": panel.false_alarms}
                        for panel in one.panels[1:]
                    },
                }
                for one in comparison.gallery
            ],
        }
    )


def _paper_to_dict(comparison: Comparison) -> dict[str, Any]:
    before, after = paper_pair(comparison)
    return {
        "source": before.source,
        "data": before.data,
        before.network: before.figures,
        after.network: after.figures,
    }


def _run_to_dict(run: FinishedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "arch": run.arch,
        "facts": asdict(run.facts),
        "recorded": run.figures,
        "training": asdict(run.training) if run.training else None,
    }


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


def _text_table(table: Table, style: str) -> str:
    escape = _escaped if style == "pipe" else _one_line
    rows = [[escape(f"{cell.text} ({cell.note})" if cell.note else cell.text) for cell in row] for row in table.rows]
    alignment = ["left", *(["right" if table.numeric else "left"] * (len(table.columns) - 1))]
    headers = [escape(column) for column in table.columns]
    return tabulate(rows, headers=headers, tablefmt=style, colalign=alignment if rows else None, disable_numparse=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """Names are text in Markdown, too: no HTML, no links, no new column."""
    text = _one_line(text)
    for mark in ("\\", "`", "*", "_", "[", "]", "|"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
