#!/usr/bin/env python
"""Train and evaluate a detector from a config, or from a folder of images and labels alone.

Examples:
    python tools/train_net.py --data FOLDER --dry-run
    python tools/train_net.py --config-file configs/frcnn_r101.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/frcnn_r101.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
    python tools/train_net.py --config-file configs/quickstart.yaml SOLVER.MAX_ITER 100 OUTPUT_DIR runs/short

--data takes a folder as Roboflow, CVAT, Label Studio, labelme or Pascal VOC have it (COCO JSON, XML, YOLO text): it is
checked, and a training chosen that fits it and this machine, each choice printed with its reason; KEY VALUE pairs
override. OUTPUT_DIR, by default output/NAME OF THE FOLDER, gets data/ (the annotations as COCO JSON) and plan.yaml, the
config that --config-file takes to do the same again.

One process a GPU: --num-gpus starts them; on the torchvision engine torchrun may. Where there is a test set, index.html
in OUTPUT_DIR shows the result (of several, in inference/NAME OF THE SET); --open opens it in a browser. The last line
printed is JSON: the figures of every set, in percent, every digit.

Exit status: 0; 1 after an error; 75 after SIGTERM, Ctrl-C or the end of its terminal, when what was
learned is saved and --resume continues. Where only the reader of its output ends, the run continues without it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_backbone.engine.command_line import (
    ENGINES,
    RESUME_ME,
    Interrupted,
    add_run_arguments,
    check_machines,
    choose_engine,
    failed,
    run_command_line,
    set_up_console,
    wants_processes,
)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = parse_args(argv)
    engine = choose_engine(args.engine)
    if args.data is not None:
        try:
            args.config_file = plan_config(args, engine)
        except (ValueError, TypeError, OSError, ImportError) as error:
            return failed(error)
        if args.dry_run:
            return 0
        flags = ["--resume"] * args.resume + ["--eval-only"] * args.eval_only + ["--open"] * args.open
        argv = ["--engine", engine, *flags, "--config-file", args.config_file, *args.opts]
    return launch_detectron2(args) if engine == "detectron2" else run_torchvision(args, argv)


def plan_config(args: argparse.Namespace, engine: str) -> str:
    """Print what is chosen for the folder; write it unless it is a trial, and return the config's path."""
    from resnet_backbone.api import plan_folder
    from resnet_backbone.doctor.plan import PLAN, written_plan

    if args.num_machines > 1 or "LOCAL_RANK" in os.environ:
        raise ValueError(f"--data plans in one process, on one machine; then give all --config-file OUTPUT_DIR/{PLAN}")
    written = written_plan(args.data, args.opts)
    if (args.resume or args.eval_only) and written.is_file():
        print(f"continuing with {written}")
        return str(written)
    plan = plan_folder(args.data, args.opts, engine=engine, group_by=args.group_by, processes=args.num_gpus)
    print("\n".join(plan.lines))
    if args.dry_run:
        return ""
    path = str(plan.write())
    print(f"wrote {path}, which does the same again by --config-file")
    return path


def run_torchvision(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from resnet_backbone.engine.processes import launch_processes, run_here
    from resnet_backbone.torchvision_plugin.config import load_config
    from resnet_backbone.torchvision_plugin.datasets import check_files

    if wants_processes(args):
        command = [__file__, *argv]
        return launch_processes(args, command, load_config, check_files, norm="MODEL.RESNET_BACKBONE.NORM")
    from resnet_backbone.torchvision_plugin.run import Run

    def build() -> Run:
        return Run(load_config(args.config_file, args.opts), resume=args.resume, eval_only=args.eval_only)

    def report(run: Run, figures: dict[str, Any]) -> None:
        run.accelerator.end_training()
        if figures:  # on the main process
            show_result(run.output_dir, args)
            print(json.dumps({name: metrics.to_dict() for name, metrics in figures.items()}))

    return run_here(build, report)


def launch_detectron2(args: argparse.Namespace) -> int:
    try:
        from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

        from resnet_backbone.detectron2_plugin.run import launch_run
        from resnet_backbone.engine.signals import catching_signals
    except ImportError as error:
        return failed(error)
    try:
        if args.num_machines > 1:
            check_machines(args)
        with catching_signals():
            launch_run(run_detectron2, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args,))
    except (ValueError, OSError, Interrupted) as error:
        return failed(error)
    except (ProcessExitedException, ProcessRaisedException) as error:  # a process has said why
        print(f"error: {error}; if it had begun, --resume continues from the last checkpoint", file=sys.stderr)
        was_interrupted = isinstance(error, ProcessExitedException) and error.exit_code == RESUME_ME
        return RESUME_ME if was_interrupted else 1
    return 0


def run_detectron2(args: argparse.Namespace) -> None:
    """What each process does."""
    set_up_console(keeps_running=True)  # processes that Detectron2 has started have not done it
    from resnet_backbone.detectron2_plugin.config import load_config
    from resnet_backbone.detectron2_plugin.run import Run
    from resnet_backbone.engine.processes import run_here

    def build() -> Run:
        return Run(load_config(args.config_file, args.opts), resume=args.resume, eval_only=args.eval_only)

    def report(run: Run, figures: dict[str, Any]) -> None:
        if figures:  # on the main process
            show_result(run.output_dir, args)
            print(json.dumps(figures))

    if status := run_here(build, report):
        sys.exit(status)


def show_result(output_dir: Path, args: argparse.Namespace) -> None:
    from resnet_backbone.api import write_pages

    write_pages(output_dir, show=args.open)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    what = add_run_arguments(parser)
    what.add_argument("--data", type=Path, metavar="FOLDER", help="images and labels to plan a training for")
    parser.add_argument("--open", action="store_true", help="show the page of the result in a browser")
    parser.add_argument("--dry-run", action="store_true", help="with --data: print the plan, write nothing")
    parser.add_argument(
        "--group-by",
        metavar="PATTERN",
        help="with --data without a split: regular expression whose first group, in the names of images, names what is "
        "trained on or evaluated as a whole",
    )
    args = parser.parse_args(argv)
    if args.data is None and (args.dry_run or args.group_by is not None):
        parser.error("--dry-run and --group-by go with --data")
    return args


if __name__ == "__main__":
    sys.exit(run_command_line(main, keeps_running=True))
