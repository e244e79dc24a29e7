#!/usr/bin/env python
"""COCO evaluation of boxes, from the annotation and results files to the twelve figures: seconds, memory, agreement.

Example: python -m benchmarks.evaluation

The case is made up (benchmarks/coco_case.py): as many images and objects as COCO's validation set has, and 100
detections an image. Every contender reads the two files again in each round, in one process that has torch loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.coco_case import write_case
from benchmarks.harness import Contender, Measurement, measure, save, table

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
OURS, FASTER = "ours (evaluate_coco)", "faster-coco-eval"
DETECTRON2, PYCOCOTOOLS = "Detectron2 (COCOeval_opt)", "pycocotools"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="an image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the result as JSON to this file")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_case(Path(folder), args.num_images, args.detections)
        measurements = measure(contenders(*paths), rounds=args.rounds, threads=1)
    difference = greatest_difference(measurements)
    print(table(measurements, PYCOCOTOOLS))
    print(f"greatest difference of a figure from pycocotools: {difference:.2g} (percent points)")
    title = f"{args.num_images * args.detections:,} boxes on {args.num_images:,} images"
    save(
        args.output,
        "How long does COCO evaluation take from the files to the twelve figures, and in how much memory?",
        {title: (PYCOCOTOOLS, measurements, {"greatest difference of a figure, percent points": difference})},
        threads=1,
    )
    return 0


def contenders(annotations: Path, results: Path) -> list[Contender]:
    """Return those that are compared; each call gives the twelve figures by name, in percent."""
    prepared: dict[str, Callable[..., Callable[[], dict[str, float]]]] = {
        OURS: _prepare_ours,
        FASTER: _prepare_faster,
        DETECTRON2: _prepare_detectron2,
        PYCOCOTOOLS: _prepare_pycocotools,
    }
    return [Contender(name, partial(prepare, annotations, results)) for name, prepare in prepared.items()]


def greatest_difference(measurements: Sequence[Measurement]) -> float:
    """Return how far a figure of any contender is from pycocotools'; a figure that only one of them has is infinite."""
    figures = {m.name: m.outcome for m in measurements if not m.problem}
    differences = [
        0.0 if math.isnan(value) and math.isnan(found[name]) else abs(found[name] - value)
        for found in figures.values()
        for name, value in figures[PYCOCOTOOLS].items()
    ]
    return max(math.inf if math.isnan(difference) else difference for difference in differences)


def _prepare_ours(annotations: Path, results: Path) -> Callable[[], dict[str, float]]:
    from resnet_backbone.metrics.coco import evaluate_coco

    return lambda: evaluate_coco(annotations, results).summary()


def _prepare_faster(annotations: Path, results: Path) -> Callable[[], dict[str, float]]:
    from faster_coco_eval import COCO, COCOeval_faster

    return partial(_evaluate, COCO, COCOeval_faster, annotations, results)


def _prepare_detectron2(annotations: Path, results: Path) -> Callable[[], dict[str, float]]:
    from pycocotools.coco import COCO

    evaluator = import_module("benchmarks.peers.detectron2_evaluation").COCOeval_opt
    return partial(_evaluate, COCO, evaluator, annotations, results)


def _prepare_pycocotools(annotations: Path, results: Path) -> Callable[[], dict[str, float]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return partial(_evaluate, COCO, COCOeval, annotations, results)


def _evaluate(index: Any, evaluator: Any, annotations: Path, results: Path) -> dict[str, float]:
    """What COCO's own example does, with the classes of any of the three packages."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = index(str(annotations))
        run = evaluator(truth, truth.loadRes(str(results)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: 100 * value if value > -1 else math.nan for name, value in zip(NAMES, run.stats, strict=True)}


if __name__ == "__main__":
    raise SystemExit(main())
