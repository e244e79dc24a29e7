#!/usr/bin/env python
"""Train and evaluate a detector from a config.

Examples:
    python tools/train_net.py --config-file configs/frcnn_r101.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/frcnn_r101.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
    python tools/train_net.py --config-file configs/quickstart.yaml SOLVER.MAX_ITER 100 OUTPUT_DIR runs/short

One process a GPU: --num-gpus starts them; on the torchvision engine torchrun may. Where there is a test set, the
last line printed is JSON: the figures of every one, in percent, every digit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from resnet_backbone.config.command_line import add_run_arguments, torchrun_words, wants_processes
from resnet_backbone.config.engine import ENGINES, choose_engine


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_args(argv)
    if choose_engine(args.engine) == "detectron2":
        return launch_detectron2(args)
    if wants_processes(args):
        if not data_is_there(args):
            return 1
        try:
            words = torchrun_words(args, __file__, argv)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        os.execv(words[0], words)
    return run_torchvision(args)


def run_torchvision(args: argparse.Namespace) -> int:
    from resnet_backbone.torchvision_plugin.config import load_config
    from resnet_backbone.torchvision_plugin.run import Run

    try:
        cfg = load_config(args.config_file, args.opts)
        run = Run(cfg, resume=args.resume, eval_only=args.eval_only)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        figures = run.start()
    except (FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    run.accelerator.end_training()
    if figures:  # on the main process
        print(json.dumps({name: metrics.to_dict() for name, metrics in figures.items()}))
    return 0


def launch_detectron2(args: argparse.Namespace) -> int:
    try:
        from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

        from resnet_backbone.detectron2_plugin.run import launch_run
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        launch_run(run_detectron2, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))
    except (ProcessExitedException, ProcessRaisedException) as error:  # a process has said why
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run_detectron2(args: argparse.Namespace) -> None:
    """What each process does."""
    from resnet_backbone.detectron2_plugin.config import load_config
    from resnet_backbone.detectron2_plugin.run import Run

    try:
        run = Run(load_config(args.config_file, args.opts), resume=args.resume, eval_only=args.eval_only)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    try:
        figures = run.start()
    except (FloatingPointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    if figures:  # on the main process
        print(json.dumps(figures))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    add_run_arguments(parser)
    return parser.parse_args(argv)


def data_is_there(args: argparse.Namespace) -> bool:
    """Look before several processes do, which would each say what is missing."""
    from resnet_backbone.torchvision_plugin.config import load_config
    from resnet_backbone.torchvision_plugin.datasets import check_files

    try:
        check_files(load_config(args.config_file, args.opts), training=not args.eval_only)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
