"""Fuzz the readers of data sets and results: ``python -m tests.fuzz.fuzz_dataset -max_total_time=600``.

The first byte of an input says which reader gets the others.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import atheris
import torchvision.models.detection  # noqa: F401  # before the block below, which would take a minute for it

with atheris.instrument_imports(include=["resnet_backbone", "json", "xml", "tarfile"]):
    from tests.hostile import archives, datasets, images

from tests.fuzz.fuzzing import fuzz

READERS: list[tuple[str, Callable[[Path], object], bytes]] = [
    ("coco.json", datasets.READERS["training"], datasets.dumped(datasets.truth())),
    ("coco.json", datasets.READERS["truth"], datasets.dumped(datasets.truth())),
    ("results.json", datasets.READERS["table"], datasets.dumped([datasets.RESULT] * 2)),
    ("facts.json", datasets.READERS["facts"], datasets.dumped(datasets.FACTS)),
    ("Annotations/a.xml", datasets.read_voc, datasets.xml()),
    ("ImageSets/Main/train.txt", datasets.read_voc, b"a\nb\n"),
    ("a.jpg", images.read_image, images.encoded("JPEG")),
    ("x.zip", archives.unpack, archives.zipped({"a": b"x" * 50, "b/c": b"y"}, 8)),
    ("x.tar", archives.unpack, archives.tarred(archives.info("a"), archives.info("b"), data=b"x" * 50)),
]
MORE = {2: datasets.RESULTS, 1: datasets.TRUTHS}


def read(folder: Path, data: bytes) -> None:
    name, reader, _ = READERS[data[0] % len(READERS) if data else 0]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[1:])
    reader(path)


def seeds() -> list[bytes]:
    found = [bytes([index]) + content for index, (_, _, content) in enumerate(READERS)]
    found += [bytes([6]) + images.encoded(kind) for kind in ("PNG", "GIF", "TIFF", "WEBP", "BMP")]
    for index, values in MORE.items():
        found += [bytes([index]) + datasets.dumped(value) for value in values.values()]
    return [seed for seed in found if len(seed) < 5000]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    fuzz("dataset", read, seeds(), sys.argv[1:])
