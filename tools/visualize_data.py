#!/usr/bin/env python
"""Write pictures of what the network really gets: from the trainer's own loader, after the transforms, padded.

Examples:
    python tools/visualize_data.py --config-file configs/bccd_r18.yaml
    python tools/visualize_data.py --config-file configs/mask/r50_fpn.yaml --num 32 --output look SEED 3
    python tools/visualize_data.py --config-file configs/bccd_r18.yaml --split test

The images of --split train are those of the first iterations of a training in one process with the same SEED; of
--split test, the first of the test sets. Boxes, masks and class names are drawn on them; the channels are turned to
RGB, nothing else. The padding, which the network sees too, has the mean color. No weights are read.

Printed are a line an image, and warnings: images without boxes, boxes that the transforms have made vanish, and boxes
that are tiny: smaller than half of the smallest anchor, so that no anchor fits them.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor

from resnet_backbone.data.transforms import InputImage, InputImages
from resnet_backbone.engine.command_line import ENGINES, choose_engine, reports_errors, run_command_line
from resnet_backbone.metrics.drawing import draw_panel, save_pictures

GRID_IMAGES = 16
GRID_CELL = (640, 480)  # width and height in pixels of one image in the grid


@reports_errors(ValueError, TypeError, OSError, ImportError)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    cfg, inputs = open_data(args)
    output = args.output or Path(cfg.OUTPUT_DIR) / f"data_{args.split}"
    tiny = min(min(sizes) for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES) / 2
    images: list[InputImage] = []

    def pictures() -> Iterator[tuple[str, Image.Image]]:
        for image in islice(inputs.images, args.num):
            yield image.name, draw(image, inputs.class_names)
            print(describe(image, tiny))
            images.append(image)

    save_pictures(output, pictures(), GRID_IMAGES, GRID_CELL)
    print("\n".join(summarise(images, inputs.class_names, tiny)))
    print(f"wrote {len(images)} pictures and grid.png to {output}")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a YAML file, or the name of one in configs/"
    )
    parser.add_argument("--num", type=int, default=16, help="images (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: data_train or data_test in OUTPUT_DIR")
    parser.add_argument("--split", choices=("train", "test"), default="train", help="default: %(default)s")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_args(argv)
    if args.num < 1:
        parser.error(f"--num {args.num} must be 1 or more")
    return args


def open_data(args: argparse.Namespace) -> tuple[CfgNode, InputImages]:
    if choose_engine(args.engine) == "detectron2":
        from resnet_backbone.detectron2_plugin import config, network_input
    else:
        from resnet_backbone.torchvision_plugin import config, network_input  # type: ignore[no-redef]

    cfg = config.load_config(args.config_file, args.opts)
    return cfg, network_input.open_network_input(cfg, training=args.split == "train")


def draw(image: InputImage, class_names: Sequence[str]) -> Image.Image:
    height, width = image.size
    padded = "" if image.pixels.shape[1:] == image.size else " in {} x {}".format(*image.pixels.shape[1:])
    title = f"id {image.image_id}: {height} x {width}{padded}, {count(len(image.boxes), 'box', 'boxes')}"
    names = [class_names[label] for label in image.labels.tolist()]
    return draw_panel(title, image.pixels, image.boxes, image.labels, names, image.masks)


def describe(image: InputImage, tiny: float) -> str:
    """One line: what it was, what it is, what is on it. Sizes are height x width."""
    before, now = (f"{size[0]} x {size[1]}" for size in (image.original_size, image.size))
    padded = "{} x {}".format(*image.pixels.shape[1:])
    line = f"id {image.image_id}, {image.name}: {before} -> {now}, padded to {padded}; "
    line += count(len(image.boxes), "box", "boxes")
    extra = [(vanished(image), "vanished"), (int(is_tiny(image, tiny).sum()), "tiny")]
    return line + "".join(f", {number} {what}" for number, what in extra if number)


def summarise(images: Sequence[InputImage], class_names: Sequence[str], tiny: float) -> list[str]:
    found = Counter(class_names[label] for image in images for label in image.labels.tolist())
    boxes = ", ".join(f"{number} {name}" for name, number in found.most_common()) or "none"
    lines = [f"{count(len(images), 'image', 'images')}; boxes: {boxes}"]
    warnings = {
        "images without a box": [int(not len(image.boxes)) for image in images],
        "boxes that the transforms have made vanish": [vanished(image) for image in images],
        f"tiny boxes, less than {tiny:g} pixels a side (the root of their area), half of the smallest of "
        "MODEL.ANCHOR_GENERATOR.SIZES; larger images or smaller anchors may help": [
            int(is_tiny(image, tiny).sum()) for image in images
        ],
    }
    for what, numbers in warnings.items():
        if any(numbers):
            ids = ", ".join(str(image.image_id) for image, number in zip(images, numbers, strict=True) if number)
            lines.append(f"warning: {what}: {sum(numbers)}, on the images {ids}")
    return lines


def vanished(image: InputImage) -> int:
    return image.annotated - len(image.boxes)


def is_tiny(image: InputImage, tiny: float) -> Tensor:
    return (image.boxes[:, 2:] - image.boxes[:, :2]).prod(dim=1) < tiny**2


def count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


if __name__ == "__main__":
    sys.exit(run_command_line(main))
