#!/usr/bin/env python
"""Prepare CIFAR-10 as JPEG files in class folders: 60,000 images of 32 x 32 pixels, ten classes (62 MB).

The JPEG files are a copy that has lost something: networks that were trained on the original, which is
torchvision://CIFAR10/train and torchvision://CIFAR10/test, make about ten points more errors on it.

Example: python datasets/prepare_cifar10.py
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.prepare.cifar10 import CIFAR10_URL, prepare_cifar10
from resnet_backbone.engine.command_line import reports_errors, run_command_line


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prepare CIFAR-10 as JPEG files in class folders.")
    parser.add_argument("--output", type=Path, default=datasets_root() / "cifar10_jpeg", help="default: %(default)s")
    parser.add_argument("--archive", type=Path, help="a zip file that is there already; nothing is downloaded")
    parser.add_argument("--url", default=CIFAR10_URL, help="archive to download (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    for split, counts in prepare_cifar10(arguments.output, arguments.archive, arguments.url).items():
        print(f"{split}: {sum(counts.values()):,} images of {len(counts)} classes in {arguments.output / split}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
