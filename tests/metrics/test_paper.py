"""The paper's figures agree with each other where they must, and with what its text says of them."""

from __future__ import annotations

import pytest

from resnet_backbone.metrics.paper import (
    PAPER_ROWS,
    REFERENCES,
    VOC_CLASSES,
    gain,
    paper_row,
    paper_rows,
    reference,
)


@pytest.mark.parametrize("row", [row for row in PAPER_ROWS if row.per_class], ids=lambda row: row.key)
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
    vgg16, r101 = (reference(f"{source}_{arch}") for arch in ("vgg16", "r101"))
    assert (vgg16.source, vgg16.data, vgg16.setting) == (r101.source, r101.data, r101.setting)
    assert gain(vgg16.figures[figure], r101.figures[figure]).absolute == pytest.approx(points)


def test_a_gain_over_nothing_has_no_relative_value():
    assert gain(0.0, 3.0).relative is None


def test_keys_are_unique_and_all_is_in_percent():
    assert len({(row.table, row.key) for row in PAPER_ROWS}) == len(PAPER_ROWS)
    assert len({row.key for row in REFERENCES}) == len(REFERENCES)
    for row in (*PAPER_ROWS, *REFERENCES):
        assert row.source
        assert all(10 < value < 100 for value in row.figures.values())


def test_unknown_rows_are_told():
    with pytest.raises(ValueError, match="Table 12 are kept here, only of 7, 8, 9, 10, 11"):
        paper_rows(12)
    with pytest.raises(ValueError, match="no row 'resnet50'; it has vgg16, r101"):
        paper_row(8, "resnet50")
    with pytest.raises(ValueError, match="no reference 'x'"):
        reference("x")
