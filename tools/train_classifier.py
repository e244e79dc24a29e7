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
learned is saved and --resume goes on. Where only the reader of its output ends, the run goes on without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from resnet_backbone.classification.config import load_config
from resnet_backbone.classification.run import Run, check_data
from resnet_backbone.engine.command_line import (
    Interrupted,
    LostPeer,
    add_run_arguments,
    outcome,
    run_command_line,
    torchrun_arguments,
    wants_processes,
)
from resnet_backbone.engine.processes import ProcessError, catching_signals, check_processes, is_lost_peer, launch


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser)
    args = parser.parse_args(argv)
    if wants_processes(args):
        return launch_processes(args, argv)
    with catching_signals():
        try:
            cfg = load_config(args.config_file, args.opts)
            run = Run(cfg, resume=args.resume, eval_only=args.eval_only)
        except (ValueError, TypeError, OSError, Interrupted) as error:
            return failed(error)
        try:
            metrics = run.start()
        except (FloatingPointError, ValueError, OSError, Interrupted, KeyboardInterrupt) as error:
            return failed(error)
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            return failed(LostPeer(f"another process of this run has ended, and so this one does ({error})"))
    run.accelerator.end_training()
    if metrics is not None and run.accelerator.is_main_process:
        print(json.dumps({cfg.DATASETS.TEST[0]: metrics.to_dict()}))
    return 0


def launch_processes(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Check data and batches before several processes do, which would each say it, and start them."""
    try:
        cfg = load_config(args.config_file, args.opts)
        check_data(cfg, training=not args.eval_only)
        if not args.eval_only:
            check_processes(cfg, args.num_gpus * args.num_machines, norm="MODEL.NORM")
        launch(torchrun_arguments(args, __file__, argv))
    except (ValueError, TypeError, OSError, ProcessError, Interrupted) as error:
        return failed(error)
    return 0


def failed(error: BaseException) -> int:
    """Say why, and return the exit status."""
    status, text = outcome(error)
    print(text, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(run_command_line(main, keeps_running=True))
