"""HTML pages that are one file: a filled template with the style of all pages (``page.css``) and pictures inside."""

from __future__ import annotations

import base64
import io
from importlib.resources import files

import jinja2
from PIL import Image

JPEG_QUALITY = 82


def render_page(package: str, template: str, **values: object) -> str:
    """Return a page. What the values say is escaped; the filters ``svg`` and ``jpeg`` make addresses of pictures.

    Args:
        package: that has the template, such as ``resnet_backbone.compare``.
        template: its file name.
        values: that it names.
    """
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": (files(package) / template).read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"svg": _svg_uri, "jpeg": _jpeg_uri}
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    return environment.get_template("page").render(style=style, **values)


def _svg_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode('ascii')}"


def _jpeg_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
