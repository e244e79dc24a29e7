import re

import pytest
import torch
import torchvision

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import list_weights
from resnet_backbone.weights.architecture import LAYOUTS, candidate_archs, norm_of, num_classes_of
from resnet_backbone.weights.catalog import CATALOG
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.names import classifier_part, to_our_names

TORCHVISION_ARCHS = sorted(
    {entry.arch for entry in CATALOG.values() if entry.arch in LAYOUTS and entry.scheme == "imagenet://"}
)
RESNETS = [arch for arch, layout in LAYOUTS.items() if not layout.is_vgg and layout.width == 64]


def infer_arch(state) -> str | None:
    found = candidate_archs(state)
    return found[0] if len(found) == 1 else None


def shapes(state_dict):
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def ours_on_meta(arch, **options):
    with torch.device("meta"):
        return create_model(arch, **options)


@pytest.mark.parametrize("arch", TORCHVISION_ARCHS)
def test_torchvision_names_become_those_of_our_models(torchvision_state, arch):
    """Timm's, where torchvision has no such network."""
    renamed = to_our_names(torchvision_state(arch))
    assert shapes(renamed) == shapes(ours_on_meta(arch).state_dict())
    assert infer_arch(renamed) == arch
    assert num_classes_of(renamed) == 1000


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet50", "resnet50d", "wide_resnet50_2", "vgg16", "vgg16_bn", "vgg19_bn"]
)
def test_the_order_of_use_is_kept(torchvision_state, arch):
    """Both packages register tensors in the order of use, but for the shortcut of a block."""
    renamed = to_our_names(torchvision_state(arch))
    numbers = [int(tensor.flatten()[0]) for name, tensor in renamed.items() if "shortcut" not in name]
    expected = [name for name in ours_on_meta(arch).state_dict() if "shortcut" not in name]
    by_number = sorted((name for name in renamed if "shortcut" not in name), key=lambda n: int(renamed[n].flatten()[0]))
    assert numbers == sorted(numbers)
    assert [re.sub("norm.*", "norm", n) for n in by_number] == [re.sub("norm.*", "norm", n) for n in expected]


@pytest.mark.parametrize("arch", LAYOUTS)
def test_our_own_names_stay(arch):
    state = ours_on_meta(arch).state_dict()
    renamed = to_our_names(state)
    assert list(renamed) == list(state)
    assert set(candidate_archs(renamed)) == {arch, arch.replace("plain", "resnet")}
    assert norm_of(renamed) == ("" if arch in ("vgg16", "vgg19") else "BN")


@pytest.mark.parametrize("arch", LAYOUTS)
@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_arch_is_told_with_other_norms_and_without_a_head(arch, norm):
    if arch in ("vgg16", "vgg19"):
        pytest.skip("has no norms")
    state = ours_on_meta(arch, norm=norm, num_classes=0).state_dict()
    assert set(candidate_archs(state)) == {arch, arch.replace("plain", "resnet")}
    assert num_classes_of(state) == 0
    assert norm_of(state) == ("GN" if norm == "GN" else "BN")


def leading(state, stages):
    return {name: tensor for name, tensor in state.items() if name.startswith(stages)}


@pytest.mark.parametrize(
    ("arch", "stages", "expected"),
    [
        ("resnet50", ("stem",), {arch for arch in RESNETS if not LAYOUTS[arch].is_d}),
        ("resnet50d", ("stem",), {arch for arch in RESNETS if LAYOUTS[arch].is_d}),
        ("resnet50d", ("stem", "res2"), {"resnet50d", "resnet101d", "resnet152d"}),
        ("resnet18d", ("stem", "res2", "res3"), {"resnet18d"}),
        ("resnext101_32x4d", ("stem", "res2", "res3"), {"resnext50_32x4d", "resnext101_32x4d"}),
        ("resnext101_32x8d", ("stem", "res2"), {"resnext101_32x8d", "resnext152_32x8d"}),
        ("wide_resnet50_2", ("res2",), {"wide_resnet50_2", "wide_resnet101_2"}),
        ("resnet50", ("stem", "res2"), {"resnet50", "resnet101", "resnet152"}),
        ("resnet50", ("stem", "res2", "res3"), {"resnet50", "resnet101"}),
        ("resnet152", ("stem", "res2", "res3"), {"resnet152"}),
        ("resnet101", ("stem", "res2", "res3", "res4"), {"resnet101"}),
        ("resnet18", ("stem", "res2"), {"resnet18", "plain18"}),
        ("resnet18", ("stem", "res2", "res3"), {"resnet18"}),
        ("plain34", ("stem", "res2", "res3"), {"plain34", "resnet34"}),
        ("vgg16", ("conv1_", "conv2_"), {"vgg16", "vgg19"}),
        ("vgg16", ("conv1_", "conv2_", "conv3_"), {"vgg16"}),
        ("vgg19_bn", ("conv1_",), {"vgg16_bn", "vgg19_bn"}),
        ("resnet50", ("linear",), set()),
    ],
)
def test_leading_stages_leave_several_candidates(arch, stages, expected):
    part = leading(ours_on_meta(arch).state_dict(), stages)
    assert set(candidate_archs(part)) == expected
    assert infer_arch(part) == (arch if len(expected) == 1 else None)


@pytest.mark.parametrize("arch", LAYOUTS)
def test_half_a_stage_is_no_architecture(arch):
    state = ours_on_meta(arch).state_dict()
    lost = "conv4_2." if arch.startswith("vgg") else "res4.1."
    part = {name: tensor for name, tensor in state.items() if not name.startswith(lost)}
    assert len(part) < len(state)
    assert candidate_archs(part) == ()


@pytest.mark.parametrize("arch", ["resnet50c", "resnet50s", "resnet50t", "resnext50d_32x4d", "resnext101_32x16d"])
def test_networks_like_ours_are_not_taken_for_them(arch):
    """They differ in stem, shortcuts or groups; resnet50c has the shapes of resnet50d."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.device("meta"):
        state = timm.create_model(arch).state_dict()
    assert candidate_archs(to_our_names(state)) == ()


@pytest.mark.parametrize("arch", ["alexnet", "densenet121", "mobilenet_v2", "squeezenet1_0", "vgg11", "vgg13_bn"])
def test_other_networks_are_refused_or_fit_nothing(arch):
    with torch.device("meta"):
        state = getattr(torchvision.models, arch)().state_dict()
    try:
        renamed = to_our_names(state)
    except WeightsError as error:
        assert "no part of a ResNet or VGG" in str(error)
    else:
        assert candidate_archs(renamed) == ()


def caffe2_name(name, style):
    """The name in Detectron2's MSRA/R-50.pkl ("d2"), or in files of the first Detectron ("d1"), for a name of ours."""
    norms = {
        "d2": {
            "weight": "bn_gamma",
            "bias": "bn_beta",
            "running_mean": "bn_running_mean",
            "running_var": "bn_running_var",
        },
        "d1": {"weight": "bn_s", "bias": "bn_b", "running_mean": "bn_rm", "running_var": "bn_riv"},
    }[style]
    branches = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    module, _, last = name.rpartition(".")
    if module == "linear":
        return {"d2": "fc1000", "d1": "pred"}[style] + {"weight": "_w", "bias": "_b"}[last]
    is_norm = module.endswith(".norm")
    suffix = norms[last] if is_norm else "w"
    parts = module.removesuffix(".norm").split(".")
    if parts[0] == "stem":
        return ("res_conv1_" if is_norm else "conv1_") + suffix
    return f"{parts[0]}_{parts[1]}_{branches[parts[2]]}_{suffix}"


@pytest.mark.parametrize("style", ["d2", "d1"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet101", "resnet152", "resnext101_32x8d"])
def test_caffe2_names(arch, style):
    state = ours_on_meta(arch, norm="FrozenBN").state_dict()
    blobs = {caffe2_name(name, style): tensor for name, tensor in state.items()}
    assert len(blobs) == len(state)
    renamed = to_our_names(blobs)
    assert {name: id(tensor) for name, tensor in renamed.items()} == {n: id(t) for n, t in state.items()}


def test_caffe2_names_that_detectron2s_issues_show():
    """From detectron2 issue 1688: print(pickle.load(open("R-50.pkl")).keys())."""
    names = {
        "conv1_w": "stem.conv1.weight",
        "res_conv1_bn_running_mean": "stem.conv1.norm.running_mean",
        "res_conv1_bn_beta": "stem.conv1.norm.bias",
        "res2_0_branch1_w": "res2.0.shortcut.weight",
        "res2_0_branch1_bn_running_var": "res2.0.shortcut.norm.running_var",
        "res2_2_branch2a_bn_gamma": "res2.2.conv1.norm.weight",
        "fc1000_w": "linear.weight",
        "fc1000_b": "linear.bias",
    }
    tensors = {name: torch.zeros(1) for name in names}
    assert list(to_our_names(tensors)) == list(names.values())
    part, others = classifier_part({**tensors, "conv1_b": torch.zeros(1)})
    assert (list(part), others) == (list(names), ["conv1_b"])


def test_group_norm_of_detectron():
    names = {"conv1_gn_s": "stem.conv1.norm.weight", "res3_1_branch2b_gn_b": "res3.1.conv2.norm.bias"}
    assert list(to_our_names({name: torch.zeros(1) for name in names})) == list(names.values())


@pytest.mark.parametrize("head", ["stem.fc", "fc1000", "linear"])
def test_detectron2s_names_for_the_head(head):
    state = {"stem.conv1.weight": torch.zeros(1), f"{head}.weight": torch.zeros(5, 1)}
    assert list(to_our_names(state)) == ["stem.conv1.weight", "linear.weight"]


def test_two_heads_are_refused():
    state = {name: torch.zeros(1) for name in ("stem.conv1.weight", "fc1000.bias", "linear.bias")}
    with pytest.raises(WeightsError, match="same meaning"):
        to_our_names(state)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("layer5.0.conv1.weight", "torchvision"),
        ("layer1.0.conv4.weight", "torchvision"),
        ("layer1.0.conv1.bias", "torchvision"),
        ("layer1.0.se.fc1.weight", "torchvision"),
        ("head.fc.weight", "torchvision"),
        ("conv1.0.weight", "torchvision"),
    ],
)
def test_unknown_tensors_are_named(torchvision_state, name, layout):
    state = {**torchvision_state("resnet18"), name: torch.zeros(1)}
    with pytest.raises(WeightsError, match=f"1 of 123 tensors.*{layout}.*{re.escape(name)}"):
        to_our_names(state)


@pytest.mark.parametrize("name", ["features.1.weight", "features.99.weight", "classifier.1.weight", "avgpool.weight"])
def test_unknown_tensors_of_vgg_are_named(torchvision_state, name):
    state = {**torchvision_state("vgg16"), name: torch.zeros(1)}
    with pytest.raises(WeightsError, match=re.escape(name)):
        to_our_names(state)


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", "backbone.body.", "backbone."])
@pytest.mark.parametrize("arch", ["resnet50", "vgg16_bn"])
def test_backbone_of_a_detector(prefix, arch):
    trunk = ours_on_meta(arch, num_classes=0).state_dict()
    others = ["proposal_generator.rpn_head.conv.weight", "roi_heads.box_head.fc1.weight", "pixel_mean"]
    if prefix != "backbone.":
        others.append("backbone.fpn_lateral2.weight")
    state = {**{prefix + name: tensor for name, tensor in trunk.items()}, **dict.fromkeys(others, torch.zeros(1))}
    part, left = classifier_part(state)
    assert list(part) == list(trunk)
    assert left == others


def test_res5_in_the_heads_belongs_to_the_backbone():
    state = ours_on_meta("resnet50", num_classes=0).state_dict()
    detector = {("roi_heads." if n.startswith("res5") else "backbone.") + n: t for n, t in state.items()}
    part, left = classifier_part({**detector, "roi_heads.box_predictor.cls_score.weight": torch.zeros(1)})
    assert shapes(part) == shapes(state)
    assert left == ["roi_heads.box_predictor.cls_score.weight"]


def test_a_torchvision_detector():
    with torch.device("meta"):
        model = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    part, left = classifier_part(model.state_dict())
    assert infer_arch(to_our_names(part)) == "resnet50"
    assert len(part) + len(left) == len(model.state_dict())
    assert all(name.startswith(("backbone.fpn", "rpn.", "roi_heads.")) for name in left)


def test_every_arch_of_the_catalog_is_known():
    assert {name.split("/")[0] for name in list_weights()} < {*LAYOUTS, "googlenet"}
