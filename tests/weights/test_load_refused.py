"""Loading what does not fit: the error says what the file holds, and the model stays as it was."""

import itertools

import pytest
import torch

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import WeightsError, load_weights
from resnet_backbone.weights.architecture import LAYOUTS


@pytest.mark.parametrize("of_file", LAYOUTS)
def test_no_architecture_takes_the_weights_of_another(meta_model, numbered, of_file):
    """The tensors of a plain network are also those of the residual one with option A; which of them, is not known."""
    state = numbered(of_file, num_classes=0)
    residual = of_file.replace("plain", "resnet")
    fits = " or ".join(dict.fromkeys([of_file, residual]))
    for of_model in {*LAYOUTS} - {of_file}:
        said = f"can be {fits}" if of_model == residual else f"{fits}, not of {of_model}"
        with pytest.raises(WeightsError, match=said):
            load_weights(meta_model(of_model), state)


@pytest.mark.parametrize(
    ("of_model", "of_file"),
    [("resnet18", "resnet34"), ("resnet18", "plain18"), ("plain18", "resnet18"), ("resnet50", "resnet34")],
)
def test_a_refused_architecture_leaves_the_model_as_it_was(empty_model, numbered, refused, of_model, of_file):
    refused(empty_model(of_model, num_classes=0), numbered(of_file), of_file, of_model)


@pytest.mark.parametrize(
    ("deep", "shallow", "last"),
    [("resnet101", "resnet50", "res3"), ("resnet34", "resnet18", "res2"), ("vgg19", "vgg16", "conv2")],
)
def test_a_deeper_file_is_refused_by_the_first_stages_too(empty_model, numbered, refused, deep, shallow, last):
    """The stages that the model has are the same in both; what the rest of the file is decides."""
    refused(empty_model(shallow, num_classes=0, out_features=(last,)), numbered(deep), deep)


@pytest.mark.parametrize(("new_head", "said"), [(False, "no classifier"), (True, "fc6.bias, fc6.weight")])
def test_a_vgg_file_without_a_classifier_cannot_fill_fc6(meta_model, numbered, new_head, said):
    with pytest.raises(WeightsError, match=rf"{said}(.|\n)*num_classes=0"):
        load_weights(meta_model("vgg16", 5), numbered("vgg16", num_classes=0), new_head=new_head)


@pytest.mark.parametrize(
    "lost", ["stem.conv1.weight", "res2.0.conv1.norm.running_var", "res5.1.conv2.weight", "linear.bias"]
)
def test_one_missing_tensor(empty_model, numbered, refused, lost):
    state = numbered("resnet18")
    del state[lost]
    refused(empty_model("resnet18"), state, f"1 tensors of the model are not in the file: {lost}", "nothing was loaded")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("arch", ["resnet50", "vgg16_bn", "plain18"])
def test_a_part_of_a_file(empty_model, numbered, refused, arch, keep):
    state = numbered(arch)
    part = dict(itertools.islice(state.items(), int(keep * len(state))))
    refused(empty_model(arch, num_classes=0), part, "tensors of the model are not in the file")


def test_a_file_whose_unused_stage_is_broken_is_refused_too(empty_model, numbered, refused):
    state = {name: tensor for name, tensor in numbered("resnet50").items() if not name.startswith("res5.1.")}
    refused(empty_model("resnet50", num_classes=0, out_features=("res3",)), state, "no whole network")


def test_leftovers_are_an_error(empty_model, numbered, refused):
    state = {**numbered("resnet18", norm="FrozenBN"), "res2.0.conv3.norm.bias": torch.zeros(64)}
    refused(empty_model("resnet18"), state, "1 tensors of the file fit nothing in the model: res2.0.conv3.norm.bias")


@pytest.mark.parametrize("in_channels", [1, 4])
@pytest.mark.parametrize(("arch", "first"), [("resnet18", "stem.conv1.weight"), ("vgg16", "conv1_1.weight")])
def test_other_input_channels(empty_model, numbered, refused, arch, first, in_channels):
    model = empty_model(arch, num_classes=0, in_channels=in_channels)
    refused(model, numbered(arch), first, "(64, 3,", f"(64, {in_channels},", "in_channels=3")


@pytest.mark.parametrize(
    ("of_model", "of_file", "said"),
    [
        ("GN", "BN", 'norm="BN" or "FrozenBN"'),
        ("GN", "FrozenBN", 'norm="BN" or "FrozenBN"'),
        ("BN", "GN", 'norm="GN"'),
        ("FrozenBN", "GN", "fused"),
    ],
)
def test_norms_of_another_kind(empty_model, numbered, refused, of_model, of_file, said):
    refused(empty_model("resnet18", norm=of_model), numbered("resnet18", norm=of_file), said, "running_mean")


def test_lists_are_shortened(empty_model, numbered):
    with pytest.raises(WeightsError, match=r"and \d\d more") as caught:
        load_weights(empty_model("resnet50", norm="GN"), numbered("resnet50"))
    assert len(str(caught.value)) < 2000


def test_values_that_are_not_finite(empty_model, refused, torchvision_state):
    state = torchvision_state("resnet18")
    state["layer1.0.bn1.bias"] = torch.full((64,), float("nan"))
    state["fc.bias"] = torch.full((1000,), float("inf"))
    refused(empty_model("resnet18"), state, "2 tensors", "res2.0.conv1.norm.bias", "linear.bias")


def test_another_shape_with_as_many_values(empty_model, refused, torchvision_state):
    state = torchvision_state("resnet18")
    state["layer2.0.downsample.0.weight"] = torch.zeros(64, 128, 1, 1)
    refused(empty_model("resnet18"), state, "res3.0.shortcut.weight ((64, 128, 1, 1) in the file, (128, 64, 1, 1)")


def test_integers_for_weights(empty_model, refused, torchvision_state):
    state = torchvision_state("resnet18")
    state["conv1.weight"] = state["conv1.weight"].to(torch.int8)
    refused(empty_model("resnet18"), state, "torch.int8", "stem.conv1.weight")


def test_a_model_on_the_meta_device(numbered):
    with torch.device("meta"):
        model = create_model("resnet18")
    with pytest.raises(WeightsError, match="meta device"):
        load_weights(model, numbered("resnet18", norm="FrozenBN"))


@pytest.mark.parametrize("model", [torch.nn.Linear(1, 1), torch.nn.Sequential()])
def test_a_model_that_is_not_ours(model):
    with pytest.raises(TypeError, match="create_model"):
        load_weights(model, {})


@pytest.mark.parametrize("source", [None, 5, [1]])
def test_a_source_that_is_none(empty_model, source):
    with pytest.raises(TypeError, match="expected a catalog name"):
        load_weights(empty_model("resnet18"), source)


def test_a_checkpoint_instead_of_a_state_dict(empty_model):
    with pytest.raises(TypeError, match=r"optimizer \(dict\)"):
        load_weights(empty_model("resnet18"), {"model": {}, "optimizer": {}})
