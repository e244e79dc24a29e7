"""Parameters and multiply-adds of every network beside the paper's, and what explains a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from tabulate import tabulate

from resnet_backbone.metrics.paper import paper_rows
from resnet_backbone.models.complexity import Complexity, StageComplexity, build_on_meta, complexity, usual_size
from resnet_backbone.models.registry import list_models
from resnet_backbone.weights.architecture import has_bottlenecks

HEADERS = ("network", "options", "pixels", "parameters, M", "multiply-adds, G", "activations, M") + (
    "the paper", "difference", "note",
)  # fmt: skip
EXPLANATION = """\
For one image. Multiply-adds are those of convolutions and matrix products; activations are what convolutions and linear
layers return. Difference: ours from the figure that the paper prints (Table 1 and its text, Table 6), in percent of it.
With the paper's own options, A in ResNet-18 and 34 and the stride in the first 1x1 of bottlenecks, its figures are ours
rounded. Two are not: ResNet-50's is truncated, and VGG-16's leaves out fc6 to fc8, which VGG-19's has."""
NOTHING = "-"


@dataclass(frozen=True)
class ComplexityRow:
    """One network with some options.

    Attributes:
        options: of ``create_model``, apart from what the architecture has without any.
        cost: what we count.
        printed: the paper's figure, billions of multiply-adds, or millions of parameters where ``counts_parameters``;
            None where the paper prints none.
        counts_parameters: the paper counts the parameters of CIFAR's networks, and the multiply-adds of ImageNet's.
        note: where a difference comes from.
    """

    options: Mapping[str, str | bool]
    cost: Complexity
    printed: float | None
    counts_parameters: bool
    note: str

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
            self.note,
        )


def complexity_rows() -> list[ComplexityRow]:
    """Count every network of the registry; those that the paper has with other options than ours, with these, too."""
    return [complexity_row(arch, options) for arch in list_models() for options in _options(arch)]


def table_text(rows: Sequence[ComplexityRow], *, markdown: bool = False) -> str:
    """Return the table for a terminal, or as Markdown."""
    cells = [row.cells() for row in rows]
    style, alignment = "github" if markdown else "simple", (*_align(2, 8), "left")
    table = tabulate(cells, HEADERS, style, disable_numparse=True, colalign=alignment)
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
    table = tabulate(rows, headers, "simple", disable_numparse=True, colalign=_align(2, len(headers)))
    height, width = cost.size
    return f"{cost.arch}, one image of {height} x {width} pixels\n\n{table}"


def printed_how(value: float, printed: float) -> str:
    """Say how ``value`` is ``printed``: ``"rounded"``, ``"truncated"``, ``"either way"``; ``""`` for another number.

    With 3.8 printed, 3.75 is rounded, 3.8 either way, 3.86 truncated, and 3.9 is another number.
    """
    digits = Decimal(str(printed))
    rounded = Decimal(str(value)).quantize(digits, ROUND_HALF_UP) == digits
    truncated = Decimal(str(value)).quantize(digits, ROUND_DOWN) == digits
    if rounded and truncated:
        return "either way"
    return "rounded" if rounded else "truncated" if truncated else ""


def complexity_row(arch: str, options: Mapping[str, str | bool]) -> ComplexityRow:
    """Count one network, built with ``options`` of ``create_model``."""
    cost = complexity(build_on_meta(arch, **options), usual_size(arch))
    counts_parameters = arch.startswith("cifar_")
    table, figure = (6, "parameters") if counts_parameters else (1, "multiply_adds")
    printed = next((getattr(row, figure) for row in paper_rows(table) if row.arch == arch), None)
    row = ComplexityRow(dict(options), cost, printed, counts_parameters, "")
    return replace(row, note="; ".join([*_verdict(row.ours, printed), *_notes(arch, options, cost)]))


def _options(arch: str) -> list[dict[str, str | bool]]:
    """Return no options, and those of the paper where they differ from what ``create_model`` takes without any."""
    if has_bottlenecks(arch):
        return [{}, {"stride_in_1x1": True}]
    return [{}, {"shortcut": "A"}] if arch in ("resnet18", "resnet34") else [{}]


def _verdict(ours: float, printed: float | None) -> list[str]:
    """Say whether the paper's figure is ours rounded, or truncated."""
    how = "" if printed is None else printed_how(ours, printed)
    if how != "truncated":
        return ["printed rounded"] if how else []
    return [f"printed truncated, rounds to {Decimal(str(ours)).quantize(Decimal(str(printed)), ROUND_HALF_UP)}"]


def _notes(arch: str, options: Mapping[str, str | bool], cost: Complexity) -> Iterator[str]:
    """Yield what else there is to say."""
    convolutions = sum(stage.multiply_adds for stage in cost.stages if stage.name.startswith("conv")) / 1e9
    if arch.startswith("cifar_plain"):
        yield f"parameters as {arch.replace('plain', 'resnet')}"
    elif arch.startswith("cifar_"):
        yield "option A: none in the shortcuts"
    elif arch.startswith("plain"):
        yield "costs what option A does"
    elif arch in ("resnet18", "resnet34"):
        yield "option A, as in the paper's Table 2" if options else "option B, as torchvision: 3 projections"
    elif arch == "vgg16":
        yield f"printed are the convolutions alone, {convolutions:.2f}"
    elif arch == "vgg19":
        yield f"with fc6 to fc8 (convolutions alone: {convolutions:.2f})"
    elif arch.endswith("_bn"):
        yield "not in the paper; norms have parameters, no multiply-adds"
    elif options:
        yield "stride in the first 1x1, as the paper's released models"
    else:
        yield "v1.5, as torchvision: stride in the 3x3, larger first 1x1"


def _align(texts: int, columns: int) -> tuple[str, ...]:
    """Texts to the left, the numbers behind them to the right."""
    return ("left",) * texts + ("right",) * (columns - texts)
