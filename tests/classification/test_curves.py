"""Training curves: what is read, what is smoothed for the plot, and that the table keeps the points as they are."""

from __future__ import annotations

import csv
import json
import random

import numpy as np
import pytest
from PIL import Image

from resnet_backbone.classification import figures as module
from resnet_backbone.classification.figures import colors, plot_curves, read_curves, running_mean, write_curves

TOP1 = "test/classification/top1_error"


def write_run(folder, errors, tests=(), test_set="test"):
    """A run whose metrics.json has the training errors (iteration -> percent) and the test errors."""
    folder.mkdir(parents=True)
    records = [{"iteration": i, "total_loss": 1.0, "train_error": e, "lr": 0.1, "time": 0.1} for i, e in errors]
    records += [{"iteration": i, f"{test_set}/classification/top1_error": e} for i, e in tests]
    records.sort(key=lambda record: record["iteration"])
    (folder / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def two(tmp_path):
    draw = random.Random(0)
    course = [(i, 90 * 0.97 ** (i / 20) + draw.uniform(-1, 1) + 2) for i in range(19, 4000, 20)]
    first = write_run(tmp_path / "plain", course, [(999, 40.0), (1999, 20.0), (3999, 12.0)])
    second = write_run(tmp_path / "residual", [(i, e / 2) for i, e in course], [(1999, 10.0), (3999, 8.0)])
    return [first, second]


@pytest.mark.parametrize("width", [0, 1, 2, 5, 9, 100])
def test_running_mean_against_numpy(width):
    draw = np.random.default_rng(0)
    points = tuple((20 * index, float(value)) for index, value in enumerate(draw.random(30)))
    smooth = running_mean(points, width)
    assert [iteration for iteration, _ in smooth] == [iteration for iteration, _ in points]
    values = np.array([value for _, value in points])
    half = width // 2
    whole = np.convolve(values, np.ones(2 * half + 1) / (2 * half + 1), mode="valid") if 2 * half < 30 else np.array([])
    inner = [value for _, value in smooth][half : half + len(whole)]
    assert inner == pytest.approx(whole)
    assert smooth[0] == points[0] and smooth[-1] == points[-1]  # nothing to the one side, so nothing to the other


def test_a_straight_line_stays_where_it_is():
    line = tuple((index, 100.0 - 3 * index) for index in range(20))
    assert [value for _, value in running_mean(line, 7)] == pytest.approx([value for _, value in line])
    assert running_mean((), 7) == ()


def test_the_table_has_every_point_as_it_was_recorded(two, tmp_path):
    table, picture = write_curves(read_curves(two), tmp_path / "new" / "folder")
    rows = list(csv.DictReader(table.open()))
    for folder in two:
        records = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        own = [row for row in rows if row["run"] == folder.name]
        train = [(r["iteration"] + 1, r["train_error"]) for r in records if "train_error" in r]
        test = [(r["iteration"] + 1, r[TOP1]) for r in records if TOP1 in r]
        found = {
            curve: [(int(row["iteration"]), float(row["error_percent"])) for row in own if row["curve"] == curve]
            for curve in ("train", "test")
        }
        assert found == {"train": train, "test": test}
        assert {row["test_set"] for row in own} == {"", "test"}
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 500


def test_what_is_drawn(two, tmp_path, monkeypatch):
    """Dashed and thin the smoothed training error, bold the test error, both in the run's colour; a legend of runs."""
    figures = []
    original = module.Figure
    monkeypatch.setattr(module, "Figure", lambda **options: figures.append(original(**options)) or figures[-1])
    runs = read_curves(two, ["a $5 run", "b"])
    plot_curves(runs, tmp_path / "curves.png")
    (axes,) = figures[0].axes
    lines = axes.get_lines()
    assert [line.get_linestyle() for line in lines] == ["--", "-", "--", "-"]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color() == lines[3].get_color()
    assert lines[0].get_linewidth() < lines[1].get_linewidth()
    assert list(lines[1].get_ydata()) == [40.0, 20.0, 12.0] and list(lines[1].get_xdata()) == [1000, 2000, 4000]
    raw = runs["a $5 run"].train_error
    assert list(lines[0].get_ydata()) == [value for _, value in running_mean(raw, 4)]  # 2 % of 200 records
    late = [value for _, value in raw[100:]]
    assert np.std(np.diff(lines[0].get_ydata()[100:])) < np.std(np.diff(late)) / 2
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a $5 run", "b"]
    assert axes.get_xlabel() and "percent" in axes.get_ylabel()
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] == pytest.approx(1.5 * 20.0)  # at half of the training
    assert axes.get_xlim()[0] == 0


def test_several_test_sets_have_dashes_of_their_own(tmp_path, monkeypatch):
    figures = []
    original = module.Figure
    monkeypatch.setattr(module, "Figure", lambda **options: figures.append(original(**options)) or figures[-1])
    first = write_run(tmp_path / "a", [(9, 50.0)], [(9, 40.0)], "val")
    second = write_run(tmp_path / "b", [], [(9, 30.0), (19, 20.0)], "test")
    plot_curves(read_curves([first, second]), tmp_path / "curves.png")
    assert [line.get_linestyle() for line in figures[0].axes[0].get_lines()] == ["--", "-", "-."]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["a", "b", "val", "test"]


def test_names(two, tmp_path):
    assert list(read_curves(two)) == ["plain", "residual"]
    assert list(read_curves(two, ["x", "y"])) == ["x", "y"]
    with pytest.raises(ValueError, match="2 runs need 2 names, got 1: x"):
        read_curves(two, ["x"])
    other = write_run(tmp_path / "deeper" / "plain", [(9, 50.0)])
    with pytest.raises(ValueError, match="two runs are called plain; give each a name of its own with --names"):
        read_curves([two[0], other])


def test_runs_that_cannot_be_drawn(tmp_path):
    with pytest.raises(ValueError, match="no runs to draw"):
        read_curves([])
    with pytest.raises(FileNotFoundError, match=r"no .*metrics\.json; a run's folder is"):
        read_curves([tmp_path])
    detector = tmp_path / "detector"
    detector.mkdir()
    (detector / "metrics.json").write_text('{"iteration": 1, "total_loss": 1.0, "val/bbox/AP": 3.0}\n')
    with pytest.raises(ValueError, match="it is of a detector"):
        read_curves([detector])


def test_colours_are_distinct_for_twenty_runs():
    for count in (1, 6, 7, 20):
        assert len(set(colors(count))) == count
    assert colors(3) == colors(6)[:3]
    assert len(colors(45)) == 45
