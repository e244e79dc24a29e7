#!/usr/bin/env python
"""Look into the classifiers: what they cost, how strongly their layers respond, and how their trainings went.

Examples:
    python tools/analyze_model.py table                       # every network beside the figures that the paper prints
    python tools/analyze_model.py stages resnet50 --stride-in-1x1
    python tools/analyze_model.py responses output/cifar_plain56 output/cifar_resnet56 \\
        --data cifar10_jpeg_test --output output/responses
    python tools/analyze_model.py curves output/cifar_plain20 output/cifar_resnet20 --output output/curves
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.classification.complexity_table import complexity_rows, stages_text, table_text
from resnet_backbone.classification.figures import (
    measure_sources,
    read_curves,
    responses_text,
    write_curves,
    write_responses,
)
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.engine.command_line import reports_errors, run_command_line
from resnet_backbone.models.complexity import build_on_meta, complexity, usual_size
from resnet_backbone.weights import TestTransform


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    args.command(args)
    return 0


def print_table(args: argparse.Namespace) -> None:
    print(table_text(complexity_rows(), markdown=args.markdown))


def print_stages(args: argparse.Namespace) -> None:
    model = build_on_meta(
        args.arch, shortcut=args.shortcut, stride_in_1x1=args.stride_in_1x1, preactivation=args.preactivation
    )
    print(stages_text(complexity(model, args.size or usual_size(args.arch))))


def print_responses(args: argparse.Namespace) -> None:
    if (args.resize is None) != (args.crop is None):
        raise ValueError("--resize and --crop belong together; write both, as in --resize 256 --crop 224")
    transform = TestTransform(args.resize, args.crop) if args.crop is not None else None
    responses = measure_sources(args.sources, open_classes(args.data), args.images, args.names, transform)
    written = write_responses(responses, args.output)
    print(responses_text(responses))
    print("\n".join(map(str, written)))


def print_curves(args: argparse.Namespace) -> None:
    print("\n".join(map(str, write_curves(read_curves(args.runs, args.names), args.output))))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    table = commands.add_parser("table", help="parameters, multiply-adds and activations of every network")
    table.add_argument("--markdown", action="store_true")
    table.set_defaults(command=print_table)

    stages = commands.add_parser("stages", help="the cost of one network, stage by stage")
    stages.add_argument("arch", metavar="ARCH", help="such as resnet50")
    stages.add_argument("--size", type=int, metavar="PIXELS", help="side of the image (default: 224, cifar_*: 32)")
    stages.add_argument("--shortcut", choices=("A", "B", "C"), help="the paper's option (default: B, cifar_*: A)")
    stages.add_argument("--stride-in-1x1", action="store_true", help="bottlenecks of the paper's released models")
    stages.add_argument("--preactivation", action="store_true", help="norm and ReLU before the convolutions")
    stages.set_defaults(command=print_stages)

    responses = commands.add_parser("responses", help="standard deviation of each layer's responses (Figure 7)")
    responses.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="imagenet://ARCH/NAME, a packaged weight file, or a run's folder"
    )
    responses.add_argument("--data", required=True, help="a name such as imagenet_val, or a folder of class folders")
    responses.add_argument(
        "--images", type=int, default=256, metavar="N", help="how many, spread over the data (default: %(default)s)"
    )
    responses.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    responses.add_argument("--names", nargs="+", default=[], metavar="NAME", help="one for every source")
    where_unknown = "of weights that do not say how they are tested"
    responses.add_argument(
        "--resize", type=int, metavar="PIXELS", help=f"shorter side before the crop, {where_unknown}"
    )
    responses.add_argument("--crop", type=int, metavar="PIXELS", help=f"side of the centre crop, {where_unknown}")
    responses.set_defaults(command=print_responses)

    curves = commands.add_parser("curves", help="training and test error over the iterations (Figures 1, 4, 6)")
    curves.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of tools/train_classifier.py")
    curves.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    curves.add_argument("--names", nargs="+", default=[], metavar="NAME", help="one for every run")
    curves.set_defaults(command=print_curves)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
