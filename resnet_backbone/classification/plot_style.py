"""What the plots of several networks have in common: their colours, and axes without ornament."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from resnet_backbone.evaluation.comparison.plots import LIGHT

STYLE: Any = {"text.parse_math": False, "font.size": 10}  # names are names, also with a dollar in them


def colors(count: int) -> list[str]:
    """Return ``count`` colours: those of the comparison's page, which colour-blind readers tell apart, while they last.

    Those of more than they are, up to twenty, are told apart by most readers; then they begin again.
    """
    if count <= len(LIGHT.runs):
        return list(LIGHT.runs[:count])
    many = matplotlib.colormaps["tab20"]
    return [to_hex(many(index % many.N)) for index in range(count)]


def plain(axes: Axes) -> None:
    """Begin both axes at 0, with a grid and no frame."""
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color=LIGHT.grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
