"""The paper's classification figures agree with each other where they must, and with what its text says of them."""

from __future__ import annotations

import pytest

from resnet_backbone import list_models
from resnet_backbone.metrics.paper_classification import (
    CIFAR10_TEST,
    CLASSIFICATION_ROWS,
    IMAGENET_TEST,
    IMAGENET_VAL,
    classification_row,
    classification_rows,
)


def error(table, key, figure="top1_error"):
    return classification_row(table, key).figures[figure]


def test_the_rows_of_every_table():
    found = {table: [row.key for row in classification_rows(table)] for table in (2, 3, 4, 5, 6)}
    assert found == {
        2: ["plain18", "resnet18", "plain34", "resnet34"],
        3: ["vgg16", "plain34", "resnet34_a", "resnet34_b", "resnet34_c", "resnet50", "resnet101", "resnet152"],
        4: ["resnet34_b", "resnet34_c", "resnet50", "resnet101", "resnet152"],
        5: ["ensemble"],
        6: [f"resnet{layers}" for layers in (20, 32, 44, 56, 110, 1202)],
    }


def test_keys_are_unique_networks_are_ours_and_all_is_in_percent():
    keys = [(row.table, row.key) for row in CLASSIFICATION_ROWS]
    assert len(set(keys)) == len(keys)
    for row in CLASSIFICATION_ROWS:
        assert row.arch in list_models() or row.key == "ensemble"
        unsaid = row.table == 1 and row.key in ("resnet18", "resnet34")
        assert (row.shortcut == "") == ("resnet" not in row.arch or unsaid)
        assert all(0 < value < 100 for value in row.figures.values())
        assert set(row.figures) <= {"top1_error", "top5_error", "top1_error_mean", "top1_error_std"}
        assert bool(row.figures) == bool(row.data) == (row.table != 1)
        assert (row.multiply_adds is not None) == (row.table == 1)
        assert (row.parameters is not None) == (row.table == 6)


def test_the_data_of_every_table():
    data = {row.table: row.data for row in CLASSIFICATION_ROWS}
    assert data == {1: "", 2: IMAGENET_VAL, 3: IMAGENET_VAL, 4: IMAGENET_VAL, 5: IMAGENET_TEST, 6: CIFAR10_TEST}
    assert {row.testing for row in classification_rows(2) + classification_rows(3)} == {"10-crop"}
    assert classification_row(5, "ensemble").figures == {"top5_error": 3.57}


def test_the_tables_repeat_each_other():
    assert error(2, "plain34") == error(3, "plain34") == 28.54
    assert error(2, "resnet34") == error(3, "resnet34_a") == 25.03
    assert classification_row(2, "resnet34").shortcut == classification_row(3, "resnet34_a").shortcut == "A"


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
    plain34, vgg19 = (classification_row(1, key).multiply_adds for key in ("plain34", "vgg19"))
    assert round(100 * plain34 / vgg19) == 18
    # "the 152-layer ResNet (11.3 billion FLOPs) still has lower complexity than VGG-16/19 nets (15.3/19.6 billion
    # FLOPs)", section 4.1
    assert classification_row(1, "resnet152").multiply_adds == 11.3
    assert [classification_row(1, key).multiply_adds for key in ("vgg16", "vgg19")] == [15.3, 19.6]
    assert classification_row(1, "vgg16").source == "arXiv 1512.03385, section 4.1"


def test_cifar_errors_fall_until_110_layers():
    errors = [error(6, f"resnet{layers}") for layers in (20, 32, 44, 56, 110)]
    assert errors == sorted(errors, reverse=True) and error(6, "resnet1202") > errors[-1]
    of_five_runs = classification_row(6, "resnet110").figures
    assert of_five_runs == {"top1_error": 6.43, "top1_error_mean": 6.61, "top1_error_std": 0.16}


def test_what_is_not_there():
    with pytest.raises(ValueError, match="Table 7 are kept here, only of 1, 2, 3, 4, 5, 6"):
        classification_row(7, "vgg16")
    with pytest.raises(ValueError, match="Table 4 has no row 'vgg16'; it has resnet34_b,"):
        classification_row(4, "vgg16")
