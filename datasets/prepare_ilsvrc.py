#!/usr/bin/env python
"""Convert ImageNet's sets with boxes, ILSVRC DET and CLS-LOC, as their archives unpack them below datasets/ILSVRC.

Examples:
    python datasets/prepare_ilsvrc.py --names datasets/ILSVRC/devkit/data/map_det.txt
    python datasets/prepare_ilsvrc.py --sets ilsvrc_loc_val
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.prepare.ilsvrc import ILSVRC_SETS, prepare_ilsvrc
from resnet_backbone.engine.command_line import reports_errors, run_command_line

_DEFAULT = ("ilsvrc_det_train", "ilsvrc_det_val1", "ilsvrc_det_val2")


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=datasets_root(), help="holds ILSVRC/ (default: %(default)s)")
    parser.add_argument(
        "--sets", nargs="+", choices=list(ILSVRC_SETS), default=_DEFAULT, metavar="NAME", help=f"of {list(ILSVRC_SETS)}"
    )
    parser.add_argument(
        "--names",
        type=Path,
        metavar="TXT",
        help="map_det.txt or map_clsloc.txt of the development kit, the same for all sets (default: WordNet ids)",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    for name in arguments.sets:
        print(f"{name}: {prepare_ilsvrc(arguments.output, name, arguments.names)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
