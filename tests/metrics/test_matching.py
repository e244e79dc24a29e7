"""Kept matches against pycocotools: as they are, and with images that count several times."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbone.metrics.coco import evaluate_coco
from resnet_backbone.metrics.matching import FIGURES, match, most_different, per_image_difference


def pycocotools_figures(truth, results, iou_type="bbox", max_detections=100):
    """The six precisions and those of the classes in percent, from the original; nan where it says -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        api, found = COCO(), COCO()
        api.dataset = json.loads(json.dumps(truth))
        api.createIndex()
        if results:
            left_out = "segmentation" if iou_type == "bbox" else "bbox"
            found = api.loadRes([{key: r[key] for key in r if key != left_out} for r in results])
        else:
            found.dataset = {**api.dataset, "annotations": []}
            found.createIndex()
        evaluator = COCOeval(api, found, iou_type)
        evaluator.params.maxDets = [max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][..., -1]
    parts = [precision[:, :, :, 0], precision[0, :, :, 0], precision[5, :, :, 0]]
    parts += [precision[:, :, :, area] for area in (1, 2, 3)]
    parts += [precision[:, :, index, 0] for index in range(precision.shape[2])]
    means = [100 * part[part > -1].mean() if (part > -1).any() else math.nan for part in parts]
    names = {category["id"]: category["name"] for category in truth["categories"]}
    keys = [*FIGURES, *(f"AP-{names[key]}" for key in sorted(names))]
    return dict(zip(keys, means, strict=True))


def same(expected):
    return pytest.approx(expected, abs=1e-9, nan_ok=True)


def rectangle(box):
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def made_up(seed, num_images=6, num_classes=3, distinct_scores=False):
    """Objects of all sizes with crowds, and detections near them, far from them, twice and of the wrong class."""
    rng = np.random.default_rng(seed)
    truth = {
        "images": [{"id": int(key), "height": 400, "width": 400} for key in rng.permutation(num_images) * 3 + 5],
        "categories": [{"id": 7 - key, "name": f"class{key}"} for key in range(num_classes)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        for _ in range(rng.integers(0, 5)):
            box = np.concatenate([rng.uniform(0, 250, 2), np.exp(rng.uniform(2.5, 5, 2))])
            category = 7 - int(rng.integers(num_classes))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": rectangle(box.tolist()),
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = box + rng.normal(0, 0.1, 4) * np.tile(box[2:], 2)
                wrong = rng.random() < 0.2
                results.append((image["id"], 7 - int(rng.integers(num_classes)) if wrong else category, moved))
        for _ in range(rng.integers(0, 3)):
            box = np.concatenate([rng.uniform(0, 250, 2), np.exp(rng.uniform(2.5, 5, 2))])
            results.append((image["id"], 7 - int(rng.integers(num_classes)), box))
    scores = rng.permutation(len(results)) / 100 if distinct_scores else rng.integers(0, 8, len(results)) / 8
    return truth, [
        {"image_id": image, "category_id": category, "bbox": box.tolist(), "score": float(score)}
        for (image, category, box), score in zip(results, scores, strict=True)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_figures_equal_pycocotools(seed):
    truth, results = made_up(seed)
    assert match(truth, results).metrics() == same(pycocotools_figures(truth, results))


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_figures_equal_evaluate_coco_and_pycocotools_on_real_images(coco_mini, load_script, iou_type):
    truth = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    results = load_script("tests/metrics/test_coco.py").perturbed_detections(truth, seed=0)
    figures = match(truth, results, iou_type=iou_type).metrics()
    metrics = evaluate_coco(truth, results, iou_type=iou_type)
    expected = metrics.summary() | {f"AP-{name}": ap for name, ap in metrics.per_class.items()}
    assert figures == same({key: expected[key] for key in figures})
    assert figures == same(pycocotools_figures(truth, results, iou_type))
    assert sum(annotation["iscrowd"] for annotation in truth["annotations"]) > 0 and 2 < figures["AP"] < 80


@pytest.mark.parametrize("max_detections", [1, 2, 5])
def test_only_the_best_detections_of_an_image_count(max_detections):
    truth, results = made_up(3, num_classes=1)
    expected = pycocotools_figures(truth, results, max_detections=max_detections)
    assert match(truth, results, max_detections=max_detections).metrics() == same(expected)
    assert expected["AP50"] != pycocotools_figures(truth, results)["AP50"]


def repeated(truth, results, counts):
    """The data set that really holds each image so often, under new ids that keep their order."""
    times = dict(zip(sorted(image["id"] for image in truth["images"]), counts, strict=True))

    def copies(records, key):
        return [{**r, key: 1000 * r[key] + copy} for r in records for copy in range(times[r[key]])]

    annotations = copies(truth["annotations"], "image_id")
    annotations = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    return {**truth, "images": copies(truth["images"], "id"), "annotations": annotations}, copies(results, "image_id")


def weighted(matches, counts):
    sampled = matches.sampled_metrics(np.array([counts], dtype=float))
    return {name: float(values[0]) for name, values in sampled.items()}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), counts=st.lists(st.integers(0, 4), min_size=6, max_size=6).filter(any))
def test_whole_weights_are_images_repeated_so_often(seed, counts):
    truth, results = made_up(seed, distinct_scores=True)
    expected = pycocotools_figures(*repeated(truth, results, counts))
    assert weighted(match(truth, results), counts) == same(expected)


def test_scores_that_tie_between_images_are_taken_in_the_order_of_the_images():
    truth, results = made_up(11, num_images=12, num_classes=1)
    seen = {}
    results = [r for r in results if seen.setdefault((r["image_id"], r["score"]), id(r)) == id(r)]  # none within one
    assert len({result["score"] for result in results}) < len(results) / 2
    counts = [3, 0, 1, 2, 1, 1, 2, 0, 3, 1, 1, 2]
    expected = pycocotools_figures(*repeated(truth, results, counts))
    assert weighted(match(truth, results), counts) == same(expected)


def test_many_weightings_at_once_are_each_of_them(monkeypatch):
    truth, results = made_up(5)
    matches = match(truth, results)
    weights = np.random.default_rng(0).integers(0, 3, (7, 6)).astype(float)
    monkeypatch.setattr("resnet_backbone.metrics.matching.ENTRIES_AT_ONCE", 20)  # three rounds and more
    together = matches.sampled_metrics(weights)
    for row, values in enumerate(weights):
        assert {name: some[row] for name, some in together.items()} == same(weighted(matches, values))


ONE = {"images": [{"id": 4}], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}
CAT = {"id": 1, "image_id": 4, "category_id": 1, "bbox": [10, 10, 40, 40], "iscrowd": 0}
FOUND = {"image_id": 4, "category_id": 1, "bbox": [10, 10, 40, 40], "score": 0.9}


@pytest.mark.parametrize("annotations", [[], [CAT], [{**CAT, "iscrowd": 1}]], ids=["empty", "cat", "crowd"])
@pytest.mark.parametrize("results", [[], [FOUND], [{**FOUND, "category_id": 2}]], ids=["none", "cat", "dog"])
def test_one_image_with_little_in_it(annotations, results):
    truth = {**ONE, "annotations": [{**annotation, "area": 1600} for annotation in annotations]}
    figures = match(truth, results).metrics()
    assert figures == same(pycocotools_figures(truth, results))
    assert math.isnan(figures["AP-dog"]) and math.isnan(figures["APl"])


def test_an_object_comes_before_a_crowd_and_before_one_of_another_size():
    crowd = {**CAT, "id": 2, "bbox": [0, 0, 200, 200], "area": 1600, "iscrowd": 1}
    larger = {**CAT, "id": 3, "bbox": [10, 10, 40, 44], "area": 100 * 100}
    found = {**FOUND, "bbox": [10, 10, 40, 43]}  # wholly in the crowd, and closer to the larger one
    for annotations in ([CAT, crowd], [crowd, CAT], [CAT, larger], [larger, CAT, crowd]):
        truth = {**ONE, "annotations": [{"area": 1600, **a, "id": n} for n, a in enumerate(annotations, start=1)]}
        figures = match(truth, [found]).metrics()
        assert figures == same(pycocotools_figures(truth, [found]))
        assert figures["APm"] > 80, "IoU 40 / 43, which is 0.93"


def test_images_of_weight_zero_leave_nothing_to_measure():
    truth = {**ONE, "images": [{"id": 4}, {"id": 5}], "annotations": [CAT]}
    figures = weighted(match(truth, [FOUND]), [0, 1])
    assert all(map(math.isnan, figures.values()))


@pytest.mark.parametrize("options", [{"iou_type": "keypoints"}, {"max_detections": 0}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        match({**ONE, "annotations": [CAT]}, [FOUND], **options)


TWO_CATS = {**ONE, "images": [{"id": 4}, {"id": 2}, {"id": 9}], "annotations": [CAT, {**CAT, "image_id": 9}]}
FAR = {**FOUND, "bbox": [200, 200, 10, 10]}


def test_difference_of_two_runs_on_each_image():
    a = match(TWO_CATS, [FOUND, FAR, {**FAR, "score": 0.49}, {**FAR, "image_id": 2}])
    b = match(TWO_CATS, [FOUND, {**FOUND, "image_id": 9}, {**FOUND, "image_id": 9, "score": 0.4}])
    # ascending ids 2, 4, 9: a false alarm less, a false alarm less, a hit more
    assert per_image_difference(a, b).tolist() == [1, 1, 1]
    assert per_image_difference(b, a).tolist() == [-1, -1, -1]
    assert per_image_difference(a, b, score=0.4).tolist() == [1, 2, 0]
    assert most_different(a, b, 5) == [2, 4, 9] and most_different(b, a, 2) == [2, 4]
    assert most_different(a, b, 5, score=0.4) == [4, 2]
    assert most_different(a, a, 5) == []


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({**TWO_CATS, "images": [{"id": 4}, {"id": 2}, {"id": 9}, {"id": 1}]}, "4 images, the first on 3"),
        ({**TWO_CATS, "categories": [{"id": 1, "name": "cat"}]}, r"classes \['cat'\], the first \['cat', 'dog'\]"),
        ({**TWO_CATS, "annotations": [CAT]}, "other objects of class 'cat'"),
    ],
)
def test_runs_on_other_data_are_not_compared(truth, message):
    with pytest.raises(ValueError, match=message):
        per_image_difference(match(TWO_CATS, []), match(truth, []))


def test_boxes_are_not_compared_with_masks():
    truth, _ = made_up(1)
    with pytest.raises(ValueError, match='"segm", the first by "bbox"'):
        per_image_difference(match(truth, []), match(truth, [], iou_type="segm"))
