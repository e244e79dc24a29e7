"""Two lists of detections agree when each has the other's, up to rounding."""

from __future__ import annotations

import pytest
import torch

from resnet_backbone.export.detector import compare_detections, low_threshold
from resnet_backbone.export.write import Agreement, compare_tensors


def detections(count: int = 5) -> dict[str, torch.Tensor]:
    start = torch.arange(count)[:, None] * 20.0
    return {
        "boxes": torch.cat([start, start, start + 10, start + 15], dim=1),
        "labels": torch.arange(count) % 3,
        "scores": torch.linspace(0.9, 0.5, count),
    }


def agreement_of(expected, actual, threshold=0.05) -> Agreement:
    agreement = Agreement()
    compare_detections(agreement, expected, actual, threshold)
    return agreement


def test_the_order_of_equals_and_rounding_do_not_count():
    expected, actual = detections(), {name: value.flip(0) for name, value in detections().items()}
    actual["boxes"] = actual["boxes"] + 0.001
    agreement = agreement_of(expected, actual)
    assert agreement.problems() == [] and agreement.detections == 5
    assert agreement.largest["boxes"] == pytest.approx(0.001, rel=0.05) and agreement.largest["scores"] == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["boxes"][2].add_(0.3), "boxes differ by 0.3"),
        (lambda d: d["boxes"][2].add_(30), "2 of 6 detections have no counterpart"),
        (lambda d: d["labels"][1].add_(1), "have no counterpart"),
        (lambda d: d["scores"][1].add_(0.002), "scores differ by 0.002"),
        (lambda d: d["scores"][1].add_(0.1), "have no counterpart"),
        (lambda d: d["boxes"][2].fill_(float("nan")), "have no counterpart"),
        (lambda d: d.update({name: value[:4] for name, value in d.items()}), "1 of 5 detections"),
        (lambda d: d.update({name: value[[0, 1, 2, 3, 4, 4]] for name, value in d.items()}), "1 of 6 detections"),
    ],
)
def test_what_does_not_agree(change, problem):
    actual = detections()
    change(actual)
    assert problem in "; ".join(agreement_of(detections(), actual).problems())


def test_masks_are_compared_too():
    expected = {**detections(), "masks": torch.rand(5, 4, 4)}
    actual = {**detections(), "masks": expected["masks"].clone()}
    actual["masks"][3, 0, 0] += 0.1
    assert "masks differ by 0.1" in agreement_of(expected, actual).problems()[0]


def test_a_detection_at_the_threshold_may_be_missing():
    expected = detections()
    without = {name: value[:4] for name, value in expected.items()}
    assert agreement_of(expected, without, threshold=0.5001).problems() == []
    assert agreement_of(expected, without, threshold=0.49).problems() != []
    assert agreement_of(without, expected, threshold=0.5001).problems() == []


def test_one_in_a_hundred_may_be_decided_otherwise():
    expected = detections(200)
    for missing, passes in ((2, True), (3, False)):
        actual = {name: value[missing:] for name, value in expected.items()}
        assert (agreement_of(expected, actual).problems() == []) is passes


def test_nothing_compared_is_no_agreement():
    assert "nothing was found" in agreement_of(detections(0), detections(0)).problems()[0]


def test_tensors():
    good, bad = Agreement(), Agreement()
    want = {"res5": torch.tensor([100.0, 1.0])}
    compare_tensors(good, want, {"res5": torch.tensor([100.001, 1.0])})
    assert good.largest == {"res5": pytest.approx(1e-5, rel=0.1)} and good.problems() == []
    compare_tensors(bad, want, {"res5": torch.tensor([100.0, 1.1])})
    assert "res5 differ by 0.001" in bad.problems()[0]
    for wrong in (torch.tensor([100.0]), torch.tensor([100.0, float("nan")])):
        agreement = Agreement()
        compare_tensors(agreement, want, {"res5": wrong})
        assert "inf" in agreement.problems()[0]


def test_low_threshold_lies_in_a_gap_below_the_better_half():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.4, 0.39])
    assert low_threshold(scores, limit=100) == pytest.approx(0.195)  # down to 0, where all detections are listed
    assert low_threshold(scores, limit=5) == pytest.approx(0.55)
    assert low_threshold(torch.zeros(0), limit=5) == 0
    assert low_threshold(torch.ones(5), limit=5) == 1
