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
    by_seed: tuple[float, ...] = ()  # the difference, seed by seed; of one seed alone, empty
    over_seeds: Interval | None = None  # the mean of by_seed, and how far it could move with other seeds


@dataclass(frozen=True)
class RunIntervals:
    """One run's figures, and what it gains over the first run; the keys are those of Matches.metrics."""

    figures: Mapping[str, Interval]  # percent; of several seeds, their mean
    by_seed: Mapping[str, tuple[float, ...]]  # the same figures, seed by seed
    gains: Mapping[str, GainInterval]  # empty for the first run itself


@dataclass(frozen=True)
class Bootstrap:
    """What :func:`bootstrap` found, and how."""

    samples: int
    seed: int
    level: float
    num_images: int
    runs: tuple[RunIntervals, ...]  # in the order of the runs given
    seeds: int = 1  # of each run


def bootstrap(
    matches: Sequence[Matches], samples: int = 1000, seed: int = 0, level: float = 0.95, *, seeds: int = 1
) -> Bootstrap:
    """Intervals of every figure of every run, and of its gain over the first run.

    The images are drawn again, with replacement, as many as there are, ``samples`` times, and each time every run is
    scored on the same draw. The bounds are percentiles of what comes out. A class that has no object in a draw is left
    out of its mean, as COCO does; a figure that cannot be measured in a draw is left out of its percentiles.

    This is the uncertainty that comes from the choice of test images. That another training run, with another seed,
    would end elsewhere is not in it: with several seeds, Student's t interval of the differences seed by seed stands
    beside it. Where a class has few objects, a draw that repeats some and lacks others tends to a higher AP, so the
    bounds of a single figure lie somewhat high; in the difference of two runs less of that is left.

    Args:
        matches: the runs, one or more, matched on the same ground truth; the others are compared with the first. With
            ``seeds``, first all seeds of the first run, then all of the second, and so on.
        samples: number of draws; 1000 fix the bounds of 95 % to about a tenth of their distance.
        seed: the same seed gives the same bounds.
        level: how much lies between the bounds, between 0 and 1.
        seeds: how many trainings of each run there are; its figures are their means.

    Raises:
        ValueError: no runs, not the same images, classes and objects, or a number out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 12 and 13.
    """
    if not matches:
        raise ValueError("nothing to resample: give the matches of one run or more")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples must be 1 or more and level between 0 and 1, got {samples} and {level}")
    if seeds < 1 or len(matches) % seeds:
        raise ValueError(f"{len(matches)} runs are not {seeds} seeds of each; give as many of one as of another")
    check_same_test(matches)
    drawn = _resample(matches, samples, np.random.default_rng(seed))
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    measured = [run.metrics() for run in matches]
    groups = [slice(start, start + seeds) for start in range(0, len(matches), seeds)]
    by_seed = [{name: tuple(one[name] for one in measured[group]) for name in measured[0]} for group in groups]
    draws = [{name: np.mean([one[name] for one in drawn[group]], axis=0) for name in measured[0]} for group in groups]
    runs = []
    for index, values in enumerate(by_seed):
        figures = {name: _interval(float(np.mean(values[name])), draws[index][name], tails) for name in values}
        gains = {
            name: _gain(values[name], by_seed[0][name], draws[index][name], draws[0][name], level)
            for name in (values if index else ())
        }
        runs.append(RunIntervals(figures, values, gains))
    return Bootstrap(samples, seed, level, len(matches[0].image_ids), tuple(runs), seeds)


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


def _gain(
    values: Sequence[float], bases: Sequence[float], draws: np.ndarray, base_draws: np.ndarray, level: float
) -> GainInterval:
    tails = 100 * np.array([(1 - level) / 2, (1 + level) / 2])
    value, base = float(np.mean(values)), float(np.mean(bases))
    difference = draws - base_draws
    by_seed = tuple(one - other for one, other in zip(values, bases, strict=True)) if len(values) > 1 else ()
    return GainInterval(
        difference=_interval(value - base, difference, tails),
        relative=_interval(float(_percent_of(value - base, base)), _percent_of(difference, base_draws), tails),
        by_seed=by_seed,
        over_seeds=mean_interval(by_seed, level) if by_seed else None,
    )


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of two values or more, and Student's t interval of it.

    Source: Student, The probable error of a mean, Biometrika 6, 1908.
    """
    mean = float(np.mean(values))
    margin = _student_quantile((1 + level) / 2, len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Interval(mean, mean - margin, mean + margin)


def _student_quantile(probability: float, freedom: int) -> float:
    """By integrating the density of t = sqrt(freedom) tan(angle), which goes as cos(angle) ** (freedom - 1)."""
    angles = np.linspace(0, np.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0], np.cumsum(density[1:] + density[:-1])])
    return float(freedom**0.5 * np.tan(np.interp(2 * probability - 1, below / below[-1], angles)))


def _percent_of(difference: float | np.ndarray, base: float | np.ndarray) -> np.ndarray:
    base = np.asarray(base, dtype=float)
    return 100 * difference / np.where(base == 0, np.nan, base)


def _interval(value: float, draws: np.ndarray, tails: np.ndarray) -> Interval:
    known = draws[~np.isnan(draws)]
    if np.isnan(value) or not known.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.percentile(known, tails)
    return Interval(value, float(low), float(high))
