"""Finished runs: read from their folders, checked (same data, nothing missing or stale), and their configs compared."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
_FOLDER_OF_A_RUN = "a run's folder is the OUTPUT_DIR of resnet-backbone train"


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
    other_seeds: tuple[EvaluatedRun, ...] = ()  # the same config trained with other seeds

    @property
    def all_seeds(self) -> tuple[EvaluatedRun, ...]:
        """This run and those of the other seeds."""
        return (self, *self.other_seeds)

    @property
    def arch(self) -> str:
        """The backbone, e.g. ``resnet101``; empty where the config does not say."""
        return str(self.settings.get("MODEL.RESNET_BACKBONE.ARCH", ""))


def read_runs(
    folders: Sequence[Path], names: Sequence[str] = (), dataset: str | None = None, seeds: int = 1
) -> list[EvaluatedRun]:
    """Read the folders of finished runs.

    Args:
        folders: of one run or more; the first is the baseline. With ``seeds``, first all of the first run.
        names: how the page calls the runs; by default, the names of the folders of their first seeds.
        dataset: the test set, needed where the runs have several.
        seeds: how many folders belong to each run: its config, trained with other seeds.

    Returns:
        The runs; each has its other seeds.

    Raises:
        ValueError: no run, a folder twice, one that is no run's, a run that is not finished (the message
            has the command), names that do not fit, runs on different data, or seeds whose configs differ otherwise.
    """
    if seeds < 1 or len(folders) % seeds:
        raise ValueError(
            f"{len(folders)} folders are not {seeds} seeds of each run; name as many of one run as of another, first "
            "all of the first"
        )
    if not folders:
        raise ValueError("name the folder of a run")
    for number, folder in enumerate(folders):
        for earlier in folders[:number]:
            if folder.resolve() == earlier.resolve():
                raise ValueError(f"{earlier} and {folder} are the same folder; name two different runs")
    labels = distinct_names(names, _names_of(folders)[::seeds], "runs")
    every = [_read_run(folder, labels[number // seeds], dataset) for number, folder in enumerate(folders)]
    for run in every[1:]:
        _refuse_different_data(every[0], run)
    runs = [replace(run, other_seeds=tuple(every[at + 1 : at + seeds])) for at, run in [*enumerate(every)][::seeds]]
    for run in runs:
        _refuse_other_settings(run)
    return runs


def _refuse_other_settings(run: EvaluatedRun) -> None:
    """The seeds of a run have one config but for SEED, where they lie, and the other seeds' weights they start from."""
    if not run.other_seeds:
        return
    differing = [difference.key for difference in compare_settings(run.all_seeds).differences]
    if others := [key for key in differing if key not in ("SEED", *_PLACES)]:
        raise ValueError(
            f"{', '.join(str(one.folder) for one in run.all_seeds)} are not seeds of one run: they differ in "
            f"{listed(others)}; name all seeds of the first run, then all of the second"
        )
    if not {*_OF_A_SEED} & {*differing}:
        raise ValueError(f"{run.folder} and {run.other_seeds[0].folder} have the same SEED; they are one training")


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
    settings = dict(_flattened(read_yaml(config_path)))
    training = read_training(folder / METRICS_NAME)
    _refuse_unfinished_training(folder, settings, training)
    inference = _inference_folder(folder, settings, dataset)
    absent = [part for part in (RESULTS_NAME, METRICS_NAME, FACTS_NAME) if not (inference / part).is_file()]
    if absent:
        raise ValueError(
            f"{folder} is not evaluated: no {', no '.join(absent)} in {inference} (early versions wrote no "
            f"{FACTS_NAME}); evaluate again with:\n  {evaluate_command(folder, settings)}"
        )
    facts, figures = read_facts(inference), read_figures(inference / METRICS_NAME)
    if dataset is not None and facts.dataset != dataset:
        raise ValueError(f"{folder} was evaluated on {facts.dataset}, not on {dataset}; leave --dataset away")
    run = EvaluatedRun(name, folder, facts, settings, inference / RESULTS_NAME, figures, training)
    _refuse_earlier_evaluation(run)
    return run


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
        f"{'' if (folder / 'model_final.pth').is_file() else ', and there is no model_final.pth'}; resume it with:\n"
        f"  {train_command(folder, settings)} --resume OUTPUT_DIR {shlex.quote(str(folder))}"
    )


def _refuse_earlier_evaluation(run: EvaluatedRun) -> None:
    """An evaluation on the way (TEST.EVAL_PERIOD) leaves the same files as the last one, which may have failed."""
    course = run.training.ap.get(run.facts.dataset) if run.training else None
    total = run.settings.get("SOLVER.MAX_ITER")
    if not course or total is None:
        return
    iteration, ap = course[-1]
    if iteration < total and 0 < ap == run.figures.get("bbox", {}).get("AP"):  # 0 can be the final detector's as well
        raise ValueError(
            f"{run.folder} was evaluated after {iteration} of {total} iterations, and not since; evaluate its final "
            f"detector with:\n  {evaluate_command(run.folder, run.settings)}"
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


def train_command(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the command that trains with the config of a run's folder again."""
    engine = "detectron2" if "GLOBAL.HACK" in settings else "torchvision"  # only Detectron2's own tree has this key
    config = shlex.quote(str(folder / "config.yaml"))
    return f"resnet-backbone train --config-file {config} --engine {engine}"


def evaluate_command(folder: Path, settings: Mapping[str, Any]) -> str:
    """Return the command that evaluates the detector of a run's folder again."""
    own = folder / "model_final.pth"
    weights = shlex.quote(str(own if own.is_file() else settings.get("MODEL.WEIGHTS", "")))
    return (
        f"{train_command(folder, settings)} --eval-only MODEL.WEIGHTS {weights} OUTPUT_DIR {shlex.quote(str(folder))}"
    )


def test_sets(folder: Path) -> list[str]:
    """Return the names of what a run is tested on, as its config has them."""
    return list(read_yaml(folder / "config.yaml").get("DATASETS", {}).get("TEST") or [])


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
            "again on the same file, with resnet-backbone train --eval-only"
        )


def listed(values: Sequence[str], most: int = 8) -> str:
    """Return the values with commas, the first few of many."""
    return ", ".join(values[:most]) + (f", ... ({len(values)})" if len(values) > most else "")


NOT_THERE = "(not there)"

DifferenceKind = Literal["backbone", "place", "other"]

# What a backbone brings with it: its layers, its weights and the input they were trained on, the names of its feature
# maps, and the head that is made of its last layers (fc6 and fc7 with their dropout, or res5).
_OF_THE_BACKBONE = (
    "INPUT.FORMAT",
    "MODEL.BACKBONE.NAME",
    "MODEL.FPN.IN_FEATURES",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
    "MODEL.RESNETS.DEPTH",
    "MODEL.RESNETS.NORM",
    "MODEL.RESNETS.OUT_FEATURES",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "MODEL.RESNETS.STRIDE_IN_1X1",
    "MODEL.RESNET_BACKBONE.ARCH",
    "MODEL.RESNET_BACKBONE.NORM",
    "MODEL.RESNET_BACKBONE.OUT_FEATURES",
    "MODEL.ROI_BOX_HEAD.DROPOUT",
    "MODEL.ROI_BOX_HEAD.NAME",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    "MODEL.ROI_HEADS.IN_FEATURES",
    "MODEL.ROI_HEADS.NAME",
    "MODEL.RPN.IN_FEATURES",
    "MODEL.WEIGHTS",
)
_OF_A_SEED = ("SEED", "MODEL.WEIGHTS", "TEST.ENSEMBLE")
_PLACES = ("OUTPUT_DIR", "DATASETS.TEST")  # where files go, and what else was evaluated; the training is the same

# What a reader asks first. Left out where the runs differ, as the list of differences has it then.
_IN_SHORT = (
    ("trained on", ("DATASETS.TRAIN",)),
    ("detector", ("MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME")),
    ("shorter side in training, pixels", ("INPUT.MIN_SIZE_TRAIN",)),
    ("shorter side in testing, pixels", ("INPUT.MIN_SIZE_TEST",)),
    ("iterations", ("SOLVER.MAX_ITER",)),
    ("images an iteration", ("SOLVER.IMS_PER_BATCH",)),
    ("learning rate", ("SOLVER.BASE_LR",)),
    ("schedule", ("SOLVER.LR_SCHEDULER_NAME",)),
    ("warm-up, iterations", ("SOLVER.WARMUP_ITERS",)),
    ("weight decay", ("SOLVER.WEIGHT_DECAY",)),
    ("proposals in testing", ("MODEL.RPN.POST_NMS_TOPK_TEST",)),
    ("seed", ("SEED",)),
)


@dataclass(frozen=True)
class SettingDifference:
    """One config key in which the runs differ."""

    key: str
    values: tuple[str, ...]  # as text, one a run
    kind: DifferenceKind  # "other": no backbone asks for it, as none does where all runs have the same one


@dataclass(frozen=True)
class ConfigComparison:
    shared: Mapping[str, str]  # name -> value, what all runs have alike
    differences: tuple[SettingDifference, ...]  # those not forced by the backbone first, then by key
    num_equal: int  # keys with one value in all runs
    not_compared: int  # keys that only one of two engines has


def compare_settings(runs: Sequence[EvaluatedRun]) -> ConfigComparison:
    """Compare the configs of the runs key by key. Where their engines differ, only the keys that all have."""
    everywhere = set.intersection(*(set(run.settings) for run in runs))
    anywhere = set.union(*(set(run.settings) for run in runs))
    several_engines = len({run.facts.engine for run in runs}) > 1
    keys = sorted(everywhere if several_engines else anywhere)
    differences = []
    for key in keys:
        values = tuple(_value_of(run, key) for run in runs)
        if len(set(values)) > 1:
            differences.append(SettingDifference(key, values, _kind(key, runs)))
    differences.sort(key=lambda difference: ("other", "backbone", "place").index(difference.kind))
    return ConfigComparison(
        shared=_in_short(runs, {difference.key for difference in differences}),
        differences=tuple(differences),
        num_equal=len(keys) - len(differences),
        not_compared=len(anywhere) - len(keys),
    )


def one_backbone(runs: Sequence[EvaluatedRun]) -> bool:
    """Whether all runs say that they have the same backbone."""
    archs = {run.arch for run in runs}
    return len(archs) == 1 and archs != {""}


def cautions(runs: Sequence[EvaluatedRun], settings: ConfigComparison) -> list[str]:
    """Sentences about what, beside the backbone, may have made the difference."""
    found = []
    for what, values in (
        ("engine", [run.facts.engine for run in runs]),
        ("version of resnet_backbone", [run.facts.resnet_backbone for run in runs]),
        ("commit", [run.facts.commit or "none, an installed package" for run in runs]),
        ("version of torch", [run.facts.torch for run in runs]),
        ("version of torchvision", [run.facts.torchvision for run in runs]),
        ("machine", [run.facts.device for run in runs]),
        ("number of processes", [str(run.facts.processes) for run in runs]),
    ):
        if len(set(values)) > 1:
            pairs = "; ".join(f"{run.name}: {value}" for run, value in zip(runs, values, strict=True))
            found.append(f"Evaluated with another {what} ({pairs}).")
    if settings.not_compared:
        found.append(f"{settings.not_compared} config keys exist in one of the engines only and were not compared.")
    others = [difference.key for difference in settings.differences if difference.kind == "other"]
    if len(others) == 1 and one_backbone(runs) and not found:
        return [f"The runs differ in {others[0]} alone."]
    if others:
        sentence = (
            f"{len(others)} setting{'s' * (len(others) > 1)} that the backbone does not force "
            f"differ{'s' * (len(others) == 1)}: {', '.join(others)}. The difference is of all of it together."
        )
        found.insert(0, sentence)
    return found


def _value_of(run: EvaluatedRun, key: str) -> str:
    if key not in run.settings:
        return NOT_THERE
    if key == "MODEL.WEIGHTS" and run.settings[key] in _checkpoints(run):
        return "(the run's own checkpoint: it was evaluated again)"
    return _text(run.settings[key])


def _checkpoints(run: EvaluatedRun) -> set[str]:
    """The names that the run's final detector may have in a config."""
    return {f"{place}/model_final.pth" for place in (str(run.folder), str(run.settings.get("OUTPUT_DIR")))}


def _one_detector(runs: Sequence[EvaluatedRun]) -> bool:
    """Whether one run was trained, and the others are evaluations of its final detector."""
    with_training = [run for run in runs if run.training is not None]
    others = [run.settings.get("MODEL.WEIGHTS") for run in runs if run.training is None]
    return len(with_training) == 1 and set(others) <= _checkpoints(with_training[0])


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return '""' if value == "" else str(value)


def _kind(key: str, runs: Sequence[EvaluatedRun]) -> DifferenceKind:
    if key in _PLACES or (key == "MODEL.WEIGHTS" and _one_detector(runs)):
        return "place"
    return "backbone" if key in _OF_THE_BACKBONE and not one_backbone(runs) else "other"


def _in_short(runs: Sequence[EvaluatedRun], different: set[str]) -> dict[str, str]:
    first = runs[0].settings
    return {
        name: ", ".join(_text(first[key]).strip("[]") for key in keys)
        for name, keys in _IN_SHORT
        if all(key in first and key not in different for key in keys)
    }
