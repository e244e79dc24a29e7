"""Finished runs, read from their folders and checked (same data, nothing missing or stale), with training curves."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_backbone.files.text import read_yaml
from resnet_backbone.metrics.run_facts import (
    FACTS_NAME,
    METRICS_NAME,
    RunFacts,
    TrainingCurves,
    read_facts,
    read_figures,
    read_training,
)

RESULTS_NAME = "coco_instances_results.json"
_FOLDER_OF_A_RUN = "a run's folder is the OUTPUT_DIR of tools/train_net.py"


@dataclass(frozen=True)
class EvaluatedRun:
    """One run and one of its test sets."""

    name: str  # on the page; no two are the same
    folder: Path
    facts: RunFacts
    settings: Mapping[str, Any]  # dotted key -> value, every key of its config.yaml
    results_path: Path  # COCO results, boxes and perhaps masks
    figures: Mapping[str, Mapping[str, float | None]]  # as recorded: {"bbox": {"AP": ...}, ...}, percent
    training: TrainingCurves | None  # None where the folder holds an evaluation only

    @property
    def arch(self) -> str:
        """The backbone, e.g. ``resnet101``; empty where the config does not say."""
        return str(self.settings.get("MODEL.RESNET_BACKBONE.ARCH", ""))


def read_runs(folders: Sequence[Path], names: Sequence[str] = (), dataset: str | None = None) -> list[EvaluatedRun]:
    """Read the folders of finished runs.

    Args:
        folders: two or more; the first is the baseline.
        names: how the page calls them; by default, the names of the folders.
        dataset: the test set, needed where the runs have several.

    Raises:
        ValueError: fewer than two folders, one twice, one that is no run's, a run that is not finished (the message
            has the command), names that do not fit, or runs on different data.
    """
    if len(folders) < 2:
        raise ValueError(f"a comparison needs two runs or more, got {len(folders)}; name their folders")
    _refuse_the_same_folder(folders)
    labels = distinct_names(names, _names_of(folders), "runs")
    runs = [_read_run(folder, name, dataset) for folder, name in zip(folders, labels, strict=True)]
    for run in runs[1:]:
        _refuse_different_data(runs[0], run)
    return runs


def distinct_names(given: Sequence[str], usual: Sequence[str], what: str) -> list[str]:
    """Return the names of runs, or of other things, for tables and plots: those given, else the usual ones.

    Raises:
        ValueError: another number of names than usual, or two that are the same.
    """
    if given and len(given) != len(usual):
        raise ValueError(f"{len(usual)} {what} need {len(usual)} names, got {len(given)}: {', '.join(given)}")
    names = list(given) or list(usual)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two {what} are called {twice[0]}; give each a name of its own with --names")
    return names


def _refuse_the_same_folder(folders: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in folders:
        if folder.resolve() in seen:
            raise ValueError(f"{seen[folder.resolve()]} and {folder} are the same folder; name two different runs")
        seen[folder.resolve()] = folder


def _names_of(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many parts as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path[-count:]) for path in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read_run(folder: Path, name: str, dataset: str | None) -> EvaluatedRun:
    config_path = folder / "config.yaml"
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; {_FOLDER_OF_A_RUN}")
    if not config_path.is_file():
        raise ValueError(f"{folder} is no run's folder, it has no config.yaml; {_FOLDER_OF_A_RUN}")
    settings = _read_settings(config_path)
    training = read_training(folder / METRICS_NAME)
    _refuse_unfinished_training(folder, settings, training)
    inference = _inference_folder(folder, settings, dataset)
    absent = [part for part in (RESULTS_NAME, METRICS_NAME, FACTS_NAME) if not (inference / part).is_file()]
    if absent:
        raise ValueError(
            f"{folder} is not evaluated: no {', no '.join(absent)} in {inference} (early versions wrote no "
            f"{FACTS_NAME}); evaluate again with:\n  {_evaluate_command(folder, settings)}"
        )
    facts, figures = read_facts(inference), read_figures(inference / METRICS_NAME)
    if dataset is not None and facts.dataset != dataset:
        raise ValueError(f"{folder} was evaluated on {facts.dataset}, not on {dataset}; leave --dataset away")
    _refuse_earlier_evaluation(folder, settings, training, facts.dataset, figures)
    return EvaluatedRun(
        name=name,
        folder=folder,
        facts=facts,
        settings=settings,
        results_path=inference / RESULTS_NAME,
        figures=figures,
        training=training,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    values = read_yaml(path)
    return dict(_flattened(values))


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _refuse_unfinished_training(folder: Path, settings: Mapping[str, Any], training: TrainingCurves | None) -> None:
    total = settings.get("SOLVER.MAX_ITER")
    done = training.iterations if training else 0
    if training is None or ((folder / "model_final.pth").is_file() and (total is None or done >= total)):
        return
    raise ValueError(
        f"{folder} is not finished: {done} of {total} iterations are recorded"
        f"{'' if (folder / 'model_final.pth').is_file() else ', and there is no model_final.pth'}; go on with:\n"
        f"  {_command(folder, settings)} --resume OUTPUT_DIR {shlex.quote(str(folder))}"
    )


def _refuse_earlier_evaluation(
    folder: Path,
    settings: Mapping[str, Any],
    training: TrainingCurves | None,
    dataset: str,
    figures: Mapping[str, Mapping[str, float | None]],
) -> None:
    """An evaluation on the way (TEST.EVAL_PERIOD) leaves the same files as the last one, which may have failed."""
    course = training.ap.get(dataset) if training else None
    total = settings.get("SOLVER.MAX_ITER")
    if not course or total is None:
        return
    iteration, ap = course[-1]
    if iteration < total and 0 < ap == figures.get("bbox", {}).get("AP"):  # 0 can be the final detector's as well
        raise ValueError(
            f"{folder} was evaluated after {iteration} of {total} iterations, and not since; evaluate its final "
            f"detector with:\n  {_evaluate_command(folder, settings)}"
        )


def _inference_folder(folder: Path, settings: Mapping[str, Any], dataset: str | None) -> Path:
    """Where the figures of the test set lie: ``inference``, with several test sets a folder in it for each."""
    inference = folder / "inference"
    tested = list(settings.get("DATASETS.TEST") or [])
    if not tested:
        raise ValueError(f"{folder} has no test set, DATASETS.TEST is empty; there is nothing to compare")
    if dataset is not None and dataset not in tested:
        raise ValueError(f"{folder} was not evaluated on {dataset}, only on {', '.join(tested)}")
    if len(tested) == 1:
        return inference
    if dataset is None:
        raise ValueError(f"{folder} has several test sets: choose one with --dataset, of {', '.join(tested)}")
    return inference / dataset


def _command(folder: Path, settings: Mapping[str, Any]) -> str:
    # Only Detectron2's own tree has this key.
    engine = "detectron2" if "GLOBAL.HACK" in settings else "torchvision"
    config = shlex.quote(str(folder / "config.yaml"))
    return f"python tools/train_net.py --config-file {config} --engine {engine}"


def _evaluate_command(folder: Path, settings: Mapping[str, Any]) -> str:
    own = folder / "model_final.pth"
    weights = shlex.quote(str(own if own.is_file() else settings.get("MODEL.WEIGHTS", "")))
    return f"{_command(folder, settings)} --eval-only MODEL.WEIGHTS {weights} OUTPUT_DIR {shlex.quote(str(folder))}"


def _refuse_different_data(first: EvaluatedRun, other: EvaluatedRun) -> None:
    a, b = first.facts, other.facts
    both = f"{first.folder} and {other.folder} cannot be compared"
    if a.dataset != b.dataset:
        raise ValueError(f"{both}: one was evaluated on {a.dataset}, the other on {b.dataset}")
    if a.class_names != b.class_names:
        raise ValueError(f"{both}: their classes are {listed(a.class_names)} and {listed(b.class_names)}")
    if a.annotations_sha256 != b.annotations_sha256:
        raise ValueError(
            f"{both}: the annotations of {a.dataset} were not the same file, {a.annotations} (SHA-256 "
            f"{a.annotations_sha256[:12]}...) and {b.annotations} ({b.annotations_sha256[:12]}...); evaluate both "
            "again on the same file, with tools/train_net.py --eval-only"
        )


def listed(values: Sequence[str], most: int = 8) -> str:
    """Return the values with commas, the first few of many."""
    return ", ".join(values[:most]) + (f", ... ({len(values)})" if len(values) > most else "")
