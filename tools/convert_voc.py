#!/usr/bin/env python
"""Convert one split of a Pascal VOC folder to a COCO-format JSON file.

Example: python tools/convert_voc.py --voc VOCdevkit/VOC2007 --split trainval --output datasets/voc/trainval.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from resnet_backbone.data.voc import voc_to_coco


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Convert one split of a Pascal VOC folder to a COCO-format JSON file.")
    parser.add_argument("--voc", type=Path, required=True, help="folder with Annotations, ImageSets and JPEGImages")
    parser.add_argument("--split", required=True, help="name of a file in ImageSets/Main, such as trainval")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    parser.add_argument(
        "--classes", type=lambda text: text.split(","), help="comma-separated, in the order of their ids"
    )
    arguments = parser.parse_args(argv)

    document, report = voc_to_coco(arguments.voc, arguments.split, arguments.classes)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document), encoding="utf-8")
    print(report)
    print(f"classes: {', '.join(category['name'] for category in document['categories'])}")
    print(f"wrote {arguments.output}; its images are in {arguments.voc / 'JPEGImages'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
