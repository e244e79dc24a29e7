"""Reports of run folders that the tests write: means, gains, what is missing, what does not belong."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict
from pathlib import Path

import pytest

from resnet_backbone.metrics.run_facts import RunFacts
from resnet_backbone.reproduce.jobs import FINISHED, NOT_RUN, OTHER, STARTED, Job, Jobs, TableOptions, read_state
from resnet_backbone.reproduce.report import collect, report_markdown, write_report
from resnet_backbone.reproduce.tables import all_tables
from tests.helpers import load_training

FACTS = RunFacts(
    engine="torchvision",
    resnet_backbone="9.9",
    commit="abc1234-dirty",
    command="python tools/train_net.py --config-file x.yaml",
    torch="2.14.1",
    torchvision="0.29.1",
    device="A GPU | with a pipe",
    processes=2,
    dataset="bccd_test",
    annotations="/test.json",
    annotations_sha256="0",
    image_folder="/images",
    num_images=72,
    class_names=["RBC"],
    parameters=1,
    multiply_adds=None,
    images_per_s=12.5,
    peak_memory_mib=1.0,
)


def jobs_in(folder: Path, name: str = "bccd", **options: object) -> Jobs:
    return Jobs(all_tables()[name], TableOptions(folder, **options), load_training)


def write_run(job: Job, figures: dict | None, *overrides: str) -> None:
    """What tools/train_net.py leaves in a folder."""
    inference = job.folder / "inference"
    inference.mkdir(parents=True, exist_ok=True)
    cfg = load_training(job.training, [*job.overrides, *overrides])
    (job.folder / "config.yaml").write_text(cfg.dump())
    (job.folder / "model_final.pth").touch()
    (inference / "facts.json").write_text(json.dumps(asdict(FACTS)))
    if figures is not None:
        (inference / "metrics.json").write_text(json.dumps(figures))


def box(ap: float) -> dict:
    return {"bbox": {"AP": ap, "AP50": ap + 30, "AP75": None, "AP-RBC": ap}}


def test_several_seeds_and_their_gain(tmp_path):
    jobs = jobs_in(tmp_path)
    first, second = (50.0, 51.0, 53.5), (51.0, 50.5, 54.0)
    for values, key in ((first, "r18"), (second, "r34")):
        for job, value in zip(jobs.of_row(key), values, strict=True):
            write_run(job, box(value))
    result = collect(jobs)
    ours = result.rows[0].ours("AP")
    assert (ours.mean, ours.std, ours.n) == (statistics.mean(first), statistics.stdev(first), 3)
    assert result.rows[0].ours("AP75") is None
    (ap,) = [pair for pair in result.pairs if pair.figure == "AP"]
    assert ap.ours.absolute == pytest.approx(statistics.mean(second) - statistics.mean(first))
    assert ap.ours.relative == pytest.approx(100 * ap.ours.absolute / statistics.mean(first))
    assert ap.by_seed == pytest.approx((1.0, -0.5, 0.5))
    text = report_markdown(result)
    assert "51.5 ± 1.8 (n = 3)" in text and "standard deviation" in text
    assert "+0.3 (+1 %)" in text
    assert "+1.00, -0.50, +0.50" in text
    assert "python tools/train_net.py --config-file x.yaml" in text
    markdown = report_markdown(result)
    assert "2 x A GPU \\| with a pipe" in markdown
    assert "abc1234-dirty" in markdown
    paths = write_report(result, tmp_path)
    assert [path.name for path in paths] == ["table_bccd.md", "table_bccd.json"]
    values = json.loads(paths[1].read_text())
    assert values["rows"][0]["ours"]["AP"]["n"] == 3
    assert values["rows"][0]["runs"][0]["facts"]["commit"] == "abc1234-dirty"
    assert values["gains"][0]["ours"]["absolute"] == pytest.approx(1 / 3)


def test_paper_today_and_what_was_not_run_stand_side_by_side(tmp_path):
    jobs = jobs_in(tmp_path, "8")
    write_run(jobs.of_row("vgg16")[0], {"bbox": {"AP": 22.5, "AP50": 42.0}})
    lines = report_markdown(collect(jobs)).splitlines()
    vgg16 = next(line for line in lines if line.startswith("| VGG-16 "))
    r101 = next(line for line in lines if line.startswith("| ResNet-101 "))
    assert [cell.strip() for cell in vgg16.split("|")][2:5] == ["21.2", "30.2 [1], 29.2 [2], 24.2 [3]", "22.5"]
    assert [cell.strip() for cell in r101.split("|")][2:5] == ["27.2", "35.4 [1], 36.2 [2]", "not run"]
    (gain, _) = [line for line in lines if line.startswith("| VGG-16 -> ResNet-101")]
    assert "+6.0 (+28 %)" in gain
    assert "+5.2 (+17 %) [1], +7.0 (+24 %) [2]" in gain
    assert "not run" in gain


def test_some_seeds_are_reported_as_some(tmp_path):
    jobs = jobs_in(tmp_path)
    write_run(jobs.of_row("r18")[0], box(50.0))
    result = collect(jobs)
    assert result.rows[0].status == "1 finished, 2 not run"
    assert result.rows[0].ours("AP").n == 1
    assert [pair.ours for pair in result.pairs] == [None] * 3


def test_a_gain_that_rounds_to_nothing_has_no_sign_of_a_loss(tmp_path):
    jobs = jobs_in(tmp_path, seeds=1)
    for key, value in (("r18", 50.0), ("r34", 49.99)):
        write_run(jobs.of_row(key)[0], box(value))
    text = report_markdown(collect(jobs))
    assert "+0.0 (+0 %)" in text
    # Of one seed each, and not in the paper: no word of either.
    assert "standard deviation" not in text and "expected today" not in text


def test_voc_is_scored_by_its_own_metric_class_by_class(tmp_path):
    jobs = jobs_in(tmp_path, "10")
    classes = {"AP-aeroplane": 80.0, "AP-bird": 70.0}
    write_run(jobs.of_row("vgg16_0712")[0], {"bbox": {"AP": 40.0}, "voc": {"mAP": 75.0, **classes}})
    result = collect(jobs)
    assert result.rows[0].ours("mAP").mean == 75.0
    (bird,) = [line for line in report_markdown(result).splitlines() if line.startswith("| bird ")]
    cells = [cell.strip() for cell in bird.split("|")]
    assert cells[2:4] == ["70.9", "70.0"]
    assert cells[4:8] == ["76.2", "-", "87.8", "-"]


def test_a_test_set_without_annotations_ran_and_is_not_scored(tmp_path):
    jobs = jobs_in(tmp_path, "11")
    job = jobs.of_row("r101_0712pp")[0]
    write_run(job, None)
    assert read_state(job).status == FINISHED
    text = report_markdown(collect(jobs))
    assert "ran, not scored here" in text
    gains = [line.split("|")[4].strip() for line in text.splitlines() if "-> baseline" in line]
    assert gains == ["not run; ran, not scored here", "ran, not scored here; not run"]
    assert "evaluation server" in text


def test_the_state_of_a_folder(tmp_path):
    job = next(iter(jobs_in(tmp_path)))
    assert read_state(job).status == NOT_RUN
    write_run(job, box(50.0))
    assert read_state(job).status == FINISHED
    (job.folder / "model_final.pth").unlink()
    # Killed while writing the last line.
    records = ['{"iteration": 19, "total_loss": 1}', '{"iteration": 39, "total_loss": 1}', '{"iterat']
    (job.folder / "metrics.json").write_text("\n".join(records))
    assert read_state(job).status == STARTED
    assert read_state(job).detail == "iteration 40 of 500"


@pytest.mark.parametrize(
    ("key", "value", "there"),
    [("SOLVER.BASE_LR", "0.01", "0.01"), ("SEED", "5", "5"), ("MODEL.RESNET_BACKBONE.ARCH", "resnet34", "resnet34")],
)
def test_other_settings_are_not_taken_for_this_row(tmp_path, key, value, there):
    job = next(iter(jobs_in(tmp_path)))
    write_run(job, box(50.0), key, value)
    state = read_state(job)
    assert state.status == OTHER
    assert f"{key} is {there} in the folder" in state.detail
    assert state.figures == {}


def test_a_setting_that_is_empty_is_seen(tmp_path):
    job = next(iter(jobs_in(tmp_path)))
    write_run(job, box(50.0), "MODEL.RESNET_BACKBONE.NORM", "")
    assert "MODEL.RESNET_BACKBONE.NORM is '' in the folder, " in read_state(job).detail


def test_what_a_run_fills_in_is_no_other_setting(tmp_path):
    job = next(iter(jobs_in(tmp_path)))
    filled = ["MODEL.ROI_HEADS.NUM_CLASSES", "3", "INPUT.FORMAT", "BGR", "OUTPUT_DIR", "elsewhere"]
    write_run(job, box(50.0), *filled, "SOLVER.CHECKPOINT_PERIOD", "7")
    assert read_state(job).status == FINISHED


def test_a_moved_output_folder_keeps_its_evaluations(tmp_path):
    for job in jobs_in(tmp_path / "before", "bccd-improvements"):
        write_run(job, box(50.0))
    (tmp_path / "before").rename(tmp_path / "after")
    assert {read_state(job).status for job in jobs_in(tmp_path / "after", "bccd-improvements")} == {FINISHED}


def test_figures_of_a_detector_that_trained_on_are_not_its_last(tmp_path):
    """With TEST.EVAL_PERIOD, inference/ has figures before the last evaluation."""
    job = next(iter(jobs_in(tmp_path)))
    job.cfg.TEST.EVAL_PERIOD = 10
    write_run(job, box(50.0), "TEST.EVAL_PERIOD", "10")
    metrics = job.folder / "inference" / "metrics.json"
    assert read_state(job).status == FINISHED
    os.utime(metrics, (0, 0))
    assert read_state(job).status == STARTED


def test_an_evaluation_of_a_detector_that_was_trained_anew_is_not_its(tmp_path):
    """Of the detector itself or of one that it is together with; weights deleted to save space change nothing."""
    jobs = list(jobs_in(tmp_path, "bccd-improvements"))
    for job in jobs:
        write_run(job, box(50.0))
    (tmp_path / "bccd_r18_s0" / "model_final.pth").unlink()
    later = (tmp_path / "bccd_r18_context_s0_ensemble" / "inference" / "metrics.json").stat().st_mtime + 10
    os.utime(tmp_path / "bccd_r18_context_s2" / "model_final.pth", (later, later))
    assert {job.name for job in jobs if job.eval_only and read_state(job).status != FINISHED} == {
        *("bccd_r18_context_s0_ensemble", "bccd_r18_context_s2_context", "bccd_r18_context_s2_multiscale")
    }
    os.utime(tmp_path / "bccd_r18_context_s0" / "model_final.pth", (later, later))
    assert {job.name for job in jobs if job.eval_only and "older than the detector" in read_state(job).detail} == {
        "bccd_r18_context_s0_ensemble",
        *(f"bccd_r18_context_s{seed}_{name}" for seed in (0, 2) for name in ("context", "multiscale")),
    }


@pytest.mark.parametrize("content", ["", "MODEL: {WEIG"])
def test_a_config_that_a_killed_run_left_half_is_named(tmp_path, content):
    job = next(iter(jobs_in(tmp_path)))
    write_run(job, box(50.0))
    (job.folder / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match="move the folder away"):
        read_state(job)


@pytest.mark.parametrize("content", ["", "[]", '{"bbox": 3}'])
def test_a_damaged_file_is_named(tmp_path, content):
    job = next(iter(jobs_in(tmp_path)))
    write_run(job, box(50.0))
    path = job.folder / "inference" / "metrics.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="evaluate again") as error:
        read_state(job)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("3", [["GoogLeNet", "-", "9.15"], ["PReLU-net", "24.27", "7.38"]]),
        ("6", [["Maxout", "9.38"], ["NIN", "8.81"], ["DSN", "8.22"]]),
        ("8", None),
    ],
)
def test_what_the_paper_cites_and_nobody_trains_is_shown(tmp_path, table, rows):
    text = report_markdown(collect(Jobs(all_tables()[table], TableOptions(tmp_path), load_training)))
    _, found, section = text.partition("## The paper also cites\n\n")
    assert bool(found) == (rows is not None)
    lines = section.partition("\n\n")[0].splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == (rows or [])
