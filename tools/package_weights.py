#!/usr/bin/env python
"""Write a weight file that says how it was trained, and that Detectron2 loads as it stands.

Examples:
    tools/package_weights.py --list
    tools/package_weights.py imagenet://resnet101/IMAGENET1K_V1 resnet101.pth
    tools/package_weights.py mine.pth out.pth --channel-order RGB --mean 123.675 116.28 103.53 \\
        --std 58.395 57.12 57.375 --stride-in-1x1 no
    tools/package_weights.py hf://timm/resnet50.a1_in1k/model.safetensors out.safetensors --model-card README.md ...
    tools/package_weights.py cifar10://cifar_resnet20/AKAMASTER resnet20.pth
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.engine.command_line import reports_errors, run_command_line
from resnet_backbone.files.atomic import write_text
from resnet_backbone.weights import InputFormat, TestTransform, package_weights
from resnet_backbone.weights.catalog import CATALOG, INTERPOLATIONS
from resnet_backbone.weights.package import model_card
from resnet_backbone.weights.source import OPTION_A_ZEROS


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", nargs="?", help="imagenet://ARCH/NAME, cifar10://ARCH/NAME, a weight file, or an address"
    )
    parser.add_argument("output", nargs="?", help="the .pth or .safetensors file to write")
    parser.add_argument("--arch", help="architecture, where the tensors do not tell")
    parser.add_argument("--channel-order", choices=("RGB", "BGR"), help="of the pixels the network was trained on")
    parser.add_argument("--mean", type=float, nargs=3, metavar="M", help="for images in 0..255, in the channel order")
    parser.add_argument("--std", type=float, nargs=3, metavar="S", help="likewise")
    parser.add_argument("--stride-in-1x1", choices=("yes", "no"), help="yes for Caffe's bottlenecks, else no")
    parser.add_argument(
        "--option-a-zeros",
        choices=OPTION_A_ZEROS,
        help="of shortcuts without parameters: behind the copied channels, or on both sides of them",
    )
    parser.add_argument("--resize", type=int, metavar="PIXELS", help="shorter side, before the crop of its test")
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="side of the centre crop of its test")
    parser.add_argument("--interpolation", choices=INTERPOLATIONS, default="bilinear", help="of the resize")
    parser.add_argument("--model-card", metavar="FILE", help="write a README for a hub, too, as in README.md")
    parser.add_argument("--list", action="store_true", help="print the published weights that have a name, and stop")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(sorted(entry.uri for entry in CATALOG.values())))
        return 0
    if args.source is None or args.output is None:
        parser.error("write SOURCE and OUTPUT, or --list")
    pixels = (args.channel_order, args.mean, args.std)
    if None in pixels and pixels != (None, None, None):
        parser.error("--channel-order, --mean and --std go together")
    if (args.resize is None) != (args.crop is None):
        parser.error("--resize and --crop go together")

    facts = package_weights(
        args.source,
        args.output,
        args.arch,
        InputFormat(*pixels) if args.channel_order else None,
        None if args.stride_in_1x1 is None else args.stride_in_1x1 == "yes",
        test_transform=TestTransform(args.resize, args.crop, args.interpolation) if args.resize else None,
        option_a_zeros=args.option_a_zeros,
    )
    if args.model_card:
        write_text(Path(args.model_card), model_card(facts, Path(args.output).name))
    print(f"wrote {args.output}: {facts['arch']} from {facts['source']}", file=sys.stderr)
    print(json.dumps({"output": args.output, **facts}))
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
