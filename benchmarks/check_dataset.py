#!/usr/bin/env python
"""Seconds and peak memory of the checks of a COCO-format file as large as COCO's training set; no image is read.

Example:
    python benchmarks/check_dataset.py --masks

The file is generated (seeded): 118,287 images, 860,001 boxes of 80 classes, each with a polygon of 7 to 49 points.
Printed is one line of JSON. The time is the CPU's, of one thread; the memory is the process's peak, in MiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

IMAGES, ANNOTATIONS, CLASSES = 118_287, 860_001, 80  # of COCO's train2017
POLYGONS = 2000  # different ones, used over and over


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("check", "read"), default="check", help="as the tool does, or as a run does")
    parser.add_argument("--masks", action="store_true", help="for a training with masks")
    parser.add_argument("--scale", type=float, default=1.0, metavar="SHARE", help="of the size (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="check this file, written first where it is missing")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = args.json or Path(folder) / "instances.json"
        if not path.exists():
            write_case(path, max(1, round(args.scale * IMAGES)), max(1, round(args.scale * ANNOTATIONS)))
        print(json.dumps(measure(path, args.what, masks=args.masks)))
    return 0


def measure(path: Path, what: str, *, masks: bool) -> dict[str, object]:
    from resnet_backbone.data.coco import read as coco_json

    start = time.process_time()
    if what == "read":
        found = len(coco_json.read_coco_json(path, training=True, with_masks=masks).boxes)
    else:
        found = len(coco_json.check_coco_json(path, training=True, with_masks=masks).findings)
    return {
        "what": what,
        "masks": masks,
        "file_mib": round(path.stat().st_size / 2**20),
        "cpu_s": round(time.process_time() - start, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "boxes" if what == "read" else "findings": found,
    }


def write_case(path: Path, images: int, annotations: int, seed: int = 0) -> None:
    """Write a COCO-format file, annotation by annotation."""
    rng = np.random.default_rng(seed)
    polygons = [_polygon(rng) for _ in range(POLYGONS)]
    owners = rng.integers(images, size=annotations).tolist()
    labels = (rng.beta(0.6, 3, annotations) * CLASSES).astype(int).tolist()
    which = rng.integers(POLYGONS, size=annotations).tolist()
    offsets = rng.uniform(0, 1, (annotations, 2)).round(2).tolist()
    with path.open("w", encoding="utf-8") as file:
        file.write('{"images": [')
        file.write(", ".join(_image(index) for index in range(images)))
        file.write('], "categories": ')
        json.dump([{"id": label + 1, "name": f"class {label + 1}"} for label in range(CLASSES)], file)
        file.write(', "annotations": [')
        for index in range(annotations):
            (width, height), text = polygons[which[index]]
            x, y = offsets[index]
            file.write(
                f'{", " if index else ""}{{"segmentation": {text}, "area": {width * height / 2:.4f}, "iscrowd": 0, '
                f'"image_id": {owners[index] + 1}, "bbox": [{x}, {y}, {width}, {height}], '
                f'"category_id": {labels[index] + 1}, "id": {index + 1}}}'
            )
        file.write("]}")


def _image(index: int) -> str:
    name = f"{index + 1:012d}.jpg"
    return (
        f'{{"license": 3, "file_name": "{name}", "coco_url": "http://images.cocodataset.org/train2017/{name}", '
        f'"height": 480, "width": 640, "date_captured": "2013-11-14 11:18:45", "id": {index + 1}}}'
    )


def _polygon(rng: np.random.Generator) -> tuple[tuple[float, float], str]:
    """Its width and height in pixels, and its JSON text."""
    width, height = rng.uniform(8, 450, 2).round(2).tolist()
    points = rng.uniform(0, 1, (int(rng.integers(7, 50)), 2)) * (width, height)
    return (width, height), json.dumps([points.round(2).reshape(-1).tolist()])


if __name__ == "__main__":
    sys.exit(main())
