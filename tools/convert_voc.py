#!/usr/bin/env python
"""Convert one split of a Pascal VOC folder to a COCO-format JSON file.

Examples:
    python tools/convert_voc.py --voc VOCdevkit/VOC2007 --split trainval --output datasets/voc/trainval.json
    python tools/convert_voc.py --voc photos --output photos.json     # all that is annotated, XML beside the images
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.prepare.voc_xml import voc_to_coco
from resnet_backbone.engine.command_line import reports_errors, run_command_line
from resnet_backbone.files.atomic import write_text


@reports_errors(ValueError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert one split of a Pascal VOC folder to a COCO-format JSON file.")
    parser.add_argument(
        "--voc",
        type=Path,
        required=True,
        help="folder with Annotations, ImageSets and JPEGImages, or with XML files beside images",
    )
    parser.add_argument(
        "--split", help="name of a file in ImageSets/Main, such as trainval (default: every annotated image)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument(
        "--classes",
        type=lambda text: [name.strip() for name in text.split(",")],
        help="comma-separated, in the order of their ids",
    )
    arguments = parser.parse_args(argv)

    document, report = voc_to_coco(arguments.voc, arguments.split, arguments.classes)
    write_text(arguments.output, json.dumps(document))
    print(report)
    print(f"classes: {', '.join(category['name'] for category in document['categories'])}")
    print(f"wrote {arguments.output}; its images are in {report.image_folder}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command_line(main))
