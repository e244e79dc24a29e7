#!/usr/bin/env python
"""Training images a second and core: reading, decoding, random resize and flip, boxes included.

Example: python -m benchmarks.loader --json annotations/instances_val2017.json --images val2017

One process and one thread for each contender, the files in the page cache, no GPU, no workers and no batches. Every
contender resizes the shorter side to a random one of MIN_SIZE_TRAIN, the longer one to MAX_SIZE_TRAIN at most, flips
half of the images, and gives a uint8 tensor: RGB, or on Detectron2 BGR, which is its default.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender, Measurement, measure, save, table
from benchmarks.peers import peer
from benchmarks.photographs import write_photographs

MIN_SIZE_TRAIN = (640, 672, 704, 736, 768, 800)
MAX_SIZE_TRAIN = 1333
OURS, OURS_ON_DETECTRON2 = "ours, torchvision engine", "ours, Detectron2 engine (TensorMapper)"
DETECTRON2, TORCHVISION = "Detectron2 (DatasetMapper)", "torchvision v2 on Pillow images"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="COCO-format annotations; without, photographs are made up")
    parser.add_argument("--images", type=Path, help="the folder of their images")
    parser.add_argument("--num-images", type=int, default=64, help="how many are read in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    if (args.json is None) != (args.images is None):
        parser.error("--json and --images belong together")
    with tempfile.TemporaryDirectory() as folder:
        if args.json is None:
            json_path, image_folder = write_photographs(Path(folder), args.num_images)
        else:
            json_path, image_folder = args.json, args.images
        compared = contenders(json_path, image_folder, args.num_images)
        measurements = measure(compared, rounds=args.rounds, warmup=2, threads=1)
    counts = {m.outcome for m in measurements if not m.problem}
    if len(counts) != 1:
        raise ValueError(f"the contenders read {sorted(counts)} images; expected the same number")
    num_images = counts.pop()
    print(table(measurements, _baseline(measurements), per_call=num_images, unit="images"))
    title = f"{num_images} JPEG files, {'of ' + args.json.name if args.json else 'made up, 640 x 480'}"
    save(
        args.output,
        "How many training images does one core read, resize and flip in a second?",
        {title: (_baseline(measurements), measurements, {"images a round": num_images})},
        threads=1,
    )
    return 0


def contenders(json_path: Path, image_folder: Path, num_images: int) -> list[Contender]:
    """Return those that are compared, each reading the first ``num_images`` images that have a box."""
    samples: dict[str, Callable[..., Sequence[Any]]] = {
        OURS: _ours,
        OURS_ON_DETECTRON2: _ours_on_detectron2,
        DETECTRON2: partial(peer, "detectron2_data", "training_samples"),
        TORCHVISION: partial(peer, "torchvision_pil", "training_samples"),
    }
    arguments = (json_path, image_folder, MIN_SIZE_TRAIN, MAX_SIZE_TRAIN)
    return [Contender(name, partial(_prepare, function, arguments, num_images)) for name, function in samples.items()]


def _baseline(measurements: Sequence[Measurement]) -> str:
    absent = {m.name for m in measurements if m.problem}
    return TORCHVISION if DETECTRON2 in absent else DETECTRON2


def _prepare(
    open_samples: Callable[..., Sequence[Any]], arguments: tuple[Any, ...], num_images: int
) -> Callable[[], int]:
    samples = open_samples(*arguments)
    return partial(_read, samples, min(num_images, len(samples)))


def _read(samples: Sequence[Any], count: int) -> int:
    for index in range(count):
        samples[index]
    return count


def _ours(json_path: Path, image_folder: Path, sizes: tuple[int, ...], max_size: int) -> Sequence[Any]:
    from resnet_backbone.data.coco.dataset import CocoDataset
    from resnet_backbone.data.transforms import train_transforms

    return CocoDataset(json_path, image_folder, train_transforms(sizes, max_size))  # type: ignore[return-value]


def _ours_on_detectron2(*arguments: Any) -> Sequence[Any]:
    from resnet_backbone.detectron2_plugin.mapper import TensorMapper

    return peer("detectron2_data", "training_samples", *arguments, mapper=TensorMapper)


if __name__ == "__main__":
    raise SystemExit(main())
