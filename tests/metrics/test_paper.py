"""The paper's figures agree with each other where they must, and with what its text says of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import pytest

from resnet_backbone import list_models
from resnet_backbone.data.prepare.voc import VOC_CLASSES
from resnet_backbone.metrics.paper import gain, paper_row, paper_rows, references
from resnet_backbone.reproduce.tables import all_tables

ROWS = [row for table in range(1, 15) for row in paper_rows(table)]
CLASSIFIERS = [row for row in ROWS if row.table <= 6]


@pytest.mark.parametrize("row", [row for row in ROWS if row.per_class], ids=lambda row: f"{row.table}-{row.key}")
def test_the_classes_average_to_the_printed_map(row):
    assert tuple(row.per_class) == VOC_CLASSES
    assert sum(row.per_class.values()) / 20 == pytest.approx(row.figures["mAP"], abs=0.05 + 1e-9)


def test_the_tables_repeat_each_other():
    for key in ("vgg16_0712", "r101_0712"):
        assert paper_row(7, key).figures == paper_row(10, key).figures
    for key in ("vgg16_0712pp", "r101_0712pp"):
        assert paper_row(7, key).figures == paper_row(11, key).figures
    for key in ("vgg16", "r101"):
        assert paper_row(8, key).figures == paper_row(9, key).figures


def test_the_gains_are_those_of_the_text():
    # "a 6.0% increase in COCO's standard metric (mAP@[.5, .95]), which is a 28% relative improvement", section 4.3
    coco = gain(paper_row(8, "vgg16").figures["AP"], paper_row(8, "r101").figures["AP"])
    assert coco.absolute == pytest.approx(6.0)
    assert coco.relative == pytest.approx(28, abs=0.5)
    # "3 %" and more on Pascal VOC; increments of appendix B
    for data, points in (("0712", 3.2), ("0712pp", 3.4)):
        vgg16, r101 = (paper_row(7, f"{arch}_{data}").figures["mAP"] for arch in ("vgg16", "r101"))
        assert gain(vgg16, r101).absolute == pytest.approx(points)
    for figure, expected in (("AP50", [1.5, 1.2, 2.7]), ("AP", [2.7, 0.1, 2.5])):
        steps = [paper_row(9, key).figures[figure] for key in ("r101", "refinement", "context", "multiscale")]
        assert [round(after - before, 1) for before, after in zip(steps, steps[1:], strict=False)] == expected


@pytest.mark.parametrize(
    ("source", "figure", "points"), [("jwyang", "AP", 7.0), ("tff", "AP", 5.2), ("tff_voc", "mAP", 4.1)]
)
def test_the_gains_of_others_are_of_one_source_and_setting(source, figure, points):
    vgg16, r101 = (references()[f"{source}_{arch}"] for arch in ("vgg16", "r101"))
    assert (vgg16.source, vgg16.data, vgg16.setting) == (r101.source, r101.data, r101.setting)
    assert gain(vgg16.figures[figure], r101.figures[figure]).absolute == pytest.approx(points)


def test_what_the_text_says_of_imagenet_with_boxes():
    # A relative reduction of 64 % over ILSVRC 14, appendix C
    best, before = (paper_row(14, key).figures["top5_localization_error"] for key in ("ensemble_test", "vgg_test"))
    assert -gain(before, best).relative == pytest.approx(64, abs=0.5)
    assert paper_row(13, "ensemble").figures == paper_row(14, "ensemble").figures
    # Dense testing, R-CNN and ensembles each improve on what was before
    given = [paper_row(13, key).figures["gt_class_localization_error"] for key in ("vgg16", "rpn_1_crop", "rpn")]
    guessed = [paper_row(13, key).figures["top5_localization_error"] for key in ("rpn_predicted", "rcnn", "ensemble")]
    assert given == sorted(given, reverse=True) and guessed == sorted(guessed, reverse=True)


def test_a_gain_over_nothing_has_no_relative_value():
    assert gain(0.0, 3.0).relative is None


def test_keys_are_unique_and_all_is_in_percent():
    assert len({(row.table, row.key) for row in ROWS}) == len(ROWS)
    for row in (*(row for row in ROWS if row.table > 6), *references().values()):
        assert row.source
        assert all(8 < value < 100 for value in row.figures.values())


def test_no_figure_was_changed_by_accident():
    """All rows as plain text; whoever corrects one corrects this, too, and the tests above still hold."""
    text = json.dumps([asdict(row) for row in (*ROWS, *references().values())], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "9095efe6db78ca3e"


def test_unknown_rows_are_told():
    with pytest.raises(
        ValueError, match="Table 15 are kept here, only of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14"
    ):
        paper_rows(15)
    with pytest.raises(ValueError, match="no row 'resnet50'; it has vgg16, r101"):
        paper_row(8, "resnet50")


def error(table, key, figure="top1_error"):
    return paper_row(table, key).figures[figure]


def test_the_rows_of_every_table():
    found = {table: [row.key for row in paper_rows(table)] for table in (2, 3, 4, 5, 6)}
    assert found == {
        2: ["plain18", "resnet18", "plain34", "resnet34"],
        3: ["vgg16", "plain34", "resnet34_a", "resnet34_b", "resnet34_c", "resnet50", "resnet101", "resnet152"]
        + ["googlenet", "prelu_net"],
        4: ["resnet34_b", "resnet34_c", "resnet50", "resnet101", "resnet152", "googlenet", "prelu_net", "bn_inception"],
        5: ["ensemble", "googlenet", "prelu_net", "bn_inception"],
        6: [f"resnet{layers}" for layers in (20, 32, 44, 56, 110, 1202)]
        + ["maxout", "nin", "dsn", "fitnet19", "highway19", "highway32"],
    }


def test_networks_are_ours_and_errors_in_percent():
    cited = [row for table in all_tables().values() for row in table.cited]
    for row in CLASSIFIERS:
        assert row.arch in list_models() or row.key == "ensemble" or row in cited
        unsaid = row.table == 1 and row.key in ("resnet18", "resnet34")
        assert (row.shortcut == "") == ("resnet" not in row.arch or unsaid)
        assert all(0 < value < 100 for value in row.figures.values())
        assert set(row.figures) <= {"top1_error", "top5_error", "top1_error_mean", "top1_error_std"}
        assert bool(row.figures) == bool(row.data) == (row.table != 1)
        assert (row.multiply_adds is not None) == (row.table == 1)
        assert (row.parameters is not None) == (row.table == 6 and row not in cited)


def test_the_data_of_every_table():
    data = {row.table: row.data for row in CLASSIFIERS}
    assert data == {
        1: "",
        2: "ImageNet train -> val",
        3: "ImageNet train -> val",
        4: "ImageNet train -> val",
        5: "ImageNet train -> test",
        6: "CIFAR-10 train -> test",
    }
    assert {row.testing for row in paper_rows(2) + paper_rows(3)} == {"10-crop"}
    assert paper_row(5, "ensemble").figures == {"top5_error": 3.57}


def test_the_tables_of_classifiers_repeat_each_other():
    assert error(2, "plain34") == error(3, "plain34") == 28.54
    assert error(2, "resnet34") == error(3, "resnet34_a") == 25.03
    assert paper_row(2, "resnet34").shortcut == paper_row(3, "resnet34_a").shortcut == "A"


def test_what_the_text_says():
    # "the 34-layer ResNet ... reduces the top-1 error by 3.5% (Table 2)", "better than the 18-layer ResNet (by 2.8%)"
    assert error(2, "plain34") - error(2, "resnet34") == pytest.approx(3.5, abs=0.05)
    assert error(2, "resnet18") - error(2, "resnet34") == pytest.approx(2.8, abs=0.06)
    # degradation: the deeper plain network is worse; with shortcuts it is better
    assert error(2, "plain34") > error(2, "plain18") and error(2, "resnet34") < error(2, "resnet18")
    # "B is slightly better than A", "C is marginally better than B"
    for figure in ("top1_error", "top5_error"):
        assert error(3, "resnet34_a", figure) > error(3, "resnet34_b", figure) > error(3, "resnet34_c", figure)
    # "the 50/101/152-layer ResNets are more accurate than the 34-layer ones by considerable margins"; and with depth
    for table in (3, 4):
        depths = [error(table, f"resnet{layers}") for layers in ("34_c", 50, 101, 152)]
        assert depths == sorted(depths, reverse=True)
    # several scales are better than ten crops
    for key in ("resnet34_b", "resnet34_c", "resnet50", "resnet101", "resnet152"):
        for figure in ("top1_error", "top5_error"):
            assert error(4, key, figure) < error(3, key, figure)
    # "our 152-layer ResNet has a single-model top-5 validation error of 4.49%"
    assert error(4, "resnet152", "top5_error") == 4.49 > error(5, "ensemble", "top5_error")


def test_multiply_adds_that_the_text_relates():
    # "3.6 billion FLOPs ..., which is only 18% of VGG-19 (19.6 billion FLOPs)", section 3.3
    plain34, vgg19 = (paper_row(1, key).multiply_adds for key in ("plain34", "vgg19"))
    assert round(100 * plain34 / vgg19) == 18
    # "the 152-layer ResNet (11.3 billion FLOPs) still has lower complexity than VGG-16/19 nets (15.3/19.6 billion
    # FLOPs)", section 4.1
    assert paper_row(1, "resnet152").multiply_adds == 11.3
    assert [paper_row(1, key).multiply_adds for key in ("vgg16", "vgg19")] == [15.3, 19.6]
    assert paper_row(1, "vgg16").source == "arXiv 1512.03385, section 4.1"


def test_cifar_errors_fall_until_110_layers():
    errors = [error(6, f"resnet{layers}") for layers in (20, 32, 44, 56, 110)]
    assert errors == sorted(errors, reverse=True) and error(6, "resnet1202") > errors[-1]
    of_five_runs = paper_row(6, "resnet110").figures
    assert of_five_runs == {"top1_error": 6.43, "top1_error_mean": 6.61, "top1_error_std": 0.16}
