#!/usr/bin/env python
"""Prepare BCCD, 364 photographs of blood cells with boxes of three classes (MIT licence, 10 MB).

Example: python datasets/prepare_bccd.py
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.prepare.voc import BCCD_URL, prepare_bccd
from resnet_backbone.engine.command_line import reports_errors, run_command_line


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prepare BCCD, 364 photographs of blood cells.")
    parser.add_argument("--output", type=Path, default=datasets_root() / "bccd", help="default: %(default)s")
    parser.add_argument(
        "--source", type=Path, help="a folder in VOC layout that is there already; nothing is downloaded"
    )
    parser.add_argument("--url", default=BCCD_URL, help="archive to download (default: %(default)s)")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    for split, report in prepare_bccd(arguments.output, arguments.source, arguments.url).items():
        print(f"{split}: {report}")
    print(f"wrote {arguments.output / 'annotations'} and {arguments.output / 'images'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
