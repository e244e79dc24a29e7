"""What is in the folder of a run: whether it ended, with which settings, and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from resnet_backbone.config.files import leaves, value_of
from resnet_backbone.config.output import LAST
from resnet_backbone.evaluation.facts import FACTS_NAME, RunFacts, read_facts
from resnet_backbone.evaluation.results import read_figures
from resnet_backbone.reproduction.jobs import Job

FINISHED, STARTED, NOT_RUN, OTHER = "finished", "started", "not run", "other settings"

# What a run fills in from weights, data and machine, or what changes nothing that it learns.
_FILLED_IN = {
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    "INPUT.FORMAT",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
}
_PATHS = {"MODEL.WEIGHTS", "TEST.ENSEMBLE"}
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
    if others := different_settings(_read_yaml(config_path), job.cfg):
        return RunState(job, OTHER, "; ".join(others))
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


def different_settings(written: Mapping[str, Any], cfg: CfgNode) -> list[str]:
    """Return what a run's ``config.yaml`` says otherwise than ``cfg``, a text a key; what runs fill in is left out.

    A key that only one of them has is left out, too: versions and engines know different ones.
    """
    there = set(leaves(written)) & set(leaves(cfg)) - _FILLED_IN
    texts = []
    for key in sorted(there):
        found, expected = value_of(CfgNode(dict(written)), key), value_of(cfg, key)
        if _comparable(key, found) != _comparable(key, expected):
            texts.append(f"{key} is {found} in the folder, {expected} in the plan")
    return texts


def _comparable(key: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_comparable(key, item) for item in value]
    if key in _PATHS and isinstance(value, str) and "://" not in value:
        path = Path(value)  # the output folder may have been moved
        return (path.parent.name, path.name) if path.suffix else path.name
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML that can be read safely: {error}; move the folder away") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no config; move the folder away")
    return values
