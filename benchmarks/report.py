#!/usr/bin/env python
"""Make the page of results, benchmarks/RESULTS.md and its plots, from the JSON files that the benchmarks have written.

Example: python -m benchmarks.report
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.harness import Measurement, table

FOLDER = Path(__file__).parent
OURS, THEIRS = "#1b6ca8", "#9aa5ad"
INTRODUCTION = """# Results

Made by `python -m benchmarks.report` from the files in `results/`, which `make benchmark` writes; what each figure
means is in [README.md](README.md). *Times as fast* is the median of the row with 1.00 over the median of the row.
Machines differ: run them on yours.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER / "results", help="folder of the JSON files")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md")
    args = parser.parse_args(argv)
    files = sorted(args.results.glob("*.json"))
    if not files:
        parser.error(f"{args.results} has no JSON files; write them with: make benchmark")
    parts = [INTRODUCTION]
    for path in files:
        parts.append(section(path.stem, json.loads(path.read_text(encoding="utf-8")), args.output.parent))
    args.output.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {args.output}")
    return 0


def section(name: str, result: Mapping[str, Any], folder: Path) -> str:
    """Return the Markdown of one benchmark; its plots go to ``folder / "plots"``."""
    where = result["environment"]
    versions = ", ".join(f"{library} {number}" for library, number in where["versions"].items())
    lines = [
        f"## {result['question']}\n",
        f"`python -m benchmarks.{name}`, {where['date']}: {where['machine']}, {where['threads']} thread(s), Python "
        f"{where['python']}, {versions}.\n",
    ]
    for number, case in enumerate(result["cases"]):
        measurements = [Measurement(**values) for values in case["measurements"]]
        plot = folder / "plots" / f"{name}-{number}.svg"
        draw(plot, case["title"], measurements, case["baseline"])
        lines += [f"### {case['title']}\n", table(measurements, case["baseline"]), ""]
        lines += [f"![{case['title']}]({plot.relative_to(folder).as_posix()})\n"]
        lines += [f"- {what}: {text(value)}" for what, value in case["further"].items()]
        if case["further"]:
            lines.append("")
    return "\n".join(lines)


def text(value: Any) -> str:
    """Return a figure, or several by name, in four digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(path: Path, title: str, measurements: Sequence[Measurement], baseline: str) -> None:
    """Draw the medians as bars, slowest at the bottom, with the quartiles and the ratio to the baseline."""
    shown = sorted((m for m in measurements if not m.problem), key=lambda m: -m.median)
    expected = next(m.median for m in shown if m.name == baseline)
    figure = Figure(figsize=(8, 0.6 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    for row, m in enumerate(shown):
        first, third = m.quartiles
        color = THEIRS if m.name.startswith(("Detectron2", "torch", "timm", "pycoco", "faster", "all off")) else OURS
        axes.barh(row, m.median, color=color, height=0.7)
        axes.plot([first, third], [row, row], color="black", linewidth=1)
        axes.text(m.median, row, f"  {expected / m.median:.2f} x", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [m.name for m in shown], fontsize=8)
    axes.set_xlabel("seconds, median and quartiles", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlim(0, 1.15 * max(m.median for m in shown))
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "benchmarks"}):
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
