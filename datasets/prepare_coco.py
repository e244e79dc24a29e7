#!/usr/bin/env python
"""Download, unpack and check COCO (2017: 20 GB, 2014: 20 GB; twice that while unpacking).

Example: python datasets/prepare_coco.py --year 2017
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.prepare.coco import COCO_RELEASES, COCO_URL, fetch_coco, split_problems
from resnet_backbone.engine.command_line import reports_errors, run_command_line


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Download, unpack and check COCO.")
    parser.add_argument("--year", type=int, choices=sorted(COCO_RELEASES), help="--check alone checks both")
    parser.add_argument("--output", type=Path, default=datasets_root() / "coco", help="default: %(default)s")
    parser.add_argument("--no-train", action="store_true", help="only the validation images")
    parser.add_argument(
        "--check", action="store_true", help="download nothing, say what is missing; status 1 if anything is"
    )
    parser.add_argument("--url", default=COCO_URL, help="a mirror with the same files (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.year is None and not arguments.check:
        parser.error("--year is needed to download; --check alone checks every year")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    years, train = [arguments.year] if arguments.year else sorted(COCO_RELEASES), not arguments.no_train
    if not arguments.check:
        fetch_coco(arguments.output, COCO_RELEASES[arguments.year], train=train, base_url=arguments.url)
    incomplete = False
    for split in (split for year in years for split in COCO_RELEASES[year].splits(train)):
        problems = split_problems(arguments.output, split)
        incomplete |= bool(problems)
        print(f"{split.name}: {'; '.join(problems) or f'complete, {split.num_images} images'}")
    return int(incomplete)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
