"""Detections of one image: filtered, as JSON, and drawn."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from resnet_backbone.metrics.drawing import class_color, draw_detections
from resnet_backbone.metrics.results import Detections

NAMES = ["cat", "dog"]


def example(height: int = 700, width: int = 900, *, with_masks: bool = False) -> Detections:
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 100:200, 100:300] = True
    return Detections(
        boxes=torch.tensor([[100.0, 100, 300, 200], [400.5, 300, 500, 450]]),
        scores=torch.tensor([0.9, 0.25]),
        labels=torch.tensor([1, 0]),
        masks=masks if with_masks else None,
    )


def test_a_threshold_keeps_what_reaches_it():
    found = example(with_masks=True)
    assert len(found.scored(0.25)) == 2
    kept = found.scored(0.5)
    assert len(kept) == 1 and kept.masks.shape == (1, 700, 900) and kept.labels.tolist() == [1]
    assert len(found.scored(1.0)) == 0 and example().scored(0.5).masks is None


def test_json_has_names_boxes_and_run_lengths():
    plain = json.loads(json.dumps(example().to_dict(NAMES)))
    assert plain == {
        "boxes": [[100.0, 100.0, 300.0, 200.0], [400.5, 300.0, 500.0, 450.0]],
        "labels": ["dog", "cat"],
        "scores": [pytest.approx(0.9), 0.25],
    }
    rles = json.loads(json.dumps(example(with_masks=True).to_dict(NAMES)))["masks"]
    assert coco_mask.decode(rles[0]).sum() == 100 * 200 and coco_mask.decode(rles[1]).sum() == 0


@pytest.mark.parametrize(
    ("size", "max_size", "expected"),
    [
        ((700, 900), None, (700, 900)),
        ((700, 900), 450, (350, 450)),
        ((120, 160), None, (480, 640)),  # enlarged, so that labels can be read
        ((120, 160), 320, (240, 320)),
        ((1, 3000), 64, (1, 64)),
    ],
)
def test_the_size_of_the_picture(size, max_size, expected):
    image = torch.full((3, *size), 128, dtype=torch.uint8)
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    picture = draw_detections(image, nothing, NAMES, max_size)
    assert (picture.height, picture.width) == expected
    assert (np.asarray(picture) == 128).all(), "nothing was found, so nothing is drawn"


def test_boxes_lie_where_they_should_in_the_color_of_their_class():
    image = torch.full((3, 700, 900), 128, dtype=torch.uint8)
    for max_size, zoom in ((None, 1.0), (450, 0.5)):
        pixels = np.asarray(draw_detections(image, example(), NAMES, max_size))
        x, y = round(400.5 * zoom) + 1, round(400 * zoom)  # on the left edge of the cat
        near = pixels[y, x - 3 : x + 4].astype(int)
        assert (abs(near - np.array(class_color(0))).sum(1) < 30).any()
        assert (pixels[round(600 * zoom), round(100 * zoom)] == 128).all()


def test_what_does_not_fit_the_image_is_refused():
    image = torch.full((3, 700, 901), 128, dtype=torch.uint8)
    with pytest.raises(ValueError, match="expected masks of bool and shape"):
        draw_detections(image, example(with_masks=True), NAMES)
    with pytest.raises(ValueError, match="labels must be 0 to 0"):
        draw_detections(image, example(), ["cat"])
    with pytest.raises(ValueError, match="uint8 and shape"):
        draw_detections(image.float(), example(), NAMES)
