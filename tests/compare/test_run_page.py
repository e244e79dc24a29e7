"""The page of one run: what it shows, the confusion matrix, and runs that have little to show."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from resnet_backbone.api import write_pages
from resnet_backbone.compare.compare import compare_runs
from resnet_backbone.compare.report import comparison_page, verdicts, write_run_pages
from resnet_backbone.compare.tables import MOST_CONFUSED, confusion_table
from resnet_backbone.data.coco.read import read_ground_truth
from resnet_backbone.data.images.read import read_image
from resnet_backbone.metrics.coco import evaluate_coco
from resnet_backbone.metrics.confusion import confusion_matrix
from resnet_backbone.metrics.result_table import read_results
from tests.helpers import results_of


def text_of(page: str) -> str:
    return " ".join(re.sub("<[^>]+>", " ", re.sub("<style>.*?</style>", "", page, flags=re.DOTALL)).split())


def test_what_the_page_says(make_run, shapes):
    """The figures are those of the evaluation, which are pycocotools'."""
    run = make_run("mine", noise=0.3)
    (page,) = write_run_pages(run, read_image=read_image)
    assert page == run / "index.html"
    html = page.read_text(encoding="utf-8")
    text = text_of(html)
    figures = json.loads((run / "inference/metrics.json").read_text())["bbox"]
    assert f"mine reaches {figures['AP']:.1f} AP on shapes_val." in text
    for name in ("AP", "AP50", "AP75", "AP-circle", "AP-star"):
        assert f"{figures[name]:.2f}" in text
    for heading in ("Mistakes", "Confusion", "The worst images, then the best", "Training", "Cost", "How to go on"):
        assert f"<h2>{heading}</h2>" in html
    assert f"resnet-backbone predict --run {run} --input photo.jpg" in text
    assert f"resnet-backbone export --run {run}" in text and "Difference" not in text
    assert "http" not in re.sub(r"xmlns[^ ]*|data:[^\"]*", "", html)  # nothing is loaded


def test_the_worst_and_the_best_images_are_shown(make_run):
    run = make_run("mine", noise=0.4)
    look = compare_runs([run], read_image=read_image, samples=5, num_pictures=4)
    mistakes = []
    for exhibit in look.gallery:
        truth, found = exhibit.panels
        mistakes.append(truth.true_positives - found.true_positives + found.false_positives)
    assert len(mistakes) >= 3 and mistakes[0] >= mistakes[1] >= max(mistakes[2:])  # of five images, some without hits


def matched_by_definition(truth, found, score, iou):
    """Pairs by falling overlap, in plain Python."""

    def overlap(a, b):
        width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        shared = max(0.0, width) * max(0.0, height)
        return shared / (a[2] * a[3] + b[2] * b[3] - shared)

    count = len(truth.class_names)
    matrix = np.zeros((count + 1, count + 1), dtype=int)
    for image in range(len(truth.image_ids)):
        objects = [row for row in range(len(truth)) if truth.images[row] == image]
        mine = [row for row in range(len(found)) if found.images[row] == image and found.scores[row] >= score]
        pairs = [(overlap(found.boxes[one], truth.boxes[other]), one, other) for one in mine for other in objects]
        for value, one, other in sorted(pairs, key=lambda pair: -pair[0]):
            if value >= iou and one in mine and other in objects:
                matrix[truth.labels[other], found.labels[one]] += 1
                mine.remove(one)
                objects.remove(other)
        for other in objects:
            matrix[truth.labels[other], count] += 1
        for one in mine:
            matrix[count, found.labels[one]] += 1
    return matrix


@pytest.fixture
def scored(make_run, shapes):
    truth = read_ground_truth(shapes / "shapes/annotations/val.json", ("bbox",))
    results = results_of(make_run("mine", noise=0.2))
    for one in results[::4]:  # taken for the next class
        one["category_id"] = one["category_id"] % len(truth.class_names) + 1
    return truth, read_results(results, truth, ("bbox",))


@pytest.mark.parametrize("score", [0.0, 0.5, 0.9, 1.1])
def test_confusion_is_what_the_definition_says(scored, score):
    truth, found = scored
    expected = matched_by_definition(truth, found, score, 0.5)
    matrix = confusion_matrix(truth, found, score=score)
    assert matrix.tolist() == expected.tolist()
    assert matrix[:-1].sum() == len(truth)
    if score == 0.0:
        diagonal = np.diag(np.diag(matrix[:-1, :-1]))
        assert diagonal.any() and (matrix[:-1, :-1] - diagonal).any() and matrix[:-1, -1].any() and matrix[-1].any()


def test_confusion_is_that_of_supervision(scored):
    """Which counts the same pairs, of the same classes first; here no image has two candidates for one object."""
    supervision = pytest.importorskip("supervision")
    truth, found = scored

    def detections(table, rows, scores=None):
        corners = table.boxes[rows].copy()
        corners[:, 2:] += corners[:, :2]
        return supervision.Detections(xyxy=corners, class_id=table.labels[rows], confidence=scores)

    images = range(len(truth.image_ids))
    rows = [np.flatnonzero(found.images == image) for image in images]
    matrix = supervision.ConfusionMatrix.from_detections(
        predictions=[detections(found, mine, found.scores[mine]) for mine in rows],
        targets=[detections(truth, np.flatnonzero(truth.images == image)) for image in images],
        classes=list(truth.class_names),
        conf_threshold=0.5,
        iou_threshold=0.5,
    ).matrix
    assert confusion_matrix(truth, found, score=0.5).sum() == matrix.sum()
    assert abs(confusion_matrix(truth, found, score=0.5) - matrix).sum() <= 4  # where two claim one object


def test_detections_on_crowds_count_for_nothing(shapes):
    document = json.loads((shapes / "shapes/annotations/val.json").read_text())
    document["annotations"] = [{**one, "iscrowd": int(one["id"] % 2)} for one in document["annotations"]]
    truth = read_ground_truth(document, ("bbox",))
    records = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "score": 0.9, "bbox": one["bbox"]}
        for one in document["annotations"]
    ]
    matrix = confusion_matrix(truth, read_results(records, truth, ("bbox",)))
    assert matrix.sum() == np.trace(matrix) == sum(one["iscrowd"] == 0 for one in document["annotations"])


def test_of_many_classes_only_mistakes_are_listed():
    count = MOST_CONFUSED + 10
    matrix = np.zeros((count + 1, count + 1), dtype=np.int64)
    matrix[3, 7], matrix[7, 3], matrix[4, 4] = 9, 2, 50
    table = confusion_table(matrix, [f"class {number}" for number in range(count)])
    assert [[cell.text for cell in row][2] for row in table.rows] == ["9", "2"]
    assert table.sentence.startswith("The most frequent of 11 such mistakes")


def rewrite(run: Path, results: list[dict], annotations: Path) -> None:
    path = run / "inference/coco_instances_results.json"
    path.write_text(json.dumps(results))
    (run / "inference/metrics.json").write_text(json.dumps(evaluate_coco(annotations, path).to_dict()))


def test_a_run_that_found_nothing(make_run, shapes):
    run = make_run("mine")
    rewrite(run, [], shapes / "shapes/annotations/val.json")
    (page,) = write_run_pages(run, read_image=read_image)
    assert "mine reaches 0.0 AP" in text_of(page.read_text(encoding="utf-8"))


def test_names_are_escaped(make_run, shapes, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    path = data / "shapes/annotations/val.json"
    document = json.loads(path.read_text())
    document["categories"][0]["name"] = "<script>alert(1)</script>"
    path.write_text(json.dumps(document))
    look = compare_runs([make_run("mine", data=data)], read_image=read_image, samples=5)
    page = comparison_page(look)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_runs_of_several_seeds_have_one_verdict(make_run):
    runs = [make_run(f"s{seed}", seed=seed, overrides=("SEED", str(seed))) for seed in range(2)]
    assert verdicts(compare_runs(runs, read_image=read_image, samples=5, num_pictures=0, seeds=2))[0].startswith("s0")


def test_a_page_that_cannot_be_written_is_a_warning(make_run, caplog):
    run = make_run("mine")
    (run / "inference/coco_instances_results.json").write_text("[")
    assert write_pages(run) == [] and "no page shows this run: " in caplog.text
    assert not (run / "index.html").exists()
