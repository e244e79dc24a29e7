"""What is said of ground truth and results that can be scored and are still not what they should be."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from resnet_backbone.data.coco.read import read_coco_json, read_ground_truth
from resnet_backbone.metrics.coco import evaluate_coco, suspicious_results
from resnet_backbone.metrics.result_table import ResultTable
from resnet_backbone.metrics.voc import evaluate_voc

SIZE = {"width": 640, "height": 480}


def truth(area=lambda box: box[2] * box[3], count=40, **more):
    """Ten images with boxes of 20 to 90 pixels, of two classes."""
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(count):
        box = [*rng.uniform(0, 300, 2).round().tolist(), *rng.uniform(20, 90, 2).round().tolist()]
        ids = {"id": number, "image_id": number % 10, "category_id": 1 + number % 2}
        annotations.append({**ids, "bbox": box, "area": area(box), "iscrowd": 0, **more})
    return {
        "images": [{"id": number, "file_name": f"{number}.png", **SIZE} for number in range(10)],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        "annotations": annotations,
    }


def results(data, change=lambda result: result):
    kept = ("image_id", "category_id", "bbox")
    return [change({**{key: note[key] for key in kept}, "score": 0.9}) for note in data["annotations"]]


def said(caplog, data, found):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        metrics = evaluate_coco(data, found)
    return metrics, " ".join(record.getMessage() for record in caplog.records)


AREAS = {
    "one": lambda box: 1,
    "zero": lambda box: 0,
    "negative": lambda box: -box[2] * box[3],
    "image": lambda box: 640 * 480,
    "twice": lambda box: 2 * box[2] * box[3],
    "share": lambda box: box[2] * box[3] / (640 * 480),
    "constant": lambda box: 400,
    "huge": lambda box: 1e12,
}


@pytest.mark.parametrize("name", AREAS)
def test_areas_that_cannot_be(name, caplog, tmp_path):
    data = truth(AREAS[name])
    metrics, text = said(caplog, data, results(data))
    assert "40 of 40 objects whose area does not fit their box" in text and "APs, APm, APl" in text
    assert np.isnan(metrics.AP) == (name in ("negative", "huge")) == ("40 here, in every figure" in text)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    caplog.clear()
    read_coco_json(path, training=False, with_masks=False)
    assert "a.json: 40 of 40 objects whose area does not fit their box" in caplog.text


@pytest.mark.parametrize(
    "area",
    [
        lambda box: box[2] * box[3],
        lambda box: (box[2] + 1) * (box[3] + 1),
        lambda box: 0.79 * box[2] * box[3],
        lambda box: 2 * max(box[2:]),  # a line across the box
        lambda box: None,  # taken from the box
    ],
)
def test_areas_that_can_be(area, caplog):
    data = truth(area)
    assert said(caplog, data, results(data))[1] == ""


def test_one_area_in_a_thousand_is_usual_but_not_a_negative_one(caplog):
    data = truth(count=1000)
    data["annotations"][3]["area"] = 0
    assert said(caplog, data, results(data))[1] == ""
    data["annotations"][3]["area"] = -1
    assert "1 of 1000 objects" in said(caplog, data, results(data))[1]


def test_genuine_annotations_are_not_doubted(coco_mini, caplog):
    for split in ("train2017", "val2017"):
        data = json.loads((coco_mini / f"annotations/instances_{split}.json").read_text())
        assert said(caplog, data, results(data))[1] == ""


def test_crowds_alone_have_no_figures(caplog):
    data = truth(iscrowd=1)
    metrics, text = said(caplog, data, results(data))
    assert np.isnan(metrics.AP) and "all annotations are crowds" in text


def corners(result):
    x, y, width, height = result["bbox"]
    return {**result, "bbox": [x, y, x + width, y + height]}


def shares(result):
    x, y, width, height = result["bbox"]
    return {**result, "bbox": [x / 640, y / 480, width / 640, height / 480]}


def one_class(result):
    return {**result, "category_id": 1}


def test_results_of_another_form(caplog):
    data = truth()
    right = results(data)
    assert said(caplog, data, right)[1] == ""
    for note in data["annotations"]:
        note["bbox"][0] += 250  # so that corners reach out of the image
    assert said(caplog, data, results(data))[1] == ""
    assert "would fit as corners x1, y1, x2, y2" in said(caplog, data, results(data, corners))[1]
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        evaluate_voc(data, results(data, corners), eleven_points=False)
        assert "would fit as corners x1, y1, x2, y2" in caplog.text
    assert (
        "40 of the 40 boxes of the results lie within the first pixel" in said(caplog, data, results(data, shares))[1]
    )
    part = [result for result in right if result["image_id"] < 3]
    assert "7 of the 10 images with objects have no result, such as image 3" in said(caplog, data, part)[1]
    assert "1 of the 2 classes" in said(caplog, data, results(data, one_class))[1]


def doubts(boxes, images=None, labels=None, num_images=10, num_classes=2, missing=0):
    """Of results with these boxes, on objects of ``num_images`` images, in turn of ``num_classes`` classes."""
    notes = [
        {"image_id": n % num_images, "category_id": n % num_classes, "bbox": [9, 9, 9, 9]}
        for n in range(num_images * num_classes)
    ]
    data = {
        "images": [{"id": n, "width": 100, "height": 100} for n in range(num_images + missing)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(num_classes)],
        "annotations": notes,
    }
    truth = read_ground_truth(data, ["bbox"])
    boxes = np.array(boxes, dtype=float)
    images = np.arange(len(boxes)) % num_images if images is None else images
    labels = np.arange(len(boxes)) % num_classes if labels is None else labels
    return " ".join(suspicious_results(truth, ResultTable(images, labels, np.ones(len(boxes)), boxes, [])))


PLAIN = [60, 60, 30, 30]  # no corners, no shares
THRESHOLDS = {
    "a tenth of the images": (lambda v: doubts([PLAIN] * (10 - v)), (0, 1, 2), "images with objects", (0, 0, 1)),
    "half of the classes": (
        lambda v: doubts([PLAIN] * 60, labels=np.arange(60) % (6 - v), num_classes=6), (2, 3, 4), "classes", (0, 1, 1),
    ),
    "share of the first pixel": (
        lambda v: doubts([[0.2, 0.2, 0.5, 0.5]] * v + [PLAIN] * (40 - v)), (37, 38, 39), "first pixel", (0, 1, 1),
    ),
    "the first pixel": (
        lambda v: doubts([[0.2, 0.2, 0.5, v]] * 40), (1.0099, 1.01, 1.0101), "first pixel", (1, 1, 0),
    ),
    "several outside": (
        lambda v: doubts([[50, 30, 90, 70]] * v + [[10, 10, 30, 30]] * (40 - v)), (4, 5, 6), "as corners", (0, 1, 1),
    ),
    "a tenth outside": (
        lambda v: doubts([[50, 30, 90, 70]] * v + [[10, 10, 30, 30]] * (80 - v)), (7, 8, 9), "as corners", (0, 1, 1),
    ),
    "nearly all corners": (
        lambda v: doubts([[50, 30, 90, 70]] * v + [PLAIN] * (40 - v)), (37, 38, 39), "as corners", (0, 1, 1),
    ),
    "rounding": (lambda v: doubts([[50, 30, v, 70]] * 40), (50.99, 51, 51.01), "as corners", (0, 0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", THRESHOLDS)
def test_every_threshold_just_below_at_and_just_above(name):
    say, values, text, expected = THRESHOLDS[name]
    assert tuple(text in say(value) for value in values) == expected
