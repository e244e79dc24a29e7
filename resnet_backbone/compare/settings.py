"""In which config keys the runs agree and differ, and what besides the backbone may explain a gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from resnet_backbone.compare.runs import EvaluatedRun

NOT_THERE = "(not there)"

Kind = Literal["backbone", "place", "other"]

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
class KeyDifference:
    """One config key in which the runs differ."""

    key: str
    values: tuple[str, ...]  # as text, one a run
    kind: Kind  # "other": nothing about a backbone asks for it, as nothing does where all runs have the same one


@dataclass(frozen=True)
class ConfigComparison:
    shared: Mapping[str, str]  # in words -> value, what all runs have alike
    differences: tuple[KeyDifference, ...]  # those not forced by the backbone first, then by key
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
            differences.append(KeyDifference(key, values, _kind(key, runs)))
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
        words = (
            f"{len(others)} setting{'s' * (len(others) > 1)} that the backbone does not force "
            f"differ{'s' * (len(others) == 1)}: {', '.join(others)}. The difference is of all of it together."
        )
        found.insert(0, words)
    return found


def _value_of(run: EvaluatedRun, key: str) -> str:
    if key not in run.settings:
        return NOT_THERE
    if key == "MODEL.WEIGHTS" and _is_own_checkpoint(run):
        return "(the run's own checkpoint: it was evaluated again)"
    return _text(run.settings[key])


def _is_own_checkpoint(run: EvaluatedRun) -> bool:
    return run.settings["MODEL.WEIGHTS"] in _checkpoints(run)


def _checkpoints(run: EvaluatedRun) -> set[str]:
    """The names that the run's final detector may have in a config."""
    return {f"{place}/model_final.pth" for place in (str(run.folder), str(run.settings.get("OUTPUT_DIR")))}


def _one_detector(runs: Sequence[EvaluatedRun]) -> bool:
    """Whether one run was trained, and the others are evaluations of its final detector."""
    trained = [run for run in runs if run.training is not None]
    others = [run for run in runs if run.training is None]
    return len(trained) == 1 and all(run.settings.get("MODEL.WEIGHTS") in _checkpoints(trained[0]) for run in others)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return '""' if value == "" else str(value)


def _kind(key: str, runs: Sequence[EvaluatedRun]) -> Kind:
    if key in _PLACES or (key == "MODEL.WEIGHTS" and _one_detector(runs)):
        return "place"
    return "backbone" if key in _OF_THE_BACKBONE and not one_backbone(runs) else "other"


def _in_short(runs: Sequence[EvaluatedRun], different: set[str]) -> dict[str, str]:
    first = runs[0].settings
    return {
        words: ", ".join(_text(first[key]).strip("[]") for key in keys)
        for words, keys in _IN_SHORT
        if all(key in first and key not in different for key in keys)
    }
