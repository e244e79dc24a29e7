#!/usr/bin/env python
"""Generate the "scenes" data set: CIFAR-10 photographs pasted on backgrounds, ten classes, with exact boxes and masks.

What there is to find is easy to see and hard to name, so a detector is as good as the classifier it is built on: on
this set the paper's gain shows without a GPU. Photographs of the training images are CIFAR-10's training images, those
of the validation images its test images. The JPEG copy of CIFAR-10 is downloaded where it is not there.

Examples:
    python datasets/prepare_scenes.py
    python datasets/prepare_scenes.py --backgrounds datasets/coco/val2017 --output datasets/scenes_coco
    python datasets/prepare_scenes.py --sizes 16 64 --occlusion 0.4 --clutter 6 --output datasets/scenes_hard
    python datasets/prepare_scenes.py --photographs torchvision://CIFAR10/train torchvision://CIFAR10/test
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.images.classes import missing_classes
from resnet_backbone.data.prepare.cifar10 import prepare_cifar10
from resnet_backbone.data.prepare.scenes import PHOTOGRAPHS, SceneOptions, generate_scenes
from resnet_backbone.engine.command_line import reports_errors, run_command_line


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    usual = SceneOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=datasets_root() / "scenes", help="default: %(default)s")
    parser.add_argument("--train", type=int, default=3000, metavar="N", help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=600, metavar="N", help="validation images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--photographs",
        nargs=2,
        default=list(PHOTOGRAPHS.values()),
        metavar=("TRAIN", "VAL"),
        help="folders with a folder of images for each class, or names of such data sets (default: %(default)s)",
    )
    parser.add_argument("--backgrounds", type=Path, metavar="DIR", help="of images of any size (default: textures)")
    parser.add_argument(
        "--image-size", type=int, default=usual.image_size, metavar="PIXELS", help="default: %(default)s"
    )
    two: dict[str, Any] = {"nargs": 2, "type": int, "metavar": ("LOW", "HIGH")}
    parser.add_argument("--objects", **two, default=usual.objects, help="in an image (default: %(default)s)")
    parser.add_argument("--sizes", **two, default=usual.sizes, help="of photographs, pixels (default: %(default)s)")
    parser.add_argument(
        "--occlusion",
        type=float,
        default=usual.occlusion,
        metavar="PART",
        help="how much of a photograph others may hide, from 0 to below 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--clutter", type=int, default=usual.clutter, metavar="N", help="squares that are no objects, at most, an image"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    if any(map(missing_classes, set(args.photographs) & {*PHOTOGRAPHS.values()})):
        prepare_cifar10(datasets_root() / "cifar10_jpeg")
    options = SceneOptions(args.image_size, tuple(args.objects), tuple(args.sizes), args.occlusion, args.clutter)
    written = generate_scenes(
        args.output,
        args.train,
        args.val,
        args.seed,
        options=options,
        photographs=args.photographs,
        backgrounds=args.backgrounds,
    )
    state = "generated" if written else "already there with these settings:"
    print(f"{state} {args.train} training and {args.val} validation images in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
