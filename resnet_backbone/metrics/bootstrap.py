"""Confidence intervals of figures and gains, by the paired bootstrap over the test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_backbone.metrics.matching import ENTRIES_AT_ONCE, Matches, check_same_test


@dataclass(frozen=True)
class Interval:
    """A figure as measured on all images, and the bounds between which it lies in most of the resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class GainInterval:
    """What a run gains over the first one in one figure, both on the same resampled images."""

    difference: Interval  # in points of percent: 27.2 over 21.2 is 6.0
    relative: Interval  # in percent of the first run's figure: 27.2 over 21.2 is 28.3; nan where that figure is 0


@dataclass(frozen=True)
class RunIntervals:
    """One run's figures, and what it gains over the first run; the keys are those of Matches.metrics."""

    figures: Mapping[str, Interval]  # percent
    gains: Mapping[str, GainInterval]  # empty for the first run itself


@dataclass(frozen=True)
class Bootstrap:
    """What :func:`bootstrap` found, and how."""

    samples: int
    seed: int
    level: float
    num_images: int
    runs: tuple[RunIntervals, ...]  # in the order of the runs given


def bootstrap(matches: Sequence[Matches], samples: int = 1000, seed: int = 0, level: float = 0.95) -> Bootstrap:
    """Intervals of every figure of every run, and of its gain over the first run.

    The images are drawn again, with replacement, as many as there are, ``samples`` times, and each time every run is
    scored on the same draw. The bounds are percentiles of what comes out. A class that has no object in a draw is left
    out of its mean, as COCO does; a figure that cannot be measured in a draw is left out of its percentiles.

    This is the uncertainty that comes from the choice of test images. That another training run, with another seed,
    would end elsewhere is not in it. Where a class has few objects, a draw that repeats some and lacks others tends to
    a higher AP, so the bounds of a single figure lie somewhat high; in the difference of two runs less of that is left.

    Args:
        matches: the runs, one or more, matched on the same ground truth; the others are compared with the first.
        samples: number of draws; 1000 fix the bounds of 95 % to about a tenth of their distance.
        seed: the same seed gives the same bounds.
        level: how much lies between the bounds, between 0 and 1.

    Raises:
        ValueError: no runs, not the same images, classes and objects, or a number out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not matches:
        raise ValueError("nothing to resample: give the matches of one run or more")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples must be 1 or more and level between 0 and 1, got {samples} and {level}")
    check_same_test(matches)
    measured = [run.metrics() for run in matches]
    drawn = _resample(matches, samples, np.random.default_rng(seed))
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    runs = []
    for index, (values, draws) in enumerate(zip(measured, drawn, strict=True)):
        gains = {name: _gain(values[name], measured[0][name], draws[name], drawn[0][name], tails) for name in values}
        figures = {name: _interval(values[name], draws[name], tails) for name in values}
        runs.append(RunIntervals(figures, gains if index else {}))
    return Bootstrap(samples, seed, level, len(matches[0].image_ids), tuple(runs))


def _resample(matches: Sequence[Matches], samples: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    """Each run's figures in every draw, (samples,)."""
    num_images = len(matches[0].image_ids)
    even = np.full(num_images, 1 / num_images)
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in matches]
    at_once = max(1, ENTRIES_AT_ONCE // num_images)
    for start in range(0, samples, at_once):
        weights = rng.multinomial(num_images, even, size=min(at_once, samples - start)).astype(float)
        for run, part in zip(matches, parts, strict=True):
            part.append(run.sampled_metrics(weights))
    return [{name: np.concatenate([some[name] for some in part]) for name in part[0]} for part in parts]


def _gain(value: float, base: float, draws: np.ndarray, base_draws: np.ndarray, tails: np.ndarray) -> GainInterval:
    difference = draws - base_draws
    return GainInterval(
        difference=_interval(value - base, difference, tails),
        relative=_interval(float(_percent_of(value - base, base)), _percent_of(difference, base_draws), tails),
    )


def _percent_of(difference: float | np.ndarray, base: float | np.ndarray) -> np.ndarray:
    base = np.asarray(base, dtype=float)
    return 100 * difference / np.where(base == 0, np.nan, base)


def _interval(value: float, draws: np.ndarray, tails: np.ndarray) -> Interval:
    known = draws[~np.isnan(draws)]
    if np.isnan(value) or not known.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(known, tails)
    return Interval(value, float(low), float(high))
