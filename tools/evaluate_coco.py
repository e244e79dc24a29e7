#!/usr/bin/env python
"""Score a COCO results file, of this project or another, against the annotations: twelve figures, and AP per class.

Example:
    python tools/evaluate_coco.py --annotations datasets/coco/annotations/instances_val2017.json \\
        --results output/frcnn_r101/inference/coco_instances_results.json

The last line printed is JSON: the same figures, in percent, every digit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.engine.command_line import reports_errors, run_command_line, warnings_last
from resnet_backbone.metrics.coco import evaluate_coco


@reports_errors(ValueError, TypeError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="ground truth, COCO's format")
    parser.add_argument("--results", type=Path, required=True, metavar="JSON", help="detections, COCO's results format")
    parser.add_argument("--iou-type", choices=("bbox", "segm"), default="bbox", help="boxes or masks")
    parser.add_argument(
        "--backend",
        choices=("faster", "pycocotools"),
        default="faster",
        help="faster-coco-eval, or the original, which is slower and says the same (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    with warnings_last():
        metrics = evaluate_coco(args.annotations, args.results, iou_type=args.iou_type, backend=args.backend)
        print(metrics.table())
        print(json.dumps(metrics.to_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
