#!/usr/bin/env python
"""Write a trained detector, a classifier or a trunk as a file that runs without this package, and check that file.

Examples:
    tools/export.py --run output/quickstart --output detector.onnx
    tools/export.py --config-file configs/frcnn_r101.yaml --output detector.pt2 MODEL.WEIGHTS model_final.pth
    tools/export.py --weights resnet50.pth --output classifier.onnx
    tools/export.py --weights imagenet://resnet50/IMAGENET1K_V1 --out-features res2 res3 res4 res5 --output trunk.onnx

Formats: onnx (.onnx; needs pip install onnx onnxscript onnxruntime) and torch (.pt2, for torch.export.load; for a
detector import torchvision first). Weights are float32, norms are folded into convolutions.

A detector takes one image, uint8 (3, H, W) of any size, already resized and in the channel order of its training, and
normalises it itself. It returns boxes (R, 4) in pixels of that image, labels (R,) from 0, scores (R,), and of Mask
R-CNN masks (R, M, M): probabilities inside each box. The tensor "score_threshold" in the file can be changed.
A classifier or trunk takes images, float32 (N, 3, H, W), normalised, and returns logits, or feature maps by name.
Channel order, mean, std, resize, class names and the smallest size are in the file, as JSON: in ONNX the entry
"resnet_backbone" of metadata_props, in .pt2 the extra file "resnet_backbone.json"; --show prints them.

After writing, the file is read back and run on images of several sizes, none of them the one that was traced, and its
outputs are compared with PyTorch's. Where they differ by more than rounding, there is no file.

Exit status: 0; 1 where nothing was written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from resnet_backbone.engine.checkpoint import find_run
from resnet_backbone.engine.command_line import reports_errors, run_command_line
from resnet_backbone.export.detector import exportable_detector
from resnet_backbone.export.trunk import exportable_trunk
from resnet_backbone.export.write import FORMATS, Exportable, check_destination, export

SUFFIXES = {form.suffix: name for name, form in FORMATS.items()}


@reports_errors(ValueError, TypeError, OSError, ImportError)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.show is not None:
        print(FORMATS[SUFFIXES[args.show.suffix]].facts(args.show))
        return 0
    check_destination(args.output, args.format)
    exportable = load_exportable(args)
    print(f"exporting {exportable.facts.architecture}, which takes up to minutes", file=sys.stderr)
    agreement = export(exportable, args.output, args.format)
    largest = ", ".join(f"{name} {value:.2g}" for name, value in agreement.largest.items())
    found = f", {agreement.detections} detections, {agreement.unmatched} unmatched" if agreement.detections else ""
    print(
        f"wrote {args.output}, {args.output.stat().st_size / 1e6:.1f} MB; compared with PyTorch on "
        f"{len(agreement.images)} images{found}; largest differences: {largest}",
        file=sys.stderr,
    )
    print(json.dumps({"output": str(args.output), "format": args.format, **asdict(agreement)}))
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, metavar="DIR", help="output folder of a detector's training")
    what.add_argument("--config-file", metavar="FILE", help="a detector's config, with MODEL.WEIGHTS as KEY VALUE")
    what.add_argument("--weights", metavar="FILE|NAME", help="of a classifier or trunk, packaged or published")
    what.add_argument("--show", type=Path, metavar="FILE", help="print what an exported file says of itself, and stop")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--format", choices=FORMATS, help="default: as --output ends, .onnx or .pt2")
    parser.add_argument("--arch", help="of --weights, where the tensors do not tell")
    parser.add_argument("--out-features", nargs="+", metavar="NAME", help="feature maps of --weights, no classifier")
    parser.add_argument("--images", nargs="+", type=Path, default=[], metavar="FILE", help="compare on them, too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of a detector: config keys to override")
    args = parser.parse_intermixed_args(argv)
    if args.show is not None:
        if args.show.suffix not in SUFFIXES:
            parser.error(f"--show {args.show}: an exported file ends in {' or '.join(SUFFIXES)}")
        return args
    if args.output is None:
        parser.error("write --output FILE")
    args.format = args.format or SUFFIXES.get(args.output.suffix)
    if args.format is None:
        parser.error(f"--output {args.output} must end in {' or '.join(SUFFIXES)}")
    of_trunk, of_detector = (args.arch, args.out_features), (args.images, args.opts)
    if args.weights is None and any(of_trunk):
        parser.error("--arch and --out-features go with --weights; a detector's config has them")
    if args.weights is not None and any(of_detector):
        parser.error("--images and KEY VALUE are for detectors, with --run or --config-file")
    return args


def load_exportable(args: argparse.Namespace) -> Exportable:
    if args.weights is not None:
        return exportable_trunk(args.weights, args.arch, args.out_features)
    config_file, overrides = args.config_file, args.opts
    if args.run is not None:
        run = find_run(args.run)
        config_file, overrides = run.config_file, ["MODEL.WEIGHTS", str(run.weights), *args.opts]
    return exportable_detector(config_file, overrides, args.images)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
