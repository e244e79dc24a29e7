"""Writing a comparison: one HTML page for a browser, Markdown, and JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from tabulate import tabulate

from resnet_backbone.compare.compare import Comparison, Measured
from resnet_backbone.compare.plots import (
    class_gain_plots,
    curve_plots,
    error_plots,
    gain_plots,
    training_plots,
)
from resnet_backbone.compare.runs import FinishedRun
from resnet_backbone.compare.sentences import (
    arrows,
    beside_the_paper,
    class_sentence,
    gain_word,
    is_clear,
    level_text,
    number,
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
    Cell,
    Table,
    all_tables,
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
from resnet_backbone.metrics.paper import gain

JPEG_QUALITY = 82


@dataclass(frozen=True)
class Tile:
    """One of the large figures on top."""

    label: str
    value: str
    note: str
    tone: str = ""  # "good", "bad" or ""


def render_page(comparison: Comparison) -> str:
    """Return the page as HTML. Names from configs, files and command lines are escaped."""
    package = files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": (package / "page.html.j2").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": _svg_uri, "jpeg": _jpeg_uri}
    facts = comparison.runs[0].facts
    return environment.get_template("page").render(
        style=(package / "page.css").read_text(encoding="utf-8"),
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
    figure = "AP" if "AP" in before.figures else "mAP"
    won_there = gain(before.figures[figure], after.figures[figure])
    note = f"{figure}, {percent(won_there.relative)}; {before.network} to {after.network}, {arrows(before.data)}"
    tiles.append(Tile("gain in the paper", signed(won_there.absolute), note))
    return tiles


def _svg_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _jpeg_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


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
