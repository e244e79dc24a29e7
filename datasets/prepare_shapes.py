#!/usr/bin/env python
"""Generate the "shapes" data set: five classes, exact boxes and masks, no download.

Examples:
    python datasets/prepare_shapes.py --train 600 --val 100 --seed 0
    python datasets/prepare_shapes.py --crops     # and the shapes one by one, in class folders, for a classifier
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.prepare.shapes import generate_shapes, write_crops
from resnet_backbone.engine.command_line import reports_errors, run_command_line


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description='Generate the "shapes" data set.')
    parser.add_argument("--output", type=Path, default=datasets_root() / "shapes", help="default: %(default)s")
    parser.add_argument("--train", type=int, default=600, metavar="N", help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=100, metavar="N", help="validation images (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=256, metavar="PIXELS", help="about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--crops", action="store_true", help="write every shape to OUTPUT_crops/SPLIT/CLASS/, too")
    arguments = parser.parse_args(argv)

    written = generate_shapes(
        arguments.output, arguments.train, arguments.val, image_size=arguments.image_size, seed=arguments.seed
    )
    state = "generated" if written else "already there with these settings:"
    print(f"{state} {arguments.train} training and {arguments.val} validation images in {arguments.output}")
    if arguments.crops:
        folder = arguments.output.with_name(f"{arguments.output.name}_crops")
        for split in ("train", "val"):
            annotations = arguments.output / "annotations" / f"{split}.json"
            number = write_crops(annotations, arguments.output / split, folder / split)
            print(f"{split}: {number} crops in {folder / split}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
