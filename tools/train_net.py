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
from urllib.parse import urlsplit

from resnet_backbone.config.engine import ENGINES, choose_engine


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_args(argv)
    if choose_engine(args.engine) == "detectron2":
        return launch_detectron2(args)
    if args.num_gpus * args.num_machines > 1 and "LOCAL_RANK" not in os.environ:
        if not data_is_there(args):
            return 1
        relaunch(args, argv)
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
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a YAML file, or the name of one in configs/"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, train nothing")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (default: %(default)s)")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="from 0, different on each machine")
    parser.add_argument(
        "--dist-url", default="tcp://127.0.0.1:29500", help="address of the machine of rank 0 (several machines)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys to override")
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


def relaunch(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Replace this process by torchrun with the processes asked for."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={args.num_gpus}"]
    if args.num_machines == 1:
        torchrun.append("--standalone")
    else:
        address = urlsplit(args.dist_url)
        if address.hostname in (None, "127.0.0.1", "localhost") or address.port is None:
            sys.exit(
                f"error: --dist-url {args.dist_url}: several machines need tcp://ADDRESS:PORT of the one of rank 0"
            )
        torchrun += [f"--nnodes={args.num_machines}", f"--node-rank={args.machine_rank}"]
        torchrun += [f"--master-addr={address.hostname}", f"--master-port={address.port}"]
    os.execv(sys.executable, [*torchrun, __file__, *argv])


if __name__ == "__main__":
    sys.exit(main())
