"""The paper's pair in small: all stages on the CPU at a toy size; what runs where time is short, or a stage fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import paper_pair
from resnet_backbone.reproduce.jobs import Jobs, TableOptions
from resnet_backbone.reproduce.tables import all_tables
from tests.helpers import load_training
from tests.processes import ROOT, Forked

PAIRS = [("VGG-16", "ResNet-101"), ("plain-34", "ResNet-34"), ("ResNet-34", "ResNet-50"), ("ResNet-50", "ResNet-101")]
NETWORKS = ["vgg16", "resnet101", "plain34", "resnet34", "resnet50"]


def rehearse(output: Path, *words: str) -> tuple[str, dict]:
    def main() -> int:
        return paper_pair.main(["--rehearse", "--output", str(output), *words])

    status, printed = Forked(main, folder=ROOT, environment={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}).finish(
        timeout=1800
    )
    assert status == 0, printed
    return printed, json.loads((output / "paper_pair.json").read_text())


@pytest.mark.slow
def test_a_rehearsal_goes_through_all_stages_and_a_second_call_runs_nothing(tmp_path):
    _, found = rehearse(tmp_path, "--minutes", "60")
    stages = {row["stage"]: row for row in found["stages"]}
    runs = [f"{kind}_{name}_gpu_s0" for name in NETWORKS for kind in ("cifar10", "small")]
    assert list(stages) == ["photographs", "scenes", *runs[:4], "comparison", *runs[4:]]
    assert {row["status"] for row in stages.values()} == {"finished"}
    for name in runs:
        figures = json.loads((tmp_path / name / "inference/metrics.json").read_text())
        (truth,) = (figures[metric] for metric in ("classification", "bbox") if metric in figures)
        names = {"top1_error"} if name.startswith("cifar10_") else {"AP", "AP50", "AP75"}
        assert stages[name]["figures"] == {figure: truth[figure] for figure in names}
    ap = {name: stages[f"small_{name}_gpu_s0"]["figures"]["AP"] for name in NETWORKS}
    assert [(gain["first"], gain["second"]) for gain in found["gains"] if gain["figure"] == "AP"] == PAIRS
    assert found["gains"][0]["absolute"] == pytest.approx(ap["resnet101"] - ap["vgg16"])
    assert "ResNet-101" in (tmp_path / "comparison_small-gpu/index.html").read_text()

    printed, again = rehearse(tmp_path)
    assert "running: " not in printed
    assert [row["figures"] for row in again["stages"] if "figures" in row] == [stages[name]["figures"] for name in runs]


def test_without_time_everything_is_left_out_and_said(tmp_path):
    printed, found = rehearse(tmp_path, "--minutes", "0")
    assert {row["status"].split(":")[0] for row in found["stages"]} == {"left out"} and len(found["stages"]) == 13
    assert "left out: needs scenes" in printed and "running: " not in printed
    assert not (tmp_path / "datasets").exists()


def test_a_stage_runs_where_what_it_needs_is_there_and_the_time_is_enough(tmp_path):
    jobs = Jobs(all_tables()["small-gpu"], TableOptions(tmp_path), load_training)
    record = paper_pair.Record(tmp_path / "paper_pair.json", {"device": "CPU"}, jobs, minutes=1)
    record.rows["before"] = {"stage": "before", "kind": "classifier", "status": "finished", "seconds": 80.0}
    ran = []

    def fail() -> None:
        raise OSError("the disk is full")

    for stage in (
        paper_pair.Stage("too long", "classifier", lambda: ran.append("too long")),
        paper_pair.Stage("breaks", "data", fail),
        paper_pair.Stage("without data", "detector", lambda: ran.append("without data"), needs=("breaks",)),
        paper_pair.Stage("short", "detector", lambda: ran.append("short"), needs=("before",)),
    ):
        record.run(stage)
    assert ran == ["short"]
    written = {row["stage"]: row["status"] for row in json.loads((tmp_path / "paper_pair.json").read_text())["stages"]}
    assert written["too long"] in (
        "left out: 60 s left, a classifier took 80",
        "left out: 59 s left, a classifier took 80",
    )
    assert written["breaks"] == "failed: the disk is full"
    assert written["without data"] == "left out: needs breaks"
    assert written["short"] == "finished"
    assert "the disk is full" in (tmp_path / "paper_pair.md").read_text()
    record.run(paper_pair.Stage("breaks", "data", lambda: None))
    assert record.rows["breaks"]["status"] == "finished"


def test_a_gpu_and_the_photographs_are_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper_pair.torch.cuda, "is_available", lambda: False)
    assert paper_pair.main(["--output", str(tmp_path / "out")]) == 1
    assert "no GPU that torch can use; --rehearse" in capsys.readouterr().err
    monkeypatch.setattr(paper_pair.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert paper_pair.main(["--output", str(tmp_path / "out")]) == 1
    assert "--cifar10" in capsys.readouterr().err and not (tmp_path / "out").exists()
