"""Errors of classifiers against plain counting, and Wilson's interval against published figures."""

import json
import math

import numpy as np
import pytest
import torch

from resnet_backbone.metrics.classification import ClassificationMetrics, error_text, score_classes, wilson_interval


def random_case(num_images, num_classes, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_images, num_classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, rng.integers(0, num_classes, num_images)


def counted(probabilities, labels, k):
    """Percent of the images whose label is not among the first k of a sorted list."""
    wrong = 0
    for row, label in zip(probabilities, labels, strict=True):
        likeliest = sorted(range(len(row)), key=lambda number: -row[number])[:k]
        wrong += label not in likeliest
    return 100 * wrong / len(labels)


@pytest.mark.parametrize(("num_images", "num_classes", "seed"), [(1, 6, 0), (97, 10, 1), (300, 1000, 2), (50, 7, 3)])
def test_counts_and_loss_are_those_of_plain_python(num_images, num_classes, seed):
    probabilities, labels = random_case(num_images, num_classes, seed)
    metrics = score_classes(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert metrics.num_images == num_images
    assert metrics.top1_error == pytest.approx(counted(probabilities, labels, 1), abs=1e-12)
    assert metrics.top5_error == pytest.approx(counted(probabilities, labels, 5), abs=1e-12)
    expected = -sum(math.log(row[label]) for row, label in zip(probabilities, labels, strict=True)) / num_images
    assert metrics.loss == pytest.approx(expected, rel=1e-12)


def test_the_loss_is_torchs():
    logits = torch.randn(64, 20, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.arange(64) % 20
    expected = torch.nn.functional.cross_entropy(logits, labels).item()
    assert score_classes(logits.softmax(1), labels).loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_five_classes_or_fewer_have_no_top5(num_classes):
    probabilities, labels = random_case(20, num_classes, 4)
    metrics = score_classes(torch.from_numpy(probabilities), torch.from_numpy(labels))
    assert metrics.top5_error is None and metrics.top5_interval is None
    assert not [name for name in metrics.to_dict()["classification"] if name.startswith("top5")]
    assert set(metrics.scalars()) == {"classification/top1_error", "classification/loss"}
    assert "top-5" not in metrics.text()


def test_a_tie_counts_against_the_classifier():
    undecided = torch.full((3, 8), 1 / 8)
    metrics = score_classes(undecided, torch.tensor([0, 3, 7]))
    assert (metrics.top1_error, metrics.top5_error) == (100, 100)
    assert metrics.loss == pytest.approx(math.log(8))
    two = torch.tensor([[0.4, 0.4, 0.2, 0, 0, 0]])
    assert [score_classes(two, torch.tensor([label])).top1_error for label in range(3)] == [100, 100, 100]
    assert [score_classes(two, torch.tensor([label])).top5_error for label in range(6)] == [0, 0, 0, 100, 100, 100]


def test_a_loss_is_finite_where_the_probability_is_zero():
    certain = torch.tensor([[1.0, 0.0]])
    wrong, right = (score_classes(certain, torch.tensor([label])) for label in (1, 0))
    assert wrong.loss == pytest.approx(126 * math.log(2))  # float32's smallest normal number is 2 ** -126
    assert str(right.loss) == "0.0" and right.top1_error == 0


# Newcombe 1998, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, Table I,
# method 3.
@pytest.mark.parametrize(
    ("wrong", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_published_one(wrong, count, low, high):
    found = wilson_interval(100 * wrong / count, count)
    assert found == pytest.approx((100 * low, 100 * high), abs=0.005)
    turned = wilson_interval(100 * (count - wrong) / count, count)
    assert turned == pytest.approx((100 - found[1], 100 - found[0]), abs=1e-9)


@pytest.mark.parametrize(("percent", "count"), [(23.87, 50_000), (7.138, 50_000), (50, 10), (0, 1), (100, 7)])
def test_wilsons_bounds_solve_its_equation(percent, count):
    """At a bound p the measured rate lies 1.96 standard deviations of a rate p away."""
    for bound in wilson_interval(percent, count):
        p = bound / 100
        assert 0 <= p <= 1
        assert (percent / 100 - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / count, abs=1e-14)


def test_what_is_written():
    metrics = ClassificationMetrics(num_images=50_000, top1_error=23.87, top5_error=7.138, loss=0.9618)
    figures = metrics.to_dict()["classification"]
    assert set(metrics.to_dict()) == {"classification"}
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["top1_error_low"], figures["top1_error_high"]) == metrics.top1_interval
    assert (figures["top5_error_low"], figures["top5_error_high"]) == metrics.top5_interval
    assert {name: figures[name] for name in ("num_images", "top1_error", "top5_error", "loss")} == {
        "num_images": 50_000,
        "top1_error": 23.87,
        "top5_error": 7.138,
        "loss": 0.9618,
    }
    assert metrics.scalars() == {
        "classification/top1_error": 23.87,
        "classification/top5_error": 7.138,
        "classification/loss": 0.9618,
    }
    assert metrics.text() == (
        "top-1 error 23.87 % (23.50 to 24.25), top-5 error 7.14 % (6.92 to 7.37), loss 0.9618, 50000 images"
    )
    assert error_text(1.0, (0.5, 2.0)) == "1.00 % (0.50 to 2.00)"


GOOD = torch.tensor([[0.25, 0.75], [0.5, 0.5]])


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="no images"):
        score_classes(GOOD[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="probabilities of 1 images are not finite, of image 1 first"):
        score_classes(torch.tensor([[0.5, 0.5], [math.nan, 1]]), torch.tensor([0, 1]))
