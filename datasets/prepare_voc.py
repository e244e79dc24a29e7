#!/usr/bin/env python
"""Download, unpack, convert and check Pascal VOC 2007 and 2012 (3 GB, and 2 GB more while unpacking).

Examples:
    python datasets/prepare_voc.py
    python datasets/prepare_voc.py --sets voc07_trainval voc07_test   # 1 GB
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.prepare.voc import VOC_SPLITS, VOC_URL, prepare_voc, prepare_voc_from, split_problems
from resnet_backbone.engine.command_line import reports_errors, run_command_line

_DEFAULT = ("voc07_trainval", "voc07_test", "voc12_trainval")


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=datasets_root(), help="default: %(default)s")
    parser.add_argument(
        "--sets", nargs="+", choices=list(VOC_SPLITS), default=_DEFAULT, metavar="NAME", help=f"of {list(VOC_SPLITS)}"
    )
    parser.add_argument(
        "--source", type=Path, metavar="VOCdevkit", help="a folder with VOC2007 or VOC2012; nothing is downloaded"
    )
    parser.add_argument("--archive", type=Path, metavar="TAR", help="the archive of one set, where you have it")
    parser.add_argument(
        "--check", action="store_true", help="download nothing, say what is missing; status 1 if anything is"
    )
    parser.add_argument("--url", default=VOC_URL, help="a mirror with the same paths (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.archive and (len(arguments.sets) != 1 or arguments.source):
        parser.error("--archive goes with one name in --sets, and without --source")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    incomplete = False
    for split in map(VOC_SPLITS.__getitem__, arguments.sets):
        report = None
        if arguments.source and not arguments.check:
            report = prepare_voc_from(arguments.output, split, arguments.source)
        elif not arguments.check:
            report = prepare_voc(arguments.output, split, base_url=arguments.url, archive=arguments.archive)
        problems = split_problems(arguments.output, split)
        incomplete |= bool(problems)
        get = f". Get it with: python datasets/prepare_voc.py --sets {split.name}" if problems else ""
        print(f"{split.name}: {'; '.join(problems) or f'complete, {split.num_images} images'}{get}")
        if report is not None:
            print(report)
    return int(incomplete)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
