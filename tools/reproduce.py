#!/usr/bin/env python
"""Reproduce a table of the paper: print the plan, run or resume it, and report paper, today and yours.

Examples:
    python tools/reproduce.py --list
    python tools/reproduce.py --table 8                       # the plan for 8 GPUs and for 1
    python tools/reproduce.py --table 8 --gpus 4 --gpu A100   # for these
    python tools/reproduce.py --table bccd --run              # run or resume what is not finished, then report
    python tools/reproduce.py --table bccd --report           # what is there
    python tools/reproduce.py --table 9 --rows baseline refinement --run

Table 1, parameters and multiply-adds, is counted and printed. Nothing is trained for Tables 13 and 14, ImageNet
localisation: they are the paper's figures.

A command that fails ends --run with status 1; the same call resumes from its last checkpoint, as it does after Ctrl-C.
Reports are OUTPUT/table_<name>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from resnet_backbone.engine.command_line import ENGINES, choose_engine, reports_errors, run_command_line
from resnet_backbone.reproduce.jobs import Jobs, LoadConfig, TableOptions, read_state
from resnet_backbone.reproduce.plan import missing_data, plan_text
from resnet_backbone.reproduce.report import cited_markdown, collect, report_markdown, write_report
from resnet_backbone.reproduce.run import CommandFailed, run_command, run_jobs
from resnet_backbone.reproduce.tables import Table, Training, all_tables, cited_tables

COUNTED = "1"  # the table that needs no training
TOOLS = Path(__file__).resolve().parent
if TOOLS.is_relative_to(Path.cwd()):
    TOOLS = TOOLS.relative_to(Path.cwd())  # as one would type it


@reports_errors(OSError, ValueError, ImportError, CommandFailed)
def main(argv: Sequence[str] | None = None, tables: Mapping[str, Table] | None = None) -> int:
    """Do what ``argv`` says with ``tables``, by default those of the paper and of BCCD; return the exit status."""
    tables = tables or all_tables()
    args = parse_args(argv, tables)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if args.list:
        width = max(map(len, tables))
        titles = {COUNTED: "parameters and multiply-adds of every network"} | {n: t.title for n, t in tables.items()}
        titles |= {name: f"{table.title} (cited)" for name, table in cited_tables().items()}
        print("\n".join(f"{name:<{width}}  {title}" for name, title in titles.items()))
        return 0
    try:
        if args.table == COUNTED:
            run_command([str(TOOLS / "analyze_model.py"), "table"], sys.stdout)
            return 0
        if cited := cited_tables().get(args.table):
            if args.run or args.measure or args.prepare:
                raise ValueError(f"table {args.table} is cited alone, and has nothing to run: leave the options out")
            print(cited_markdown(cited))
            return 0
        table = tables[args.table].only(args.rows) if args.rows else tables[args.table]
        load_config = find_engine(args.engine, table)
        plans = [Jobs(table, options_of(args, gpus), load_config) for gpus in numbers_of_gpus(args, table)]
        if args.run:
            refuse_a_cpu(plans[0], args)
        if args.prepare:
            prepare(plans[0])
        if args.run:
            return run(plans[0], args.keep_going, args.parallel)
        if args.report:
            report(plans[0])
        else:
            print_plans(plans, args)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def print_plans(plans: Sequence[Jobs], args: argparse.Namespace) -> None:
    job_table = plans[0].table
    for jobs in plans:
        print(plan_text(jobs, TOOLS.as_posix(), name_of_gpu(args, job_table), measure=args.measure))
    if not args.gpu and not torch.cuda.is_available() and name_of_gpu(args, job_table):
        print(f"There is no GPU here: the hours are those of {name_of_gpu(args, job_table)}; --gpu names another.")
    arguments = [argument for argument in sys.argv if argument != "--measure"]
    where = "On the machine with the GPUs" if needs_gpus(plans[0].table, args) else "Run it with"
    print(f"{where}: {shlex.join(['python', *arguments, '--run'])}")


def needs_gpus(table: Table, args: argparse.Namespace) -> bool:
    """Whether the trainings are for GPUs, of which there are none here, and --gpus does not ask for one process."""
    return not table.on_cpu and args.gpus != 1 and not torch.cuda.is_available()


def refuse_a_cpu(jobs: Jobs, args: argparse.Namespace) -> None:
    """Raise ValueError before weeks of training on a CPU that nobody asked for."""
    if not args.gpus and needs_gpus(jobs.table, args):
        iterations = max(job.own_schedule.max_iter for job in jobs)
        raise ValueError(
            f"table {jobs.table.name} is {iterations:,} iterations a training for GPUs, and there is no GPU here; "
            f"--gpus 1 runs it on the CPU all the same"
        )


def end_as_by_ctrl_c() -> None:
    """Let other signals that end the process end its commands, too."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # Windows has no SIGHUP
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's
            signal.signal(number, signal.default_int_handler)


def run(jobs: Jobs, keep_going: bool, parallel: int) -> int:
    end_as_by_ctrl_c()
    failed = run_jobs(jobs, TOOLS.as_posix(), sys.stdout, keep_going=keep_going, parallel=parallel)
    if jobs.table.metric == "classification":
        report(jobs)
        draw_curves(jobs)
    else:
        report(jobs, compare_pairs(jobs, failed))
    for text in failed:
        print(f"error: {text}", file=sys.stderr)
    return int(bool(failed))


def report(jobs: Jobs, sentences: Sequence[str] = ()) -> None:
    result = collect(jobs)
    print(report_markdown(result, sentences))
    paths = write_report(result, jobs.options.output, sentences)
    print(f"\nwrote {' and '.join(map(str, paths))}")


def comparison_folder(jobs: Jobs, number: int = 0) -> Path:
    """Where the page of a pair lies: of the first pair comparison_<table>, of the others folders in it."""
    return (
        jobs.options.output / f"comparison_{jobs.table.name}" / ("-".join(jobs.table.pairs[number]) if number else "")
    )


def compare_pair(jobs: Jobs, number: int = 0) -> list[str]:
    """Write the page of tools/compare.py about a pair, with the seeds that both have; return its sentences.

    Raises:
        CommandFailed: the runs cannot be compared.
    """
    finished: list[dict[int, Path]] = []
    for key in jobs.table.pairs[number]:
        states = map(read_state, jobs.of_row(key))
        finished.append({state.job.seed: state.job.folder for state in states if state.figures})
    seeds = [seed for seed in finished[0] if seed in finished[1]]
    if not seeds:
        return []
    folders = [str(of_row[seed]) for of_row in finished for seed in seeds]
    names = [jobs.table.row(key).name for key in jobs.table.pairs[number]]
    page = comparison_folder(jobs, number)
    arguments = [str(TOOLS / "compare.py"), *folders, "--seeds", str(len(seeds)), "--output", str(page)]
    run_command([*arguments, *(["--pictures", "0"] if number else []), "--names", *names], sys.stdout)
    print(f"comparison: {page / 'index.html'}")
    return list(json.loads((page / "comparison.json").read_text(encoding="utf-8"))["verdicts"])


def compare_pairs(jobs: Jobs, failed: list[str]) -> list[str]:
    """Compare all pairs; what goes wrong is added to ``failed``."""
    sentences = []
    for number in range(len(jobs.table.pairs)):
        try:
            sentences += compare_pair(jobs, number)
        except CommandFailed as error:
            failed.append(str(error))
    return sentences


def draw_curves(jobs: Jobs) -> None:
    """Draw the training curves of the runs of the first seed that are there, as in the paper's Figures 4 and 6."""
    runs: dict[str, str] = {}
    for row in jobs.table.rows:
        job = jobs.of_row(row.key)[0]
        if not job.eval_only and (job.folder / "metrics.json").is_file():
            runs[str(job.folder)] = row.name
    if runs:
        folder = jobs.options.output / f"curves_{jobs.table.name}"
        arguments = [str(TOOLS / "analyze_model.py"), "curves", *runs, "--output", str(folder)]
        run_command([*arguments, "--names", *runs.values()], sys.stdout)


def prepare(jobs: Jobs, more: Sequence[str] = ()) -> None:
    """Get the data that is missing, by the commands of the data sets, with ``more`` arguments."""
    for command in dict.fromkeys(command for _, command in missing_data(jobs)):
        arguments = shlex.split(command)
        if arguments[:2] != ["resnet-backbone", "prepare"] or {"|", ";"} & set(command):
            raise ValueError(f"this has to be done by hand: {command or 'get your own data'}")
        script = TOOLS.parent / "datasets" / f"prepare_{arguments[2]}.py"
        run_command([str(script), *arguments[3:], *more], sys.stdout)


def find_engine(asked: str, table: Table) -> LoadConfig:
    """Return what loads a config as the tool that will run it does."""
    classifiers = [row.training.classifier for row in table.rows]
    if all(classifiers) and asked != "auto":
        raise ValueError(f"table {table.name} trains classifiers, which have one engine: leave out --engine")
    from resnet_backbone.classification.config import load_config as load_for_classifiers

    if all(classifiers):
        return lambda training, overrides: load_for_classifiers(training.config, overrides)
    if choose_engine(asked) == "detectron2":
        from resnet_backbone.detectron2_plugin.config import load_config
    else:
        from resnet_backbone.torchvision_plugin.config import load_config

    def load(training: Training, overrides: Sequence[str]) -> CfgNode:
        return (load_for_classifiers if training.classifier else load_config)(training.config, overrides)

    return load


def options_of(args: argparse.Namespace, gpus: int) -> TableOptions:
    return TableOptions(args.output, gpus, args.engine, args.seeds, args.images_per_step)


def numbers_of_gpus(args: argparse.Namespace, table: Table) -> list[int]:
    """Those asked for; to run, those that are here; else what the configs are made for, and one."""
    if args.gpus:
        return [args.gpus]
    if args.run or args.report:
        return [max(1, min(torch.cuda.device_count(), table.usual_gpus()[0]))]
    return table.usual_gpus()


def name_of_gpu(args: argparse.Namespace, table: Table) -> str:
    """The GPU to estimate for: the one asked for, else the one here; else the one most is known of, or the CPU."""
    if args.gpu:
        return str(args.gpu)
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "" if args.measure or table.on_cpu else "V100"


def parse_args(argv: Sequence[str] | None, tables: Mapping[str, Table]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="name the tables")
    names = [COUNTED, *tables, *cited_tables()]
    what.add_argument("--table", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these; a wrong name says the right ones")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--run", action="store_true", help="run what is not finished, resume what was started")
    action.add_argument("--report", action="store_true", help="the figures of what ran")
    action.add_argument(
        "--measure", action="store_true", help="the plan, with some iterations of each training timed here"
    )
    parser.add_argument("--prepare", action="store_true", help="get missing data first")
    parser.add_argument("--keep-going", action="store_true", help="run the others after a command that failed")
    parser.add_argument(
        "--parallel", type=positive, default=1, metavar="N", help="commands at a time, sharing the cores (default: 1)"
    )
    parser.add_argument("--gpus", type=positive, help="how many (default: to run, those of this machine)")
    parser.add_argument("--gpu", metavar="NAME", help="which, for the estimate, such as V100 (default: the one here)")
    parser.add_argument("--images-per-step", type=positive, metavar="N", help="over all GPUs; the schedule follows")
    parser.add_argument("--seeds", type=positive, metavar="N", help="runs of each training (default: the table's own)")
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    parser.add_argument("--output", type=Path, default=Path("output/reproduce"), help="default: %(default)s")
    return parser.parse_args(argv)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(run_command_line(main, keeps_running=True))
