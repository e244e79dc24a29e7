#!/usr/bin/env python
"""VGG-16 against ResNet-101 as detectors, on one GPU in minutes: the table "small-gpu" of tools/reproduce.py, timed.

Example: python -m benchmarks.paper_pair --cifar10 cifar10_jpeg.zip --output output/paper_pair

Needs the package, what it installs and an archive of the JPEG copy of CIFAR-10; no network. The stages: photographs are
unpacked and scenes made of them, below $DETECTRON2_DATASETS; then, in the order of the table's pairs, each classifier
is trained and a detector on it; the first pair gets the page of tools/compare.py. After every stage
OUTPUT/paper_pair.json and .md hold its seconds and figures.

A stage begins only where the time left is that of the longest one of its kind so far. What was left out, failed or was
interrupted is run by the same command, started again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.gpu_check import environment, table
from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.images.classes import missing_classes
from resnet_backbone.data.prepare.cifar10 import CLASSES, IMAGES_PER_CLASS, prepare_cifar10
from resnet_backbone.data.prepare.scenes import PHOTOGRAPHS
from resnet_backbone.files.atomic import copy_file, write_text
from resnet_backbone.reproduce.jobs import FINISHED, Job, Jobs, LoadConfig, TableOptions, read_state
from resnet_backbone.reproduce.report import collect
from resnet_backbone.reproduce.run import CommandFailed, run_jobs
from resnet_backbone.reproduce.tables import Table, Training, all_tables
from tools import reproduce

TABLE, ENGINE = "small-gpu", "torchvision"
LEFT_OUT, FAILED = "left out", "failed"
TOY_PHOTOGRAPHS = 3  # of each class and split
TOY_SCENES = ("--train", "6", "--val", "4")
_TOY = [
    *("MODEL.DEVICE", "cpu", "SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "0", "SOLVER.CHECKPOINT_PERIOD", "20"),
]
TOY_CLASSIFIER = [*_TOY, "SOLVER.IMS_PER_BATCH", "4", "INPUT.SIZE", "32", "INPUT.RESIZE_TEST", "32"]
TOY_DETECTOR = [
    *(*_TOY, "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("INPUT.MIN_SIZE_TRAIN", "[96]", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MIN_SIZE_TEST", "96"),
    *("INPUT.MAX_SIZE_TEST", "96", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
]
TOY_STEPS, NORM_STEPS = 2, 20  # in which the statistics of norms, which detectors fix, settle


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    device = torch.device("cpu" if args.rehearse else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: no GPU that torch can use; --rehearse runs all stages on the CPU, at a toy size", file=sys.stderr)
        return 1
    all_rows = all_tables()[TABLE]
    load_config = reproduce.find_engine(ENGINE, all_rows)
    if args.rehearse:
        os.environ["DETECTRON2_DATASETS"] = str(args.output.absolute() / "datasets")
        all_rows = toy_table(all_rows, args.output / "configs", load_config)
    elif args.cifar10 is None and any(map(missing_classes, PHOTOGRAPHS.values())):
        print("error: no CIFAR-10 in", datasets_root(), "- name its archive with --cifar10", file=sys.stderr)
        return 1
    jobs = Jobs(all_rows, TableOptions(args.output, engine=ENGINE), load_config)
    record = Record(args.output / "paper_pair.json", environment(device), jobs, args.minutes)
    reproduce.end_as_by_ctrl_c()
    try:
        for stage in stages(jobs, args.cifar10, toy=args.rehearse):
            record.run(stage)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    reproduce.report(jobs)
    print(f"\n{record.markdown()}\nwrote {record.path} and {record.path.with_suffix('.md')}")
    return int(any(row["status"].startswith(FAILED) for row in record.rows.values()))


@dataclass(frozen=True)
class Stage:
    """One step that is timed."""

    name: str
    kind: str
    run: Callable[[], object]  # does nothing of what is there already
    job: Job | None = None
    needs: tuple[str, ...] = ()  # stages that have to be finished


def stages(jobs: Jobs, archive: Path | None, *, toy: bool) -> Iterator[Stage]:
    """Yield all stages, what is worth most first."""
    photographs = partial(prepare_photographs, datasets_root() / "cifar10_jpeg", archive, toy=toy)
    yield Stage("photographs", "data", photographs)
    scenes = partial(reproduce.prepare, jobs, TOY_SCENES if toy else ())
    yield Stage("scenes", "data", scenes, needs=("photographs",))
    pairs = jobs.table.pairs
    compared = tuple(jobs.of_row(key)[0].name for key in pairs[0])
    for key in dict.fromkeys(key for pair in pairs for key in pair):
        classifier, detector = jobs.classifier_of(key), jobs.of_row(key)[0]
        for job in filter(None, (classifier, detector)):
            kind = "classifier" if job is classifier else "detector"
            with_needed = [other for other in jobs if other.name in (*job.needs, job.name)]
            run = partial(run_jobs, with_needed, reproduce.TOOLS.as_posix(), sys.stdout, keep_going=False)
            yield Stage(job.name, kind, run, job, ("scenes", *job.needs))
        if key == pairs[0][1]:
            yield Stage("comparison", "page", partial(compare, jobs), needs=compared)


def compare(jobs: Jobs) -> None:
    """Write the page of the first pair, once."""
    if not (reproduce.comparison_folder(jobs) / "index.html").is_file():
        reproduce.compare_pair(jobs)


def prepare_photographs(folder: Path, archive: Path | None, *, toy: bool) -> None:
    """Unpack CIFAR-10 to ``folder``; of a rehearsal beside it, where ``folder`` gets a few of its images, or noise."""
    unpacked = folder.with_name("cifar10") if toy else folder
    if archive:
        prepare_cifar10(unpacked, archive)
    if not toy:
        return
    rng = np.random.default_rng(0)
    for name in (f"{split}/{name}" for split in IMAGES_PER_CLASS for name in CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        images = sorted((unpacked / name).glob("*.jpg"))
        for number in range(TOY_PHOTOGRAPHS):
            path = folder / name / f"{number}.jpg"
            if archive:
                copy_file(images[number], path)
            else:
                cv2.imwrite(str(path), rng.integers(256, size=(32, 32, 3), dtype=np.uint8))


def toy_table(of: Table, folder: Path, load_config: LoadConfig) -> Table:
    """Return a table with configs of its own in ``folder``, for a few iterations on the CPU."""
    folder.mkdir(parents=True, exist_ok=True)

    def toy(training: Training) -> Training:
        path = folder / f"{training.name}.yaml"
        steps = NORM_STEPS if training.classifier and "vgg" not in training.name else TOY_STEPS
        overrides = TOY_CLASSIFIER if training.classifier else TOY_DETECTOR
        write_text(path, load_config(training, [*overrides, "SOLVER.MAX_ITER", str(steps)]).dump())
        start_from = toy(training.start_from) if training.start_from else None
        return replace(training, config=str(path), start_from=start_from)

    return replace(of, rows=tuple(replace(row, training=toy(row.training)) for row in of.rows))


@dataclass
class Record:
    """What the stages took and found, in a file that is written after each of them."""

    path: Path
    environment: Mapping[str, Any]
    jobs: Jobs
    minutes: float
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the name of the stage
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.path.is_file():
            self.rows = {row["stage"]: row for row in json.loads(self.path.read_text(encoding="utf-8"))["stages"]}

    def run(self, stage: Stage) -> None:
        """Run a stage where its time has come, and write down what became of it."""
        row = {"seconds": 0.0, **self.rows.get(stage.name, {}), "stage": stage.name, "kind": stage.kind}
        before, row["status"] = time.monotonic(), self._hindrance(stage)
        if not row["status"]:
            print(f"\n== {stage.name}", flush=True)
            try:
                stage.run()
                row["status"] = FINISHED
            except (CommandFailed, OSError, ValueError) as error:
                row["status"] = f"{FAILED}: {error}"
                print(f"error: {stage.name}: {error}", file=sys.stderr)
        row["seconds"] = round(row["seconds"] + time.monotonic() - before, 1)
        if stage.job:
            row["figures"] = figures_of(stage.job, self.jobs.table.figures)
        self.rows[stage.name] = row
        self.write()

    def _hindrance(self, stage: Stage) -> str:
        """Say why a stage is left out; nothing where it can run."""
        if stage.job and read_state(stage.job).status == FINISHED:
            return ""  # nothing is left to do
        if missing := [name for name in stage.needs if self.rows[name]["status"] != FINISHED]:
            return f"{LEFT_OUT}: needs {', '.join(missing)}"
        of_kind = [row for row in self.rows.values() if row["kind"] == stage.kind and row["status"] == FINISHED]
        needed = max((row["seconds"] for row in of_kind), default=0.0)
        left = 60 * self.minutes - (time.monotonic() - self.start)
        return "" if left > needed else f"{LEFT_OUT}: {max(left, 0):.0f} s left, a {stage.kind} took {needed:.0f}"

    def write(self) -> None:
        found = {"environment": self.environment, "stages": list(self.rows.values()), "gains": self.gains()}
        write_text(self.path, json.dumps(found, indent=1) + "\n")
        write_text(self.path.with_suffix(".md"), self.markdown())

    def gains(self) -> list[dict[str, Any]]:
        return [
            {"first": pair.first.row.name, "second": pair.second.row.name, "figure": pair.figure, **asdict(pair.ours)}
            for pair in collect(self.jobs).pairs
            if pair.ours
        ]

    def markdown(self) -> str:
        rows = [{**row, **row.get("figures", {})} for row in self.rows.values()]
        names = ("stage", "seconds", "top1_error", *self.jobs.table.figures, "status")
        shown = [{name: row.get(name) for name in names} for row in rows]
        facts = ", ".join(f"{name} {value}" for name, value in self.environment.items())
        return f"{self.jobs.table.title}\n\n{facts}\n\n{table(shown)}\n\n{table(self.gains())}\n"


def figures_of(job: Job, names: Sequence[str]) -> dict[str, float | None]:
    """Return the classifier's error or the detector's AP, in percent, where it was evaluated."""
    figures = read_state(job).figures
    wanted = {"classification": ["top1_error"], "bbox": names}
    return {name: figures[metric].get(name) for metric in wanted if metric in figures for name in wanted[metric]}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, metavar="ZIP", help="archive; not needed where it is unpacked already")
    parser.add_argument("--output", type=Path, required=True, help="for the runs, 10 GB, and the figures")
    parser.add_argument("--minutes", type=float, default=12, help="of this call (default: 12)")
    parser.add_argument("--rehearse", action="store_true", help="all stages on the CPU, at a toy size, in minutes")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
