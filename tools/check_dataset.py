#!/usr/bin/env python
"""Check annotated data before training on it: what is wrong or unusual, and what a training does about each.

Examples:
    python tools/check_dataset.py --json train.json --images train/ --val-json val.json --val-images val/
    python tools/check_dataset.py --json train.json --images train/ --deep --output look
    python tools/check_dataset.py --config-file configs/bccd_r18.yaml --deep

The findings are those of a run, which makes the same checks when it starts; datasets/README.md lists them all. --deep
opens every image as well, as a run does with DATASETS.CHECK_IMAGES: True, and looks for images that are both trained on
and evaluated. --output writes report.txt, report.json and index.html, a page with pictures of what was found.

Exit status: 1 where a training would stop, else 0. --json-report prints one object:
    stops    how many kinds of mistakes a training would stop at
    verdict  a sentence
    sets     one for each data set, with
               name, json, images      what was checked
               training                true where it is trained on, false where it is evaluated
               num_images, num_annotations
               objects                 [{"class": name, "objects": number that is used}, ...]
               findings                each with "kind", "count", "total", "what", "action" ("stop", "drop", "fix" or
                                       "keep"), "training" (that in words), "warning", "note", "means", "to_do" and up
                                       to five "examples": "text", "image_id", "file_name", "annotation_id", "box" (x y
                                       width height, as in the file) and "twin" (another image that is meant)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.doctor.dataset_report import DatasetReport, SetToCheck, check_sets, sets_of
from resnet_backbone.engine.command_line import reports_errors, run_command_line


@reports_errors(ValueError, TypeError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    report = DatasetReport(check_sets(named_sets(args), deep=args.deep))
    if args.output is not None:
        report.write(args.output)
    print(json.dumps(report.to_dict(), indent=2) if args.json_report else report.text())
    return int(report.stops > 0)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="FILE", help="check what its DATASETS names; a file, or one of configs/")
    what.add_argument("--json", type=Path, metavar="FILE", help="annotations to train on, in COCO's format")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the images of --json")
    parser.add_argument("--val-json", type=Path, metavar="FILE", help="annotations to evaluate with")
    parser.add_argument("--val-images", type=Path, metavar="FOLDER", help="the images of --val-json")
    parser.add_argument("--masks", action="store_true", help="a training with masks is meant (config: MODEL.MASK_ON)")
    parser.add_argument("--deep", action="store_true", help="open every image")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write the report and a page with pictures here")
    parser.add_argument("--json-report", action="store_true", help="print one JSON object")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_args(argv)
    if args.json is not None and args.images is None:
        parser.error("--json needs --images, the folder that its file names are relative to")
    if (args.val_json is None) != (args.val_images is None):
        parser.error("--val-json and --val-images go together")
    if args.config_file is None and args.opts:
        parser.error(f"{' '.join(args.opts)}: KEY VALUE goes with --config-file, and stands last")
    if args.config_file is not None and (args.images or args.val_json or args.masks):
        parser.error("--images, --val-json, --val-images and --masks go with --json; a config names its own data")
    return args


def named_sets(args: argparse.Namespace) -> list[SetToCheck]:
    if args.config_file is not None:
        from resnet_backbone.torchvision_plugin.config import load_config

        return sets_of(load_config(args.config_file, args.opts))
    sets = [SetToCheck(args.json.stem, args.json, args.images, True, args.masks)]
    if args.val_json is not None:
        sets.append(SetToCheck(args.val_json.stem, args.val_json, args.val_images, False, args.masks))
    for what in sets:
        if not what.json_path.is_file():
            raise FileNotFoundError(f"{what.json_path}: no such annotation file; correct --json or --val-json")
        if not what.image_folder.is_dir():
            raise FileNotFoundError(f"{what.image_folder}: no such folder; correct --images or --val-images")
    return sets


if __name__ == "__main__":
    sys.exit(run_command_line(main))
