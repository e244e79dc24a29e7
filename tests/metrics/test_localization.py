"""The localisation error against a plain reading of the development kit's, and arithmetic on paper."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_backbone.metrics.localization import localization_error

SIDE = 12


@dataclass(frozen=True)
class Box:
    """Corners as the development kit has them: whole pixels, the last one included."""

    image: int
    label: int
    corners: tuple[int, int, int, int]
    score: float = 0.0


def coco(objects: list[Box], guesses: list[Box]) -> tuple[dict, list[dict]]:
    def record(box: Box) -> dict:
        x1, y1, x2, y2 = box.corners
        return {"image_id": box.image, "category_id": box.label, "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1]}

    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIDE, "width": SIDE} for i in range(3)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(3)],
        "annotations": [{"id": i, **record(box)} for i, box in enumerate(objects, start=1)],
    }
    return truth, [{**record(box), "score": box.score} for box in guesses]


def plain_overlap(a: tuple, b: tuple) -> Fraction:
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(-1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return Fraction(width * height, sum(areas) - width * height)


def plain_error(objects: list[Box], guesses: list[Box]) -> float:
    """eval_clsloc.m line by line: the mean over images of the mean over their labels of the best guess's error."""
    errors = []
    for image in range(3):
        there = [box for box in objects if box.image == image]
        labels = {box.label for box in there}
        made = sorted((box for box in guesses if box.image == image), key=lambda box: -box.score)[:5]
        total = 0
        for label in labels:
            best = 1
            for guess in made:
                wrong_label = int(guess.label != label)
                for box in there:
                    if box.label == label:
                        no_overlap = int(plain_overlap(guess.corners, box.corners) < Fraction(1, 2))
                        best = min(best, max(wrong_label, no_overlap))
            total += best
        errors.append(Fraction(total, len(labels)))
    return float(100 * sum(errors) / len(errors))


side = st.integers(0, SIDE - 1)
corners = st.tuples(side, side, side, side).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
label, image = st.integers(0, 2), st.integers(0, 2)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Box], list[Box]]:
    objects = [draw(st.builds(Box, st.just(i), label, corners)) for i in range(3)]
    objects += draw(st.lists(st.builds(Box, image, label, corners), max_size=4))
    score = st.integers(0, 8).map(lambda s: s / 8)  # with ties
    near = st.builds(lambda box, s: Box(box.image, box.label, box.corners, s), st.sampled_from(objects), score)
    return objects, draw(st.lists(st.one_of(near, st.builds(Box, image, label, corners, score)), max_size=25))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_as_the_development_kit(case):
    assert localization_error(*coco(*case)) == pytest.approx(plain_error(*case), abs=1e-9)


WHOLE = [Box(i, 1, (0, 0, 9, 9)) for i in range(3)]


def test_on_paper():
    half = Box(0, 1, (0, 0, 9, 4), score=0.5)  # an IoU of exactly one half
    below, other = Box(1, 1, (0, 0, 9, 3), score=0.5), Box(2, 2, (0, 0, 9, 9), score=0.5)
    assert localization_error(*coco(WHOLE, [half, below, other])) == pytest.approx(200 / 3)
    assert localization_error(*coco(WHOLE, [half]), iou=0.51) == 100
    second = [Box(0, 1, (0, 0, 3, 3)), Box(0, 1, (0, 0, 9, 9))]  # any object of the class will do
    assert localization_error(*coco([*second, *WHOLE[1:]], [half])) == pytest.approx(200 / 3)


def test_the_sixth_guess_does_not_count():
    wrong = [Box(0, 0, (0, 0, 9, 9), score=0.9)] * 5
    right = Box(0, 1, (0, 0, 9, 9), score=0.5)
    assert localization_error(*coco(WHOLE, [right, *wrong])) == 100
    assert localization_error(*coco(WHOLE, [right, *wrong[:4]])) == pytest.approx(200 / 3)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"image 2 \(2\.jpg\) has no object"):
        localization_error(*coco(WHOLE[:2], []))
    for iou in (0, 1.5):
        with pytest.raises(ValueError, match="iou must be above 0"):
            localization_error(*coco(WHOLE, []), iou=iou)


def test_tool(load_script, tmp_path, capsys):
    paths = (tmp_path / "truth.json", tmp_path / "results.json")
    for path, content in zip(paths, coco(WHOLE, [Box(0, 1, (0, 0, 9, 9), score=0.5)]), strict=True):
        path.write_text(json.dumps(content))
    arguments = ["--annotations", str(paths[0]), "--results", str(paths[1]), "--ilsvrc", "loc"]
    main = load_script("tools/evaluate_voc.py").main
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found == {"localization": {"top5_localization_error": pytest.approx(200 / 3)}}
    with pytest.raises(SystemExit):
        main([*arguments, "--eleven-points"])
