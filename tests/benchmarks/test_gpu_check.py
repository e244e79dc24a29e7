"""The GPU check runs to its end on the CPU, on one network and one config."""

from __future__ import annotations

import json

import pytest
import torch


@pytest.fixture
def gpu_check(load_script):
    return load_script("benchmarks/gpu_check.py")


SMALL = ["--device", "cpu", "--height", "96", "--width", "128", "--batch-size", "1", "--steps", "1"]


def test_a_small_check_passes_and_writes_its_result(gpu_check, tmp_path, capsys):
    output = tmp_path / "result.json"
    status = gpu_check.main([*SMALL, "--only", "resnet18", "quickstart.yaml", "--output", str(output)])
    result = json.loads(output.read_text())
    assert status == 0 and result["passed"]
    assert result["parity"] == [{"name": "resnet18", "relative_error": 0.0, "ok": True}]
    assert [row["relative_error"] for row in result["detectors"]] == [0.0]
    assert [row["precision"] for row in result["training"]] == ["float32", "bfloat16"]
    assert all(row["images_per_second"] > 0 for row in result["training"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


@pytest.mark.parametrize("name", ["mask/r18_fpn.yaml", "retinanet/r18_fpn.yaml"])
def test_other_detectors_than_faster_rcnn(gpu_check, name):
    row = gpu_check.check(gpu_check.detector_parity, name, torch.device("cpu"))
    assert row["ok"] and row["relative_error"] == 0.0, row


def test_a_difference_is_a_failure(gpu_check, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "PARITY_TOLERANCE", -1.0)
    output = tmp_path / "result.json"
    assert gpu_check.main([*SMALL, "--only", "resnet18", "--output", str(output)]) == 1
    assert not json.loads(output.read_text())["passed"]


def test_what_cannot_run_is_a_row(gpu_check):
    row = gpu_check.check(gpu_check.network_parity, "resnet19", torch.device("cpu"))
    assert row["name"] == "resnet19" and not row["ok"] and "unknown model" in row["error"]


def test_every_detector_config_is_checked(gpu_check):
    names = set(gpu_check.config_names())
    assert {"frcnn_r101.yaml", "frcnn_vgg16.yaml", "Base-RCNN-C4.yaml", "Base-RCNN-VGG-C5.yaml"} <= names
    assert {
        "paper/frcnn_r101.yaml",
        "paper/frcnn_vgg16.yaml",
        "voc/r101_0712_from_coco.yaml",
        "bccd_r101.yaml",
    } <= names
    assert not any(
        name.startswith(("Base-Compare", "small/Base-")) or name.endswith(("Base-Paper.yaml", "Base-VOC.yaml"))
        for name in names
    )
