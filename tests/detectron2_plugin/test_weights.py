"""Loads that must work, with Detectron2's own checkpointer: its zoo, ImageNet, what we train, and what others wrap."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

FPN, C4 = "COCO-Detection/faster_rcnn_R_50_FPN_1x", "COCO-Detection/faster_rcnn_R_50_C4_1x"


def caffe2_name(name: str) -> str:
    """The blob of Detectron2's MSRA/R-50.pkl for a name of ours; from detectron2 issue 1688."""
    name = name.replace("stem.conv1.norm", "res_conv1_bn").replace("stem.conv1", "conv1").replace("linear", "fc1000")
    for ours, theirs in (("shortcut", "branch1"), ("conv1", "branch2a"), ("conv2", "branch2b"), ("conv3", "branch2c")):
        if name.startswith(("res2", "res3", "res4", "res5")):
            name = name.replace(f".{ours}.", f".{theirs}.")
    name = name.replace("norm.weight", "bn_gamma").replace("norm.bias", "bn_beta").replace("norm.", "bn_")
    name = name.replace("res_conv1_bn.weight", "res_conv1_bn_gamma").replace("res_conv1_bn.bias", "res_conv1_bn_beta")
    return name.replace(".weight", "_w").replace(".bias", "_b").replace(".", "_")


def filled(model: nn.Module, state: dict[str, torch.Tensor], prefixes: dict[str, str]) -> None:
    """Every tensor below ``prefixes`` must hold that of the classifier."""
    checked = 0
    for name, tensor in model.state_dict().items():
        for prefix, ours in prefixes.items():
            if name.startswith(prefix):
                assert torch.equal(tensor, state[ours + name.removeprefix(prefix)]), name
                checked += 1
    assert checked > 50


@pytest.mark.parametrize(("config", "kind"), [(FPN, "pth"), (FPN, "pkl"), (C4, "ddp")])
def test_detectors_of_the_zoo_load_into_ours_and_ours_into_theirs(
    tmp_path, stock_config, in_place, randomised, same_tensors, config, kind
):
    cfg = stock_config(config)
    theirs, ours = randomised(build_model(cfg)), build_model(in_place(cfg))
    for source, target in ((theirs, ours), (randomised(ours, seed=1), theirs)):
        expected = copy.deepcopy(source.state_dict())
        if kind == "pth":
            DetectionCheckpointer(source, str(tmp_path)).save("model", iteration=7)
        elif kind == "ddp":
            state = {f"module.{name}": tensor for name, tensor in expected.items()}
            torch.save({"model": state}, tmp_path / "model.pth")
        else:
            state = {name: tensor.numpy() for name, tensor in expected.items()}
            file = {"model": state, "__author__": "Detectron2 Model Zoo"}
            (tmp_path / "model.pkl").write_bytes(pickle.dumps(file))
        path = tmp_path / f"model.{'pkl' if kind == 'pkl' else 'pth'}"
        DetectionCheckpointer(target).load(str(path))
        same_tensors(target.state_dict(), expected)
        path.unlink()


@pytest.mark.parametrize("kind", ["msra", "detectron2", "packaged"])
@pytest.mark.parametrize("head", ["Res5ROIHeads", "ImageNetRes5ROIHeads"])
def test_a_whole_imagenet_file_fills_a_c4_trunk_and_its_res5(
    tmp_path, stock_config, in_place, numbered, checkpoint, caplog, kind, head
):
    """MSRA's files are in Caffe2's names, with a bias that nobody uses; Detectron2's have counters and a classifier."""
    cfg = in_place(stock_config(C4))
    cfg.MODEL.ROI_HEADS.NAME = head
    model = build_model(cfg)
    state = numbered("resnet50")
    path = tmp_path / "R-50.pkl"
    if kind == "msra":
        blobs = {caffe2_name(n): t.numpy() for n, t in state.items() if not n.endswith("num_batches_tracked")}
        assert (
            blobs["res_conv1_bn_running_mean"].shape
            == blobs["conv1_w"].shape[:1]
            == blobs["res2_0_branch2a_bn_beta"].shape
        )
        blobs["conv1_b"] = blobs["res_conv1_bn_beta"]
        path.write_bytes(pickle.dumps(blobs))
    elif kind == "detectron2":
        arrays = {name.replace("linear", "fc1000"): tensor.numpy() for name, tensor in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "torchvision", "matching_heuristics": True}))
    else:
        checkpoint(path.with_suffix(".pth"), state)
        path = path.with_suffix(".pth")
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(model).load(str(path))
    filled(model, state, {"backbone.": "", "roi_heads.res5.": "res5."})
    assert "resnet50: the checkpoint fills all 215 tensors of backbone" in caplog.text
    assert "num_batches_tracked" not in caplog.text


@pytest.mark.parametrize("arch", ["resnet18", "resnet101", "vgg16", "vgg19_bn", "plain34"])
def test_a_whole_imagenet_file_fills_the_trunk_below_a_pyramid(tmp_path, small_model, numbered, checkpoint, arch):
    model = small_model(arch, device="cpu")
    state = numbered(arch)
    DetectionCheckpointer(model).load(checkpoint(tmp_path / "w.pth", state))
    prefix = "backbone.bottom_up."
    for name, tensor in model.state_dict().items():
        if name.startswith(prefix) and not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name.removeprefix(prefix)]), name


def test_trap_5_counters_of_batch_norm_are_not_reported(tmp_path, small_model, numbered, caplog):
    """They are in every file that was trained with batch norm, and would hide what matters."""
    model = small_model("resnet18", device="cpu")
    state = model.state_dict() | numbered("resnet18", "backbone.bottom_up.", num_classes=0)
    assert sum(name.endswith("num_batches_tracked") for name in state) == 20
    torch.save({"model": state}, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(model).load(str(tmp_path / "w.pth"))
    assert "the checkpoint fills all 100 tensors" in caplog.text
    assert "num_batches_tracked" not in caplog.text and "not used by the model" not in caplog.text


def test_batch_norm_keeps_its_counters(tmp_path, small_model):
    source = small_model("resnet18", "MODEL.RESNET_BACKBONE.NORM", "BN", device="cpu")
    counters = [tensor for name, tensor in source.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20  # those of the frozen stages, too
    for tensor in counters:
        tensor.fill_(41)
    DetectionCheckpointer(source, str(tmp_path)).save("model")
    target = small_model("resnet18", "MODEL.RESNET_BACKBONE.NORM", "BN", device="cpu")
    DetectionCheckpointer(target).load(str(tmp_path / "model.pth"))
    for name, tensor in target.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert tensor == 41, name


def test_resume(tmp_path, small_model, same_tensors):
    source, target = (small_model("resnet18", device="cpu") for _ in range(2))
    DetectionCheckpointer(source, str(tmp_path)).save("model_0000009", iteration=9)
    rest = DetectionCheckpointer(target, str(tmp_path)).resume_or_load("imagenet://resnet18/NONE", resume=True)
    assert rest["iteration"] == 9
    same_tensors(target.state_dict(), source.state_dict())


class StudentAndTeacher(nn.Module):
    """As in semi-supervised detection: a model, and the moving average of its weights."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher


@pytest.mark.parametrize("teacher", ["resnet18", "resnet34"])
def test_a_second_backbone_beside_ours(tmp_path, small_model, same_tensors, teacher):
    source, target = (
        StudentAndTeacher(small_model("resnet18", device="cpu"), small_model(teacher, device="cpu")) for _ in range(2)
    )
    DetectionCheckpointer(source, str(tmp_path)).save("model")
    DetectionCheckpointer(target).load(str(tmp_path / "model.pth"))
    same_tensors(target.state_dict(), source.state_dict())


@pytest.mark.parametrize("teacher", ["resnet18", "resnet34"])
def test_a_moving_average_in_the_file_that_the_model_lacks(tmp_path, small_model, numbered, teacher):
    source, target = (small_model("resnet18", device="cpu") for _ in range(2))
    average = numbered(teacher, "ema.backbone.bottom_up.", num_classes=0)
    torch.save({"model": source.state_dict() | average, "ema_state": average}, tmp_path / "w.pth")
    DetectionCheckpointer(target).load(str(tmp_path / "w.pth"))
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_a_pyramids_trunk_in_a_c4_model(tmp_path, stock_config, in_place, numbered):
    """The trunk's res5 is not built here: a stage that the model lacks is no part of it."""
    model = build_model(in_place(stock_config(C4)))
    state = numbered("resnet50", "backbone.", num_classes=0)
    torch.save({"model": state}, tmp_path / "w.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "w.pth"))
    filled(model, {n.removeprefix("backbone."): t for n, t in state.items()}, {"backbone.": ""})
