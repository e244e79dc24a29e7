#!/usr/bin/env python
"""Say whether backbone, weights and input of a config fit each other, or what a weight file is and needs.

Examples:
    python tools/doctor.py --config-file configs/frcnn_r101.yaml
    python tools/doctor.py --config-file configs/frcnn_r101.yaml --images cat.jpg dog.jpg -- MODEL.WEIGHTS mine.pth
    python tools/doctor.py --checkpoint mine.pth --json

With --config-file the detector is built and filled as tools/train_net.py would, on the CPU (weights are downloaded as
there). The trunk, fed by the detector's own pre-processing, must then compute what a plain classifier computes on the
input that the weights were trained on. Images are cropped as for ImageNet, 224 pixels of 256. The file --checkpoint
may be ImageNet weights, packaged ones, or a detector's checkpoint of either engine. The data is checked as by a run;
tools/check_dataset.py shows more of what it finds, with pictures.

Exit status: 1 where something is wrong, else 0. --json prints one object:
    subject   the config or checkpoint
    engine    "detectron2" or "torchvision"; "" for a checkpoint
    status    "ok", "warning" or "wrong", the worst of the sections
    sections  "versions", "registry", "config", "weights", "input", "data" and "classification", each with
                status              "ok", "warning", "wrong" or "not run"
                ok, warnings, wrong texts, the last two with what to write
                reason              why it was not run
                facts               what was found, in plain values. Of a checkpoint sections.weights.facts.config is
                                    the YAML for it; sections.classification.facts has "relative_difference", "causes"
                                    and "images": [{"image": name, "top5": [{"class", "probability"}, ...]}, ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from resnet_backbone.doctor import Engine, Report, examine_checkpoint, examine_config, report_of_missing_engine
from resnet_backbone.engine.command_line import ENGINES, choose_engine, run_command_line


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-file", metavar="FILE", help="a YAML file, or the name of one in configs/")
    what.add_argument("--checkpoint", metavar="FILE", help="a weight file, or imagenet://ARCH/NAME")
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="of the config (default: %(default)s)")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="IMAGE", help="images to classify; write -- before KEY VALUE"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
    args = parser.parse_args(argv)
    overrides = args.opts[1:] if args.opts[:1] == ["--"] else args.opts
    if args.checkpoint is None:
        report = examine(args.config_file, choose_engine(args.engine), overrides, args.images)
    elif overrides:
        parser.error(f"{' '.join(overrides)}: KEY VALUE goes with --config-file")
    else:
        report = examine_checkpoint(args.checkpoint, args.images)
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.text())
    return int(report.status == "wrong")


def examine(config_file: str, engine_name: str, overrides: Sequence[str], images: Sequence[str]) -> Report:
    engine: Engine
    try:
        if engine_name == "detectron2":
            from resnet_backbone.detectron2_plugin.doctor import Detectron2Engine

            engine = Detectron2Engine()
        else:
            from resnet_backbone.torchvision_plugin.doctor import TorchvisionEngine

            engine = TorchvisionEngine()
    except ImportError as error:
        return report_of_missing_engine(config_file, engine_name, error)
    return examine_config(engine, config_file, overrides, images)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
