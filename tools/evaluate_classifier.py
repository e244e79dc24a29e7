#!/usr/bin/env python
"""Score classifiers, published or your own, on images with labels: top-1 and top-5 error. Several are an ensemble, too.

Examples:
    python tools/evaluate_classifier.py --weights imagenet://resnet50/IMAGENET1K_V1 --data imagenet_val
    python tools/evaluate_classifier.py --weights imagenet://resnet50/IMAGENET1K_V1 imagenet://vgg16/IMAGENET1K_V1 \\
        --data imagenet_val --views 10-crop --output output/ensemble
    python tools/evaluate_classifier.py --weights output/cifar10_resnet20/weights.pth --data cifar10_jpeg_test
    python tools/evaluate_classifier.py --weights cifar10://cifar_resnet20/AKAMASTER --data torchvision://CIFAR10/test

10-crop is AlexNet's: corners and centre, and those of the mirror image. multi-scale shows the whole image and its
mirror image at every size, as the paper's Table 4 does. The last line printed is JSON: the figures, errors in percent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from resnet_backbone.classification.evaluate import (
    check_folder,
    check_members,
    score_members,
    score_text,
    write_score,
)
from resnet_backbone.classification.network import weights_file
from resnet_backbone.classification.predict import DTYPES
from resnet_backbone.classification.transforms import KINDS, SCALES, Views
from resnet_backbone.config.acceleration import default_device, has_device
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.engine.command_line import reports_errors, run_command_line
from resnet_backbone.weights import TestTransform
from resnet_backbone.weights.catalog import INTERPOLATIONS


@reports_errors(ValueError, TypeError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        views, transform, device = views_of(args), transform_of(args), device_of(args)
        if args.output is not None:
            check_folder(args.output)
        dataset = open_classes(args.data)
        members = check_members(list(map(weights_file, args.weights)), dataset, views, transform)
        score = score_members(
            members,
            dataset,
            views,
            device=device,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            dtype=DTYPES[args.dtype],
        )
        print(score_text(score, views))
        if args.output is not None:
            written = write_score(args.output, score, dataset, views, device=device, dtype=args.dtype)
            print("\n".join(f"wrote {path}" for path in written))
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    print(json.dumps(score.metrics.to_dict()))
    return 0


def views_of(args: argparse.Namespace) -> Views:
    if args.scales is None:
        return Views(args.views)
    if args.views != "multi-scale":
        raise ValueError(f"--scales is of --views multi-scale, not of {args.views}; leave it out")
    return Views(args.views, tuple(args.scales))


def device_of(args: argparse.Namespace) -> torch.device:
    if not has_device(args.device):
        raise ValueError(f"--device {args.device}: torch finds no GPU here; write --device cpu")
    return torch.device(args.device)


def transform_of(args: argparse.Namespace) -> TestTransform | None:
    if args.resize is None and args.crop is None and args.interpolation is None:
        return None
    if args.resize is None or args.crop is None:
        raise ValueError("--resize and --crop go together, as in --resize 256 --crop 224; --interpolation needs both")
    return TestTransform(args.resize, args.crop, args.interpolation or "bilinear")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="imagenet://ARCH/NAME, cifar10://ARCH/NAME or a packaged weight file",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="a name such as imagenet_val, torchvision://NAME/SPLIT, or a folder of class folders",
    )
    parser.add_argument("--views", choices=KINDS, default="1-crop", help="what is averaged (default: %(default)s)")
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help=f"shorter sides of multi-scale (default: {' '.join(map(str, SCALES))})",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images, or crops, at once (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=4, help="processes that read images (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), default=default_device(), help="(default: %(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the network (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write metrics, facts and predictions there")
    given = parser.add_argument_group("for weight files that do not say how their images are prepared")
    given.add_argument("--resize", type=int, metavar="PIXELS", help="shorter side before the crop")
    given.add_argument("--crop", type=int, metavar="PIXELS", help="side of the square that is cut out")
    given.add_argument("--interpolation", choices=INTERPOLATIONS, help="of the resize (default: bilinear)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
