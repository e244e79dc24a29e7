"""Loads that Detectron2's own checkpointer accepts with a warning, and that must stop: nothing, a part, too much."""

from __future__ import annotations

import pickle

import pytest
import torch

from resnet_backbone.weights import WeightsError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY  # noqa: E402
from detectron2.utils.logger import setup_logger  # noqa: E402

from resnet_backbone.detectron2_plugin import load_trunk_weights  # noqa: E402

TRUNK = {"num_classes": 0}


def refusal(model, path) -> str:
    with pytest.raises(WeightsError) as caught:
        DetectionCheckpointer(model).load(str(path))
    return str(caught.value)


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
@pytest.mark.parametrize("arch", ["resnet50", "vgg16"])
def test_trap_1_raw_torchvision_file(tmp_path, small_model, published, arch, query):
    torch.save(published(arch), tmp_path / "raw.pth")
    model = small_model(arch)
    if query and not hasattr(DetectionCheckpointer(model), "_parsed_url_during_load"):
        pytest.skip("this Detectron2, v0.6, does not know the query")
    message = refusal(model, f"{tmp_path}/raw.pth{query}")
    assert "It has the names of torchvision or timm. Write MODEL.WEIGHTS: imagenet://ARCH/NAME" in message


@pytest.mark.parametrize(("file", "model"), [("resnet101", "resnet50"), ("resnet34", "resnet18")])
@pytest.mark.parametrize("kind", ["imagenet", "detector"])
def test_trap_2_deeper_weights_in_a_shallower_model(tmp_path, small_model, numbered, checkpoint, file, model, kind):
    """Nothing is missing; what is left over shows it: beside the model in ImageNet's names, inside of it in COCO's."""
    if kind == "imagenet":
        path = checkpoint(tmp_path / "w.pth", numbered(file))
    else:
        path = tmp_path / "w.pth"
        torch.save({"model": numbered(file, "backbone.bottom_up.", **TRUNK), "iteration": 9}, path)
    message = refusal(small_model(model), path)
    assert f"the checkpoint does not fit {model} at backbone.bottom_up" in message
    assert "tensors of the file fit nothing: res" in message and "are missing" not in message
    assert "Is it of another depth? MODEL.RESNET_BACKBONE.ARCH must be the network of the file" in message


@pytest.mark.parametrize(("file", "model"), [("resnet50", "resnet101"), ("resnet50", "resnet34"), ("vgg16", "vgg19")])
def test_weights_of_another_architecture(tmp_path, small_model, numbered, checkpoint, file, model):
    """The second is of detectron2 issue 5153: pages of warnings about shapes, and no error."""
    message = refusal(small_model(model), checkpoint(tmp_path / "w.pth", numbered(file)))
    assert "tensors are missing, or of another shape" in message and "Is it of another depth?" in message


@pytest.mark.parametrize("kind", ["imagenet", "detector"])
def test_trap_4_batch_norm_in_a_group_norm_model(tmp_path, small_model, numbered, checkpoint, kind):
    """gamma and beta fit, the statistics are left over."""
    state = numbered("resnet18", "" if kind == "imagenet" else "backbone.bottom_up.", **TRUNK)
    message = refusal(small_model("resnet18", "MODEL.RESNET_BACKBONE.NORM", "GN"), checkpoint(tmp_path / "w", state))
    assert "running_mean" in message
    assert "The file has batch norm: write MODEL.RESNET_BACKBONE.NORM: FrozenBN, BN or SyncBN" in message


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN"])
def test_trap_6_norms_without_running_statistics(tmp_path, small_model, numbered, checkpoint, norm):
    """Detectron2's FrozenBN takes them for statistics of 0 and 1; group norm's files look the same."""
    path = checkpoint(tmp_path / "w.pth", numbered("resnet18", norm="GN"))
    message = refusal(small_model("resnet18", "MODEL.RESNET_BACKBONE.NORM", norm), path)
    assert "The norms are not the same: MODEL.RESNET_BACKBONE.NORM: GN is for files with group norm" in message


def test_half_of_a_file(tmp_path, small_model, numbered, checkpoint):
    state = {name: tensor for name, tensor in numbered("resnet18").items() if not name.startswith("res5.1.")}
    message = refusal(small_model("resnet18"), checkpoint(tmp_path / "w.pth", state))
    assert "10 of 100 tensors are missing, or of another shape: res5.1.conv1.norm.bias, " in message


def test_nothing_of_the_model(tmp_path, small_model, numbered):
    """A detector on a pyramid into one without, where the names are others; and ImageNet's, without name matching."""
    torch.save({"model": numbered("resnet18", **TRUNK)}, tmp_path / "w.pth")
    assert "Nothing in it has the names of this model" in refusal(small_model("resnet18"), tmp_path / "w.pth")


def test_other_image_channels(tmp_path, small_model, numbered, checkpoint):
    path = checkpoint(tmp_path / "w.pth", numbered("resnet18"))
    model = small_model("resnet18", "MODEL.PIXEL_MEAN", [0.0] * 4, "MODEL.PIXEL_STD", [1.0] * 4)
    assert "1 of 100 tensors are missing, or of another shape: stem.conv1.weight" in refusal(model, path)


def test_a_refused_load_leaves_the_trunk_as_it_was(tmp_path, small_model, numbered, checkpoint):
    model = small_model("resnet18", device="cpu")
    before = {name: tensor.clone() for name, tensor in model.backbone.bottom_up.state_dict().items()}
    refusal(model, checkpoint(tmp_path / "w.pth", numbered("resnet34")))
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_the_trunk_alone_is_as_strict(tmp_path, small_model, numbered):
    trunk = small_model("resnet18").backbone.bottom_up
    torch.save(numbered("resnet34", **TRUNK), tmp_path / "w.pth")
    assert "does not fit resnet18 at the model" in refusal(trunk, tmp_path / "w.pth")


def test_strict_weights_off_loads_what_fits(tmp_path, small_model, numbered, checkpoint):
    model = small_model("resnet18", "MODEL.RESNET_BACKBONE.STRICT_WEIGHTS", False, device="cpu")
    state = numbered("resnet34")
    DetectionCheckpointer(model).load(checkpoint(tmp_path / "w.pth", state))
    trunk = model.backbone.bottom_up.state_dict()
    assert torch.equal(trunk["res2.0.conv1.weight"], state["res2.0.conv1.weight"])


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_detectron2_itself_accepts_the_deeper_weights(tmp_path, numbered, stock_config, checkpoint):
    """Why all of this is needed; the day it fails, Detectron2 has become strict."""
    cfg = stock_config("COCO-Detection/faster_rcnn_R_50_FPN_1x")
    with torch.device("meta"):
        backbone = BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, ShapeSpec(channels=3))
    DetectionCheckpointer(backbone).load(checkpoint(tmp_path / "w.pth", numbered("resnet101")))


def test_zoo_pickle_of_another_depth(tmp_path, small_model, numbered):
    """A .pkl of the zoo, with numpy arrays."""
    arrays = {name: tensor.numpy() for name, tensor in numbered("resnet34", "backbone.bottom_up.", **TRUNK).items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    assert "Is it of another depth?" in refusal(small_model("resnet18"), tmp_path / "w.pkl")


class Pair(torch.nn.Module):
    """Teacher and student of one config, as unbiased-teacher saves them."""

    def __init__(self, teacher, student):
        super().__init__()
        self.modelTeacher, self.modelStudent = teacher, student


@pytest.fixture
def teacher_and_student(small_model):
    head = [
        *("MODEL.RESNET_BACKBONE.OUT_FEATURES", "['res4']", "MODEL.BACKBONE.NAME", "build_imagenet_backbone"),
        *("MODEL.ROI_HEADS.NAME", "ImageNetRes5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
        *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]"),
    ]
    return Pair(*(small_model("resnet18", *head, device="cpu") for _ in range(2)))


def test_one_file_fills_teacher_and_student(tmp_path, teacher_and_student, numbered, checkpoint):
    """Detectron2's matching knows one network; each has its trunk and its res5 head."""
    state = numbered("resnet18")
    path = checkpoint(tmp_path / "w.pth", state)
    with pytest.raises(ValueError, match="Cannot match one checkpoint key to multiple keys"):
        DetectionCheckpointer(teacher_and_student).load(path)
    load_trunk_weights(teacher_and_student, path)
    for model in (teacher_and_student.modelTeacher, teacher_and_student.modelStudent):
        filled = {**model.backbone.state_dict(), **model.roi_heads.res5.state_dict(prefix="res5.")}
        assert filled.keys() == {name for name in state if "linear" not in name and "num_batches" not in name}
        assert all(torch.equal(filled[name], state[name]) for name in filled)


def test_weights_that_do_not_fit_teacher_and_student(tmp_path, teacher_and_student, numbered, checkpoint):
    with pytest.raises(WeightsError, match="resnet34"):
        load_trunk_weights(teacher_and_student, checkpoint(tmp_path / "w.pth", numbered("resnet34")))
    torch.save({"model": numbered("resnet18", "backbone."), "iteration": 9}, tmp_path / "detector.pth")
    with pytest.raises(ValueError, match="is a detector, not a classifier; load it by the checkpointer of the project"):
        load_trunk_weights(teacher_and_student, str(tmp_path / "detector.pth"))
    with pytest.raises(ValueError, match="no backbone of resnet_backbone to fill"):
        load_trunk_weights(torch.nn.Linear(1, 1), str(tmp_path / "w.pth"))


def test_what_is_said_stands_in_the_log_of_the_host(tmp_path, small_model, numbered, checkpoint):
    """Beside fvcore's lists of what is not found and not used."""
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore"):
        setup_logger(str(tmp_path), name=name)
    path = checkpoint(tmp_path / "w.pth", numbered("resnet18"))
    DetectionCheckpointer(small_model("resnet18", device="cpu")).load(path)
    log = (tmp_path / "log.txt").read_text()
    ours = log.index(
        "INFO: resnet18: the checkpoint fills all 100 tensors of backbone.bottom_up; what is called not found"
    )
    assert ours < log.index("Some model parameters or buffers are not found in the checkpoint")
