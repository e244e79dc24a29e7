#!/usr/bin/env python
"""Train and evaluate a classifier from a config, and package it as backbone weights.

Examples:
    python tools/train_classifier.py --config-file configs/classification/cifar10_resnet20.yaml
    python tools/train_classifier.py --config-file configs/classification/imagenet_resnet50.yaml --num-gpus 8
    python tools/train_classifier.py --config-file configs/classification/cifar10_resnet20.yaml --eval-only \\
        MODEL.WEIGHTS output/cifar10_resnet20/weights.pth OUTPUT_DIR output/cifar10_resnet20_eval TEST.VIEWS 10-crop

One process a GPU: --num-gpus starts them, or torchrun may. OUTPUT_DIR/weights.pth is the network for MODEL.WEIGHTS of
tools/train_net.py. The last line printed is JSON: the figures of the test set, errors in percent.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from resnet_backbone.classification.config import load_config
from resnet_backbone.classification.run import Run, check_data
from resnet_backbone.config.command_line import add_run_arguments, plain_text, torchrun_words, wants_processes


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config_file, args.opts)
        if wants_processes(args):
            check_data(cfg, training=not args.eval_only)  # before several processes do, which would each say it
            words = torchrun_words(args, __file__, argv)
            os.execv(words[0], words)
        run = Run(cfg, resume=args.resume, eval_only=args.eval_only)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        metrics = run.start()
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"error: {plain_text(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; with --resume it goes on from the last checkpoint", file=sys.stderr)
        return 130
    run.accelerator.end_training()
    if metrics is not None and run.accelerator.is_main_process:
        print(json.dumps({cfg.DATASETS.TEST[0]: metrics.to_dict()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
