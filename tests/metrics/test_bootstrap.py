"""Intervals: against images really drawn again, against pycocotools, and whether they cover what they promise."""

import math

import numpy as np
import pytest

from resnet_backbone.metrics.bootstrap import Interval, bootstrap, mean_interval
from resnet_backbone.metrics.matching import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, ClassMatches, Matches, match


@pytest.fixture(scope="module")
def plain(load_script):
    """Made-up data, and pycocotools' figures on a data set with its images repeated."""
    return load_script("tests/metrics/test_matching.py")


def two_runs(plain, seed, num_images=5):
    truth, results_a = plain.made_up(seed, num_images=num_images, distinct_scores=True)
    rng = np.random.default_rng(seed)
    results_b = [
        {**result, "score": result["score"] / 2 + 0.001} if rng.random() < 0.3 else result for result in results_a
    ]
    return truth, results_a, [result for result in results_b if rng.random() < 0.8]


@pytest.mark.parametrize("seed", [3, 4])
def test_intervals_are_percentiles_over_images_really_drawn_again(plain, seed):
    truth, *results = two_runs(plain, seed)
    found = bootstrap([match(truth, some) for some in results], samples=25, seed=seed, level=0.8)
    rng = np.random.default_rng(seed)
    draws = [rng.multinomial(5, [0.2] * 5) for _ in range(25)]
    a, b = ([plain.pycocotools_figures(*plain.repeated(truth, some, counts)) for counts in draws] for some in results)
    names = list(found.runs[0].figures)
    assert set(names) == {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-class0", "AP-class1", "AP-class2"}
    for name in names:
        first, second = (np.array([figures[name] for figures in run]) for run in (a, b))
        expect(found.runs[0].figures[name], first)
        expect(found.runs[1].figures[name], second)
        expect(found.runs[1].gains[name].difference, second - first)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = 100 * (second - first) / first
        expect(found.runs[1].gains[name].relative, np.where(np.isfinite(relative), relative, np.nan))
    assert any(math.isnan(figures[name]) for figures in a for name in names), "a draw lacks a class or a size"
    assert found.runs[0].gains == {} and found.num_images == 5 and found.samples == 25


def expect(interval, draws):
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, [10, 90]) if known.size else (math.nan, math.nan)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-9, nan_ok=True)


def test_values_are_the_figures_of_all_images(plain):
    truth, *results = two_runs(plain, 3)
    a, b = (match(truth, some) for some in results)
    found = bootstrap([a, b], samples=5)
    for name, interval in found.runs[1].figures.items():
        assert interval.value == b.metrics()[name]
        assert found.runs[1].gains[name].difference.value == b.metrics()[name] - a.metrics()[name]
    gain = found.runs[1].gains["AP"]
    assert gain.relative.value == pytest.approx(100 * gain.difference.value / a.metrics()["AP"])


def test_identical_runs_differ_by_exactly_nothing(plain):
    truth, results, _ = two_runs(plain, 3)
    found = bootstrap([match(truth, results), match(truth, list(reversed(results)))], samples=200)
    for gain in found.runs[1].gains.values():
        assert gain.difference == Interval(0, 0, 0)
    assert found.runs[0].figures["AP"].low < found.runs[0].figures["AP"].high


def test_the_seed_decides_and_the_number_of_samples_at_once_does_not(plain, monkeypatch):
    truth, *results = two_runs(plain, 3)
    runs = [match(truth, some) for some in results]
    first = bootstrap(runs, samples=30, seed=1)
    assert repr(bootstrap(runs, samples=30, seed=1)) == repr(first)
    assert repr(bootstrap(runs, samples=30, seed=2)) != repr(first).replace("seed=1", "seed=2")
    monkeypatch.setattr("resnet_backbone.metrics.bootstrap.ENTRIES_AT_ONCE", 35)  # seven draws of five images
    assert repr(bootstrap(runs, samples=30, seed=1)) == repr(first)


def population(rng, num_images):
    """Two detectors on random images of one class. Some images are hard for both; B finds more and errs less."""
    hard = rng.random(num_images) < 0.3
    objects = 1 + rng.poisson(1.5, num_images)
    runs = []
    for found_rate, alarms in ((0.75, 1.0), (0.85, 0.8)):
        hits = rng.binomial(objects, np.where(hard, found_rate / 2, found_rate))
        wrong = rng.poisson(np.where(hard, 2 * alarms, alarms))
        images = np.concatenate([np.arange(num_images).repeat(hits), np.arange(num_images).repeat(wrong)])
        is_hit = np.arange(len(images)) < hits.sum()
        scores = np.where(is_hit, rng.beta(4, 2, len(images)), rng.beta(2, 4, len(images)))
        order = np.argsort(-scores, kind="stable")
        outcomes = np.full((4, 10, len(images)), IGNORED, np.int8)
        outcomes[0] = np.where(is_hit, TRUE_POSITIVE, FALSE_POSITIVE)[order]
        num_objects = np.zeros((4, num_images), np.int32)
        num_objects[0] = objects
        found = ClassMatches("thing", scores[order], images[order].astype(np.int32), outcomes, num_objects)
        runs.append(Matches("bbox", tuple(range(num_images)), (found,)))
    return runs


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    a, b = (run.metrics() for run in population(np.random.default_rng(7), 100_000))
    assert 5 < b["AP"] - a["AP"] < 25
    covered_gain, covered_figure, repetitions = 0, 0, 200
    for seed in range(repetitions):
        run = bootstrap(population(np.random.default_rng([seed]), 72), samples=200, seed=seed).runs[1]
        gain, figure = run.gains["AP"].difference, run.figures["AP"]
        covered_gain += gain.low <= b["AP"] - a["AP"] <= gain.high
        covered_figure += figure.low <= b["AP"] <= figure.high
    assert 0.91 <= covered_gain / repetitions <= 0.985, covered_gain
    assert 0.91 <= covered_figure / repetitions <= 0.985, covered_figure


def test_one_image_leaves_no_doubt_and_no_detections_no_ratio(plain):
    truth = {**plain.ONE, "annotations": [plain.CAT]}
    nothing, found = match(truth, []), match(truth, [plain.FOUND])
    run = bootstrap([nothing, found], samples=20).runs[1]
    assert run.figures["AP"] == Interval(*[pytest.approx(100)] * 3)
    assert run.gains["AP"].difference == Interval(*[pytest.approx(100)] * 3)
    for nowhere in (run.gains["AP"].relative, run.figures["AP-dog"], run.gains["AP-dog"].difference):
        assert math.isnan(nowhere.value) and math.isnan(nowhere.low) and math.isnan(nowhere.high)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"samples": 0}, "samples"), ({"level": 0}, "level"), ({"level": 95}, "level.*95")],
)
def test_numbers_out_of_range_are_refused(plain, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap([match(*plain.made_up(1))], **options)


def test_no_runs_and_runs_on_other_images_are_refused(plain):
    with pytest.raises(ValueError, match="nothing to resample"):
        bootstrap([])
    with pytest.raises(ValueError, match="run 3 was tested on 7 images, the first on 6"):
        bootstrap([match(*plain.made_up(1))] * 2 + [match(*plain.made_up(1, num_images=7))])


@pytest.mark.parametrize(
    ("values", "margin"),
    # Student's t at 97.5 %: 4.302653 with 2 degrees of freedom, 12.706205 with 1, 2.262157 with 9.
    [((4.7, 5.2, 5.1), 4.302653), ((1.0, 3.0), 12.706205), (tuple(range(10)), 2.262157)],
)
def test_the_interval_over_seeds_is_students(values, margin):
    found = mean_interval(values)
    error = np.std(values, ddof=1) / len(values) ** 0.5
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx(
        (found.value - margin * error, found.value + margin * error), rel=1e-6
    )


def test_figures_of_several_seeds_are_their_means(plain):
    truth, *results = two_runs(plain, 3)
    a, b = (match(truth, some) for some in results)
    c, d = (match(truth, some) for some in (results[0][::2], results[1][::3]))
    found = bootstrap([a, b, c, d], samples=30, seed=5, seeds=2)
    alone = [bootstrap([run], samples=30, seed=5).runs[0].figures["AP"].value for run in (a, b, c, d)]
    first, second = found.runs
    assert found.seeds == 2 and first.by_seed["AP"] == tuple(alone[:2]) and second.by_seed["AP"] == tuple(alone[2:])
    assert first.figures["AP"].value == pytest.approx(np.mean(alone[:2]))
    won = second.gains["AP"]
    assert won.by_seed == pytest.approx((alone[2] - alone[0], alone[3] - alone[1]))
    assert won.difference.value == pytest.approx(np.mean(won.by_seed))
    assert won.over_seeds == mean_interval(won.by_seed)
    # On one draw of the images, the mean of the seeds is that of the draws of each.
    rng = np.random.default_rng(5)
    weights = rng.multinomial(5, [0.2] * 5, size=30).astype(float)
    draws = [run.sampled_metrics(weights)["AP"] for run in (a, b, c, d)]
    low, high = np.percentile((draws[2] + draws[3] - draws[0] - draws[1]) / 2, [2.5, 97.5])
    assert (won.difference.low, won.difference.high) == pytest.approx((low, high))
    with pytest.raises(ValueError, match="3 runs are not 2 seeds of each"):
        bootstrap([a, b, c], seeds=2)
