"""The page and the JSON: numbers of the original, every table, and nothing that a name could break."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import pytest

from resnet_backbone.compare.report import summary, to_dict, verdicts, write_comparison
from resnet_backbone.compare.runs import read_runs
from resnet_backbone.compare.tables import (
    FEWEST_OBJECTS,
    class_tables,
    condition_table,
    cost_table,
    difference_table,
    error_table,
    figure_tables,
    number,
    paper_sentence,
    paper_table,
    shared_table,
    signed,
)
from resnet_backbone.metrics.bootstrap import Interval
from resnet_backbone.metrics.coco import SMALL

HOSTILE = '<script>alert("a|b")</script>'
FIGURES = {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5}  # places in COCOeval.stats


class Document(HTMLParser):
    """Tags, the attributes that could load something, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]
        self.alts += [value for name, value in attrs if name == "alt"]

    def handle_data(self, data):
        self.text += data


def original(annotations, results, kind):
    """The twelve figures of pycocotools, in percent."""
    truth = pycocotools.coco.COCO(str(annotations))
    evaluator = pycocotools.cocoeval.COCOeval(truth, truth.loadRes(json.loads(results.read_text())), kind)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return 100 * evaluator.stats


@pytest.fixture(scope="module")
def document(written):
    return Document(written.page.read_text())


def test_numbers_are_those_of_pycocotools(written, pair, shapes, document):
    values = json.loads(written.json.read_text())["measured"]["bbox"]["runs"]
    for run in read_runs(pair):
        stats = original(shapes / "shapes/annotations/val.json", run.results_path, "bbox")
        for figure, place in FIGURES.items():
            assert values[run.name]["figures"][figure]["value"] == pytest.approx(stats[place], abs=1e-6)
            assert number(stats[place], 2) in document.text
    gain = values["second"]["gains"]["AP"]["difference"]
    difference = values["second"]["figures"]["AP"]["value"] - values["first"]["figures"]["AP"]["value"]
    assert gain["value"] == pytest.approx(difference, abs=1e-9)
    assert gain["low"] <= gain["value"] <= gain["high"]


def test_masks_are_compared_where_both_have_them(make_run, pair, shapes, compare):
    folders = [make_run("a", noise=0.3, seed=3, masks=True), make_run("b", noise=0.1, seed=4, masks=True)]
    values = to_dict(compare(folders, num_pictures=1))["measured"]
    for run in read_runs(folders):
        stats = original(shapes / "shapes/annotations/val.json", run.results_path, "segm")
        assert values["segm"]["runs"][run.name]["figures"]["AP"]["value"] == pytest.approx(stats[0], abs=1e-6)
    assert list(compare([pair[0], folders[0]]).measured) == ["bbox"]


def test_every_table_is_in_the_page(document, comparison):
    built = [
        *figure_tables(comparison),
        *class_tables(comparison),
        *(make(comparison) for make in (paper_table, error_table, cost_table, shared_table, difference_table)),
        condition_table(comparison),
    ]
    for table in built:
        assert table.title in document.text and table.sentence in document.text
        for row in table.rows:
            assert all(cell.text in document.text for cell in row)


def test_the_page_holds_all_that_it_shows(written, document, comparison):
    assert written.page.stat().st_size < 10e6
    assert document.links and all(link.startswith(("data:", "#")) for link in document.links)
    assert "script" not in document.tags and "url(" not in written.page.read_text()
    assert document.tags.count("img") == len(document.alts) and all(document.alts)
    assert sum(link.startswith("data:image/jpeg") for link in document.links) == 3 * len(comparison.gallery) == 6
    assert sum(link.startswith("data:image/svg") for link in document.links) >= 9


def test_what_a_reader_must_know(document, comparison):
    for words in (*verdicts(comparison), *comparison.cautions):
        assert words in document.text
    for words in (
        "do not cover the chance in training",
        "+28.3 %",
        "Table 8",
        "not forced by the backbone",
        "so the two",
    ):
        assert words in " ".join(document.text.split())
    assert comparison.runs[0].facts.command in document.text and comparison.runs[0].facts.device in document.text


def test_names_are_text_and_nothing_else(make_run, compare, shapes, tmp_path):
    data = tmp_path / "data"
    (data / "shapes/annotations").mkdir(parents=True)
    (data / "shapes/val").symlink_to(shapes / "shapes/val")
    truth = json.loads((shapes / "shapes/annotations/val.json").read_text())
    truth["categories"][0]["name"] = HOSTILE
    (data / "shapes/annotations/val.json").write_text(json.dumps(truth))
    folders = [make_run(name, data=data, seed=seed, noise=0.3) for seed, name in enumerate(["a", "b"])]
    written = write_comparison(compare(folders, names=[HOSTILE, "$x^"], num_pictures=1), tmp_path / "out")
    page = written.page.read_text()
    document = Document(page)
    assert "script" not in document.tags and HOSTILE in document.text


def test_the_same_detections_are_no_difference(make_run, compare):
    found = compare([make_run("a", seed=5, noise=0.3), make_run("b", seed=5, noise=0.3)], num_pictures=3)
    assert verdicts(found) == ["b and a reach exactly the same AP."]
    assert found.gallery == ()
    gain = found.main.bootstrap.runs[1].gains["AP"].difference
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("value", "low", "high", "sentence"),
    [
        (1.2, 0.3, 2.1, "second is better than first by 1.2 AP (95 %: 0.3 to 2.1)."),
        (-1.2, -2.1, -0.3, "second is worse than first by 1.2 AP (95 %: 0.3 to 2.1)."),
        (
            0.4,
            -0.5,
            1.3,
            "No difference can be told between second and first: +0.4 AP, and the 95 % interval, "
            "\N{MINUS SIGN}0.5 to +1.3, includes zero.",
        ),
        (
            12.6,
            12.6,
            12.6,
            "Nothing can be said of second and first: too few test images, or resamples, for an interval.",
        ),
        (math.nan, math.nan, math.nan, "Nothing can be said of second and first: the test set has no object to find."),
    ],
)
def test_the_result_in_a_sentence(comparison, value, low, high, sentence):
    bootstrap = comparison.main.bootstrap
    first, second = bootstrap.runs
    won = replace(second.gains["AP"], difference=Interval(value, low, high))
    runs = (first, replace(second, gains={**second.gains, "AP": won}))
    measured = replace(comparison.main, bootstrap=replace(bootstrap, level=0.95, runs=runs))
    changed = replace(comparison, measured={"bbox": measured})
    assert verdicts(changed) == [sentence]
    if math.isfinite(value):
        table = figure_tables(changed)[0]
        (cell,) = [row[3] for row in table.rows if row[0].text == "AP"]
        assert table.columns[3] == "difference (95 %)" and cell.note == f"{signed(low)} to {signed(high)}"
        assert cell.tone == ("" if low <= 0 <= high or low == high else "good" if value > 0 else "bad")


@pytest.mark.parametrize("count", [FEWEST_OBJECTS - 1, FEWEST_OBJECTS])
def test_few_objects_of_a_size_say_nothing(comparison, count):
    """The same clear gain on small objects, of which there are few or just enough."""
    first, *others = comparison.main.matches[0].classes
    objects = [np.zeros_like(one.num_objects) for one in (first, *others)]
    objects[0][SMALL, 0], objects[-1][SMALL, 1] = count - 2, 2
    classes = tuple(replace(one, num_objects=new) for one, new in zip((first, *others), objects, strict=True))
    bootstrap = comparison.main.bootstrap
    baseline, second = bootstrap.runs
    won = replace(second.gains["APs"], difference=Interval(5.0, 4.0, 6.0))
    runs = (baseline, replace(second, gains={**second.gains, "APs": won}))
    measured = replace(
        comparison.main,
        matches=(replace(comparison.main.matches[0], classes=classes), *comparison.main.matches[1:]),
        bootstrap=replace(bootstrap, runs=runs),
    )
    (row,) = [
        row for row in figure_tables(replace(comparison, measured={"bbox": measured}))[0].rows if row[0].text == "APs"
    ]
    assert f"({count} objects)" in row[0].note
    enough = count == FEWEST_OBJECTS
    assert (row[3].tone, row[3].note) == (("good", "+4.0 to +6.0") if enough else ("", "too few to tell"))


def test_one_backbone_has_no_place_beside_the_paper(comparison, tmp_path):
    same = {"MODEL.RESNET_BACKBONE.ARCH": "resnet34"}
    runs = tuple(replace(run, settings={**run.settings, **same}) for run in comparison.runs)
    for changed, mentions in ((comparison, True), (replace(comparison, runs=runs), False)):
        written = write_comparison(changed, tmp_path / str(mentions))
        assert ("the paper" in written.page.read_text().lower()) == mentions
        assert (json.loads(written.json.read_text())["paper"] is not None) == mentions


VOC_TRAIN = ["voc12_trainval", "voc07_trainval"]


@pytest.mark.parametrize(
    ("dataset", "trained_on", "words"),
    [
        ("voc07_test", VOC_TRAIN, []),
        ("voc07_test", ["voc07_trainval"], ["other training data (voc07_trainval)"]),
        ("voc07_trainval", VOC_TRAIN, ["other data (voc07_trainval)"]),
        ("coco_2014_val", ["coco_2014_train"], []),
        ("mine_test", ["mine_train"], ["other data (mine_test)", "other training data (mine_train)"]),
    ],
)
def test_how_near_the_paper_it_is(comparison, dataset, trained_on, words):
    archs = ("vgg16", "resnet101")
    runs = tuple(
        replace(
            run,
            facts=replace(run.facts, dataset=dataset),
            settings={**run.settings, "DATASETS.TRAIN": trained_on, "MODEL.RESNET_BACKBONE.ARCH": arch},
        )
        for run, arch in zip(comparison.runs, archs, strict=True)
    )
    sentence = paper_sentence(replace(comparison, runs=runs))
    assert all(word in sentence for word in words)
    assert ("need not agree" in sentence) == bool(words)


def test_vocs_own_figure_stands_beside_the_papers(comparison):
    recorded = (70.0, 73.5)
    runs = tuple(
        replace(run, facts=replace(run.facts, dataset="voc07_test"), figures={**run.figures, "voc": {"mAP": value}})
        for run, value in zip(comparison.runs, recorded, strict=True)
    )
    rows = [[cell.text for cell in row] for row in paper_table(replace(comparison, runs=runs)).rows]
    assert rows[0][1:5] == ["mAP", "73.2", "76.4", "+3.2"]
    assert rows[1] == ["here", "mAP", "70.0", "73.5", "+3.5", "+5.0 %"]
    assert [row[1] for row in rows[2:]] == ["AP50", "AP"]


def test_three_runs_one_of_them_never_trained(pair, make_run, compare, tmp_path):
    found = compare([*pair, make_run("third", trained=False, noise=0.2, seed=8)], num_pictures=2)
    assert len(verdicts(found)) == 2 and all(len(exhibit.panels) == 4 for exhibit in found.gallery)
    document = Document(write_comparison(found, tmp_path / "out").page.read_text())
    assert "not recorded" in document.text and "third" in document.text
    assert "third" in summary(found)


def test_no_detections_at_all(pair, make_run, compare, tmp_path):
    """Every figure 0, relative gains that do not exist, and still two files that can be read."""
    empty = make_run("empty", noise=1.0)
    assert json.loads((empty / "inference/coco_instances_results.json").read_text()) == []
    found = compare([empty, pair[1]], num_pictures=1)
    written = write_comparison(found, tmp_path / "out")
    values = json.loads(written.json.read_text())["measured"]["bbox"]["runs"]["second"]["gains"]["AP"]
    assert values["relative"]["value"] is None and values["difference"]["value"] > 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.25, "+1.2"), (-1.25, "\N{MINUS SIGN}1.2"), (0.04, "0.0"), (-0.04, "0.0"), (None, "\N{EN DASH}")],
)
def test_signs(value, text):
    assert signed(value) == text
