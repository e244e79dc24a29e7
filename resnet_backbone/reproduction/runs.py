"""What is in the folder of a run: whether it ended, with which settings, and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resnet_backbone.config.differences import differences, read_settings
from resnet_backbone.evaluation.facts import FACTS_NAME, RunFacts, read_facts
from resnet_backbone.evaluation.results import read_figures
from resnet_backbone.files.checkpoints import LAST
from resnet_backbone.reproduction.jobs import Job

FINISHED, STARTED, NOT_RUN, OTHER = "finished", "started", "not run", "other settings"

_OLDER = "its figures are older than the detector, which was trained again, or copied without its time: cp -p keeps it"


@dataclass(frozen=True)
class RunState:
    """What was found of one job."""

    job: Job
    status: str  # FINISHED, STARTED, NOT_RUN or OTHER
    detail: str = ""  # how far it got, or which settings are others
    figures: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)  # inference/metrics.json, percent
    facts: RunFacts | None = None


def read_state(job: Job) -> RunState:
    """Look into a job's folder; nothing is written.

    Raises:
        ValueError: a file there is not what tools/train_net.py writes.
    """
    config_path = job.folder / "config.yaml"
    if not config_path.is_file():
        return RunState(job, NOT_RUN)
    if others := list(differences(read_settings(config_path), job.cfg)):
        return RunState(job, OTHER, "; ".join(one.text("the folder", "the plan") for one in others))
    inference = job.folder / "inference"
    metrics = inference / "metrics.json"
    evaluation = metrics if metrics.is_file() else inference / FACTS_NAME
    if _ended(job, evaluation):
        figures = read_figures(metrics) if metrics.is_file() else {}
        facts = read_facts(inference) if (inference / FACTS_NAME).is_file() else None
        return RunState(job, FINISHED, figures=figures, facts=facts)
    if job.evaluates:
        return RunState(job, NOT_RUN, _OLDER if evaluation.is_file() else "")
    return RunState(job, STARTED, f"iteration {last_iteration(job.folder):,} of {job.schedule.max_iter:,}")


def _ended(job: Job, evaluation: Path) -> bool:
    """Whether the file of an evaluation is there and is that of the final detector, or detectors.

    A test set without annotations has facts and no figures.
    """
    if not evaluation.is_file():
        return False
    if job.evaluates:  # weights may have been deleted since; those of a later training are others
        members = (Path(folder) / "model_final.pth" for folder in job.cfg.TEST.ENSEMBLE)
        weights = [path for path in (Path(job.cfg.MODEL.WEIGHTS), *members) if path.is_file()]
    else:
        final = job.folder / "model_final.pth"
        if not final.is_file():
            return False
        weights = [final] if job.cfg.TEST.EVAL_PERIOD else []
    return all(path.stat().st_mtime <= evaluation.stat().st_mtime for path in weights)


def can_resume(folder: Path) -> bool:
    """Return whether a run in this folder has a checkpoint to go on from."""
    return (folder / LAST).is_file()


def last_iteration(folder: Path) -> int:
    """Return how many iterations the records of a run tell of, 0 where there are none."""
    path = folder / "metrics.json"
    last = 0
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                last = max(last, int(json.loads(line)["iteration"]) + 1)
            except (ValueError, KeyError, TypeError):
                continue  # the line that a killed run was writing, or one of another kind
    return last
