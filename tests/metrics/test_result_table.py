"""Results as arrays against the records that were given."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.read import read_ground_truth
from resnet_backbone.metrics.result_table import read_results, to_result_table
from resnet_backbone.metrics.results import ImageResults, write_results

SIZE = [20, 30]
RUN_LENGTHS = {
    "size": SIZE,
    "counts": coco_mask.encode(np.eye(20, 30, dtype=np.uint8, order="F"))["counts"].decode("ascii"),
}
TRUTH = read_ground_truth(
    {
        "images": [{"id": key, "height": 20, "width": 30} for key in (7, 3, 11)],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [],
    },
    ["bbox"],
)
COUNT = 450  # three blocks


def results(count: int = COUNT) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "image_id": int(rng.choice([7, 3, 11])),
            "category_id": int(rng.choice([5, 2])),
            "bbox": rng.uniform(0, 20, 4).round(2).tolist(),
            "score": float(rng.random()),
            "segmentation": RUN_LENGTHS,
        }
        for _ in range(count)
    ]


KEYS = {"bbox": "bbox", "segm": "segmentation"}


def as_records(table, iou_type: str) -> list[dict]:
    measured = table.boxes.tolist() if iou_type == "bbox" else table.masks
    image_ids, category_ids = TRUTH.image_ids[table.images].tolist(), TRUTH.category_ids[table.labels].tolist()
    return [
        {"image_id": image, "category_id": category, "score": score, KEYS[iou_type]: value}
        for image, category, score, value in zip(image_ids, category_ids, table.scores.tolist(), measured, strict=True)
    ]


def expected(given: list[dict], iou_type: str) -> list[dict]:
    """By equality, under which 1, 1.0 and NumPy's are one."""
    kept = ("image_id", "category_id", "score", KEYS[iou_type])
    return [{key: list(r[key]) if key == "bbox" else r[key] for key in kept} for r in given]


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, COUNT])
@pytest.mark.parametrize("iou_types", [("bbox",), ("segm",), ("bbox", "segm"), ("segm", "bbox")], ids="+".join)
def test_a_table_holds_the_records(count, iou_types, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results(count)))
    for source in (results(count), tuple(results(count)), tmp_path / "results.json"):
        table = read_results(source, TRUTH, iou_types)
        assert len(table) == count
        for iou_type in iou_types:
            assert as_records(table, iou_type) == expected(results(count), iou_type)
        assert table.boxes.shape == (count if "bbox" in iou_types else 0, 4)
        assert len(table.masks) == (count if "segm" in iou_types else 0)


@pytest.mark.parametrize(
    "change",
    [
        {"image_id": np.int64(7)},
        {"image_id": 7.0},
        {"score": True},
        {"score": 1},
        {"score": np.float32(0.5)},
        {"score": Fraction(1, 2)},
        {"bbox": (1, 2, 3, 4)},
        {"bbox": [np.float64(1), 2, 3.5, 0]},
        {"area": "ignored"},
    ],
    ids=str,
)
def test_unusual_values_are_taken(change):
    given = results()
    given[217] |= change
    table = read_results(given, TRUTH, ["bbox"])
    assert as_records(table, "bbox") == expected(given, "bbox")


FAULTS = {
    "another image": {"image_id": 8},
    "no image": {"image_id": None},
    "an image's name": {"image_id": "7"},
    "another class": {"category_id": 3},
    "no score": {"score": None},
    "a score as text": {"score": "0.5"},
    "a score of nan": {"score": math.nan},
    "an infinite score": {"score": -math.inf},
    "three numbers": {"bbox": [1, 2, 3]},
    "five numbers": {"bbox": [1, 2, 3, 4, 5]},
    "a number as text": {"bbox": [1, 2, "3", 4]},
    "a box of nan": {"bbox": [1, math.nan, 3, 4]},
    "an infinite box": {"bbox": [1, 2, math.inf, 4]},
    "a negative width": {"bbox": [1, 2, -3, 4]},
    "a negative height": {"bbox": [1, 2, 3, -4e-9]},
    "a box of an array": {"bbox": np.ones(4)},
    "a box of boxes": {"bbox": [[1], [2], [3], [4]]},
    "no box": {"bbox": None},
}


MESSAGES = {
    "image_id": "not among the 3 images",
    "category_id": "knows .2, 5.",
    "score": "finite",
    "bbox": "width, height",
}


@pytest.mark.parametrize("place", [0, 199, 200, COUNT - 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_anywhere_is_named(fault, place):
    given = results()
    given[place] |= FAULTS[fault]
    key, message = next(iter(FAULTS[fault])), MESSAGES[next(iter(FAULTS[fault]))]
    for iou_types in (["bbox"], ["bbox", "segm"]):
        with pytest.raises(ValueError, match=rf"^result {place}\b.*{key}.*{message}"):
            read_results(given, TRUTH, iou_types)


@pytest.mark.parametrize("key", ["image_id", "category_id", "score", "bbox"])
def test_a_key_that_is_missing_is_named(key):
    given = results()
    del given[201][key]
    with pytest.raises(ValueError, match=rf"result 201 lacks \['{key}'\]"):
        read_results(given, TRUTH, ["bbox"])


@pytest.mark.parametrize("what", [None, 3, "result", ["image_id", "category_id", "score", "bbox"]])
def test_what_is_no_record_is_named(what, tmp_path):
    given = [*results(201), what]
    (tmp_path / "results.json").write_text(json.dumps(given))
    for source in (given, tmp_path / "results.json"):
        with pytest.raises(ValueError, match="result 201 is no object"):
            read_results(source, TRUTH, ["bbox"])


def test_a_broken_mask_is_named():
    given = results()
    given[300] = {**given[300], "segmentation": {**RUN_LENGTHS, "size": [30, 20]}}
    with pytest.raises(ValueError, match=r"result 300: mask of \[height, width\] \[30, 20\] on image 11 of"):
        read_results(given, TRUTH, ["bbox", "segm"])
    assert len(read_results(given, TRUTH, ["bbox"])) == COUNT


@pytest.mark.parametrize("source", [{"image_id": 7}, "results.json", 5])
def test_what_is_no_list_is_refused(source):
    with pytest.raises(TypeError, match=f"got {type(source).__name__}"):
        read_results(source, TRUTH, ["bbox"])


def held(count: int, image_id: int, seed: int) -> ImageResults:
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator) * 10
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.randint(0, 2, (count,), generator=generator)
    masks = torch.rand(count, *SIZE, generator=generator) > 0.5
    return ImageResults.hold(image_id, boxes, torch.rand(count, generator=generator), labels, 2, masks)


@pytest.mark.parametrize("category_ids", [[2, 5], [5, 2]], ids=str)
def test_detections_of_a_detector_are_those_of_the_file_that_is_written_of_them(category_ids, tmp_path):
    """To the last digit, though boxes are float32 here and text there."""
    images = [held(7, 11, 0), held(0, 3, 1), held(300, 7, 2)]
    write_results(tmp_path / "results.json", chain.from_iterable(image.records(category_ids) for image in images))
    read = read_results(tmp_path / "results.json", TRUTH, ["bbox", "segm"])
    table = to_result_table(images, category_ids, TRUTH)
    for name in ("images", "labels", "scores", "boxes"):
        found, expected = getattr(table, name), getattr(read, name)
        assert found.dtype == expected.dtype and np.array_equal(found, expected), name
    assert table.masks == read.masks and len(table) == 307
    assert len(to_result_table([], category_ids, TRUTH)) == 0


@pytest.mark.parametrize("image_id", [8, "7", 7.0, None])
def test_detections_of_another_data_set_are_refused(image_id):
    with pytest.raises(ValueError, match="not among the 3 images"):
        to_result_table([held(1, image_id, 0)], [2, 5], TRUTH)
    with pytest.raises(ValueError, match=r"classes of the ids \[9\]; the ground truth knows \[2, 5\]"):
        to_result_table([held(1, 7, 0)], [2, 9], TRUTH)
