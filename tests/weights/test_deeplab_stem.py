"""Files with the stem of DeepLab, as Detectron2's R-52.pkl and R-103.pkl and the checkpoints that grew out of them."""

import pickle

import pytest
import torch

from resnet_backbone.weights import load_weights, read_weights
from resnet_backbone.weights.architecture import LAYOUTS, candidate_archs

RESNETS = [arch for arch, layout in LAYOUTS.items() if not (layout.is_vgg or layout.is_d) and layout.width == 64]
DEEPLAB = {"stem": "deeplab", "res5_dilation": 2, "res5_multi_grid": (1, 2, 4)}


@pytest.mark.parametrize("norm", ["BN", "GN"])
@pytest.mark.parametrize("arch", RESNETS)
def test_the_architecture_is_told_whatever_the_stem(numbered, arch, norm):
    """A basic block of res2 has a shortcut then, which ResNet-18 and 34 otherwise have not."""
    state = numbered(arch, norm=norm, stem="deeplab")
    assert set(candidate_archs(state)) == {arch, arch.replace("plain", "resnet")}  # with option A, which has no tensors
    if arch in ("resnet18", "resnet34"):
        assert "res2.0.shortcut.weight" in state
        lost = {name: tensor for name, tensor in state.items() if not name.startswith("res2.0.shortcut.")}
        assert candidate_archs(lost) == ()


@pytest.mark.parametrize(("arch", "file_name"), [("resnet50", "R-52.pkl"), ("resnet101", "R-103.pkl")])
def test_detectron2s_pickles_fill_the_trunk(tmp_path, empty_model, numbered, arch, file_name):
    state = numbered(arch, num_classes=10, stem="deeplab")
    content = {name.replace("linear.", "stem.fc."): tensor.numpy() for name, tensor in state.items()}
    path = tmp_path / file_name
    path.write_bytes(pickle.dumps({"model": content, "__author__": "torchvision", "matching_heuristics": True}))
    assert read_weights(path).arch == arch
    model = empty_model(arch, num_classes=0, **DEEPLAB)
    report = load_weights(model, path)
    assert report.ignored == {"classifier": ["linear.bias", "linear.weight"]}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize("arch", ["resnet34", "resnet50"])
def test_a_deeplab_checkpoints_backbone_fills_the_trunk(empty_model, numbered, arch):
    state = {f"backbone.{name}": tensor for name, tensor in numbered(arch, num_classes=0, stem="deeplab").items()}
    state["sem_seg_head.predictor.weight"] = torch.zeros(1)
    model = empty_model(arch, num_classes=0, **DEEPLAB)
    report = load_weights(model, state)
    assert report.loaded == len(model.state_dict()) == len(state) - 1
    assert report.ignored == {"other parts of the file": ["sem_seg_head.predictor.weight"]}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("names", ["torchvision", "ours"])
def test_published_weights_do_not_fit_the_deeplab_stem(empty_model, numbered, torchvision_state, refused, arch, names):
    model = empty_model(arch, num_classes=0, stem="deeplab")
    published = torchvision_state(arch) if names == "torchvision" else numbered(arch)
    missing = "tensors of the model are not in the file: "
    different = "stem.conv1.weight ((64, 3, 7, 7) in the file, (64, 3, 3, 3) in the model)"
    refused(model, published, "nothing was loaded", missing, "stem.conv2.norm.bias", different, 'with stem="basic"')


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_weights_of_the_deeplab_stem_do_not_fit_the_basic_one(empty_model, numbered, refused, arch):
    different = "stem.conv1.weight ((64, 3, 3, 3) in the file, (64, 3, 7, 7) in the model)"
    advice = 'build the model with stem="deeplab"'
    model = empty_model(arch, num_classes=0)
    refused(model, numbered(arch, stem="deeplab"), "tensors of the file fit nothing in the model", different, advice)
