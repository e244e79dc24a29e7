"""Detections to COCO records and back."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from resnet_backbone.metrics.results import ImageResults, decode_masks, encode_masks, write_results


def records_of(image_id, boxes, scores, labels, category_ids, masks=None):
    held = ImageResults.hold(image_id, boxes, scores, labels, len(category_ids), masks)
    return held.records(category_ids)


def random_detections(count, height=40, width=61, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 20], 1)
    scores = torch.rand(count, generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    masks = torch.rand(count, height, width, generator=generator) > 0.5
    return boxes, scores, labels, masks


@pytest.mark.parametrize("count", [0, 1, 7])
def test_records_hold_what_went_in(count, tmp_path):
    boxes, scores, labels, masks = random_detections(count)
    records = records_of(42, boxes, scores, labels, [1, 18, 90], masks)
    write_results(tmp_path / "new" / "results.json", records)
    records = json.loads((tmp_path / "new" / "results.json").read_text())
    assert len(records) == count
    for index, record in enumerate(records):
        x, y, w, h = record["bbox"]
        assert torch.tensor([x, y, x + w, y + h], dtype=torch.float32).equal(boxes[index]), "to the last bit"
        assert np.float32(record["score"]) == scores[index].item()
        assert record["category_id"] == [1, 18, 90][labels[index]]
        assert record["image_id"] == 42
        assert np.array_equal(coco_mask.decode(record["segmentation"]), masks[index].numpy())


def test_width_and_height_are_not_rounded_to_float32():
    x0, y0, x1, y1 = np.array([0.1, 0.7, 1000.3, 777.7], dtype=np.float32).astype(float)
    box = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)
    (record,) = records_of(1, box, torch.ones(1), torch.tensor([0]), [1])
    assert record["bbox"] == [x0, y0, x1 - x0, y1 - y0]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_encoded_masks_are_taken_as_they_are_and_come_back(count):
    boxes, scores, labels, masks = random_detections(count)
    rles = encode_masks(masks)
    records = [records_of(1, boxes, scores, labels, [1, 2, 3], given) for given in (masks, rles)]
    assert records[0] == records[1]
    assert torch.equal(decode_masks(rles, 40, 61), masks)
    with pytest.raises(ValueError, match=f"one for each box, got {count}"):
        records_of(1, torch.zeros(9, 4), torch.zeros(9), torch.zeros(9, dtype=torch.long), [1], rles)


def test_without_masks_there_is_no_segmentation():
    boxes, scores, labels, _ = random_detections(2)
    assert {"image_id", "category_id", "bbox", "score"} == set(records_of(1, boxes, scores, labels, [1, 2, 3])[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": torch.zeros(2, 5)}, ValueError, r"got \(2, 5\)"),
        ({"boxes": torch.zeros(2)}, ValueError, r"got \(2,\)"),
        ({"scores": torch.zeros(3)}, ValueError, r"\(3,\)"),
        ({"labels": torch.tensor([0, 3])}, ValueError, r"0 to 2.*got \[3\]"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, r"got \[-1\]"),
        ({"masks": torch.zeros(3, 5, 5, dtype=torch.bool)}, ValueError, r"expected masks of shape \(2"),
        ({"masks": torch.zeros(2, 1, 5, 5, dtype=torch.bool)}, ValueError, "expected masks of shape"),
        ({"masks": torch.rand(2, 5, 5)}, TypeError, "must be bool, got torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    arguments = {"boxes": torch.zeros(2, 4), "scores": torch.zeros(2), "labels": torch.tensor([0, 1]), **change}
    with pytest.raises(error, match=message):
        records_of(1, category_ids=[1, 2, 3], **arguments)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [{"score": 0.1 + 0.2}])
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, [{"score": math.nan}])
    assert json.loads(path.read_text()) == [{"score": 0.1 + 0.2}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("count", [0, 1, 199, 200, 201, 450])
def test_records_that_come_one_by_one_make_the_same_file(count, tmp_path):
    boxes, scores, labels, _ = random_detections(count)
    records = records_of(42, boxes, scores, labels, [1, 18, 90])
    for given in (records, iter(records), (record for record in records)):
        write_results(tmp_path / "results.json", given)
        assert (tmp_path / "results.json").read_bytes() == json.dumps(records).encode()


def test_a_nan_after_much_was_written_leaves_nothing(tmp_path):
    records = [{"score": 0.5}] * 1000
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            write_results(tmp_path / "results.json", [*records, {"score": wrong}])
    assert list(tmp_path.iterdir()) == []


def test_records_that_fail_to_come_leave_nothing(tmp_path):
    def failing():
        yield from [{"score": 0.5}] * 1000
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_results(tmp_path / "results.json", failing())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_held_results_give_the_same_records_wherever_they_are_sent(count, with_masks):
    *detections, masks = random_detections(count)
    given = masks if with_masks else None
    with torch.inference_mode():
        held = ImageResults.hold(42, *detections, num_classes=3, masks=given)
    sent = pickle.loads(pickle.dumps(held))  # noqa: S301  our own bytes
    assert sent.records([1, 18, 90]) == held.records([1, 18, 90])
    assert held.records([1, 18, 90]) == records_of(42, *detections, [1, 18, 90], given)


def test_held_results_keep_and_send_no_more_than_their_own():
    boxes, scores, labels, _ = random_detections(10_000)
    held = ImageResults.hold(1, boxes[:5], scores[:5], labels[:5], num_classes=3)
    assert len(pickle.dumps(held)) < 5000
    boxes.zero_()
    assert held.boxes.any()
