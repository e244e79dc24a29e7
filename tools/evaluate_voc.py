#!/usr/bin/env python
"""Score a COCO results file as Pascal VOC or ILSVRC does, or write it as VOC's evaluation server takes it.

Examples:
    python tools/evaluate_voc.py --annotations datasets/voc/annotations/voc07_test.json --eleven-points \\
        --results output/voc_r101_0712/inference/coco_instances_results.json
    python tools/evaluate_voc.py --annotations datasets/voc/annotations/voc12_test.json --submission voc12 \\
        --results output/voc_r101_0712pp/inference/coco_instances_results.json
    python tools/evaluate_voc.py --ilsvrc loc --annotations datasets/ilsvrc/annotations/ilsvrc_loc_val.json \\
        --results guesses.json                # of each image the five best scores count

The last line printed is JSON: the same figures, in percent, every digit; or the folder to pack.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.engine.command_line import reports_errors, run_command_line, warnings_last
from resnet_backbone.metrics.localization import localization_error
from resnet_backbone.metrics.voc import evaluate_voc, write_voc_submission


@reports_errors(ValueError, TypeError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="COCO's format; iscrowd is VOC's difficult"
    )
    parser.add_argument("--results", type=Path, required=True, metavar="JSON", help="detections, COCO's results format")
    parser.add_argument("--iou", type=float, default=0.5, help="the least overlap that counts (default: %(default)s)")
    parser.add_argument(
        "--eleven-points", action="store_true", help="VOC 2007's AP; without it the area, that of VOC 2010 and later"
    )
    parser.add_argument(
        "--ilsvrc", choices=("det", "loc"), help="ImageNet's rules: mAP of detection, or the top-5 localisation error"
    )
    parser.add_argument("--submission", type=Path, metavar="DIR", help="write files for the server, and score nothing")
    args = parser.parse_args(argv)
    if args.ilsvrc and (args.eleven_points or args.submission):
        parser.error("--eleven-points and --submission are VOC's, --ilsvrc is not")
    with warnings_last():
        if args.submission:
            paths = write_voc_submission(args.annotations, args.results, args.submission)
            print(f"wrote {len(paths)} files; pack them with tar -czf results.tgz -C {args.submission} results")
            print(json.dumps(str(paths[0].parent)))
            return 0
        if args.ilsvrc == "loc":
            error = localization_error(args.annotations, args.results, iou=args.iou)
            print(f"top-5 localisation error {error:.2f} %")
            print(json.dumps({"localization": {"top5_localization_error": error}}))
            return 0
        metrics = evaluate_voc(
            args.annotations, args.results, iou=args.iou, eleven_points=args.eleven_points, ilsvrc=args.ilsvrc == "det"
        )
        print(metrics.table())
        print(json.dumps(metrics.to_dict()))
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
