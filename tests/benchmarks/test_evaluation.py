"""The case that evaluation is timed on, and the contenders' figures on a small one."""

from __future__ import annotations

import math

import pytest

from benchmarks.coco_case import make_case, write_case
from benchmarks.evaluation import DETECTRON2, NAMES, PYCOCOTOOLS, contenders, greatest_difference
from benchmarks.harness import Measurement


def test_a_case_is_as_large_as_asked_and_like_coco():
    truth, results = make_case(num_images=400, detections_per_image=20)
    assert len(truth["images"]) == 400 and len(truth["categories"]) == 80 and len(results) == 400 * 20
    ids = [image["id"] for image in truth["images"]]
    assert ids == sorted(set(ids))
    assert 6 < len(truth["annotations"]) / 400 < 9
    assert 0 < sum(note["iscrowd"] for note in truth["annotations"]) < 0.03 * len(truth["annotations"])
    with_objects = {note["image_id"] for note in truth["annotations"]}
    assert 0 < len(set(ids) - with_objects) < 100
    small = sum(note["area"] < 32**2 for note in truth["annotations"]) / len(truth["annotations"])
    assert 0.35 < small < 0.55
    for note in truth["annotations"]:
        x, y, width, height = note["bbox"]
        assert min(x, y) >= 0 and min(width, height) > 0 and x + width <= 640.01 and y + height <= 640.01
    assert len({result["score"] for result in results}) < len(results)
    assert make_case(400, 20) == (truth, results) and make_case(400, 20, seed=1)[1] != results


def test_contenders_agree_on_a_small_case(tmp_path):
    pytest.importorskip("faster_coco_eval")
    measurements = []
    for contender in contenders(*write_case(tmp_path, num_images=60, detections_per_image=30)):
        if contender.name != DETECTRON2:
            measurements.append(Measurement(contender.name, outcome=contender.prepare()()))
    assert len(measurements) == 3 and 2 < measurements[0].outcome["AP"] < 80
    assert greatest_difference(measurements) < 1e-9


def test_the_greatest_difference_is_found():
    same = dict.fromkeys(NAMES, 10.0)
    original = Measurement(PYCOCOTOOLS, outcome=same | {"APs": math.nan})
    other = Measurement("other", outcome=same | {"APs": math.nan, "ARl": 10.25})
    assert greatest_difference([original, Measurement("absent", problem="not installed")]) == 0
    assert greatest_difference([other, original]) == 0.25
    assert greatest_difference([Measurement("finds small objects", outcome=same), original]) == math.inf
