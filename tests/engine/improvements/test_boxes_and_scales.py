"""Suppression, voting and the choice of sizes, against loops over boxes and against arithmetic on paper."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from resnet_backbone.engine.improvements import (
    BoxRefinement,
    ImprovedDetector,
    Settings,
    adjacent_scales,
    box_voting,
    pyramid,
    resized,
    scale_boxes,
    select,
)
from resnet_backbone.metrics.results import Detections


@pytest.fixture
def reference(load_script) -> ModuleType:
    return load_script("tests/engine/improvements/reference.py")


def crowded_boxes(rows: int, classes: int) -> Tensor:
    """(rows, classes, 4) in an image of 90 x 120, around few centres, so that many overlap."""
    centres = torch.tensor([[30.0, 30], [70, 50], [40, 60]])[torch.arange(rows) % 3]
    corner = centres[:, None] + torch.randn(rows, classes, 2) * 4
    side = 25 + torch.rand(rows, classes, 2) * 8
    return torch.cat([corner - side / 2, corner + side / 2], dim=2)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("refinement", [None, BoxRefinement(0.3, 0.5), BoxRefinement(0.5, 0.8)])
@pytest.mark.parametrize("limit", [5, 1000])
def test_selection_is_that_of_loops(reference, classes, refinement, limit):
    torch.manual_seed(0)
    probabilities, boxes = torch.rand(40, classes), crowded_boxes(40, classes)
    found = select(probabilities, boxes, Settings(0.2, 0.45, limit, refinement=refinement))
    every = [
        (k, probabilities[r, k].item(), boxes[r, k].tolist())
        for r in range(40)
        for k in range(classes)
        if probabilities[r, k] > 0.2
    ]
    kept = reference.suppress(every, refinement.nms_thresh if refinement else 0.45)[:limit]
    assert len(kept) < len(every) and len(kept) > 2
    assert found.labels.tolist() == [k for k, _, _ in kept]
    assert found.scores.tolist() == [score for _, score, _ in kept]
    expected = [reference.voted(one, every, refinement.vote_thresh) if refinement else one[2] for one in kept]
    torch.testing.assert_close(found.boxes, torch.tensor(expected), rtol=0, atol=1e-4)


def test_voting_on_paper():
    """IoU of the first two is 80 / 120; the third is of another class, the fourth too far."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 2, 10, 12], [0, 0, 10, 10], [0, 6, 10, 16]])
    voters = Detections(boxes, torch.tensor([0.9, 0.3, 0.8, 0.7]), torch.tensor([0, 0, 1, 0]))
    kept = Detections(voters.boxes[:1], voters.scores[:1], voters.labels[:1])
    torch.testing.assert_close(box_voting(kept, voters, 0.5), torch.tensor([[0.0, 0.5, 10, 10.5]]))
    torch.testing.assert_close(box_voting(kept, voters, 0.7), boxes[:1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(box_voting(kept, voters, 0.5), torch.tensor([[0.0, 0.5, 10, 10.5]]))


def test_a_box_without_area_keeps_its_place():
    empty = Detections(torch.tensor([[3.0, 4, 3, 9]]), torch.tensor([0.5]), torch.tensor([0]))
    assert torch.equal(box_voting(empty, empty, 0.5), empty.boxes)


def test_no_prediction_above_the_threshold_is_no_detection():
    settings = Settings(0.9, 0.5, 10, refinement=BoxRefinement(0.3, 0.5))
    found = select(torch.full((4, 2), 0.5), crowded_boxes(4, 2), settings)
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.labels.dtype == torch.int64


@pytest.mark.parametrize(("min_side", "kept"), [(0.0, 3), (0.01, 2), (0.5, 1)])
def test_predictions_that_are_too_thin_are_dropped(min_side, kept):
    boxes = torch.tensor([[[0.0, 0, 20, 30]], [[50, 50, 50.1, 70]], [[80, 10, 80, 20]]])
    assert len(select(torch.full((3, 1), 0.9), boxes, Settings(0.5, 0.5, 10, min_side=min_side)).boxes) == kept


def test_boxes_move_with_the_image():
    boxes = torch.tensor([[[10.0, 20, 30, 40]], [[-5, 10, 200, 90]]])
    assert scale_boxes(boxes, (50, 100), (100, 300)).tolist() == [[[30, 40, 90, 80]], [[-15, 20, 600, 180]]]


def test_sizes_that_the_limit_makes_equal_come_once():
    assert pyramid((100, 200), [50, 80, 100, 150], 180) == [(50, 100), (80, 160), (90, 180)]
    assert resized((101, 200), 0, 50) == (101, 200) and resized((101, 200), 50, 500) == (50, 99)


def test_the_choice_of_sizes_on_paper():
    """The image has 400 x 400 pixels at each size in turn, times 1/4, 1, 9/4 and 4; 224 x 224 is 50,176."""
    sizes = [(200, 200), (400, 400), (600, 600), (800, 800)]
    boxes = torch.tensor(
        [
            [0.0, 0, 224, 224],  # its own size; below it 37,632 away, above 62,720
            [0, 0, 110, 110],  # 12,100 there: with 48,400 the largest, and the one below is the only neighbour
            [0, 0, 400, 400],  # 160,000, with 40,000 the smallest
            [0, 0, 140, 140],  # 19,600: 44,100 at 600; 78,400 above is 28,224 away, 19,600 below 30,576
            [5, 5, 5, 9],  # nothing at all: all equally near
        ]
    )
    assert adjacent_scales(boxes, (400, 400), sizes).tolist() == [[1, 0], [3, 2], [0, 1], [2, 3], [0, 1]]
    assert adjacent_scales(boxes, (400, 400), sizes[:1]).tolist() == [[0]] * 5
    assert adjacent_scales(boxes[:0], (400, 400), sizes).shape == (0, 2)


@pytest.mark.parametrize("frame", [(333, 500), (517, 301)])
def test_the_choice_of_sizes_is_that_of_loops(reference, frame):
    torch.manual_seed(0)
    corner = torch.rand(300, 2) * 200
    boxes = torch.cat([corner, corner + torch.rand(300, 2) ** 2 * 300], dim=1)
    sizes = pyramid(frame, [100, 200, 400, 600, 800], 900)
    found = adjacent_scales(boxes, frame, sizes)
    assert found.unique().tolist() == list(range(len(sizes)))
    for box, chosen in zip(boxes.tolist(), found.tolist(), strict=True):
        assert [sizes[i] for i in chosen] == reference.two_sizes(box, frame, sizes)


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(ValueError, match="no detector"):
        ImprovedDetector([], Settings(0.05, 0.5, 100))
