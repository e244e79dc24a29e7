"""The table of all networks against the paper, and what it says of the differences."""

from __future__ import annotations

import re

import pytest

from resnet_backbone import list_models
from resnet_backbone.classification.complexity_table import (
    HEADERS,
    complexity_rows,
    stages_text,
    table_text,
)
from resnet_backbone.models.complexity import build_on_meta, complexity


@pytest.fixture(scope="module")
def rows():
    return complexity_rows()


def find(rows, arch, **options):
    return next(row for row in rows if row.arch == arch and row.options == options)


def test_every_network_has_a_row(rows):
    assert [row.arch for row in rows if not row.options] == list_models()


@pytest.mark.parametrize(
    ("arch", "options", "billions", "printed", "percent"),
    [
        ("plain34", {}, "3.644", 3.6, 1.2),
        ("resnet18", {}, "1.814", 1.8, 0.8),
        ("resnet34", {"shortcut": "A"}, "3.644", 3.6, 1.2),
        ("resnet50", {}, "4.089", 3.8, 7.6),
        ("resnet50", {"stride_in_1x1": True}, "3.858", 3.8, 1.5),
        ("resnet101", {"stride_in_1x1": True}, "7.570", 7.6, -0.4),
        ("resnet152", {"stride_in_1x1": True}, "11.282", 11.3, -0.2),
        ("vgg16", {}, "15.470", 15.3, 1.1),
        ("vgg19", {}, "19.632", 19.6, 0.2),
    ],
)
def test_multiply_adds_beside_the_paper(rows, arch, options, billions, printed, percent):
    row = find(rows, arch, **options)
    assert row.cells()[4] == billions
    assert row.printed == printed and not row.counts_parameters
    assert row.difference == pytest.approx(100 * (float(billions) - printed) / printed, abs=0.02)
    assert row.cells()[7] == f"{percent:+.1f} %"


def test_the_paper_rounds_but_for_resnet50_and_vgg16(rows):
    """The last sentence below the table."""

    def rounds(value, printed):
        return f"{value:.{len(str(printed).partition('.')[2])}f}" == str(printed)

    of_the_paper = {row.arch: row for row in rows if row.printed is not None}  # the last of each: the paper's options
    assert len(of_the_paper) == 18
    assert {arch for arch, row in of_the_paper.items() if not rounds(row.ours, row.printed)} == {"resnet50", "vgg16"}
    assert str(of_the_paper["resnet50"].ours).startswith("3.8")  # truncated
    convolutions = sum(stage.multiply_adds for stage in of_the_paper["vgg16"].cost.stages[:5])
    assert f"{convolutions / 1e9:.2f}" == "15.35"
    convolutions = sum(stage.multiply_adds for stage in of_the_paper["vgg19"].cost.stages[:5])
    assert not rounds(convolutions / 1e9, 19.6)
    assert not rounds(find(rows, "resnet34").cost.multiply_adds / 1e9, 3.6)  # without option A it would be 3.7


@pytest.mark.parametrize(
    ("layers", "printed"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7), (1202, 19.4)]
)
def test_parameters_of_cifar_networks_beside_table_6(rows, layers, printed):
    row = find(rows, f"cifar_resnet{layers}")
    assert row.counts_parameters and row.printed == printed and row.cells()[6] == f"{printed} M parameters"
    assert abs(row.difference) < 2


def test_text_and_markdown(rows):
    text, markdown = table_text(rows), table_text(rows, markdown=True)
    assert all(f"\n{row.arch} " in text for row in rows)
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == len(rows) + 2
    assert {line.count("|") for line in table} == {len(HEADERS) + 1}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    row = next(row for row in cells if row[:2] == ["resnet50", "stride_in_1x1=True"])
    assert row[2:8] == ["224", "25.557", "3.858", "10.59", "3.8 G", "+1.5 %"]
    assert "For one image." in text and "For one image." in markdown


def test_stages(rows):
    text = stages_text(complexity(build_on_meta("resnet18"), (224, 320)))
    lines = text.splitlines()
    assert lines[0] == "resnet18, one image of 224 x 320 pixels"
    assert re.fullmatch(r"res3 +128 x 28 x 40 +525,568 .*", lines[6])
    assert re.match(r"total +11,689,512 ", lines[-1])
