"""COCO figures against pycocotools' own summary, on real annotations with made-up detections."""

import contextlib
import io
import json
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_backbone.metrics.coco import evaluate_coco

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def truth(coco_mini):
    return json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())


def perturbed_detections(truth, seed):
    """Shifted copies of the objects (crowds too), twins, wrong classes, and boxes out of nowhere; many scores tie."""
    rng = np.random.default_rng(seed)
    images = {image["id"]: image for image in truth["images"]}
    category_ids = [category["id"] for category in truth["categories"]]
    found = []
    for annotation in truth["annotations"]:
        for _ in range(rng.integers(0, 3)):
            shift = rng.normal(0, 0.12, 4) * np.tile(annotation["bbox"][2:], 2)
            box = np.array(annotation["bbox"]) + shift
            box[2:] = np.maximum(box[2:], 1)
            wrong = rng.random() < 0.1
            category = int(rng.choice(category_ids)) if wrong else annotation["category_id"]
            found.append((annotation["image_id"], category, box))
    for _ in range(300):
        image = images[rng.choice(list(images))]
        corner = rng.uniform(0, 0.7, 2) * [image["width"], image["height"]]
        size = rng.uniform(0.02, 0.5, 2) * [image["width"], image["height"]]
        found.append((image["id"], int(rng.choice(category_ids)), np.concatenate([corner, size])))
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "bbox": [float(v) for v in box],
            "score": float(np.round(rng.random(), 1)),
            "segmentation": ellipse(box, images[image_id]),
        }
        for image_id, category, box in found
    ]


def ellipse(box, image):
    x, y, w, h = box
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    outline = np.stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))], 1)
    rle = coco_mask.frPyObjects([outline.ravel().tolist()], image["height"], image["width"])[0]
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def pycocotools_summary(truth, results, iou_type):
    """What pycocotools prints, in percent, -1 as nan; and its per-class AP as Detectron2 computes it."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = json.loads(json.dumps(truth))
        api.createIndex()
        results = json.loads(json.dumps(results))
        if iou_type == "segm":
            for result in results:
                del result["bbox"]
        evaluator = COCOeval(api, api.loadRes(results), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    per_class = {}
    for index, category_id in enumerate(evaluator.params.catIds):
        precision = evaluator.eval["precision"][:, :, index, 0, -1]
        precision = precision[precision > -1]
        per_class[names[category_id]] = 100 * np.mean(precision) if precision.size else math.nan
    return {key: 100 * v if v > -1 else math.nan for key, v in zip(KEYS, evaluator.stats, strict=True)}, per_class


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_backends_give_what_pycocotools_prints(truth, seed, iou_type):
    results = perturbed_detections(truth, seed)
    expected, expected_per_class = pycocotools_summary(truth, results, iou_type)
    assert 2 < expected["AP"] < 80, "the detections are neither perfect nor hopeless"
    for backend in ("faster", "pycocotools"):
        metrics = evaluate_coco(truth, results, iou_type=iou_type, backend=backend)
        assert metrics.summary() == pytest.approx(expected, abs=1e-9, nan_ok=True), backend
        assert metrics.per_class == pytest.approx(expected_per_class, abs=1e-9, nan_ok=True), backend
        assert list(metrics.per_class) == [category["name"] for category in truth["categories"]]


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_inputs_stay_as_they_are(truth, iou_type, backend):
    results = perturbed_detections(truth, 3)
    before = json.dumps([truth, results])
    evaluate_coco(truth, results, iou_type=iou_type, backend=backend)
    assert json.dumps([truth, results]) == before


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_the_truth_itself_scores_100(truth, iou_type):
    results = []
    images = {image["id"]: image for image in truth["images"]}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            image = images[annotation["image_id"]]
            rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], image["height"], image["width"]))
            results.append({**annotation, "segmentation": rle, "score": 1.0})
    metrics = evaluate_coco(truth, results, iou_type=iou_type)
    assert metrics.AP == pytest.approx(100) and metrics.AR100 == pytest.approx(100)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_is_zero_with_a_warning(truth, iou_type, backend, caplog):
    with caplog.at_level(logging.WARNING):
        metrics = evaluate_coco(truth, [], iou_type=iou_type, backend=backend)
    assert "no detections" in caplog.text
    assert metrics.AP == metrics.AP50 == metrics.AR100 == 0
    seen = {annotation["category_id"] for annotation in truth["annotations"] if not annotation["iscrowd"]}
    for category in truth["categories"]:
        ap = metrics.per_class[category["name"]]
        assert ap == 0 if category["id"] in seen else math.isnan(ap)


def small_truth(**changes):
    truth = {
        "images": [{"id": 7, "height": 200, "width": 300}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 50, 40], "area": 2000, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [100, 10, 50, 40], "area": 2000, "iscrowd": 0},
        ],
    }
    return {**truth, **changes}


def hit(**changes):
    return {"image_id": 7, "category_id": 3, "bbox": [10, 10, 50, 40], "score": 0.9, **changes}


def test_figures_worked_out_by_hand():
    metrics = evaluate_coco(small_truth(), [hit(), hit(bbox=[200, 100, 20, 20], score=0.1)])
    # recall 0.5 at precision 1: 51 of the 101 recall levels
    assert metrics.AP == metrics.AP50 == metrics.APm == metrics.per_class["cat"] == pytest.approx(100 * 51 / 101)
    assert metrics.AR1 == metrics.AR100 == pytest.approx(50)
    assert all(map(math.isnan, (metrics.APs, metrics.APl, metrics.ARs, metrics.ARl, metrics.per_class["dog"])))


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize("ids", [[0, 1], [4, 4], [None, "x"]], ids=str)
def test_annotation_ids_do_not_matter(ids, backend):
    truth = small_truth()
    for annotation, key in zip(truth["annotations"], ids, strict=True):
        annotation["id"] = key
    assert evaluate_coco(truth, [hit(), hit(bbox=[100, 10, 50, 40])], backend=backend).AP == pytest.approx(100)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_missing_area_and_iscrowd_are_filled_in(backend):
    truth = small_truth()
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    metrics = evaluate_coco(truth, [hit()], backend=backend)
    assert metrics.APm == pytest.approx(100 * 51 / 101) and math.isnan(metrics.APs)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_mask_area_and_not_box_area_decides_what_is_small(backend):
    thin = np.zeros((200, 300), np.uint8, order="F")
    thin[np.arange(100), np.arange(100)] = 1
    rle = coco_mask.encode(thin)
    truth = small_truth()
    truth["annotations"] = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 100, 100], "segmentation": rle}]
    metrics = evaluate_coco(truth, [hit(bbox=[0, 0, 100, 100], segmentation=rle)], iou_type="segm", backend=backend)
    assert metrics.APs == pytest.approx(100) and math.isnan(metrics.APl)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_uncompressed_crowd_run_lengths_are_read(backend):
    polygon = [[10, 10, 60, 10, 60, 50, 10, 50]]
    crowd = {"size": [200, 300], "counts": [0, 100 * 200, 200 * 200]}
    truth = small_truth()
    truth["annotations"][0]["segmentation"] = polygon
    truth["annotations"][1].update(segmentation=crowd, iscrowd=1)
    results = [hit(segmentation=coco_mask.merge(coco_mask.frPyObjects(polygon, 200, 300)))]
    assert evaluate_coco(truth, results, iou_type="segm", backend=backend).AP == pytest.approx(100)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize(("limit", "expected"), [(10, 0), (100, 0), (300, 100)])
def test_max_detections(limit, expected, backend):
    truth = small_truth()
    truth["annotations"] = truth["annotations"][:1]
    misses = [hit(bbox=[200, 100, 20, 20], score=0.95)] * 150
    metrics = evaluate_coco(truth, [*misses, hit()], max_detections=limit, backend=backend)
    assert metrics.AR100 == expected and metrics.summary()[f"AR{limit}"] == expected


def test_files_and_values_give_the_same(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(small_truth()))
    (tmp_path / "results.json").write_text(json.dumps([hit()]))
    from_files = evaluate_coco(tmp_path / "truth.json", tmp_path / "results.json")
    assert from_files.to_dict() == evaluate_coco(small_truth(), [hit()]).to_dict()


def test_figures_of_masks_go_along():
    boxes = evaluate_coco(small_truth(), [hit()])
    both = replace(boxes, masks=replace(boxes, iou_type="segm", AP=12.5))
    assert both.AP == boxes.AP and list(both.by_type()) == ["bbox", "segm"] and list(boxes.by_type()) == ["bbox"]
    assert both.to_dict()["bbox"] == boxes.to_dict()["bbox"] and both.to_dict()["segm"]["AP"] == 12.5
    assert both.table().startswith(boxes.table()) and "segm, percent" in both.table() and "12.50" in both.table()


def test_to_dict_is_strict_json_under_detectron2s_names():
    values = evaluate_coco(small_truth(), [hit()]).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert list(values["bbox"]) == [*KEYS, "AP-cat", "AP-dog"]
    assert values["bbox"]["AP-dog"] is None and values["bbox"]["APs"] is None


@pytest.mark.parametrize("extra_classes", [0, 1, 2, 5])
def test_table_shows_every_figure_and_class(extra_classes):
    truth = small_truth()
    truth["categories"] += [{"id": 10 + k, "name": f"extra{k}"} for k in range(extra_classes)]
    text = evaluate_coco(truth, [hit()]).table()
    words = text.replace("|", " ").split()
    assert set(KEYS) | {"cat", "dog"} | {f"extra{k}" for k in range(extra_classes)} <= set(words)
    assert f"{100 * 51 / 101:.2f}" in words and "-" in words and "nan" not in words


def test_nothing_is_printed(capfd, caplog):
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="resnet_backbone"):
        for backend in ("faster", "pycocotools"):
            evaluate_coco(small_truth(), [hit()], backend=backend)
    assert capfd.readouterr() == ("", "")
    assert "pycocotools: Running per image evaluation" in caplog.text


SQUARE = {"size": [20, 30], "counts": coco_mask.encode(np.ones((20, 30), np.uint8, order="F"))["counts"]}


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
@pytest.mark.parametrize(
    ("result", "iou_type", "message"),
    [
        (hit(image_id=8), "bbox", "image_id 8"),
        (hit(category_id=0), "bbox", r"category_id 0.*\[3, 5\]"),
        (hit(score=math.nan), "bbox", "score nan"),
        (hit(score=math.inf), "bbox", "score inf"),
        (hit(score="0.9"), "bbox", "score '0.9'"),
        (hit(bbox=[1, 2, 3]), "bbox", "four finite numbers"),
        (hit(bbox=[1, 2, 3, math.nan]), "bbox", "four finite numbers"),
        (hit(bbox=[60, 50, -50, -40]), "bbox", "not negative"),
        ({"image_id": 7, "category_id": 3, "score": 1.0}, "bbox", r"lacks \['bbox'\]"),
        (hit(), "segm", r"lacks \['segmentation'\]"),
        (hit(segmentation=[[1, 1, 5, 1, 5, 5]]), "segm", "pycocotools.mask.encode"),
        (hit(segmentation=SQUARE), "segm", r"\[20, 30\] on image 7 of \[200, 300\]"),
    ],
)
def test_results_that_do_not_fit_are_refused(result, iou_type, message, backend):
    rectangle = [[10, 10, 60, 10, 60, 50]]
    truth = small_truth()
    for annotation in truth["annotations"]:
        annotation["segmentation"] = rectangle
    with pytest.raises(ValueError, match=message):
        evaluate_coco(truth, [result], iou_type=iou_type, backend=backend)


def with_annotation(**changes):
    truth = small_truth()
    truth["annotations"][1].update(changes)
    return truth


@pytest.mark.parametrize(
    ("truth", "iou_type", "message"),
    [
        ([], "bbox", "found list"),
        ({"images": []}, "bbox", r'needs a list "annotations", found keys'),
        (small_truth(images=[]), "bbox", '"images" is empty'),
        (small_truth(categories=[]), "bbox", '"categories" is empty'),
        (small_truth(images=[{"id": "7"}]), "bbox", r"""images\[0\] has "id" '7' \(str\); expected int"""),
        (small_truth(images=[{"id": 7}, {"id": 7}]), "bbox", "repeats id 7"),
        (small_truth(categories=[{"id": 3}]), "bbox", r'categories\[0\] has no "name"'),
        (
            small_truth(categories=[{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]),
            "bbox",
            r"categories\[1\] has the name 'a' of id 3",
        ),
        (
            with_annotation(image_id=9),
            "bbox",
            r"annotations\[1\] is of image_id 9, which is not in images \(image 9",
        ),
        (with_annotation(category_id=9), "bbox", r"category_id 9, which is not in categories \(\[3, 5\]\)"),
        (with_annotation(bbox=[1, 2, 3, None]), "bbox", "four finite numbers"),
        (with_annotation(bbox=[1, 2, -3, 4]), "bbox", "negative width or height: the evaluation refuses the file"),
        (with_annotation(area="large"), "bbox", "area is no finite number: the evaluation refuses the file"),
        (small_truth(), "segm", r'annotations\[0\] has no "segmentation"'),
        (small_truth(images=[{"id": 7}]), "segm", "no height and width"),
    ],
)
def test_broken_ground_truth_is_refused(truth, iou_type, message):
    with pytest.raises(ValueError, match=message):
        evaluate_coco(truth, [], iou_type=iou_type)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_type": "keypoints"}, "iou_type"),
        ({"backend": "torchmetrics"}, "backend"),
        ({"max_detections": 5}, "10 or more"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_coco(small_truth(), [hit()], **options)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        evaluate_coco(tmp_path / "nowhere.json", [])
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(ValueError, match="half.json is not JSON"):
        evaluate_coco(tmp_path / "half.json", [])
    with pytest.raises(TypeError, match="got dict"):
        evaluate_coco(small_truth(), {"image_id": 7})


IDS = {
    "nanoseconds": lambda n: 1_700_000_000_000_000_000 + n,
    "packed bits": lambda n: 2**60 + n,
    "the largest": lambda n: 2**63 - 1 - n,
    "negative": lambda n: -(2**63) + n,
    "mixed": lambda n: (-1) ** n * (2**62 + n),
}


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("key", ["image_id", "category_id"])
@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_large_ids_are_told_apart(ids, key, backend):
    """Every object is found one image, or class, too far, so all is wrong; then right, and a half of both."""
    new = IDS[ids]
    images, classes = (new if key == name else int for name in ("image_id", "category_id"))
    truth = {
        "images": [{"id": images(n), "height": 80, "width": 80} for n in range(4)],
        "categories": [{"id": classes(n), "name": f"class {n}"} for n in range(4)],
        "annotations": [
            {"id": n, "image_id": images(n), "category_id": classes(n), "bbox": [n, n, 30, 30]} for n in range(4)
        ],
    }

    def results(shifts):
        changed = [{**note, "score": 0.9 - n / 10} for n, note in enumerate(truth["annotations"])]
        for n, (note, shift) in enumerate(zip(changed, shifts, strict=True)):
            note[key] = new((n + shift) % 4)
        return changed

    for shifts, expected in (((1, 1, 1, 1), 0), ((0, 0, 0, 0), 100), ((0, 0, 1, 1), 50)):
        metrics = evaluate_coco(truth, results(shifts), backend=backend)
        assert metrics.AP == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_figures_do_not_depend_on_the_ids(truth, backend):
    """Against pycocotools itself with the ids of the file."""
    results = perturbed_detections(truth, seed=5)
    scale = {image["id"]: 2**62 + rank for rank, image in enumerate(sorted(truth["images"], key=lambda i: i["id"]))}
    renamed = {
        **truth,
        "images": [{**image, "id": scale[image["id"]]} for image in truth["images"]],
        "annotations": [{**note, "image_id": scale[note["image_id"]]} for note in truth["annotations"]],
    }
    moved = [{**result, "image_id": scale[result["image_id"]]} for result in results]
    metrics = evaluate_coco(renamed, moved, backend=backend)
    expected = evaluate_coco(truth, results, backend="pycocotools")
    assert metrics.summary() == pytest.approx(expected.summary(), nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("value", [2.0**60, 1e18, True, 2**63, "1"])
def test_ids_that_may_be_others_are_refused(value):
    truth = {
        "images": [{"id": 1}, {"id": 2**60}, {"id": 10**18}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]}],
    }
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    assert evaluate_coco(truth, [{**result, "image_id": 1.0}]).AP > 0  # as some tools write them
    with pytest.raises(ValueError, match="image_id"):
        evaluate_coco(truth, [{**result, "image_id": value}])
    with pytest.raises(ValueError, match="image_id"):
        evaluate_coco({**truth, "annotations": [{**truth["annotations"][0], "image_id": value}]}, [])
    if type(value) is float:
        with pytest.raises(ValueError, match=r"beyond 2\*\*53 apart: write integers"):
            evaluate_coco(truth, [{**result, "image_id": value}])


@pytest.mark.parametrize("crowd", [1, 1.0, True])
def test_crowds_are_written_in_several_ways(crowd):
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 50], "iscrowd": crowd},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [60, 0, 20, 20]},
        ],
    }
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 30, 30], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [60, 0, 20, 20], "score": 0.5},
    ]
    for backend in ("faster", "pycocotools"):
        assert evaluate_coco(truth, results, backend=backend).AP == pytest.approx(100)
    for wrong in (2, "1", None, 0.5):
        truth["annotations"][0]["iscrowd"] = wrong
        with pytest.raises(ValueError, match="has iscrowd .*; expected 0 or 1"):
            evaluate_coco(truth, results)
