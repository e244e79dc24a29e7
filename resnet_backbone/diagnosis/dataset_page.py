"""The page: every finding with small pictures of its examples, in one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import torch
from PIL import Image

from resnet_backbone.data.findings import Example, Finding
from resnet_backbone.data.images import read_image
from resnet_backbone.diagnosis.dataset_check import CheckedSet
from resnet_backbone.evaluation.drawing import draw_objects, tinted

LONG_SIDE = 360  # pixels, of a picture
JPEG_QUALITY = 82
_LOOK = "resnet_backbone.evaluation.comparison"  # its page.css is that of all pages
_BADGES = {"stop": "bad", "drop": "warning", "fix": "warning", "keep": "quiet"}
_WORDS = {"stop": "stops", "drop": "left out", "fix": "repaired", "keep": "kept"}


@dataclass(frozen=True)
class Photo:
    """A picture of an example, or why there is none."""

    caption: str
    uri: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class _Marks:
    """What is drawn on an image."""

    corners: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 4))  # (N, 4), x1 y1 x2 y2 in pixels
    labels: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # (N,)
    texts: Sequence[str] = ()  # N


@dataclass(frozen=True)
class Entry:
    """One finding on the page."""

    finding: Finding
    badge: str
    word: str
    photos: list[Photo]
    lines: list[str]  # examples without a picture


def render_page(verdict: str, sets: Sequence[tuple[str, CheckedSet, Sequence[Finding]]]) -> str:
    """Return the page as HTML; everything that comes from the data is escaped.

    Args:
        verdict: the heading.
        sets: a line about each data set, the set, and its findings in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": (files(__package__) / "dataset_page.html.j2").read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = [(line, one, [_entry(finding, one) for finding in found]) for line, one, found in sets]
    return environment.get_template("page").render(
        style=(files(_LOOK) / "page.css").read_text(encoding="utf-8"), verdict=verdict, sets=parts
    )


def _entry(finding: Finding, one: CheckedSet) -> Entry:
    photos, lines = [], []
    for example in finding.examples:
        if example.file_name is None or finding.key == "missing_image":
            lines.append(example.line())
            continue
        path = one.what.image_folder / example.file_name
        photos.append(_photo(path, _size(example, one), _marks(example, one), example.line()))
        if example.twin is not None:
            photos.append(_photo(example.twin, None, _Marks(), str(example.twin)))
    return Entry(finding, _BADGES[finding.action], _WORDS[finding.action], photos, lines)


def _rows(example: Example, one: CheckedSet) -> np.ndarray:
    """The images of the set's table that have the example's id."""
    if one.checked is None:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(one.checked.table.image_ids == example.image_id)


def _size(example: Example, one: CheckedSet) -> tuple[int, int] | None:
    """Height and width of the annotation file, which say in which frame its boxes are."""
    rows = _rows(example, one)
    if one.checked is None or not len(rows):
        return None
    height, width = one.checked.table.sizes[rows[0]].tolist()
    return height, width


def _marks(example: Example, one: CheckedSet) -> _Marks:
    """The box that is meant; where an image is meant, all of its boxes that are used."""
    if example.box is not None:
        x, y, width, height = example.box
        corners = torch.tensor([[x, y, x + width, y + height]], dtype=torch.float64)
        return _Marks(corners, torch.zeros(1, dtype=torch.int64), ("here",)) if corners.isfinite().all() else _Marks()
    checked, rows = one.checked, _rows(example, one)
    if checked is None or not len(rows):
        return _Marks()
    own = checked.used & (checked.image_rows == rows[0])
    labels = torch.from_numpy(checked.labels[own])
    return _Marks(torch.from_numpy(checked.corners[own]), labels, [checked.class_names[label] for label in labels])


def _photo(path: Path, size: tuple[int, int] | None, marks: _Marks, caption: str) -> Photo:
    """An image in the frame of its annotations where it has their size, else upright."""
    try:
        try:
            pixels = read_image(path, size)
        except ValueError:
            pixels = read_image(path)
    except (OSError, ValueError) as error:
        return Photo(caption if str(error) in caption else f"{caption}. No picture: {error}")
    picture = tinted(pixels, None, marks.labels)
    drawn = draw_objects(picture, marks.corners, marks.labels, marks.texts, LONG_SIDE / max(picture.size))
    return Photo(caption, _jpeg_uri(drawn), drawn.width, drawn.height)


def _jpeg_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
