"""VOC's AP against a plain reading of the development kit, Detectron2's code, and arithmetic on paper."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_backbone.data.coco.read import read_ground_truth
from resnet_backbone.data.prepare.voc_xml import voc_to_coco
from resnet_backbone.metrics.result_table import read_results
from resnet_backbone.metrics.voc import (
    SUBMISSION_FOLDER,
    evaluate_voc,
    score_results,
    write_voc_submission,
)

CLASSES = ("cat", "dog")
SIDE = 12  # pixels of the made-up images


@dataclass(frozen=True)
class Found:
    """An object, or a detection with its score, as VOC writes it: corners from 1, the last pixel included."""

    image: int
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool = False
    score: float = 0.0


def coco(objects: list[Found], detections: list[Found]) -> tuple[dict, list[dict]]:
    """The same in COCO's format, each object with its own area."""

    def record(found: Found) -> dict:
        x1, y1, x2, y2 = found.corners
        box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]
        return {"image_id": found.image, "category_id": CLASSES.index(found.name) + 3, "bbox": box}

    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE} for i in range(4)],
        "categories": [{"id": i + 3, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [{"id": i, **record(o), "iscrowd": int(o.difficult)} for i, o in enumerate(objects)],
    }
    return truth, [{**record(d), "score": d.score} for d in detections]


def plain_overlap(a: tuple, b: tuple) -> Fraction:
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def plain_ap(objects: list[Found], detections: list[Found], name: str, eleven_points: bool) -> float:
    """VOCevaldet.m and VOCap.m line by line, in exact numbers."""
    of_class = [o for o in objects if o.name == name]
    positives = sum(not o.difficult for o in of_class)
    if not positives:
        return math.nan
    taken: set[int] = set()
    true, false, recall, precision = 0, 0, [], []
    for detection in sorted((d for d in detections if d.name == name), key=lambda d: -d.score):
        best, chosen = Fraction(-1), None
        for index, candidate in enumerate(of_class):
            if candidate.image == detection.image:
                overlap = plain_overlap(detection.corners, candidate.corners)
                if overlap > best:
                    best, chosen = overlap, index
        if chosen is not None and best >= Fraction(1, 2):
            if not of_class[chosen].difficult:
                true, false = true + (chosen not in taken), false + (chosen in taken)
                taken.add(chosen)
        else:
            false += 1
        recall.append(Fraction(true, positives))
        precision.append(Fraction(true, true + false) if true + false else Fraction(0))
    if eleven_points:
        levels = [Fraction(tenth, 10) for tenth in range(11)]
        best_at = [max((p for r, p in zip(recall, precision, strict=True) if r >= t), default=0) for t in levels]
        return float(100 * Fraction(sum(best_at), 11))
    steps = [Fraction(0), *recall, Fraction(1)]
    envelope = [Fraction(0), *precision, Fraction(0)]
    for index in range(len(envelope) - 2, -1, -1):
        envelope[index] = max(envelope[index], envelope[index + 1])
    area = sum((b - a) * envelope[index + 1] for index, (a, b) in enumerate(pairwise(steps)))
    return float(100 * area)


def corners() -> st.SearchStrategy:
    side = st.integers(1, SIDE)
    return st.tuples(side, side, side, side).map(
        lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Found], list[Found]]:
    image, name = st.integers(0, 3), st.sampled_from(CLASSES)
    objects = draw(st.lists(st.builds(Found, image, name, corners(), st.booleans()), min_size=1, max_size=12))
    score = st.integers(0, 20).map(lambda s: s / 20)  # with ties
    anywhere = st.builds(Found, image, name, corners(), score=score)
    near = st.builds(
        lambda o, move, s: Found(o.image, o.name, tuple(np.add(o.corners, move).tolist()), score=s),
        st.sampled_from(objects),
        st.sampled_from([(0, 0, 0, 0), (1, 0, 1, 0), (0, 0, 0, 1), (-1, -1, 0, 0)]),
        score,
    )
    return objects, draw(st.lists(st.one_of(near, anywhere), max_size=20))


@pytest.mark.parametrize("eleven_points", [True, False])
@given(cases())
@settings(max_examples=150, deadline=None)
def test_as_the_development_kit(eleven_points, case):
    objects, detections = case
    metrics = evaluate_voc(*coco(objects, detections), eleven_points=eleven_points)
    expected = {name: plain_ap(objects, detections, name, eleven_points) for name in CLASSES}
    assert metrics.per_class == pytest.approx(expected, nan_ok=True, abs=1e-9)
    known = [value for value in expected.values() if not math.isnan(value)]
    assert metrics.mAP == pytest.approx(np.mean(known) if known else math.nan, nan_ok=True, abs=1e-9)


def plain_ilsvrc_ap(objects: list[Found], detections: list[Found], name: str) -> float:
    """eval_detection.m of ILSVRC's development kit line by line, in exact numbers."""
    of_class = [o for o in objects if o.name == name]
    if not of_class:
        return math.nan

    def least(o: Found) -> Fraction:
        width, height = o.corners[2] - o.corners[0] + 1, o.corners[3] - o.corners[1] + 1
        return min(Fraction(1, 2), Fraction(width * height, (width + 10) * (height + 10)))

    taken, rights = set(), []
    for detection in sorted((d for d in detections if d.name == name), key=lambda d: -d.score):
        best, chosen = Fraction(-1), None
        for index, candidate in enumerate(of_class):
            if index in taken or candidate.image != detection.image:
                continue
            overlap = plain_overlap(detection.corners, candidate.corners)
            if overlap > 0 and overlap >= least(candidate) and overlap > best:
                best, chosen = overlap, index
        taken.add(chosen)
        rights.append(chosen is not None)
    points = [Fraction(sum(rights[: i + 1]), i + 1) for i in range(len(rights))]
    area = sum(max(points[i:]) for i, right in enumerate(rights) if right)
    return float(100 * Fraction(area) / len(of_class))


@given(cases())
@settings(max_examples=150, deadline=None)
def test_as_the_development_kit_of_ilsvrc(case):
    objects, detections = case
    metrics = evaluate_voc(*coco(objects, detections), eleven_points=False, ilsvrc=True)
    expected = {name: plain_ilsvrc_ap(objects, detections, name) for name in CLASSES}
    assert metrics.per_class == pytest.approx(expected, nan_ok=True, abs=1e-9)


def detectron2_ap(folder: Path, split: str, detections: list[Found], name: str, eleven_points: bool) -> float:
    """Detectron2's ``voc_eval`` on a VOC folder, whose images are named by the detections' ``image``."""
    module = pytest.importorskip("detectron2.evaluation.pascal_voc_evaluation", reason="Detectron2 is not installed")
    lines = [f"{d.image} {d.score!r} {' '.join(map(repr, d.corners))}" for d in detections if d.name == name]
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / f"{name}.txt").write_text("\n".join(lines))
        annotations, images = folder / "Annotations/{}.xml", folder / "ImageSets/Main" / f"{split}.txt"
        arguments = (f"{place}/{{}}.txt", str(annotations), str(images), name)
        return 100 * module.voc_eval(*arguments, use_07_metric=eleven_points)[2]


def write_voc(folder: Path, objects: list[Found]) -> Path:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("0\n1\n2\n3\n")
    for image in range(4):
        text = "".join(
            f"<object><name>{o.name}</name><pose>Left</pose><truncated>0</truncated>"
            f"<difficult>{int(o.difficult)}</difficult><bndbox><xmin>{o.corners[0]}</xmin><ymin>{o.corners[1]}</ymin>"
            f"<xmax>{o.corners[2]}</xmax><ymax>{o.corners[3]}</ymax></bndbox></object>"
            for o in objects
            if o.image == image
        )
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
        (folder / f"Annotations/{image}.xml").write_text(f"<annotation>{size}{text}</annotation>")
        Image.new("RGB", (SIDE, SIDE)).save(folder / f"JPEGImages/{image}.jpg")
    return folder


@pytest.mark.parametrize("eleven_points", [True, False])
@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_as_detectron2_on_converted_boxes(eleven_points, case, random):
    """The XML that Detectron2 reads, through ``voc_to_coco``; scores are all different, as its order is not stable."""
    objects = [o for o in case[0] if o.corners[2] > o.corners[0] and o.corners[3] > o.corners[1]]
    scores = random.sample(range(100), len(case[1]))
    # Neither corners nor sides in whole pixels, so that no IoU is exactly 0.5, where Detectron2 decides otherwise.
    detections = [
        Found(d.image, d.name, tuple(np.add(d.corners, (0.0371, 0.0371, 0.0573, 0.0573)).tolist()), score=score / 100)
        for d, score in zip(case[1], scores, strict=True)
    ]
    if not objects:
        return
    with tempfile.TemporaryDirectory() as place:
        folder = write_voc(Path(place) / "VOC", objects)
        truth, _ = voc_to_coco(folder, "test", CLASSES)
        results = [
            {**result, "image_id": result["image_id"] + 1, "category_id": result["category_id"] - 2}
            for result in coco([], detections)[1]
        ]
        metrics = evaluate_voc(truth, results, eleven_points=eleven_points)
        for name in CLASSES:
            positives = sum(o.name == name and not o.difficult for o in objects)
            if positives and not (eleven_points and positives % 5 == 0):  # a recall of 0.6 is below 0.6000000000000001
                expected = detectron2_ap(folder, "test", detections, name, eleven_points)
                assert metrics.per_class[name] == pytest.approx(expected, abs=1e-9), name


@pytest.mark.parametrize("eleven_points", [True, False])
def test_as_detectron2_on_real_annotations(bccd, eleven_points):
    """Noise on the ground truth of BCCD's test split, three detections of a box."""
    truth, report = voc_to_coco(bccd, "test")
    assert not report.dropped  # Detectron2 counts what is empty
    stems = {image["id"]: Path(image["file_name"]).stem for image in truth["images"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    random = np.random.default_rng(0)
    results, detections = [], []
    for note in truth["annotations"] * 3:
        box = np.array(note["bbox"])
        box += random.normal(0, 0.15, 4) * box[[2, 3, 2, 3]]
        box[2:] = np.abs(box[2:])
        score = float(random.random())
        results.append({**note, "bbox": box.tolist(), "score": score})
        x, y, width, height = box.tolist()
        voc_corners = (x + 1, y + 1, x + width, y + height)
        detections.append(Found(stems[note["image_id"]], names[note["category_id"]], voc_corners, score=score))
    metrics = evaluate_voc(truth, results, eleven_points=eleven_points)
    for category_id, name in names.items():
        positives = sum(note["category_id"] == category_id for note in truth["annotations"])
        tolerance = 0.01 if eleven_points and positives % 5 == 0 else 1e-9  # 0.6 again, of hundreds of objects
        expected = detectron2_ap(bccd, "test", detections, name, eleven_points)
        assert metrics.per_class[name] == pytest.approx(expected, abs=tolerance), (name, positives)
    assert 10 < metrics.mAP < 90


CAT = Found(0, "cat", (1, 1, 10, 10))


def ap(objects: list[Found], detections: list[Found], eleven_points: bool = False, **options: float) -> float:
    return evaluate_voc(*coco(objects, detections), eleven_points=eleven_points, **options).per_class["cat"]


def test_on_paper():
    miss = Found(1, "cat", (1, 1, 10, 10), score=0.7)
    again = Found(0, "cat", (1, 1, 10, 10), score=0.5)
    assert ap([CAT], []) == 0
    assert ap([CAT], [again]) == 100
    assert ap([CAT], [miss, again]) == 50
    assert ap([CAT], [again, again]) == 100  # the second one is wrong, but behind
    other = Found(2, "cat", (3, 3, 9, 9))
    best = Found(2, "cat", (3, 3, 9, 9), score=0.1)
    assert ap([CAT, other], [again, again, best]) == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert ap([CAT, other], [again, again, best], True) == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)
    assert ap([CAT, other], [again], True) == pytest.approx(100 * 6 / 11)


def test_an_overlap_of_exactly_half_counts():
    half = Found(0, "cat", (1, 1, 10, 5), score=0.5)
    assert ap([CAT], [half]) == 100
    assert ap([CAT], [half], iou=0.51) == 0


def test_ilsvrc_asks_for_less_where_an_object_is_small():
    """Of 20 x 5 pixels: 100 / (30 x 15); 5 pixels too many on each side are enough, 6 on one are not."""
    small = Found(0, "cat", (11, 11, 30, 15))
    found = Found(0, "cat", (6, 6, 35, 20), score=0.5)
    assert ap([small], [found]) == 0 and ap([small], [found], ilsvrc=True) == 100
    assert ap([small], [Found(0, "cat", (5, 6, 35, 20), score=0.5)], ilsvrc=True) == 0


def test_ilsvrc_gives_a_second_detection_the_next_object():
    near = Found(0, "cat", (1, 2, 10, 10))
    again = Found(0, "cat", (1, 1, 10, 10), score=0.5)
    assert ap([CAT, near], [again, again]) == 50
    assert ap([CAT, near], [again, again], ilsvrc=True) == 100
    assert ap([Found(0, "cat", (1, 1, 10, 10), difficult=True)], [again], ilsvrc=True) == 100  # no object is difficult


def test_three_of_ten_reach_the_level_of_three_tenths():
    objects = [Found(i % 4, "cat", (1 + 4 * (i // 4), 1, 4 + 4 * (i // 4), 4)) for i in range(10)]
    found = [Found(o.image, "cat", o.corners, score=0.5) for o in objects[:3]]
    assert ap(objects, found, True) == pytest.approx(100 * 4 / 11)


def test_difficult_objects_count_neither_way():
    hard = Found(1, "cat", (1, 1, 10, 10), difficult=True)
    on_hard = Found(1, "cat", (1, 1, 10, 10), score=0.9)
    right = Found(0, "cat", (1, 1, 10, 10), score=0.5)
    assert ap([CAT, hard], [on_hard, on_hard, right]) == 100
    assert ap([CAT], [on_hard, right]) == 50
    assert math.isnan(ap([hard], [on_hard]))


def test_classes_without_objects_are_left_out_of_the_mean():
    right = Found(0, "cat", (1, 1, 10, 10), score=0.5)
    dog = Found(0, "dog", (1, 1, 10, 10), score=0.9)
    metrics = evaluate_voc(*coco([CAT], [right, dog]), eleven_points=True)
    assert metrics.mAP == pytest.approx(100) and math.isnan(metrics.per_class["dog"])
    assert metrics.to_dict() == {"voc": {"mAP": metrics.mAP, "AP-cat": metrics.mAP, "AP-dog": None}}
    assert "11 points (VOC 2007)" in metrics.table() and "100.00" in metrics.table() and " - |" in metrics.table()


def test_what_is_refused():
    truth, results = coco([CAT], [])
    for iou in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="iou must be above 0"):
            evaluate_voc(truth, results, iou=iou, eleven_points=True)
    with pytest.raises(ValueError, match="no annotation"):
        evaluate_voc({**truth, "annotations": []}, results, eleven_points=True)
    with pytest.raises(ValueError, match="result 0 is for image_id 9"):
        wrong = [{"image_id": 9, "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1}]
        evaluate_voc(truth, wrong, eleven_points=False)


def test_submission(tmp_path):
    """Read back as VOC's corners, the files hold the detections; a class without any has an empty file."""
    detections = [
        Found(0, "cat", (1, 2, 10, 12), score=0.123456),
        Found(3, "cat", (1.5, 2.25, 3.125, 4), score=1),
    ]
    truth, results = coco([], detections)
    paths = write_voc_submission(truth, results, tmp_path)
    assert paths == [tmp_path / f"results/VOC2012/Main/comp4_det_test_{name}.txt" for name in CLASSES]
    lines = [line.split() for line in paths[0].read_text().splitlines()]
    assert [(line[0], *map(float, line[1:])) for line in lines] == [
        (str(d.image), d.score, *d.corners) for d in detections
    ]
    assert paths[1].read_text() == ""
    truth["images"][1]["file_name"] = "elsewhere/0.png"
    with pytest.raises(ValueError, match="same file name"):
        write_voc_submission(truth, results, tmp_path)


def test_a_class_name_leads_to_no_other_folder(tmp_path):
    truth, _ = coco([], [])
    truth["categories"][0]["name"] = "x/../../../../escaped"
    with pytest.raises(ValueError, match="cannot be part of a file's name"):
        write_voc_submission(truth, [], tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


def files(folder: Path, truth: dict, results: list[dict]) -> tuple[Path, Path]:
    paths = (folder / "truth.json", folder / "results.json")
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_score_of_a_set_with_and_without_annotations(tmp_path):
    truth, results = coco([CAT], [Found(0, "cat", (1, 1, 10, 10), score=0.5)])
    path = tmp_path / "results.json"

    def score(truth, rule):
        read = read_ground_truth(truth, ("bbox",))
        return score_results(read, read_results(results, read, ("bbox",)), path, ("bbox",), voc_rule=rule)

    metrics = score(truth, "VOC 2007")
    assert metrics.voc.to_dict() == evaluate_voc(truth, results, eleven_points=True).to_dict()
    assert metrics.to_dict()["voc"]["AP-cat"] == pytest.approx(100) and metrics.to_dict()["bbox"]["AP"] > 99
    assert metrics.scalars()["voc/mAP"] == pytest.approx(100)
    assert "Pascal VOC" in metrics.table()
    plain = score(truth, None)
    assert plain.voc is None and set(plain.to_dict()) == {"bbox"} and "voc/mAP" not in plain.scalars()
    assert score({**truth, "annotations": []}, None) is None
    assert not (tmp_path / "results").exists()
    assert score({**truth, "annotations": []}, "ILSVRC") is None and not (tmp_path / "results").exists()
    assert score({**truth, "annotations": []}, "VOC 2010") is None
    assert len(list((tmp_path / SUBMISSION_FOLDER).iterdir())) == len(CLASSES)


def test_tool(load_script, tmp_path, capsys):
    tool = load_script("tools/evaluate_voc.py")
    truth, results = files(tmp_path, *coco([CAT, CAT], [Found(0, "cat", (1, 1, 10, 10), score=0.5)]))
    arguments = ["--annotations", str(truth), "--results", str(results)]
    for extra, expected in ([], 50), (["--eleven-points"], 600 / 11), (["--iou", "1"], 50):
        assert tool.main([*arguments, *extra]) == 0
        figures = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert figures["voc"]["mAP"] == pytest.approx(expected)
    assert tool.main([*arguments, "--ilsvrc", "det"]) == 0
    assert "ILSVRC DET, IoU 0.5 and less, area under the curve" in capsys.readouterr().out
    assert tool.main([*arguments, "--submission", str(tmp_path / "out")]) == 0
    folder = Path(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert folder == tmp_path / "out" / SUBMISSION_FOLDER and len(list(folder.iterdir())) == 2
    assert tool.main(["--annotations", str(tmp_path / "no.json"), "--results", str(results)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "no.json" in error and error.count("\n") == 1
