"""tools/reproduce.py on a private table: real trainings, in seconds, stopped in the middle and gone on with."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_backbone.classification.config import load_config as load_classifier_config
from resnet_backbone.data.prepare.shapes import write_crops
from resnet_backbone.files.text import read_yaml
from resnet_backbone.reproduce.tables import Row, Table, Training
from tests.processes import Forked


def finish(process: Forked, status: int = 0) -> str:
    ended, output = process.finish(timeout=600)
    assert ended == status, output
    return output


@pytest.mark.slow
def test_a_table_runs_goes_on_after_an_interruption_and_is_reported(tiny_table, reproduce, tmp_path):
    table = tiny_table("SOLVER.MAX_ITER", "30", "SOLVER.CHECKPOINT_PERIOD", "5")
    output = tmp_path / "output"
    first = output / "shapes_resnet18_s0"

    process = reproduce(table, "--run")
    assert process.wait_for((first / "model_0000004.pth").exists), process.output
    process.send(signal.SIGINT)
    printed = finish(process, 130)
    assert "the same command resumes" in printed
    assert not (first / "model_final.pth").exists()

    planned = finish(reproduce(table))
    assert "shapes_resnet18_s0: started (iteration" in planned
    assert "shapes_resnet34_s0: not run" in planned

    printed = finish(reproduce(table, "--run"))
    commands = [line.removeprefix("running: ") for line in printed.splitlines() if line.startswith("running: ")]
    assert "--resume" in commands[0]
    assert "resumed after iteration" in printed
    # All others are word for word what the plan printed.
    assert set(commands[1:3]) < {line.strip().removeprefix("$ ") for line in planned.splitlines()}
    assert (first / "console.log").read_text().count("$ python") == 2

    report = json.loads((output / "table_tiny.json").read_text())
    rows = {row["key"]: row for row in report["rows"]}
    assert [row["status"] for row in rows.values()] == ["finished"] * 3
    for key, folder in (
        ("r18", "shapes_resnet18_s0"),
        ("r34", "shapes_resnet34_s0"),
        ("refinement", "shapes_resnet18_s0_refinement"),
    ):
        figures = json.loads((output / folder / "inference" / "metrics.json").read_text())["bbox"]
        assert rows[key]["ours"]["AP"] == {"mean": figures["AP"], "std": None, "n": 1}
        assert rows[key]["runs"][0]["facts"]["num_images"] == 5
    assert "ResNet-34" in (output / "table_tiny.md").read_text()
    page = (output / "comparison_tiny" / "index.html").read_text()
    assert "ResNet-18" in page
    assert "ResNet-34" in page
    sentences = json.loads((output / "comparison_tiny" / "comparison.json").read_text())["verdicts"]
    assert report["sentences"][0] == sentences[0] and len(report["sentences"]) == 2
    assert sentences[0] in (output / "table_tiny.md").read_text()

    # Everything is finished: nothing runs again.
    before = (first / "log.txt").read_bytes()
    assert "running: python tools/train_net" not in finish(reproduce(table, "--run"))
    assert (first / "log.txt").read_bytes() == before


def test_missing_data_is_told_and_nothing_is_written(tiny_table, reproduce, tmp_path):
    printed = finish(reproduce(tiny_table("SOLVER.MAX_ITER", "2"), "--run", datasets=tmp_path / "empty"), 1)
    assert (
        "error: data that is not there: shapes_train, shapes_val. Get it with: resnet-backbone prepare shapes, or "
        "add --prepare"
    ) in printed
    assert "running:" not in printed
    assert not (tmp_path / "output").exists()


@pytest.mark.slow
def test_keep_going_tries_every_row_and_still_fails(tiny_table, reproduce, tmp_path):
    table = tiny_table("SOLVER.MAX_ITER", "2", "MODEL.WEIGHTS", "nowhere.pth")
    printed = finish(reproduce(table, "--run", "--keep-going"), 1)
    assert printed.count("running: python") == 3
    assert printed.count("error: exit status 1 of") == 3
    assert "not run" in (tmp_path / "output" / "table_tiny.md").read_text()


def test_missing_data_is_prepared_on_request(tiny_table, reproduce, tmp_path):
    printed = finish(reproduce(tiny_table("SOLVER.MAX_ITER", "2"), "--prepare", datasets=tmp_path / "fresh"))
    assert "running: python" in printed
    assert (tmp_path / "fresh" / "shapes" / "annotations" / "train.json").is_file()
    assert "Data that is not there" not in printed


def test_a_folder_of_other_settings_is_left_alone(tiny_table, reproduce, tmp_path):
    config = Path(tiny_table("SOLVER.MAX_ITER", "2").rows[0].training.config)
    folder = tmp_path / "output" / "shapes_resnet18_s0"
    folder.mkdir(parents=True)
    config.rename(folder / "config.yaml")
    table = tiny_table("SOLVER.MAX_ITER", "3")
    printed = finish(reproduce(table, "--run"), 1)
    assert "SOLVER.MAX_ITER is 2 in the folder, 3 in the plan" in printed
    assert "running:" not in printed
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert "other settings" in finish(reproduce(table, "--report"))


def test_a_table_for_gpus_is_not_started_on_a_cpu(tiny_table, reproduce, tmp_path, monkeypatch):
    """Nor is its data fetched; --gpus 1 asks for it all the same."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    table = tiny_table("SOLVER.MAX_ITER", "2000")
    rows = [replace(row, training=replace(row.training, reference_gpus=2)) for row in table.rows]
    table = replace(table, rows=tuple(rows), on_cpu=False)
    printed = finish(reproduce(table, "--run", "--prepare", datasets=tmp_path / "empty"), 1)
    assert "table tiny is 2,000 iterations a training for GPUs, and there is no GPU here; --gpus 1 runs" in printed
    assert "running:" not in printed
    assert "data that is not there" in finish(reproduce(table, "--run", "--gpus", "1", datasets=tmp_path / "empty"), 1)
    assert "On the machine with the GPUs: python " in finish(reproduce(table))


@pytest.mark.slow
def test_iterations_are_timed_by_running_some(tiny_table, reproduce, tmp_path):
    printed = finish(reproduce(tiny_table("SOLVER.MAX_ITER", "100000").only(["r18"]), "--measure"))
    (line,) = [line for line in printed.splitlines() if "h here" in line]
    hours, seconds = float(line.split("about ")[1].split()[0]), float(line.split("(")[1].split()[0])
    assert hours == pytest.approx(seconds * 100_000 / 3600, rel=0.06)
    assert not (tmp_path / "output").exists()


@pytest.fixture
def mixed_table(tiny_table, shapes, tmp_path):
    """``mixed_table(3)``: a detector on a classifier that the table trains, and one from random weights."""
    for split in ("train", "val"):
        folder = shapes / "shapes"
        write_crops(folder / f"annotations/{split}.json", folder / split, tmp_path / "crops" / split)

    def make(iterations: int) -> Table:
        words = ["MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", str(iterations), "SOLVER.IMS_PER_BATCH", "4"]
        words += [
            "INPUT.SIZE",
            "32",
            "INPUT.SHORT_SIDE",
            "(32, 40)",
            "INPUT.RESIZE_TEST",
            "32",
            "MODEL.ARCH",
            "resnet18",
        ]
        words += ["DATASETS.TRAIN", str([str(tmp_path / "crops/train")]), "TEST.EVAL_PERIOD", "0"]
        words += ["DATASETS.TEST", str([str(tmp_path / "crops/val")]), "MODEL.ARCH", "resnet18"]
        path = tmp_path / "classifier.yaml"
        path.write_text(load_classifier_config("classification/quickstart.yaml", words).dump())
        classifier = Training("crops", str(path), reference_gpus=1, classifier=True)
        scratch = tiny_table("SOLVER.MAX_ITER", str(iterations)).rows[0]
        on_top = replace(scratch.training, name="on_top", start_from=classifier)
        rows = (scratch, Row("on_top", "on a classifier", on_top))
        return Table("tiny", "shapes", rows, (("r18", "on_top"),), on_cpu=True, seeds=2)

    return make


@pytest.mark.slow
def test_classifiers_come_first_and_commands_run_at_the_same_time(mixed_table, reproduce, tmp_path):
    printed = finish(reproduce(mixed_table(3), "--run", "--parallel", "2"))
    started = [line.split()[2] for line in printed.splitlines() if line.startswith("running: ")][:5]
    tools = [Path(tool).name for tool in started]
    assert tools.count("train_classifier.py") == 1 and "train_classifier.py" in tools[:2]
    assert "crops_s0: " in printed and "on_top_s1: " in printed
    output = tmp_path / "output"
    for seed in (0, 1):
        weights = read_yaml(output / f"on_top_s{seed}/config.yaml")["MODEL"]["WEIGHTS"]
        assert weights == (output / "crops_s0/weights.pth").as_posix()
    report = json.loads((output / "table_tiny.json").read_text())
    error = json.loads((output / "crops_s0/inference/metrics.json").read_text())["classification"]["top1_error"]
    assert [row["classifier_error"] for row in report["rows"]] == [None, error]
    assert all(row["ours"]["AP"]["n"] == 2 for row in report["rows"])
    assert f"| {error:.1f} " in (output / "table_tiny.md").read_text()
    compared = json.loads((output / "comparison_tiny/comparison.json").read_text())
    assert [len(run["other_seeds"]) for run in compared["runs"]] == [1, 1]


@pytest.mark.slow
def test_an_interruption_ends_all_commands_that_run_at_the_same_time(mixed_table, reproduce, tmp_path):
    process = reproduce(mixed_table(3000), "--run", "--parallel", "2")
    output = tmp_path / "output"
    logs = [output / name / "metrics.json" for name in ("shapes_resnet18_s0", "crops_s0")]
    assert process.wait_for(lambda: all(log.is_file() and log.stat().st_size for log in logs)), process.output
    process.send(signal.SIGINT)
    printed = finish(process, 130)
    assert printed.count("ending process") == printed.count("interrupted: ended by") == 2
    assert printed.count("running: python") == 2 and "the same command resumes" in printed
    assert not (output / "table_tiny.md").exists()


def test_a_failure_stops_the_others(tiny_table, reproduce, tmp_path):
    printed = finish(reproduce(tiny_table("MODEL.WEIGHTS", "nowhere.pth"), "--run", "--parallel", "2"), 1)
    assert "error: exit status 1 of: python" in printed
    assert printed.count("running: python") <= 2
    assert not (tmp_path / "output" / "table_tiny.md").exists()
