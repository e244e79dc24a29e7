#!/usr/bin/env python
"""Compare finished runs on the same data, or show one: a page for the browser, and JSON. The first is the baseline.

Examples:
    python tools/compare.py output/frcnn_vgg16 output/frcnn_r101
    python tools/compare.py output/frcnn_r101 --output shown
    python tools/compare.py output/vgg output/res --names VGG-16 ResNet-101 --output vgg_and_resnet
    python tools/compare.py output/vgg_s0 output/vgg_s1 output/res_s0 output/res_s1 --seeds 2 --names VGG ResNet

A run is the OUTPUT_DIR of tools/train_net.py, of either engine; it is finished when it is trained and evaluated. The
page, index.html, is one file with everything in it. The last line printed is JSON: the paths of the two files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from resnet_backbone.compare.compare import compare_runs
from resnet_backbone.compare.report import summary, write_comparison
from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.images.read import read_image
from resnet_backbone.engine.command_line import reports_errors, run_command_line


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    comparison = compare_runs(
        args.runs,
        read_image=read_image,
        names=args.names,
        dataset=args.dataset,
        annotations=args.annotations,
        images=args.images,
        data_root=datasets_root(),
        samples=args.samples,
        seed=args.seed,
        num_pictures=args.pictures,
        seeds=args.seeds,
    )
    written = write_comparison(comparison, args.output)
    print(summary(comparison))
    print(json.dumps({name: str(path) for name, path in asdict(written).items()}))
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument(
        "--output", type=Path, default=Path("output/comparison"), metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="folders of each run, trained with other seeds: first all of the first run (default: %(default)s)",
    )
    parser.add_argument("--names", nargs="+", default=[], metavar="NAME", help="one for every run")
    parser.add_argument("--dataset", metavar="NAME", help="the test set, where the runs have several")
    parser.add_argument(
        "--annotations", type=Path, metavar="JSON", help="the ground truth, where it is no longer where it was"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="its images, where they are no longer where they were"
    )
    parser.add_argument(
        "--samples", type=int, default=1000, metavar="N", help="resamples for the intervals (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    parser.add_argument(
        "--pictures", type=int, default=6, metavar="N", help="how many images to draw at most (default: %(default)s)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
