"""The six kinds of mistakes: by hand, against plain loops, and against TIDE's own code where it is installed."""

import math
from collections import Counter

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from resnet_backbone.metrics.coco import evaluate_coco
from resnet_backbone.metrics.error_types import KINDS, error_breakdown


@pytest.fixture(scope="module")
def made_up(load_script):
    return load_script("tests/metrics/test_matching.py").made_up


def crowded(made_up, seed):
    """Data with crowds, near misses and every other kind of mistake; no two scores are the same."""
    return made_up(seed, num_images=10, num_classes=4, distinct_scores=True)


def without_crowds(made_up, seed):
    """The same where every class has an object, as TIDE's code needs it."""
    truth, results = crowded(made_up, seed)
    kept = [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]
    seen = {annotation["category_id"] for annotation in kept}
    truth = {**truth, "annotations": kept, "categories": [c for c in truth["categories"] if c["id"] in seen]}
    return truth, [result for result in results if result["category_id"] in seen]


TRUTH = {
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "cow"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [200, 0, 100, 100]},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 100, 100]},
        {"id": 4, "image_id": 2, "category_id": 1, "bbox": [300, 300, 50, 50]},
    ],
}


def found(image, category, x, score):
    return {"image_id": image, "category_id": category, "bbox": [x, 0, 100, 100], "score": score}


HIT = found(1, 1, 0, 0.9)


@pytest.mark.parametrize(
    ("mistake", "name", "kind", "missed"),
    [
        (found(1, 1, 200, 0.8), "cat", "classification", 2),  # the dog is meant, so it is not missed
        (found(1, 2, 260, 0.8), "dog", "localisation", 2),  # IoU 0.25 with the dog
        (found(1, 3, 260, 0.8), "cow", "both", 3),
        (found(1, 1, 10, 0.8), "cat", "duplicate", 3),
        (found(1, 1, 60, 0.8), "cat", "localisation", 3),  # IoU 0.25 with a cat that is hit already
        (found(1, 2, 20, 0.8), "dog", "classification", 3),  # a cat that is hit already
        (found(1, 1, 400, 0.8), "cat", "background", 3),
        (found(1, 2, 290, 0.8), "dog", "background", 3),  # IoU 0.05 with the dog
    ],
)
def test_one_mistake_of_each_kind(mistake, name, kind, missed):
    errors = error_breakdown(TRUTH, [HIT, mistake])
    assert errors.counts == {key: (key == kind) + (key == "missed") * missed for key in KINDS}
    assert errors.per_class[name] == {**dict.fromkeys(KINDS, 0), kind: 1, "missed": errors.per_class[name]["missed"]}
    assert (errors.hits, errors.objects) == (1, 4)
    assert errors.ap == pytest.approx(100 * 34 / 101 / 2), "one cat of three, no dog; recall 1/3 is 34 levels"


def test_what_mending_is_worth_by_hand():
    # the false alarm comes first: precision 1/2 at recall 1/3 of the cats
    background = error_breakdown(TRUTH, [HIT, found(1, 1, 400, 0.95)])
    assert background.ap == pytest.approx(100 * 34 / 101 / 2 / 2)
    assert background.costs["background"] == pytest.approx(100 * 34 / 101 / 2 / 2)
    # without the two cats and the dog that nobody saw: AP 100 of the cats, and no dogs to find
    assert background.costs["missed"] == pytest.approx(100 / 2 - background.ap)
    # the dog that was called a cat becomes a dog: AP 100 of the dogs
    classification = error_breakdown(TRUTH, [HIT, found(1, 1, 200, 0.8)])
    assert classification.costs["classification"] == pytest.approx(50)
    # two mean the same dog, only one of them is worth something
    both = error_breakdown(TRUTH, [HIT, found(1, 1, 200, 0.8), found(1, 2, 260, 0.7)])
    assert both.costs["classification"] == pytest.approx(50) and both.costs["localisation"] == 0


def test_crowds_are_neither_missed_nor_are_detections_in_them_mistakes():
    crowd = {"id": 5, "image_id": 2, "category_id": 2, "bbox": [0, 300, 400, 200], "iscrowd": 1}
    truth = {**TRUTH, "annotations": [*TRUTH["annotations"], crowd]}
    inside = {"image_id": 2, "category_id": 2, "bbox": [10, 310, 50, 50], "score": 0.99}
    errors = error_breakdown(truth, [HIT, inside, {**inside, "bbox": [200, 320, 60, 60]}])
    assert errors == error_breakdown(TRUTH, [HIT])
    wrong_class = error_breakdown(truth, [HIT, {**inside, "category_id": 1}])
    assert wrong_class.per_class["cat"]["background"] == 1


def test_the_made_up_data_has_every_kind_of_mistake_many_times(made_up):
    counts = [error_breakdown(*crowded(made_up, seed)).counts for seed in range(15)]
    assert all(sum(some[kind] for some in counts) >= 10 for kind in KINDS)


def box_iou(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    return inside / (a[2] * a[3] + b[2] * b[3] - inside)


def share_inside(a, crowd):
    width = min(a[0] + a[2], crowd[0] + crowd[2]) - max(a[0], crowd[0])
    height = min(a[1] + a[3], crowd[1] + crowd[3]) - max(a[1], crowd[1])
    return max(width, 0) * max(height, 0) / (a[2] * a[3])


def plain_breakdown(truth, results, iou, background_iou):
    """The definition in loops: counts, counts per class, AP, and what mending each kind gains."""
    names = {category["id"]: category["name"] for category in truth["categories"]}
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    crowds = [a for a in truth["annotations"] if a["iscrowd"]]
    hit_by, kind_of, meant_by = {}, {}, {}
    ordered = sorted(range(len(results)), key=lambda n: -results[n]["score"])
    for n in ordered:
        result = results[n]
        mine = [
            (box_iou(result["bbox"], a["bbox"]), a["id"])
            for a in objects
            if (a["image_id"], a["category_id"]) == (result["image_id"], result["category_id"])
            and a["id"] not in hit_by
        ]
        if mine and max(mine)[0] >= iou:
            hit_by[max(mine)[1]] = n
    for n in ordered:
        result = results[n]
        if n in hit_by.values():
            continue
        here = [a for a in objects if a["image_id"] == result["image_id"]]
        own = [(box_iou(result["bbox"], a["bbox"]), a["id"]) for a in here if a["category_id"] == result["category_id"]]
        other = [
            (box_iou(result["bbox"], a["bbox"]), a["id"]) for a in here if a["category_id"] != result["category_id"]
        ]
        if any(
            (c["image_id"], c["category_id"]) == (result["image_id"], result["category_id"])
            and share_inside(result["bbox"], c["bbox"]) >= iou
            for c in crowds
        ):
            continue
        target = None
        if own and background_iou <= max(own)[0] < iou:
            kind_of[n], target = "localisation", max(own)[1]
        elif other and max(other)[0] >= iou:
            kind_of[n], target = "classification", max(other)[1]
        elif own and max(own)[0] >= iou:
            kind_of[n] = "duplicate"
        elif all(value <= background_iou for value, _ in own + other):
            kind_of[n] = "background"
        else:
            kind_of[n] = "both"
        if target is not None and target not in hit_by:
            meant_by.setdefault(target, n)
    category_of = {a["id"]: a["category_id"] for a in objects}
    missed = [key for key in category_of if key not in hit_by and key not in meant_by]
    per_class = {name: dict.fromkeys(KINDS, 0) for name in names.values()}
    for n, kind in kind_of.items():
        per_class[names[results[n]["category_id"]]][kind] += 1
    for key in missed:
        per_class[names[category_of[key]]]["missed"] += 1

    def mean_ap(mended):
        points, wanted = {key: [] for key in names}, Counter(category_of.values())
        had_objects = set(wanted)
        for key, n in hit_by.items():
            points[category_of[key]].append((results[n]["score"], True))
        for n, kind in kind_of.items():
            if kind != mended:
                points[results[n]["category_id"]].append((results[n]["score"], False))
            else:
                for key, best in meant_by.items():
                    if best == n:
                        points[category_of[key]].append((results[n]["score"], True))
        if mended == "missed":
            wanted.subtract(category_of[key] for key in missed)
        values = [plain_ap(points[key], wanted[key]) for key in had_objects if wanted[key] or points[key]]
        return 100 * sum(values) / len(values)

    ap = mean_ap(None)
    return per_class, ap, {kind: max(0, mean_ap(kind) - ap) for kind in KINDS}


def plain_ap(points, wanted):
    points = sorted(points, reverse=True)
    curve = []
    for n in range(1, len(points) + 1):
        hits = sum(is_hit for _, is_hit in points[:n])
        curve.append((hits / wanted if wanted else 0, hits / n))
    return sum(max((p for r, p in curve if r >= level), default=0) for level in np.linspace(0, 1, 101)) / 101


@pytest.mark.parametrize(("iou", "background_iou"), [(0.5, 0.1), (0.75, 0.3)])
@pytest.mark.parametrize("seed", range(15))
def test_plain_loops_agree(made_up, seed, iou, background_iou):
    truth, results = crowded(made_up, seed)
    per_class, ap, costs = plain_breakdown(truth, results, iou, background_iou)
    errors = error_breakdown(truth, results, iou=iou, background_iou=background_iou)
    assert errors.per_class == per_class
    assert errors.counts == {kind: sum(counts[kind] for counts in per_class.values()) for kind in KINDS}
    assert errors.ap == pytest.approx(ap, abs=1e-9)
    assert errors.costs == pytest.approx(costs, abs=1e-9)
    if iou == 0.5:
        assert errors.ap == pytest.approx(evaluate_coco(truth, results).AP50, abs=1e-9)


@pytest.mark.parametrize(("iou", "background_iou"), [(0.5, 0.1), (0.75, 0.3)])
@pytest.mark.parametrize("seed", range(10))
def test_tides_own_code_agrees(made_up, seed, iou, background_iou, capsys):
    tidecv = pytest.importorskip("tidecv", reason="tidecv is not installed")
    truth, results = without_crowds(made_up, seed)
    objects, detections = tidecv.Data("truth"), tidecv.Data("run")
    for annotation in truth["annotations"]:
        objects.add_ground_truth(annotation["image_id"], annotation["category_id"], annotation["bbox"])
    for image in truth["images"]:
        objects.add_image(image["id"], str(image["id"]))
    for result in results:
        detections.add_detection(result["image_id"], result["category_id"], result["score"], result["bbox"])
    tide = tidecv.TIDE(iou, background_iou)
    run = tide.evaluate(objects, detections, mode=tidecv.TIDE.BOX)
    short_names = dict(zip(KINDS, ["Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"], strict=True))
    counts = {error.short_name: count for error, count in run.count_errors().items()}
    errors = error_breakdown(truth, results, iou=iou, background_iou=background_iou)
    assert errors.counts == {kind: counts[short] for kind, short in short_names.items()}
    assert errors.ap == pytest.approx(run.ap, abs=1e-9)
    costs = tide.get_main_errors()["run"]
    assert errors.costs == pytest.approx({kind: costs[short] for kind, short in short_names.items()}, abs=1e-9)


def test_masks_are_told_apart_by_their_own_overlap():
    square = {"segmentation": [[0, 0, 100, 0, 100, 100, 0, 100]], "bbox": [0, 0, 100, 100]}
    lower, upper = [[0, 0, 100, 100, 0, 100]], [[0, 0, 100, 0, 100, 100]]
    truth = {
        "images": [{"id": 1, "height": 120, "width": 120}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **square, "segmentation": lower}],
    }
    rle = coco_mask.merge(coco_mask.frPyObjects(upper, 120, 120))
    results = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": square["bbox"], "segmentation": rle}]
    assert error_breakdown(truth, results).hits == 1
    assert error_breakdown(truth, results, iou_type="segm").counts["background"] == 1


def test_no_detections_and_no_objects():
    nothing = error_breakdown(TRUTH, [])
    assert nothing.counts == {**dict.fromkeys(KINDS, 0), "missed": 4} and nothing.ap == 0
    assert [nothing.costs[kind] for kind in KINDS[:-1]] == [0] * 5
    assert math.isnan(nothing.costs["missed"]), "without the missed objects there is nothing left to ask for"
    empty = error_breakdown({**TRUTH, "annotations": []}, [HIT])
    assert empty.counts == {**dict.fromkeys(KINDS, 0), "background": 1}
    assert math.isnan(empty.ap) and empty.objects == 0


@pytest.mark.parametrize("ious", [(0.5, 0.5), (0.5, 0), (1.1, 0.1), (0.1, 0.5)])
def test_ious_out_of_range_are_refused(ious):
    with pytest.raises(ValueError, match=f"background_iou {ious[1]} and iou {ious[0]}"):
        error_breakdown(TRUTH, [HIT], iou=ious[0], background_iou=ious[1])
