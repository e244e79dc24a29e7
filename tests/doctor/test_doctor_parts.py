"""The parts of the examination on detectors that are broken on purpose, after their config was found right."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from resnet_backbone.doctor import DetectorParts, Report, Section
from resnet_backbone.doctor.checkpoint import read_checkpoint
from resnet_backbone.doctor.classification import (
    TOLERANCE,
    build_classifier,
    comparable_output,
    compare,
    generated_image,
    graft,
    measure_input,
    normalise,
)
from resnet_backbone.doctor.examine import check_tensors, pair_problem
from resnet_backbone.models.resnet import Bottleneck
from resnet_backbone.weights import InputFormat


@pytest.fixture(params=["torchvision", "detectron2"])
def engine(request: pytest.FixtureRequest) -> Any:
    if request.param == "torchvision":
        from resnet_backbone.torchvision_plugin.doctor import TorchvisionEngine

        return TorchvisionEngine()
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin.doctor import Detectron2Engine

    return Detectron2Engine()


@pytest.fixture
def built(engine, packaged_file):
    """``built("faster/r50_fpn.yaml")``: the checkpoint and the parts of a detector that is right."""

    def build(config: str) -> tuple[Any, DetectorParts]:
        arch = "resnet18" if "r18" in config else "resnet50"
        checkpoint = read_checkpoint(str(packaged_file(arch)))
        cfg = engine.load_config(config, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", checkpoint.source])
        return checkpoint, engine.build(cfg, checkpoint, (), Section("weights"))

    return build


def compared(checkpoint, parts: DetectorParts):
    classifier = build_classifier(checkpoint.weights, parts.trunk)
    grafted = graft(classifier, parts)
    return compare(parts, classifier, grafted, comparable_output(grafted), generated_image(), checkpoint.weights)


def with_input(parts: DetectorParts, change) -> DetectorParts:
    return dataclasses.replace(parts, prepare=lambda image: change(parts.prepare(image)))


def test_nothing_broken(built):
    difference, causes = compared(*built("faster/r50_c4.yaml"))
    assert difference < 1e-5 and causes == []


def test_channels_swapped_on_the_way(built):
    checkpoint, parts = built("faster/r18_fpn.yaml")
    difference, causes = compared(checkpoint, with_input(parts, lambda x: x.flip(1)))
    assert difference > TOLERANCE
    assert "they arrive as BGR, the weights want RGB" in causes[0]


def test_the_std_forgotten(built):
    checkpoint, parts = built("faster/r18_fpn.yaml")
    std = torch.tensor(checkpoint.weights.input_format.std).reshape(1, 3, 1, 1)
    difference, causes = compared(checkpoint, with_input(parts, lambda x: x * std))
    assert difference > TOLERANCE
    assert causes == ["there is no division by the std, the weights want [58.395, 57.120, 57.375]"]


def test_the_stride_elsewhere(built):
    checkpoint, parts = built("faster/r50_c4.yaml")
    for block in [*parts.trunk.modules(), *(m for part in parts.head_parts.values() for m in part.modules())]:
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    difference, causes = compared(checkpoint, parts)
    assert difference > TOLERANCE
    assert causes == ["the stride sits elsewhere in the bottlenecks: write MODEL.RESNETS.STRIDE_IN_1X1: False"]


@pytest.mark.parametrize("in_head", [False, True])
def test_a_tensor_that_is_not_the_files(built, in_head):
    checkpoint, parts = built("faster/r18_c4.yaml")
    broken = parts.head_parts["res5"] if in_head else parts.trunk.get_submodule("res3")
    with torch.no_grad():
        broken.get_parameter("0.conv2.weight").mul_(1.5)
    section = Section("weights")
    check_tensors(section, parts, checkpoint, strict=True)
    (text,) = section.texts("wrong")
    assert text.startswith("1 of 100 tensors") and ("res5" if in_head else "res3") + ".0.conv2.weight" in text
    difference, causes = compared(checkpoint, parts)
    assert difference > TOLERANCE and "network itself" in causes[0]


@pytest.mark.parametrize("channel_order", ["RGB", "BGR"])
def test_measured_is_what_was_computed(channel_order):
    wanted = InputFormat(channel_order, (11.0, 22.5, 130.25), (1.0, 57.5, 200.0))
    measured = measure_input(lambda image: normalise(image, wanted, (256, 256)))
    assert measured is not None and measured.differences(wanted) == []
    assert measured.mean == pytest.approx(wanted.mean, abs=1e-3) and measured.std == pytest.approx(wanted.std)


def test_what_is_no_mean_and_std_is_not_measured():
    assert measure_input(lambda image: image[None].float() ** 2) is None
    assert measure_input(lambda image: image[None].float().mean(1, keepdim=True).expand(1, 3, 224, 224)) is None
    assert measure_input(lambda image: image[None, :1].float()) is None


def test_a_trunk_that_the_classifier_does_not_have(packaged_file):
    weights = read_checkpoint(str(packaged_file("resnet18"))).weights
    trunk = build_classifier(weights)
    trunk.add_module("extra", nn.Identity())
    with pytest.raises(ValueError, match="resnet18 as a classifier has no extra"):
        graft(build_classifier(weights), DetectorParts(trunk, {}, lambda image: image))


@pytest.mark.parametrize(
    ("torch_version", "torchvision_version", "problem"),
    [
        ("2.14.1", "0.29.1", ""),
        ("2.6.0+cu124", "0.21.0+cu124", ""),
        ("2.6.0+cu124", "0.21.0", ""),
        ("2.14.1", "0.28.0", "torchvision==0.29.*"),
        ("2.6.0", "0.29.1", "torchvision==0.21.*"),
        ("2.14.1+cpu", "0.29.1+cu130", "torch is built for cpu, torchvision for cu130"),
    ],
)
def test_torch_and_torchvision_come_in_pairs(torch_version, torchvision_version, problem):
    found = pair_problem(torch_version, torchvision_version)
    assert problem in found and bool(problem) == bool(found)


def test_the_text_ends_with_what_is_wrong():
    report = Report("some.yaml", "torchvision")
    report["data"].ok("there")
    report["versions"].wrong("old\nwrite pip")
    report["input"].warning("unchecked")
    report.not_run("nothing to do")
    lines = report.text().splitlines()
    assert lines[0] == "some.yaml on the torchvision engine"
    assert [line.split()[:2] for line in lines[1:4]] == [["wrong", "versions"], ["not", "run"], ["not", "run"]]
    assert lines[-6:] == ["warning: input", "  unchecked", "", "wrong: versions", "  old", "  write pip"]
    assert report.status == "wrong" and report["config"].to_dict()["reason"] == "nothing to do"
