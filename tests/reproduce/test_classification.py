"""The classification tables: what their trainings cost, their plans, and a small one run for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet_backbone.classification.config import load_config
from resnet_backbone.data.prepare.shapes import write_crops
from resnet_backbone.metrics.paper import paper_row
from resnet_backbone.models.complexity import build_on_meta, complexity
from resnet_backbone.reproduce.jobs import Jobs, TableOptions
from resnet_backbone.reproduce.plan import missing_data, plan_text
from resnet_backbone.reproduce.tables import V100_FLOPS, Row, Table, Training, all_tables
from tests.helpers import load_training

IMAGENET = {
    row.training.name: row.training
    for table in all_tables().values()
    for row in table.rows
    if row.training.name.startswith("imagenet")
}


@pytest.mark.parametrize("name", IMAGENET)
def test_the_cost_of_a_training_is_that_of_its_network(name):
    """Forward and twice that backward."""
    node = load_config(IMAGENET[name].config).MODEL
    (seconds, _) = IMAGENET[name].cost.v100_seconds
    network = build_on_meta(node.ARCH, shortcut=node.SHORTCUT or None, stride_in_1x1=node.STRIDE_IN_1X1)
    assert complexity(network, 224).multiply_adds / 1e9 == pytest.approx(seconds * V100_FLOPS / 2 / 3 / 1e9, abs=6e-4)


@pytest.mark.parametrize("number", ["2", "3", "4", "6"])
def test_a_row_trains_the_network_that_the_paper_names(number):
    table = all_tables()[number]
    for row in table.rows:
        cfg = load_config(row.training.config)
        if row.paper is not None and row.paper.arch:
            assert cfg.MODEL.ARCH == row.paper.arch
            usual = "A" if cfg.MODEL.ARCH.startswith("cifar_resnet") else "B" if "resnet" in cfg.MODEL.ARCH else ""
            assert (cfg.MODEL.SHORTCUT or usual) == row.paper.shortcut, row.key


def test_the_figures_of_the_paper_stand_in_the_tables():
    tables = all_tables()
    by_key = {row.key: row.paper for row in tables["3"].rows}
    assert by_key["resnet34_b_10_crop"].figures == {"top1_error": 24.52, "top5_error": 7.46}
    assert tables["2"].row("plain34_10_crop").paper.figures["top1_error"] == 28.54
    assert tables["6"].row("resnet1202").paper == paper_row(6, "resnet1202")
    assert tables["6"].row("resnet110_stochastic_depth").paper is None


def test_the_ensemble_of_table_5_has_six_networks_two_of_152_layers():
    jobs = Jobs(all_tables()["5"], TableOptions(Path("output")), load_training)
    (job,) = jobs.of_row("ensemble_multi_scale")
    networks = [job.cfg.MODEL.WEIGHTS, *(f"{member}/model_final.pth" for member in job.cfg.TEST.ENSEMBLE)]
    assert len(set(networks)) == 6 and sum("resnet152" in network for network in networks) == 2
    assert {f"{made.folder.as_posix()}/model_final.pth" for made in jobs if not made.eval_only} == set(networks)
    assert job.cfg.TEST.VIEWS == "multi-scale"


def test_data_that_is_missing_is_named_with_what_gets_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    jobs = Jobs(all_tables()["cifar"], TableOptions(tmp_path / "output"), load_training)
    assert missing_data(jobs) == [
        (name, "resnet-backbone prepare cifar10") for name in ("cifar10_jpeg_train", "cifar10_jpeg_test")
    ]
    assert "resnet-backbone prepare cifar10" in plan_text(jobs, "tools", "")
    for split in ("train", "test"):
        (tmp_path / "cifar10_jpeg" / split).mkdir(parents=True)
    assert missing_data(jobs) == []


def test_table_1_is_counted_and_classifiers_have_no_engine(load_script, monkeypatch, capsys):
    tool = load_script("tools/reproduce.py")
    commands = []
    monkeypatch.setattr(tool, "run_command", lambda words, _: commands.append(words))
    assert tool.main(["--table", "1"]) == 0
    assert commands == [[str(tool.TOOLS / "analyze_model.py"), "table"]]
    assert tool.main(["--table", "6", "--engine", "torchvision"]) == 1
    assert "leave out --engine" in capsys.readouterr().err


@pytest.fixture
def tiny_table(shapes, tmp_path) -> Table:
    """Two networks and ten crops of the first, and the mean of three, on crops of the shapes."""
    for split in ("train", "val"):
        folder = shapes / "shapes"
        write_crops(folder / f"annotations/{split}.json", folder / split, tmp_path / "crops" / split)
    trainings = []
    for arch in ("cifar_plain20", "cifar_resnet20"):
        words = ["MODEL.ARCH", arch, "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)"]
        words += ["SOLVER.IMS_PER_BATCH", "8", "TEST.EVAL_PERIOD", "0", "SOLVER.CHECKPOINT_PERIOD", "2"]
        words += ["INPUT.RESIZE_TEST", "40"]  # ten crops need more than the crop
        words += ["DATASETS.TRAIN", str([str(tmp_path / "crops/train")])]
        words += ["DATASETS.TEST", str([str(tmp_path / "crops/val")])]
        path = tmp_path / f"{arch}.yaml"
        path.write_text(load_config("classification/cifar10_resnet20.yaml", words).dump())
        trainings.append(Training(arch, str(path), reference_gpus=1, classifier=True))
    rows = (
        Row("plain", "plain-20", trainings[0]),
        Row("resnet", "ResNet-20", trainings[1]),
        Row("crops", "ten crops", trainings[1], ("TEST.VIEWS", "10-crop")),
        Row("both", "both", trainings[1], members=((trainings[0], 0),)),
    )
    return Table("tiny", "crops", rows, (("plain", "resnet"),), ("top1_error",), "classification", on_cpu=True)


@pytest.mark.slow
def test_a_table_is_run_stopped_and_reported(reproduce, tiny_table, tmp_path):
    status, output = reproduce(tiny_table, "--run", engine="auto").finish()
    assert status == 0, output
    report = json.loads((tmp_path / "output/table_tiny.json").read_text())
    errors = {row["key"]: row["ours"]["top1_error"]["mean"] for row in report["rows"]}
    assert errors.keys() == {"plain", "resnet", "crops", "both"} and all(0 <= error <= 100 for error in errors.values())
    for key, folder in (("plain", "cifar_plain20_s0"), ("both", "cifar_resnet20_s0_both")):
        metrics = json.loads((tmp_path / "output" / folder / "inference/metrics.json").read_text())
        assert metrics["classification"]["top1_error"] == errors[key]
    assert list((tmp_path / "output/curves_tiny").glob("*.png"))
    status, output = reproduce(tiny_table, "--run", engine="auto").finish()
    assert status == 0 and output.count("is finished") == 4, output
    assert "--eval-only" not in output.split("Commands that made")[0]
