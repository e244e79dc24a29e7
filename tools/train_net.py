#!/usr/bin/env python
"""Train and evaluate a detector from a config.

Examples:
    python tools/train_net.py --config-file configs/frcnn_r101.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/frcnn_r101.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
    python tools/train_net.py --config-file configs/quickstart.yaml SOLVER.MAX_ITER 100 OUTPUT_DIR runs/short

One process a GPU: --num-gpus starts them; on the torchvision engine torchrun may. Where there is a test set, the
last line printed is JSON: the figures of every one, in percent, every digit.

Exit status: 0; 1 after an error; 75 after SIGTERM, Ctrl-C or the end of its terminal, when what was
learned is saved and --resume goes on. Where only the reader of its output ends, the run goes on without it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from resnet_backbone.engine.command_line import (
    ENGINES,
    RESUME_ME,
    Interrupted,
    LostPeer,
    add_run_arguments,
    check_machines,
    choose_engine,
    outcome,
    run_command_line,
    set_up_console,
    torchrun_arguments,
    wants_processes,
)

REFUSED = (ValueError, TypeError, OSError)  # before a run starts
FAILED = (FloatingPointError, OSError)  # in the middle of it


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_args(argv)
    if choose_engine(args.engine) == "detectron2":
        return launch_detectron2(args)
    if wants_processes(args):
        return launch_torchvision(args, argv)
    return run_torchvision(args)


def run_torchvision(args: argparse.Namespace) -> int:
    from resnet_backbone.engine.processes import catching_signals, is_lost_peer
    from resnet_backbone.torchvision_plugin.config import load_config
    from resnet_backbone.torchvision_plugin.run import Run

    with catching_signals():
        try:
            cfg = load_config(args.config_file, args.opts)
            run = Run(cfg, resume=args.resume, eval_only=args.eval_only)
        except (*REFUSED, Interrupted) as error:
            return failed(error)
        try:
            figures = run.start()
        except (*FAILED, Interrupted, KeyboardInterrupt) as error:
            return failed(error)
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            return failed(LostPeer(f"another process of this run has ended, and so this one does ({error})"))
    run.accelerator.end_training()
    if figures:  # on the main process
        print(json.dumps({name: metrics.to_dict() for name, metrics in figures.items()}))
    return 0


def launch_torchvision(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Check data and batches before several processes do, which would each say it, and start them."""
    from resnet_backbone.engine.processes import ProcessError, check_processes, launch
    from resnet_backbone.torchvision_plugin.config import load_config
    from resnet_backbone.torchvision_plugin.datasets import check_files

    try:
        cfg = load_config(args.config_file, args.opts)
        check_files(cfg, training=not args.eval_only)
        if not args.eval_only:
            check_processes(cfg, args.num_gpus * args.num_machines, norm="MODEL.RESNET_BACKBONE.NORM")
        launch(torchrun_arguments(args, __file__, argv))
    except (*REFUSED, ProcessError, Interrupted) as error:
        return failed(error)
    return 0


def failed(error: BaseException) -> int:
    """Say why, and return the exit status."""
    status, text = outcome(error)
    print(text, file=sys.stderr)
    return status


def launch_detectron2(args: argparse.Namespace) -> int:
    try:
        from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

        from resnet_backbone.detectron2_plugin.run import launch_run
        from resnet_backbone.engine.processes import catching_signals
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        if args.num_machines > 1:
            check_machines(args)
    except ValueError as error:
        return failed(error)
    try:
        with catching_signals():
            launch_run(run_detectron2, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))
    except (Interrupted, OSError) as error:
        return failed(error)
    except (ProcessExitedException, ProcessRaisedException) as error:  # a process has said why
        print(f"error: {error}; if it had begun, --resume goes on from the last checkpoint", file=sys.stderr)
        was_interrupted = isinstance(error, ProcessExitedException) and error.exit_code == RESUME_ME
        return RESUME_ME if was_interrupted else 1
    return 0


def run_detectron2(args: argparse.Namespace) -> None:
    """What each process does."""
    set_up_console(keeps_running=True)  # those that Detectron2 has started know nothing of it
    from resnet_backbone.detectron2_plugin.config import load_config
    from resnet_backbone.detectron2_plugin.run import Run
    from resnet_backbone.engine.processes import catching_signals

    with catching_signals():
        try:
            run = Run(load_config(args.config_file, args.opts), resume=args.resume, eval_only=args.eval_only)
        except (*REFUSED, Interrupted) as error:
            sys.exit(failed(error))
        try:
            figures = run.start()
        except (*FAILED, Interrupted, KeyboardInterrupt) as error:
            sys.exit(failed(error))
    if figures:  # on the main process
        print(json.dumps(figures))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    add_run_arguments(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command_line(main, keeps_running=True))
