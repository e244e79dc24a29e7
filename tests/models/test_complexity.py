"""What networks cost: against torchvision's, timm's and fvcore's figures, and against arithmetic on paper."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis

from resnet_backbone import create_model, list_models
from resnet_backbone.models.complexity import build_on_meta, complexity, usual_size
from resnet_backbone.weights.catalog import CATALOG

PUBLISHED = sorted({entry.arch for entry in CATALOG.values() if entry.scheme == "imagenet://"})
# timm, results/benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv at aa4b585
TIMM_ACTIVATIONS = {"vgg16": 13.56, "resnet50": 11.11, "resnet101": 16.23, "resnet152": 22.56}


@pytest.fixture(scope="module")
def costs():
    return {arch: complexity(build_on_meta(arch), usual_size(arch)) for arch in {*list_models(), *PUBLISHED}}


@pytest.mark.parametrize("arch", list_models())
def test_every_network(costs, arch):
    cost = costs[arch]
    model = build_on_meta(arch)
    assert cost.arch == arch and cost.size == (usual_size(arch),) * 2
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(stage.parameters > 0 and stage.multiply_adds > 0 and stage.activations > 0 for stage in cost.stages)
    for name, (channels, stride) in model.feature_info.items():
        if name != "pool5":  # it has nothing to count
            stage = next(stage for stage in cost.stages if stage.name == name)
            assert stage.output_size == (channels, cost.size[0] // stride, cost.size[1] // stride)
    assert cost.stages[-1].output_size == (model.num_classes,)


@pytest.mark.parametrize("arch", [arch for arch in PUBLISHED if hasattr(torchvision.models, arch)])
def test_the_figures_of_torchvision(costs, arch):
    meta = torchvision.models.get_model_weights(arch)["IMAGENET1K_V1"].meta
    assert costs[arch].multiply_adds / 1e9 == pytest.approx(meta["_ops"], abs=0.0005 + 1e-9)  # three digits
    assert costs[arch].parameters == meta["num_params"]
    assert all(entry.num_params == costs[arch].parameters for entry in CATALOG.values() if entry.arch == arch)


@pytest.mark.parametrize(("arch", "millions"), TIMM_ACTIVATIONS.items())
def test_the_activations_of_timm(costs, arch, millions):
    assert round(costs[arch].activations / 1e6, 2) == millions


@pytest.mark.parametrize("arch", [arch for arch in list_models() if arch.startswith(("cifar_plain", "cifar_resnet"))])
def test_cifar_networks_on_paper(costs, arch):
    depth = (int(re.sub("[a-z_]", "", arch)) - 2) // 6
    # Convolutions without bias, each with the two parameters a channel of its norm; shortcuts have none.
    weights = 27 * 16 + 2 * depth * 9 * 16**2
    weights += 9 * 16 * 32 + (2 * depth - 1) * 9 * 32**2 + 9 * 32 * 64 + (2 * depth - 1) * 9 * 64**2
    norms = 2 * (16 + 2 * depth * (16 + 32 + 64))
    assert costs[arch].parameters == weights + norms + 64 * 10 + 10
    assert all(entry.num_params == costs[arch].parameters for entry in CATALOG.values() if entry.arch == arch)
    operations = 32**2 * (27 * 16 + 2 * depth * 9 * 16**2)
    operations += 16**2 * (9 * 16 * 32 + (2 * depth - 1) * 9 * 32**2)
    operations += 8**2 * (9 * 32 * 64 + (2 * depth - 1) * 9 * 64**2)
    assert costs[arch].multiply_adds == operations + 640
    maps = 32**2 * 16 * (1 + 2 * depth) + 16**2 * 32 * 2 * depth + 8**2 * 64 * 2 * depth
    assert costs[arch].activations == maps + 10


def test_stages_of_vgg_on_paper(costs):
    stages = {stage.name: stage for stage in costs["vgg16"].stages}
    assert list(stages) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert stages["conv2"].multiply_adds == 112**2 * 9 * (64 * 128 + 128 * 128)
    assert stages["conv2"].parameters == 9 * (64 * 128 + 128 * 128) + 2 * 128
    assert stages["conv2"].activations == 2 * 128 * 112**2
    assert stages["fc6"].multiply_adds == 7 * 7 * 512 * 4096
    assert stages["fc6"].output_size == (4096,)


@pytest.mark.parametrize("arch", ["resnet50", "resnet101", "resnet152"])
def test_where_the_stride_sits_on_paper(costs, arch):
    """The first 1x1 of res3, res4 and res5 then works on a quarter of the pixels; its norm and weights stay."""
    paper = complexity(build_on_meta(arch, stride_in_1x1=True), 224)
    pixels = [(256, 128, 56), (512, 256, 28), (1024, 512, 14)]
    saved = sum(side**2 * 3 // 4 * inputs * channels for inputs, channels, side in pixels)
    assert costs[arch].multiply_adds - paper.multiply_adds == saved
    assert costs[arch].parameters == paper.parameters


@pytest.mark.parametrize(
    ("arch", "options", "size"),
    [
        ("resnet18", {}, (64, 64)),
        ("resnet18", {"shortcut": "C", "stem": "deeplab"}, (96, 64)),
        ("resnet50", {"stride_in_1x1": True, "preactivation": True}, (64, 96)),
        ("resnet50", {"res5_dilation": 2}, (64, 64)),
        ("vgg16_bn", {}, (32, 64)),
        ("plain18", {"num_classes": 7, "in_channels": 1}, (33, 47)),
        ("cifar_resnet20", {"shortcut": "B"}, (32, 32)),
        ("cifar_resnet20", {"norm": "GN", "preactivation": True}, (32, 32)),
    ],
)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore:Converting a tensor", "ignore::torch.jit.TracerWarning"
)
def test_options_and_sizes_against_fvcore(arch, options, size):
    model = create_model(arch, **options).eval()
    cost = complexity(model, size)
    analysis = FlopCountAnalysis(model, torch.zeros(1, model.in_channels, *size))
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = analysis.by_operator()
    assert cost.multiply_adds == by_operator["conv"] + by_operator["linear"]
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    by_module = analysis.by_module_and_operator()
    for stage in cost.stages:
        if stage.name.startswith(("res", "linear", "fc")):
            found = by_module[stage.name]
            assert stage.multiply_adds == found["conv"] + found["linear"]


def test_a_preactivated_network_ends_with_a_norm():
    stages = {stage.name: stage for stage in complexity(build_on_meta("resnet18", preactivation=True), 64).stages}
    last = stages["postact"]
    assert (last.parameters, last.multiply_adds, last.activations) == (2 * 512, 0, 0)


def test_a_trunk_without_its_head():
    cost = complexity(build_on_meta("resnet18", num_classes=0, out_features=("res2", "res3")), 64)
    assert [stage.name for stage in cost.stages] == ["stem", "res2", "res3"]


def test_the_model_stays_as_it_is():
    model = create_model("cifar_resnet20", freeze_at=1).train()
    model.res2.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    complexity(model, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_an_image_that_is_too_small():
    with pytest.raises(ValueError, match="16 x 64 pixels are smaller than a cell .* of vgg16; write a size of 32"):
        complexity(build_on_meta("vgg16"), (16, 64))


def test_building_on_meta_takes_no_memory_and_refuses_what_create_model_refuses():
    assert all(tensor.is_meta for tensor in build_on_meta("vgg19").state_dict().values())
    with pytest.raises(ValueError, match="plain18 has no shortcuts"):
        build_on_meta("plain18", shortcut="A")
