"""Loading what fits: which tensors of a file fill which of a model, and what the report says of the rest."""

import json

import pytest
import torch

from resnet_backbone.weights import Weights, load_weights
from resnet_backbone.weights.architecture import LAYOUTS
from resnet_backbone.weights.catalog import CATALOG
from tests.helpers import LARGE_OF_FAMILY

IMAGENET_KINDS = sorted(
    {(e.arch, e.stride_in_1x1) for e in CATALOG.values() if e.arch in LAYOUTS and e.scheme == "imagenet://"}
)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_loaded_resnet_computes_what_torchvisions_does(empty_model, random_torchvision, arch):
    reference = random_torchvision(arch)
    model = empty_model(arch)
    report = load_weights(model, reference.state_dict())
    assert report.loaded == len(reference.state_dict())
    assert report.ignored == {} and not report.new_head
    images = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), reference(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["vgg16_bn", "vgg19"])
def test_loaded_vgg_features_are_torchvisions(empty_model, random_torchvision, arch):
    import torchvision

    with torch.device("meta"):
        reference = getattr(torchvision.models, arch)().features
    reference = reference.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, tensor in reference.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.uniform_(-0.05, 0.05)
    state = {f"features.{name}": tensor for name, tensor in reference.state_dict().items()}
    model = empty_model(arch, num_classes=0)
    load_weights(model, state)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = reference[:-1](images)
        assert expected.abs().max() > 0
        torch.testing.assert_close(model.forward_features(images)["conv5"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "stride_in_1x1"),
    [pytest.param(*kind, marks=pytest.mark.slow) if kind[0] in LARGE_OF_FAMILY else kind for kind in IMAGENET_KINDS],
)
def test_every_kind_of_published_file_fills_its_model(empty_model, numbered, torchvision_state, arch, stride_in_1x1):
    """Entries of one architecture have the same tensors; MSRA's come without counters. Only the classifier is left."""
    state = numbered(arch, norm="FrozenBN") if stride_in_1x1 else torchvision_state(arch)
    model = empty_model(arch, num_classes=0, stride_in_1x1=stride_in_1x1)
    report = load_weights(model, state)
    assert {why: len(names) for why, names in report.ignored.items()} == {
        "classifier": 6 if arch.startswith("vgg") else 2
    }
    counters = sum(name.endswith("num_batches_tracked") for name in model.state_dict())
    assert report.loaded == len(model.state_dict()) - (counters if stride_in_1x1 else 0)
    for name, tensor in model.state_dict().items():
        assert name.endswith("num_batches_tracked") or tensor.min() >= 0, name


def test_weights_that_say_what_they_are_beat_what_they_look_like(empty_model, numbered, refused):
    stem = {name: tensor for name, tensor in numbered("resnet50").items() if name.startswith("stem")}
    weights = Weights(stem, "resnet101", None, False, "BN", "here", "", 0)
    refused(empty_model("resnet50", num_classes=0, out_features=("stem",)), weights, "resnet101", "create_model")
    report = load_weights(empty_model("resnet50", num_classes=0, out_features=("stem",)), stem)
    assert report.loaded == 6


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN"])
@pytest.mark.parametrize("counters", [True, False])
def test_counters_of_batch_norm_are_optional_on_both_sides(empty_model, torchvision_state, norm, counters):
    state = torchvision_state("resnet18")
    if not counters:
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    report = load_weights(empty_model("resnet18", norm=norm), state)
    expected = {"counters of batch norm": 20} if norm == "FrozenBN" and counters else {}
    assert {why: len(names) for why, names in report.ignored.items()} == expected
    assert report.loaded == (122 if counters and norm != "FrozenBN" else 102)


def test_stages_that_the_model_lacks_are_listed_apart(empty_model, numbered):
    model = empty_model("resnet50", num_classes=0, out_features=("res3",))
    report = load_weights(model, numbered("resnet50", norm="FrozenBN"))
    stages = {name.split(".")[0] for name in report.ignored["stages that the model lacks"]}
    assert stages == {"res4", "res5"}
    assert report.ignored["classifier"] == ["linear.bias", "linear.weight"]
    text = report.summary()
    assert "stages that the model lacks" in text and "input format unknown" in text
    assert json.loads(json.dumps(report.to_dict()))["loaded"] == report.loaded


@pytest.mark.parametrize(
    ("arch", "last", "of_model", "of_file"),
    [("resnet18", "linear", 20, 1000), ("resnet18", "linear", 1000, 20), ("vgg16", "fc8", 20, 1000)],
)
def test_another_number_of_classes_leaves_the_last_layer_new(
    empty_model, numbered, refused, arch, last, of_model, of_file
):
    model = empty_model(arch, num_classes=of_model)
    refused(model, numbered(arch, num_classes=of_file), f"num_classes={of_file}", "new_head=True")
    report = load_weights(model, numbered(arch, num_classes=of_file), new_head=True)
    assert report.new_head
    assert report.ignored == {"classifier": [f"{last}.bias", f"{last}.weight"]}
    for name, tensor in model.state_dict().items():
        assert (tensor.flatten()[0] == -1) == name.startswith(last), name
    assert "new" in report.summary()


def test_a_file_without_a_classifier(empty_model, numbered, refused):
    trunk = numbered("resnet18", num_classes=0)
    refused(empty_model("resnet18"), trunk, "no classifier", "num_classes=0")
    assert load_weights(empty_model("resnet18", num_classes=0), trunk).ignored == {}
    refused(empty_model("resnet18", num_classes=5), trunk, "no classifier", "num_classes=0")
    assert load_weights(empty_model("resnet18", num_classes=5), trunk, new_head=True).new_head


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_converted(empty_model, numbered, dtype):
    """The counters too: ``model.half()`` and ``model.float()`` leave them alone, other tools do not."""
    state = {name: tensor.to(dtype) for name, tensor in numbered("resnet18").items()}
    model = empty_model("resnet18")
    load_weights(model, state)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
    assert model.res5[1].conv2.weight.flatten()[0] == state["res5.1.conv2.weight"].flatten()[0].float()


def test_the_model_does_not_share_memory_with_the_source(empty_model, numbered):
    source = {name: tensor.clone() for name, tensor in numbered("resnet18", norm="FrozenBN").items()}
    model = empty_model("resnet18")
    load_weights(model, source)
    source["linear.bias"].fill_(5)
    assert model.linear.bias[0] != 5
    assert model.linear.bias.requires_grad


@pytest.mark.parametrize(("of_model", "of_file"), [(True, False), (False, True)])
@pytest.mark.parametrize("arch", ["resnet50", "resnet101", "resnet152"])
def test_stride_placement(empty_model, numbered, refused, arch, of_model, of_file):
    weights = Weights(numbered(arch), arch, None, of_file, "BN", "here", "", 1000)
    stem = {"num_classes": 0, "out_features": ("stem",)}
    refused(empty_model(arch, stride_in_1x1=of_model, **stem), weights, f"stride_in_1x1={of_file}")
    load_weights(empty_model(arch, stride_in_1x1=of_file, **stem), weights)


def test_stride_placement_does_not_matter_without_bottlenecks(empty_model, numbered):
    weights = Weights(numbered("resnet18", norm="FrozenBN"), "resnet18", None, True, "BN", "here", "", 1000)
    load_weights(empty_model("resnet18"), weights)


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up.", "backbone.body."])
def test_a_detectors_backbone(empty_model, numbered, prefix):
    state = {prefix + name: tensor for name, tensor in numbered("resnet18", norm="FrozenBN", num_classes=0).items()}
    if prefix:
        state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(1)
    report = load_weights(empty_model("resnet18", num_classes=0), state)
    assert report.loaded == 100
    others = ["roi_heads.box_predictor.cls_score.weight"] if prefix else []
    assert report.ignored.get("other parts of the file", []) == others
