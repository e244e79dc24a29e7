"""Parameters and multiply-adds of every network beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from resnet_backbone.metrics.paper import paper_rows
from resnet_backbone.models.complexity import Complexity, StageComplexity, build_on_meta, complexity, usual_size
from resnet_backbone.models.registry import list_models
from resnet_backbone.weights.architecture import has_bottlenecks

HEADERS = ("network", "options", "pixels", "parameters, M", "multiply-adds, G", "activations, M") + (
    "the paper", "difference",
)  # fmt: skip
EXPLANATION = """\
For one image. Multiply-adds are those of convolutions and matrix products; activations are what convolutions and linear
layers return. Difference: ours from the figure that the paper prints (Table 1 and its text, Table 6), in percent of it.
Without options networks are as in torchvision: projections (option B) in ResNet-18 and 34, the stride of bottlenecks in
the 3x3. With the paper's options its figures are ours rounded, but for ResNet-50's, which is truncated, and VGG-16's,
which is of the convolutions alone (VGG-19's is not)."""
NOTHING = "-"


@dataclass(frozen=True)
class ComplexityRow:
    """One network with some options."""

    options: Mapping[str, str | bool]  # of create_model, apart from what the architecture has without any
    cost: Complexity  # what we count
    # the paper's figure, billions of multiply-adds, or millions of parameters where counts_parameters; None where
    # the paper prints none
    printed: float | None
    counts_parameters: bool  # the paper counts the parameters of CIFAR's networks, and the multiply-adds of ImageNet's

    @property
    def arch(self) -> str:
        """Name in the registry."""
        return self.cost.arch

    @property
    def ours(self) -> float:
        """What is compared with the paper's figure: millions of parameters, or billions of multiply-adds."""
        return self.cost.parameters / 1e6 if self.counts_parameters else self.cost.multiply_adds / 1e9

    @property
    def difference(self) -> float | None:
        """Ours from the paper's figure, in percent of it; None without one."""
        return None if self.printed is None else 100 * (self.ours / self.printed - 1)

    def cells(self) -> tuple[str, ...]:
        """What stands below :data:`HEADERS`."""
        unit = "M parameters" if self.counts_parameters else "G"
        return (
            self.arch,
            ", ".join(f"{name}={value}" for name, value in self.options.items()) or NOTHING,
            str(self.cost.size[0]),
            f"{self.cost.parameters / 1e6:.3f}",
            f"{self.cost.multiply_adds / 1e9:.3f}",
            f"{self.cost.activations / 1e6:.2f}",
            NOTHING if self.printed is None else f"{self.printed} {unit}",
            NOTHING if self.difference is None else f"{self.difference:+.1f} %",
        )


def complexity_rows() -> list[ComplexityRow]:
    """Count every network of the registry; those that the paper has with other options than ours, with these, too."""
    return [complexity_row(arch, options) for arch in list_models() for options in _options(arch)]


def table_text(rows: Sequence[ComplexityRow], *, markdown: bool = False) -> str:
    """Return the table for a terminal, or as Markdown."""
    cells = [row.cells() for row in rows]
    style = "github" if markdown else "simple"
    table = tabulate(cells, HEADERS, style, disable_numparse=True, colalign=_align(len(HEADERS)))
    return f"{table}\n\n{EXPLANATION}"


def stages_text(cost: Complexity) -> str:
    """Return one network's stages for a terminal."""
    headers = ("stage", "output", "parameters", "multiply-adds, M", "activations, M")
    parts: list[tuple[str, str, StageComplexity | Complexity]] = [
        (stage.name, " x ".join(map(str, stage.output_size)), stage) for stage in cost.stages
    ]
    rows = [
        (name, output, f"{part.parameters:,}", f"{part.multiply_adds / 1e6:,.2f}", f"{part.activations / 1e6:.3f}")
        for name, output, part in [*parts, ("total", "", cost)]
    ]
    table = tabulate(rows, headers, "simple", disable_numparse=True, colalign=_align(len(headers)))
    height, width = cost.size
    return f"{cost.arch}, one image of {height} x {width} pixels\n\n{table}"


def complexity_row(arch: str, options: Mapping[str, str | bool]) -> ComplexityRow:
    """Count one network, built with ``options`` of ``create_model``."""
    cost = complexity(build_on_meta(arch, **options), usual_size(arch))
    counts_parameters = arch.startswith("cifar_")
    table, figure = (6, "parameters") if counts_parameters else (1, "multiply_adds")
    printed = next((getattr(row, figure) for row in paper_rows(table) if row.arch == arch), None)
    return ComplexityRow(dict(options), cost, printed, counts_parameters)


def _options(arch: str) -> list[dict[str, str | bool]]:
    """Return no options, and those of the paper where they differ from what ``create_model`` takes without any."""
    if has_bottlenecks(arch):
        return [{}, {"stride_in_1x1": True}]
    return [{}, {"shortcut": "A"}] if arch in ("resnet18", "resnet34") else [{}]


def _align(columns: int) -> tuple[str, ...]:
    """Two texts to the left, the numbers behind them to the right."""
    return ("left",) * 2 + ("right",) * (columns - 2)
