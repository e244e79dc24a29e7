"""The page: plots as SVG, pictures as JPEG, all of it inside one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib.resources import files

import jinja2
from PIL import Image

from resnet_backbone.evaluation.comparison.compare import Comparison
from resnet_backbone.evaluation.comparison.plots import (
    class_gain_plots,
    curve_plots,
    error_plots,
    gain_plots,
    training_plots,
)
from resnet_backbone.evaluation.comparison.tables import (
    class_tables,
    condition_table,
    cost_table,
    difference_table,
    error_table,
    figure_tables,
    paper_table,
    shared_table,
)
from resnet_backbone.evaluation.comparison.words import (
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
from resnet_backbone.evaluation.paper import gain

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
