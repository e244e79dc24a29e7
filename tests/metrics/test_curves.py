"""Curves against pycocotools' own array."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbone.metrics.coco import evaluate_coco
from resnet_backbone.metrics.matching import match, precision_recall


@pytest.fixture(scope="module")
def made_up(load_script):
    return load_script("tests/metrics/test_matching.py").made_up


def pycocotools_precision(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = json.loads(json.dumps(truth))
        api.createIndex()
        evaluator = COCOeval(api, api.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., 0, -1]  # (IoU, recall, class)


@pytest.mark.parametrize("seed", range(10))
def test_curves_are_pycocotools_precision(made_up, seed):
    truth, results = made_up(seed, num_images=9)
    truth["categories"].append({"id": 99, "name": "never seen"})
    precision = pycocotools_precision(truth, results)
    matches = match(truth, results)
    for index, iou in enumerate(np.arange(50, 100, 5) / 100):
        curve = precision_recall(matches, iou)
        expected = np.where(precision[index] > -1, precision[index], np.nan).T
        np.testing.assert_allclose(curve.precision, expected, atol=1e-12)
        np.testing.assert_allclose(curve.mean, np.nanmean(expected, axis=0), atol=1e-12)
    assert matches.classes[-1].name == "never seen" and np.isnan(curve.precision[-1]).all()
    assert curve.recall[[0, 50, 100]].tolist() == [0, 0.5, 1]


def test_the_mean_height_is_the_ap(made_up):
    truth, results = made_up(2)
    metrics, matches = evaluate_coco(truth, results), match(truth, results)
    assert 100 * precision_recall(matches).mean.mean() == pytest.approx(metrics.AP50, abs=1e-9)
    assert 100 * precision_recall(matches, 0.75).mean.mean() == pytest.approx(metrics.AP75, abs=1e-9)


def test_no_detections_and_no_objects(made_up):
    truth, _ = made_up(2)
    curve = precision_recall(match(truth, []))
    assert (curve.mean == 0).all()
    nothing = precision_recall(match({**truth, "annotations": []}, []))
    assert np.isnan(nothing.mean).all() and np.isnan(nothing.precision).all()


@pytest.mark.parametrize("iou", [0.45, 0.52, 1.0])
def test_other_ious_are_refused(made_up, iou):
    with pytest.raises(ValueError, match=f"0.5, 0.55, .*, 0.95; got {iou}"):
        precision_recall(match(*made_up(2)), iou)
