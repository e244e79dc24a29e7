"""tools/doctor.py on a file alone: what it is, and the config that it needs."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import yaml

from resnet_backbone.config.weights_input import input_of
from resnet_backbone.doctor.checkpoint import read_checkpoint
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.weights import get_entry, read_weights
from resnet_backbone.weights.catalog import MSRA_BGR
from resnet_backbone.weights.download import cached_weights_path

CPU = ("MODEL.DEVICE", "cpu")
DATA = ("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)")


def test_a_packaged_file_and_the_config_for_it(doctor, packaged_file, photo, tmp_path):
    path = packaged_file("resnet50", MSRA_BGR, True)
    status, report = doctor("--checkpoint", path, "--images", photo)
    assert status == 0 and report["status"] == "ok" and report["engine"] == ""
    facts = report["sections"]["weights"]["facts"]
    assert (facts["arch"], facts["norm"], facts["num_classes"]) == ("resnet50", "BN", 1000)
    assert facts["kind"] == "packaged weights" and facts["stride_in_1x1"] is True
    assert facts["input_format"]["channel_order"] == "BGR"
    assert len(report["sections"]["classification"]["facts"]["images"][0]["top5"]) == 5
    assert report["sections"]["config"]["reason"] == "no config was given"
    written = yaml.safe_load(facts["config"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"_BASE_": str(base("Base-RCNN-FPN.yaml")), **written}))
    strict = ["MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False", *CPU, *DATA]
    status, report = doctor("--config-file", tmp_path / "config.yaml", "--engine", "torchvision", *strict)
    assert status == 0 and report["status"] == "ok"


def base(name: str) -> Path:
    return Path(__file__).resolve().parents[2] / "configs" / name


def test_a_raw_file_does_not_say_its_input(doctor, raw_file):
    status, report = doctor("--checkpoint", raw_file("resnet50"))
    weights, given = report["sections"]["weights"], report["sections"]["input"]
    assert status == 0 and report["status"] == "warning"
    assert (weights["facts"]["arch"], weights["facts"]["input_format"]) == ("resnet50", None)
    assert "resnet-backbone package" in given["warnings"][0] and "--stride-in-1x1" in given["warnings"][0]
    assert "--stride-in-1x1" not in doctor("--checkpoint", raw_file("resnet18"))[1]["sections"]["input"]["warnings"][0]


def test_a_published_file_by_its_name(doctor, raw_file, tmp_path, monkeypatch):
    """Detectron2's files are published without a hash, so that one of ours can stand for it."""
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path))
    path = cached_weights_path(get_entry("resnet50", "MSRA"))
    path.parent.mkdir(parents=True)
    arrays = {name: tensor.numpy() for name, tensor in read_weights(raw_file("resnet50")).state_dict.items()}
    path.write_bytes(pickle.dumps(arrays))
    status, report = doctor("--checkpoint", "imagenet://resnet50/MSRA")
    facts = report["sections"]["weights"]["facts"]
    assert status == 0 and facts["catalog_name"] == "resnet50/MSRA" and facts["acc1"] == 75.3
    config = yaml.safe_load(facts["config"])
    assert config["MODEL"]["WEIGHTS"] == "imagenet://resnet50/MSRA"
    assert config["MODEL"]["RESNETS"] == {"STRIDE_IN_1X1": True} and config["INPUT"] == {"FORMAT": "BGR"}


def damage(state, how: str):
    if how == "not finite":
        state["layer3.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    elif how == "a tensor short":
        del state["layer2.1.bn2.running_var"]
    elif how == "a block short":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("layer3.1.")}
    elif how == "of another network":
        state["encoder.weight"] = torch.zeros(1)
    return state


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("not finite", "not finite: res4.0.conv1.weight"),
        ("a tensor short", "res3.1.conv2.norm.running_var"),
        ("a block short", "no complete network that we know"),
        ("of another network", "encoder.weight"),
    ],
)
def test_a_damaged_file(doctor, raw_file, tmp_path, how, message):
    state = damage(torch.load(raw_file("resnet18"), weights_only=True), how)
    torch.save(state, tmp_path / "weights.pth")
    status, report = doctor("--checkpoint", tmp_path / "weights.pth")
    assert status == 1 and message in report["sections"]["weights"]["wrong"][0]
    assert "config" not in report["sections"]["weights"]["facts"] or how == "a tensor short"


def test_a_truncated_and_a_missing_file(doctor, raw_file, tmp_path):
    (tmp_path / "cut.pth").write_bytes(raw_file("resnet18").read_bytes()[:100_000])
    for name, message in (("cut.pth", "not a complete torch file"), ("none.pth", "neither a file")):
        status, report = doctor("--checkpoint", tmp_path / name)
        assert status == 1 and message in report["sections"]["weights"]["wrong"][0]


@pytest.fixture
def trained(packaged_file, tmp_path):
    """A checkpoint as the torchvision engine writes it."""
    weights = read_weights(packaged_file("resnet18"))
    cfg = load_config("faster/r18_fpn.yaml", [*CPU, "MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    facts = {"input": input_of(cfg), "class_names": ["a", "b", "c"], "arch": "resnet18", "version": "0"}
    torch.save({"model": build_detector(cfg, weights).state_dict(), **facts}, tmp_path / "model_final.pth")
    return tmp_path / "model_final.pth"


def test_a_detector(doctor, trained):
    status, report = doctor("--checkpoint", trained)
    facts = report["sections"]["weights"]["facts"]
    assert status == 0 and facts["kind"] == "a detector's checkpoint"
    assert (facts["arch"], facts["num_detected"], facts["class_names"]) == ("resnet18", 3, ["a", "b", "c"])
    config = yaml.safe_load(facts["config"])
    assert config["MODEL"]["BACKBONE"] == {"NAME": "build_imagenet_fpn_backbone"}
    assert config["MODEL"]["RESNET_BACKBONE"] == {"ARCH": "resnet18", "NORM": "FrozenBN"}
    assert config["INPUT"] == {"FORMAT": "RGB"}
    assert "detectors have none" in report["sections"]["classification"]["reason"]


def test_a_detector_under_its_config_and_another(doctor, trained):
    words = ["--engine", "torchvision", "MODEL.WEIGHTS", trained, *CPU, *DATA]
    status, report = doctor("--config-file", "faster/r18_fpn.yaml", *words)
    facts = report["sections"]["classification"]["facts"]
    assert status == 0 and facts["compared"] == "res5" and facts["relative_difference"] < 1e-5
    status, report = doctor("--config-file", "faster/r18_fpn.yaml", *words, "MODEL.ROI_BOX_HEAD.FC_DIM", "64")
    assert status == 1 and "of another detector" in report["sections"]["weights"]["wrong"][0]


def test_a_detector_that_is_not_finite(doctor, trained, tmp_path):
    state = torch.load(trained, weights_only=True)
    state["model"]["roi_heads.box_predictor.cls_score.bias"][0] = float("inf")
    torch.save(state, tmp_path / "broken.pth")
    status, report = doctor("--checkpoint", tmp_path / "broken.pth")
    assert status == 1 and "cls_score.bias" in report["sections"]["weights"]["wrong"][0]


def test_a_detector_of_detectron2s_zoo(doctor, tmp_path):
    """Its file format and names, by its own model; its input is not in the file."""
    modeling = pytest.importorskip("detectron2.modeling", reason="Detectron2 is not installed")
    from detectron2.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "cpu", 5
    arrays = {name: tensor.numpy() for name, tensor in modeling.build_model(cfg).state_dict().items()}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    status, report = doctor("--checkpoint", tmp_path / "model.pkl")
    facts = report["sections"]["weights"]["facts"]
    assert status == 0 and (facts["arch"], facts["num_detected"]) == ("resnet50", 5)
    assert facts["builder"] == "build_imagenet_backbone" and facts["input_format"] is None
    assert "Detectron2's zoo: BGR" in report["sections"]["input"]["warnings"][0]
    words = ["--config-file", "faster/r50_c4.yaml", "MODEL.WEIGHTS", tmp_path / "model.pkl", *CPU, *DATA]
    status, report = doctor("--engine", "detectron2", *words)
    assert status == 1 and "INPUT_FROM_WEIGHTS: False" in report["sections"]["input"]["wrong"][0]
    status, report = doctor("--engine", "detectron2", *words, "MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False")
    assert status == 0 and "unchecked" in report["sections"]["input"]["warnings"][0]
    assert "265 tensors" in report["sections"]["weights"]["ok"][-1]
    status, report = doctor("--engine", "torchvision", *words)
    assert status == 1 and "INPUT_FROM_WEIGHTS: False" in report["sections"]["input"]["wrong"][0]


@pytest.mark.parametrize(
    ("config", "num_detected"),
    [("faster/r18_c4.yaml", 7), ("cascade/r50_fpn.yaml", 7), ("retinanet/r18_fpn.yaml", None)],
)
def test_how_many_classes_a_detector_without_names_tells_apart(tmp_path, config, num_detected):
    """RetinaNet scores classes times anchors: 63 may be 7 times 9, or 21 times 3."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin import config as plugin
    from resnet_backbone.detectron2_plugin.checkpoint import build_detector as build

    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.RETINANET.NUM_CLASSES", "7"]
    resnet18 = ["MODEL.RESNET_BACKBONE.ARCH", "resnet18", "MODEL.WEIGHTS", ""]
    model = build(plugin.load_config(config, [*CPU, *resnet18, *classes]))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    assert read_checkpoint(str(tmp_path / "model.pth")).num_detected == num_detected
    torch.save({"model": model.state_dict(), "class_names": list("abcdefg")}, tmp_path / "named.pth")
    assert read_checkpoint(str(tmp_path / "named.pth")).num_detected == 7


def test_overrides_need_a_config(doctor, raw_file):
    with pytest.raises(SystemExit) as caught:
        doctor("--checkpoint", raw_file("resnet18"), "MODEL.DEVICE", "cpu")
    assert caught.value.code == 2
