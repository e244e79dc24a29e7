"""tools/doctor.py on a config, on each engine: what fits passes, and every way not to fit is named."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from resnet_backbone.weights.catalog import MSRA_BGR, TORCHVISION_RGB

SECTIONS = ["versions", "registry", "config", "weights", "input", "data", "classification"]
NO_FIT = ["MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False"]


def said(report, section: str, kind: str = "wrong") -> str:
    return "\n".join(report["sections"][section][kind])


def statuses(report) -> dict[str, str]:
    return {name: section["status"] for name, section in report["sections"].items()}


@pytest.mark.parametrize("config", ["faster/r18_fpn.yaml", "faster/r18_c4.yaml", "retinanet/r18_fpn.yaml"])
def test_what_fits(examine, packaged_file, engine, config):
    status, report = examine(config, packaged_file("resnet18"))
    assert status == 0 and list(report["sections"]) == SECTIONS
    found = statuses(report)
    assert found.pop("versions") in ("ok", "warning")  # Detectron2 may lack its compiled operators
    assert set(found.values()) == {"ok"}
    assert report["engine"] == engine and report["subject"] == config
    facts = report["sections"]["classification"]["facts"]
    assert facts["compared"] == "logits" and facts["relative_difference"] < 1e-5
    assert "generated picture" in said(report, "classification", "ok") and "images" not in facts
    loaded = report["sections"]["weights"]["facts"]["load"]
    convolutions = 15 if "c4" in config else 20  # those of res5 are in the head
    assert (loaded["loaded"], loaded["new_head"]) == (5 * convolutions, False)


@pytest.mark.parametrize("input_format", [TORCHVISION_RGB, MSRA_BGR], ids=["rgb", "msra"])
def test_input_is_taken_from_the_weights_and_measured(examine, packaged_file, input_format):
    status, report = examine("faster/r18_fpn.yaml", packaged_file("resnet18", input_format))
    measured = report["sections"]["input"]["facts"]["measured"]
    assert status == 0 and measured["channel_order"] == input_format.channel_order
    assert measured["mean"] == pytest.approx(input_format.mean, abs=1e-3)
    assert measured["std"] == pytest.approx(input_format.std, abs=1e-3)


def test_classes_are_torchvisions_own(examine, packaged_file, raw_file, photo):
    """The oracle is torchvision's ResNet, with its own transforms and names, on the same file."""
    status, report = examine("faster/r18_fpn.yaml", packaged_file("resnet18"), images=[photo])
    (found,) = report["sections"]["classification"]["facts"]["images"]
    network = torchvision.models.resnet18(weights=None).eval()
    network.load_state_dict(torch.load(raw_file("resnet18"), weights_only=True))
    image = transforms.pil_to_tensor(Image.open(photo))
    image = transforms.center_crop(transforms.resize(image, [256], antialias=True), [224, 224])
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (TORCHVISION_RGB.mean, TORCHVISION_RGB.std))
    with torch.inference_mode():
        probabilities = network(((image - mean) / std)[None]).softmax(dim=1)[0]
    names = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    best = probabilities.topk(5)
    assert status == 0 and found["image"] == str(photo)
    assert [entry["class"] for entry in found["top5"]] == [names[index] for index in best.indices]
    assert [entry["probability"] for entry in found["top5"]] == pytest.approx(best.values.tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT: RGB"),
        (["MODEL.PIXEL_STD", "(1.0, 1.0, 1.0)"], "MODEL.PIXEL_STD: [58.395, 57.12, 57.375]"),
        (["MODEL.PIXEL_MEAN", "(103.53, 116.28, 123.675)"], "MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53]"),
    ],
)
def test_a_config_with_another_input_than_the_weights(examine, packaged_file, overrides, line):
    status, report = examine("faster/r18_fpn.yaml", packaged_file("resnet18"), *NO_FIT, *overrides)
    assert status == 1 and report["status"] == "wrong"
    assert line in said(report, "input")
    assert statuses(report)["classification"] in ("wrong", "not run")
    assert statuses(report)["config"] == "ok"  # it is not the fault of its parts


def test_a_stride_elsewhere(examine, packaged_file):
    weights = packaged_file("resnet50")
    status, report = examine("faster/r50_fpn.yaml", weights, *NO_FIT, "MODEL.RESNETS.STRIDE_IN_1X1", "True")
    assert status == 1 and "MODEL.RESNETS.STRIDE_IN_1X1: False" in said(report, "input")


def test_weights_of_a_deeper_network(examine, packaged_file):
    status, report = examine("faster/r18_fpn.yaml", packaged_file("resnet50"))
    assert status == 1 and "weights of resnet50, not of resnet18" in said(report, "weights")
    assert statuses(report)["classification"] == "not run" and statuses(report)["config"] == "ok"


def test_another_norm(examine, packaged_file):
    status, report = examine("faster/r18_fpn.yaml", packaged_file("resnet18"), "MODEL.RESNET_BACKBONE.NORM", "GN")
    assert status == 1 and "running_mean" in said(report, "weights")


def test_a_truncated_file(examine, packaged_file, tmp_path):
    (tmp_path / "cut.pth").write_bytes(packaged_file("resnet18").read_bytes()[:100_000])
    status, report = examine("faster/r18_fpn.yaml", tmp_path / "cut.pth")
    assert status == 1 and "not a complete torch file" in said(report, "weights")


def test_weights_that_cannot_be_downloaded(examine, tmp_path, monkeypatch):
    """A proxy that nobody listens on stands for a machine without network: the run would fail, so it is wrong."""
    monkeypatch.setattr("resnet_backbone.weights.download.BACKOFF_S", 0)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    status, report = examine("faster/r18_fpn.yaml", "imagenet://resnet18/IMAGENET1K_V1")
    assert status == 1 and "resnet18-f37072fd.pth" in said(report, "weights")
    assert "MODEL.WEIGHTS cannot be used" in report["sections"]["classification"]["reason"]


def test_weights_that_do_not_say_their_input(examine, raw_file, photo):
    status, report = examine("faster/r18_fpn.yaml", raw_file("resnet18"))
    assert status == 1 and "resnet-backbone package" in said(report, "input")
    assert "nobody knows" in report["sections"]["classification"]["reason"]
    status, report = examine("faster/r18_fpn.yaml", raw_file("resnet18"), *NO_FIT, images=[photo])
    assert status == 0 and "unchecked" in said(report, "input", "warnings")
    facts = report["sections"]["classification"]["facts"]
    assert len(facts["images"][0]["top5"]) == 5 and "relative_difference" not in facts


def test_unknown_names(examine):
    status, report = examine("quickstart.yaml", "", "MODEL.BACKBONE.NAME", "build_imagenet_fnp_backbone")
    assert status == 1 and "build_imagenet_fpn_backbone" in said(report, "config")
    assert statuses(report)["classification"] == "not run"
    status, report = examine("quickstart.yaml", "", "MODEL.RESNET_BACKBONE.ARCH", "resnet19")
    assert status == 1 and "MODEL.RESNET_BACKBONE.ARCH 'resnet19' must be one of plain18" in said(report, "config")
    known = report["sections"]["registry"]["facts"]
    assert "resnet18" in known["MODEL.RESNET_BACKBONE.ARCH"]
    assert "build_imagenet_retinanet_fpn_backbone" in known["MODEL.BACKBONE.NAME"]


def test_parts_that_do_not_fit_each_other(examine):
    status, report = examine("quickstart.yaml", "", "MODEL.FPN.IN_FEATURES", "['res2', 'res4', 'res5']")
    assert status == 1 and "must double" in said(report, "config")


def test_missing_data(examine):
    status, report = examine("quickstart.yaml", "", "DATASETS.TEST", "('coco_2017_val',)")
    assert status == 1 and "prepare coco" in said(report, "data")
    assert "shapes_train" in said(report, "data", "ok")
    status, report = examine("quickstart.yaml", "", "DATASETS.TEST", "('shapes_vall',)")
    assert status == 1 and "unknown data set 'shapes_vall'" in said(report, "data")


def test_random_weights(examine):
    status, report = examine("quickstart.yaml", "")
    assert status == 0 and statuses(report)["classification"] == "not run"
    assert "random weights" in report["sections"]["classification"]["reason"]
    assert said(report, "config", "warnings") == ""
    status, report = examine("quickstart.yaml", "", "MODEL.BACKBONE.FREEZE_AT", "2")
    assert status == 0 and "layers stay random" in said(report, "config", "warnings")


def test_a_dilated_trunk_is_compared_below_its_dilation(examine, packaged_file, photo):
    status, report = examine("faster/r18_dc5.yaml", packaged_file("resnet18"), images=[photo])
    facts = report["sections"]["classification"]["facts"]
    assert status == 0 and facts["compared"] == "res4" and facts["relative_difference"] < 1e-5
    assert "dilated" in said(report, "classification", "warnings") and len(facts["images"][0]["top5"]) == 5


def test_vgg_with_its_own_head(examine, packaged_vgg):
    arch = ["MODEL.RESNET_BACKBONE.ARCH", "vgg16_bn", "MODEL.RESNET_BACKBONE.NORM", "FrozenBN"]
    status, report = examine("faster/vgg16_c5.yaml", packaged_vgg, *arch)
    assert status == 0 and report["sections"]["classification"]["facts"]["compared"] == "logits"
    assert "of fc6, fc7 in the head" in said(report, "weights", "ok")


def test_an_image_that_is_none(examine, packaged_file, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    status, report = examine("faster/r18_fpn.yaml", packaged_file("resnet18"), images=[tmp_path / "text.jpg"])
    assert status == 1 and "cannot be read as an image" in said(report, "classification")


def test_the_engine_that_is_there(doctor):
    """auto is Detectron2 where it is installed; asked for where it is not, the report says how to install it."""
    installed = importlib.util.find_spec("detectron2") is not None
    words = ["--config-file", "quickstart.yaml", "MODEL.DEVICE", "cpu"]
    status, report = doctor(*words)
    assert status == 0 and report["engine"] == ("detectron2" if installed else "torchvision")
    if not installed:
        status, report = doctor("--engine", "detectron2", *words)
        assert status == 1 and "git+https://github.com/facebookresearch/detectron2.git" in said(report, "versions")
        assert set(statuses(report).values()) == {"wrong", "not run"}
