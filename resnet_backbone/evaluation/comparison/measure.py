"""The figures of every run, how sure they are, and what the runs get wrong: all that is asked of the ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_backbone.evaluation.bootstrap import Bootstrap, bootstrap
from resnet_backbone.evaluation.coco import ALL, IouType
from resnet_backbone.evaluation.comparison.runs import FinishedRun
from resnet_backbone.evaluation.curves import PrecisionRecall, precision_recall
from resnet_backbone.evaluation.errors import ErrorBreakdown, error_breakdown
from resnet_backbone.evaluation.matching import FIGURES, Matches, match

CURVE_IOUS = (0.5, 0.75)
_TOLERANCE = 1e-6  # percent, between the recorded figures and those computed again


@dataclass(frozen=True)
class Measured:
    """What the runs reach in one kind of overlap. Tuples are in the order of the runs."""

    iou_type: IouType
    matches: tuple[Matches, ...]
    bootstrap: Bootstrap
    curves: Mapping[float, tuple[PrecisionRecall, ...]]  # IoU -> curve of each run
    errors: tuple[ErrorBreakdown, ...]

    @property
    def class_names(self) -> list[str]:
        return [of_class.name for of_class in self.matches[0].classes]

    @property
    def num_objects(self) -> dict[str, int]:
        """Class -> number of objects to find; crowds are not counted."""
        return {of_class.name: int(of_class.num_objects[ALL].sum()) for of_class in self.matches[0].classes}


def measure(
    runs: Sequence[FinishedRun], annotations: Path, *, samples: int = 1000, seed: int = 0
) -> dict[IouType, Measured]:
    """Score every run again on the same file: boxes, and masks where all runs have them.

    Raises:
        ValueError: results that are not of this ground truth, or that do not give the figures recorded beside them.
    """
    kinds: tuple[IouType, ...] = ("bbox", "segm")
    shared = [kind for kind in kinds if all(kind in run.figures for run in runs)]
    if not shared:
        raise ValueError(
            f"{' and '.join(str(run.folder) for run in runs)} have neither boxes nor masks in common; "
            f"their figures are of {', '.join(sorted({kind for run in runs for kind in run.figures}))}"
        )
    return {kind: _measure(runs, annotations, kind, samples, seed) for kind in shared}


def _measure(runs: Sequence[FinishedRun], annotations: Path, kind: IouType, samples: int, seed: int) -> Measured:
    matches = tuple(_match(run, annotations, kind) for run in runs)
    return Measured(
        iou_type=kind,
        matches=matches,
        bootstrap=bootstrap(matches, samples=samples, seed=seed),
        curves={iou: tuple(precision_recall(of_run, iou) for of_run in matches) for iou in CURVE_IOUS},
        errors=tuple(error_breakdown(annotations, run.results_path, iou_type=kind) for run in runs),
    )


def _match(run: FinishedRun, annotations: Path, kind: IouType) -> Matches:
    try:
        matches = match(annotations, run.results_path, iou_type=kind)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{run.results_path} does not fit {annotations}: {error}") from error
    computed = matches.metrics()
    for figure in FIGURES:
        recorded = run.figures[kind].get(figure)
        value = computed[figure]
        same = math.isnan(value) if recorded is None else abs(recorded - value) <= _TOLERANCE
        if not same:
            raise ValueError(
                f"{run.results_path} gives a {kind} {figure} of {value}, but metrics.json beside it says {recorded}: "
                "the two are not of one evaluation; evaluate the run again with tools/train_net.py --eval-only"
            )
    return matches
