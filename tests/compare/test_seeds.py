"""Several seeds of each run: means, both intervals in one sentence, and folders that are no seeds of one run."""

from __future__ import annotations

import json

import pytest

from resnet_backbone.compare.report import summary, to_dict, verdicts, write_comparison
from resnet_backbone.compare.runs import read_runs
from resnet_backbone.metrics.bootstrap import mean_interval


@pytest.fixture
def seeds(make_run):
    """``seeds("a", 0.1)``: three runs that differ in SEED and in their detections."""

    def make(name, noise, *overrides):
        return [
            make_run(
                f"{name}{seed}", noise=noise, seed=10 * seed + ord(name[0]), overrides=("SEED", str(seed), *overrides)
            )
            for seed in range(3)
        ]

    return make


def test_one_sentence_has_the_interval_over_images_and_over_seeds(seeds, compare, tmp_path):
    comparison = compare([*seeds("bad", 0.5), *seeds("good", 0.02)], seeds=3, names=["A", "B"], samples=200)
    aps = [[one.figures["bbox"]["AP"] for one in run.all_seeds] for run in comparison.runs]
    differences = [good - bad for bad, good in zip(*aps, strict=True)]
    over_seeds = mean_interval(differences)
    assert over_seeds.low > 0
    (sentence,) = verdicts(comparison)
    assert sentence.startswith(
        f"B is better than A by {over_seeds.value:.1f} AP, the mean of 3 seeds (95 % over the images"
    )
    assert sentence.endswith(f"over the seeds: +{over_seeds.low:.1f} to +{over_seeds.high:.1f}).")
    written = write_comparison(comparison, tmp_path / "page")
    page = written.page.read_text()
    assert sentence in page and "means over 3 seeds" in page and "several seeds, and compare" not in page
    assert ", ".join(f"{value:.1f}" for value in aps[1]) in page
    values = json.loads(written.json.read_text())
    assert [len(run["other_seeds"]) for run in values["runs"]] == [2, 2]
    won = values["measured"]["bbox"]["runs"]["B"]["gains"]["AP"]
    assert won["by_seed"] == pytest.approx(differences) and won["over_seeds"]["low"] == pytest.approx(over_seeds.low)
    assert f"{over_seeds.value:.1f}" in summary(comparison)


def test_a_difference_that_the_seeds_do_not_show_is_not_told(seeds, make_run, compare):
    """Clear over the images of one seed each, but the seeds disagree."""
    good = [make_run(f"g{s}", noise=noise, seed=s, overrides=("SEED", str(s))) for s, noise in enumerate((0.0, 0.6))]
    bad = [make_run(f"b{s}", noise=0.3, seed=5 + s, overrides=("SEED", str(s))) for s in range(2)]
    comparison = compare([*bad, *good], seeds=2, names=["A", "B"], samples=100)
    won = comparison.main.bootstrap.runs[1].gains["AP"]
    assert won.over_seeds.low < 0 < won.over_seeds.high
    assert verdicts(comparison)[0].startswith("No difference can be told between B and A")
    assert to_dict(comparison)["verdicts"] == verdicts(comparison)


def test_folders_that_are_no_seeds_of_one_run_are_refused(seeds, make_run):
    first = seeds("a", 0.1)
    with pytest.raises(ValueError, match="5 folders are not 3 seeds of each run"):
        read_runs([*first, make_run("b"), make_run("c")], seeds=3)
    mixed = [
        make_run(f"m{seed}", overrides=("SEED", str(seed), "SOLVER.BASE_LR", f"0.0{seed + 1}")) for seed in range(3)
    ]
    with pytest.raises(ValueError, match=r"are not seeds of one run: they differ in SOLVER\.BASE_LR"):
        read_runs([*first, *mixed], seeds=3)
    same = [make_run(f"s{number}", overrides=("SEED", "4")) for number in range(3)]
    with pytest.raises(ValueError, match="have the same SEED; they are one training"):
        read_runs([*first, *same], seeds=3)
