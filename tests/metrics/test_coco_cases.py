"""COCO figures against pycocotools' own summary, on made-up cases with all that real data has."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbone.data.coco.read import read_ground_truth
from resnet_backbone.metrics.coco import evaluate_coco, evaluate_coco_types
from resnet_backbone.metrics.matching import match
from resnet_backbone.metrics.result_table import read_results
from resnet_backbone.metrics.voc import score_results

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
HEIGHT, WIDTH = 160, 213


def made_up(seed: int, num_images: int = 14, per_image: int = 25) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of five sizes and of three of four classes, crowds, images without objects, without results, and neither.

    Detections of all classes, near objects, twice there, exactly there, and anywhere; their scores are 0.0 to 1.0 in
    steps of 0.1. Ids of images and classes are in no order, an annotation has the id 0, and areas are not the boxes'.
    """
    rng = np.random.default_rng(seed)
    image_ids = [int(key) for key in rng.permutation(1000)[:num_images]]
    images = [{"id": key, "height": HEIGHT, "width": WIDTH} for key in image_ids]
    categories = [{"id": key, "name": f"class {key}"} for key in (44, 7, 90, 13)]
    annotations, results = [], []
    for position, image_id in enumerate(image_ids):
        boxes = []
        for _ in range(0 if position % 7 == 0 else rng.integers(1, 9)):
            size = rng.choice([6, 20, 40, 90, 120]) * rng.uniform(0.8, 1.2, 2)
            boxes.append([*(rng.random(2) * ([WIDTH, HEIGHT] - size)), *size])
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image_id,
                    "category_id": int(rng.choice([44, 7, 90])),
                    "bbox": np.round(boxes[-1], 2).tolist(),
                    "area": float(rng.uniform(0.5, 1) * size.prod()),
                    "iscrowd": int(rng.random() < 0.2),
                    "segmentation": outline(boxes[-1]),
                }
            )
        for _ in range(0 if position % 5 == 1 else per_image):
            box = np.array([*(rng.random(2) * 90), *rng.uniform(5, 90, 2)])
            if boxes and rng.random() < 0.7:
                box = np.array(boxes[rng.integers(len(boxes))])
                box += rng.choice([0, 0.05, 0.15]) * rng.normal(0, 1, 4) * np.tile(box[2:], 2)
                box[2:] = np.maximum(box[2:], 1)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": int(rng.choice([44, 7, 13])),
                    "bbox": box.tolist(),
                    "score": float(rng.integers(0, 11)) / 10,
                    "segmentation": run_lengths(box),
                }
            )
    rng.shuffle(results)
    return {"images": images, "annotations": annotations, "categories": categories}, results


def outline(box) -> list[list[float]]:
    x, y, width, height = map(float, box)
    return [[x, y, x + width, y, x + width, y + height, x + 0.3 * width, y + height]]


def run_lengths(box) -> dict[str, Any]:
    rle = coco_mask.frPyObjects(outline(box), HEIGHT, WIDTH)[0]
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def oracle(truth, results, iou_type, limit=100) -> tuple[dict[str, float], dict[str, float]]:
    """pycocotools by itself, in percent, nan where it has -1; annotations numbered from 1, as it needs them."""
    truth, results = json.loads(json.dumps([truth, results]))
    for number, annotation in enumerate(truth["annotations"], start=1):
        annotation["id"] = number
    for result in results:
        if iou_type == "segm":
            del result["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth
        index.createIndex()
        evaluator = COCOeval(index, index.loadRes(results), iou_type)
        evaluator.params.maxDets = [1, 10, limit]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class = {}
    for position, category_id in enumerate(evaluator.params.catIds):
        values = evaluator.eval["precision"][:, :, position, 0, -1]
        per_class[names[category_id]] = 100 * values[values > -1].mean() if (values > -1).any() else math.nan
    stats = evaluator.stats
    if limit != 100:  # pycocotools' AP asks for 100
        values = evaluator.eval["precision"][..., 0, -1]
        stats[0] = values[values > -1].mean()
    return {key: 100 * v if v > -1 else math.nan for key, v in zip(KEYS, stats, strict=True)}, per_class


def expect(metrics, truth, results, limit=100):
    figures, per_class = oracle(truth, results, metrics.iou_type, limit)
    found = {"AR100" if name == f"AR{limit}" else name: value for name, value in metrics.summary().items()}
    assert found == pytest.approx(figures, abs=1e-9, nan_ok=True)
    assert metrics.per_class == pytest.approx(per_class, abs=1e-9, nan_ok=True)
    return figures, per_class


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_pycocotools(seed, iou_type, tmp_path):
    truth, results = made_up(seed)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    metrics = evaluate_coco(tmp_path / "truth.json", tmp_path / "results.json", iou_type=iou_type)
    figures, per_class = expect(metrics, truth, results)
    assert 2 < figures["AP"] < 90
    assert math.isnan(per_class["class 13"]) and per_class["class 90"] == 0  # detected in vain, and not at all
    assert len({annotation["iscrowd"] for annotation in truth["annotations"]}) == 2
    assert len({result["score"] for result in results}) < len(results) / 5
    for backend in ("faster", "pycocotools"):
        again = evaluate_coco(truth, results, iou_type=iou_type, backend=backend)
        assert again.summary() == pytest.approx(metrics.summary(), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_boxes_and_masks_at_once_are_both_one_after_the_other(backend):
    truth, results = made_up(5)
    before = json.dumps([truth, results])
    both = evaluate_coco_types(truth, results, ("bbox", "segm"), backend=backend)
    alone = [evaluate_coco(truth, results, iou_type=iou_type, backend=backend) for iou_type in ("bbox", "segm")]
    assert repr(both) == repr(alone) and both[0].AP != both[1].AP
    assert json.dumps([truth, results]) == before


def test_a_file_of_boxes_and_masks_is_scored_by_both(tmp_path):
    truth, results = made_up(6)
    paths = (tmp_path / "truth.json", tmp_path / "results.json")
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    read = read_ground_truth(paths[0], ("bbox", "segm"))
    found = read_results(paths[1], read, ("bbox", "segm"))
    metrics = score_results(read, found, paths[1], ("bbox", "segm"), voc_rule=None)
    expect(metrics, truth, results)
    expect(metrics.masks, truth, results)
    assert score_results(read, found, paths[1], ("segm",), voc_rule=None).iou_type == "segm"


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_best_of_an_image_alone_count(iou_type):
    truth, results = made_up(7, num_images=4, per_image=200)
    full = evaluate_coco(truth, results, iou_type=iou_type)
    for limit in (20, 30):
        metrics = evaluate_coco(truth, results, iou_type=iou_type, max_detections=limit)
        expect(metrics, truth, results, limit)
        assert metrics.AR100 < full.AR100


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_only_crowds_and_only_some_classes(iou_type):
    truth, results = made_up(8)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 1
    assert math.isnan(evaluate_coco(truth, results, iou_type=iou_type).AP)
    truth, results = made_up(8)
    few = [result for result in results if result["category_id"] == 7][:3]
    expect(evaluate_coco(truth, few, iou_type=iou_type), truth, few)


def test_hundreds_of_masks_of_a_class():
    """pycocotools' area of more than 255 masks at once fails with NumPy 2."""
    truth, results = made_up(9, num_images=6, per_image=100)
    for result in results:
        result["category_id"] = 44
    assert len(results) > 255
    for backend in ("faster", "pycocotools"):
        expect(evaluate_coco(truth, results, iou_type="segm", backend=backend), truth, results)
    assert match(truth, results, iou_type="segm").metrics()["AP"] == pytest.approx(
        evaluate_coco(truth, results, iou_type="segm").AP
    )


@pytest.mark.parametrize("was_on", [True, False])
def test_the_garbage_collector_is_left_as_it_was(was_on):
    truth, results = made_up(10, num_images=2)
    try:
        if not was_on:
            gc.disable()
        evaluate_coco(truth, results)
        assert gc.isenabled() is was_on
        with pytest.raises(ValueError, match="result 0"):
            evaluate_coco(truth, [{}])
        assert gc.isenabled() is was_on
    finally:
        gc.enable()
