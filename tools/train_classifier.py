#!/usr/bin/env python
"""Train and evaluate a classifier from a config, and package it as backbone weights.

Examples:
    python tools/train_classifier.py --config-file configs/classification/cifar10_resnet20.yaml
    python tools/train_classifier.py --config-file configs/classification/imagenet_resnet50.yaml --num-gpus 8
    python tools/train_classifier.py --config-file configs/classification/cifar10_resnet20.yaml --eval-only \\
        MODEL.WEIGHTS output/cifar10_resnet20/weights.pth OUTPUT_DIR output/cifar10_resnet20_eval TEST.VIEWS 10-crop

One process a GPU: --num-gpus starts them, or torchrun may. OUTPUT_DIR/weights.pth is the network for MODEL.WEIGHTS of
tools/train_net.py. The last line printed is JSON: the figures of the test set, errors in percent.

Exit status: 0; 1 after an error; 75 after SIGTERM, Ctrl-C or the end of its terminal, when what was
learned is saved and --resume continues. Where only the reader of its output ends, the run continues without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from resnet_backbone.classification.config import load_config
from resnet_backbone.classification.run import Run, check_data
from resnet_backbone.engine.command_line import add_run_arguments, run_command_line, wants_processes
from resnet_backbone.engine.processes import launch_processes, run_here
from resnet_backbone.metrics.classification import ClassificationMetrics


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    args = parser.parse_args(argv)
    if wants_processes(args):
        return launch_processes(args, [__file__, *argv], load_config, check_data, norm="MODEL.NORM")

    def build() -> Run:
        return Run(load_config(args.config_file, args.opts), resume=args.resume, eval_only=args.eval_only)

    return run_here(build, report)


def report(run: Run, metrics: ClassificationMetrics | None) -> None:
    run.accelerator.end_training()
    if metrics is not None and run.accelerator.is_main_process:
        print(json.dumps({run.cfg.DATASETS.TEST[0]: metrics.to_dict()}))


if __name__ == "__main__":
    sys.exit(run_command_line(main, keeps_running=True))
