"""Every network of the registry against torchvision's own, and against the contract of a trunk."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from resnet_backbone.models.layers import FrozenBatchNorm2d
from resnet_backbone.models.registry import create_model, list_models, register_model
from resnet_backbone.models.resnet import ResNet
from resnet_backbone.weights import load_weights
from tests.helpers import spread_norms

RESNETS = [name for name in list_models() if re.fullmatch(r"resnet\d+", name)]
PLAIN = [name for name in list_models() if name.startswith("plain")]
VGGS = [name for name in list_models() if name.startswith("vgg")]
BOTTLENECKS = ["resnet50", "resnet101", "resnet152"]
# Depth is repetition: where a property does not depend on it, the small ones stand for all.
SMALL = ["plain18", "resnet18", "resnet50", "vgg16", "vgg16_bn"]


def reference(arch: str, **options) -> torch.nn.Module:
    """torchvision's model, its batch norms with statistics unlike the identity."""
    torch.manual_seed(0)
    return spread_norms(getattr(torchvision.models, arch)(weights=None, **options))


def test_the_registry_is_complete():
    assert list_models()[:23] == [
        *("plain18", "plain34", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"),
        *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("resnext152_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
        *("vgg16", "vgg16_bn", "vgg19", "vgg19_bn"),
    ]


@pytest.mark.parametrize("arch", RESNETS + VGGS)
def test_logits_are_torchvisions_to_the_bit_in_eval_and_train_mode(arch):
    """And a trunk takes the same weights."""
    theirs = reference(arch)
    ours = create_model(arch, weights=theirs.state_dict())
    images = torch.randn(2, 3, 65, 97)
    for training in (False, True):
        theirs.train(training), ours.train(training)
        torch.manual_seed(1)
        expected = theirs(images)
        torch.manual_seed(1)  # dropout
        torch.testing.assert_close(ours(images), expected, rtol=0, atol=0)
    # Training mode has moved the running statistics, in both the same way.
    theirs.eval(), ours.eval()
    trunk = create_model(arch, num_classes=0).eval()
    report = load_weights(trunk, theirs.state_dict())
    assert report.loaded == len(trunk.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)
        for found, expected in zip(trunk(images).values(), ours.forward_features(images).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "vgg16_bn"])
def test_gradients_are_torchvisions(arch):
    theirs = reference(arch).train()
    ours = create_model(arch, weights=theirs.state_dict()).train()
    images = torch.randn(2, 3, 64, 64)
    for model in (theirs, ours):
        torch.manual_seed(1)
        model(images).square().sum().backward()
    norm = lambda model: sorted(float(p.grad.norm()) for p in model.parameters())  # noqa: E731
    assert norm(ours) == norm(theirs)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_frozen_norms_agree_with_torchvisions(arch):
    theirs = reference(arch, norm_layer=torchvision.ops.FrozenBatchNorm2d)
    for module in theirs.modules():
        if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
            module.weight.uniform_(0.2, 0.5)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = create_model(arch, weights=theirs.state_dict(), norm="FrozenBN")
    images = torch.randn(1, 3, 64, 96)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            ours.train(grad), theirs.train(grad)
            torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_norm_follows_detectron2s_arithmetic(requires_grad):
    layers = pytest.importorskip("detectron2.layers", reason="Detectron2 is not installed")
    ours, theirs = FrozenBatchNorm2d(7), layers.FrozenBatchNorm2d(7)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    state = {name: torch.rand(7) + 0.5 for name in ours.state_dict()}
    ours.load_state_dict(state), theirs.load_state_dict(state)
    x = torch.randn(2, 7, 5, 6, requires_grad=requires_grad)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=pytest.mark.slow) if "1202" in arch else arch for arch in list_models()]
)
def test_feature_shapes_are_as_feature_info_says(arch):
    """For even and odd sizes; and a trunk has no layer that it does not use."""
    with torch.device("meta"):
        model = create_model(arch, num_classes=0)
        for height, width in ((64, 64), (65, 97)):
            features = model(torch.zeros(2, 3, height, width))
            assert list(features) == list(model.feature_info)
            for name, x in features.items():
                channels, stride = model.feature_info[name]
                rounded = [n // stride if arch.startswith("vgg") else -(-n // stride) for n in (height, width)]
                assert x.shape == (2, channels, *rounded), name
        last = list(features)[:4][-1]
        model = create_model(arch, num_classes=0, out_features=(last,))
        assert list(model.feature_info) == [last]
        model(torch.zeros(2, 3, 64, 64))[last].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", "GN", ""])
@pytest.mark.parametrize("arch", SMALL)
def test_every_norm(arch, norm):
    if arch.startswith("vgg") and bool(norm) != arch.endswith("_bn"):
        with pytest.raises(ValueError, match="norms: take"):
            create_model(arch, norm=norm)
        return
    model = create_model(arch, num_classes=0, norm=norm).eval()
    kinds = {type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__} - {"ConvNormActivation"}
    names = {"BN": "BatchNorm2d", "FrozenBN": "FrozenBatchNorm2d", "SyncBN": "SyncBatchNorm", "GN": "GroupNorm"}
    assert kinds == ({names[norm]} if norm else set())
    assert all(x.isfinite().all() for x in model(torch.randn(1, 3, 64, 64)).values())


@pytest.mark.parametrize("freeze_at", range(6))
@pytest.mark.parametrize("arch", SMALL)
def test_freezing_stops_parameters_and_statistics_of_the_first_stages_only(arch, freeze_at):
    torch.manual_seed(0)
    model = create_model(arch, num_classes=0, freeze_at=freeze_at).train()
    stages = ["conv1", "conv2", "conv3", "conv4", "conv5"] if arch.startswith("vgg") else model.stage_names
    frozen = tuple(stages[:freeze_at])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.1)
    loss = sum(x.mean() for x in model(torch.randn(2, 3, 64, 64)).values())
    if loss.requires_grad:
        loss.backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        is_frozen = name.startswith(frozen) if frozen else False
        if is_frozen:
            assert torch.equal(value, before[name]), name
        elif "running_mean" in name:
            assert not torch.equal(value, before[name]), name
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (name.startswith(frozen) if frozen else False), name


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", "GN"])
def test_freezing_leaves_the_names_in_the_state_dict(norm):
    """A checkpoint of one FREEZE_AT fits another, as in Detectron2, whose frozen norms keep their counters."""
    with torch.device("meta"):
        names = [list(create_model("resnet50", norm=norm, freeze_at=freeze_at).state_dict()) for freeze_at in (0, 2, 5)]
    assert names[0] == names[1] == names[2]


def test_freezing_keeps_what_the_norms_compute():
    theirs = reference("resnet50").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        ours = create_model("resnet50", weights=theirs.state_dict(), freeze_at=5).eval()
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


@pytest.mark.parametrize("arch", [*PLAIN, *RESNETS])
def test_dilation_keeps_the_resolution_and_the_weights(arch):
    with torch.device("meta"):
        plain, dilated = (create_model(arch, num_classes=0, res5_dilation=d) for d in (1, 2))
        assert dilated(torch.zeros(1, 3, 65, 97))["res5"].shape[-2:] == (5, 7)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in dilated.state_dict().items()}
    assert dilated.feature_info["res5"].stride == 16
    convolutions = [
        m for n, m in dilated.res5.named_modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    assert {m.dilation for m in convolutions} == {(2, 2)}


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("arch", BOTTLENECKS)
def test_features_are_detectron2s_to_the_bit(arch, stride_in_1x1, dilation):
    """Same names, same arithmetic, for both places of the stride and for DC5."""
    resnet = pytest.importorskip("detectron2.modeling.backbone.resnet", reason="Detectron2 is not installed")
    depths = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}[arch]
    torch.manual_seed(0)
    stages = []
    for index, depth in enumerate(depths):
        last = index == 3 and dilation == 2
        stride = 1 if index == 0 or last else 2
        stages.append(
            resnet.ResNet.make_stage(
                resnet.BottleneckBlock,
                depth,
                stride_per_block=[stride] + [1] * (depth - 1),
                in_channels=64 if index == 0 else 128 * 2**index,
                out_channels=256 * 2**index,
                bottleneck_channels=64 * 2**index,
                stride_in_1x1=stride_in_1x1,
                dilation=2 if last else 1,
                norm="FrozenBN",
            )
        )
    theirs = resnet.ResNet(
        resnet.BasicStem(norm="FrozenBN"), stages, out_features=["stem", "res2", "res3", "res4", "res5"], freeze_at=2
    )
    for name, value in theirs.state_dict().items():
        if name.endswith(("norm.weight", "running_var")):
            value.uniform_(0.3, 0.6)
        elif name.endswith(("norm.bias", "running_mean")):
            value.normal_(std=0.1)
    ours = create_model(
        arch, num_classes=0, norm="FrozenBN", freeze_at=2, stride_in_1x1=stride_in_1x1, res5_dilation=dilation
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 65, 97)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            for (name, x), expected in zip(ours(images).items(), theirs(images).values(), strict=True):
                torch.testing.assert_close(x, expected, rtol=0, atol=0, msg=name)


def test_the_place_of_the_stride_changes_the_result_but_not_the_weights():
    a, b = (create_model("resnet50", num_classes=0, stride_in_1x1=s).eval() for s in (False, True))
    b.load_state_dict(a.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(a(images)["res3"], b(images)["res3"])


@pytest.mark.parametrize("arch", SMALL)
def test_initialisation_is_he(arch):
    torch.manual_seed(0)
    model = create_model(arch, num_classes=0)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            k = module.kernel_size[0]
            expected = (2 / (module.out_channels * k * k)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name
            assert module.weight.mean().item() == pytest.approx(0, abs=expected * 0.1), name


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("arch", SMALL)
def test_other_numbers_of_input_channels(arch, channels):
    with torch.device("meta"):
        model = create_model(arch, num_classes=0, in_channels=channels).eval()
        model(torch.zeros(1, channels, 32, 32))
        with pytest.raises(ValueError, match=rf"of shape \(N, {channels}, H, W\), got \(1, 3, 32, 32\)"):
            model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "resnet52"}, "unknown model 'resnet52'; did you mean 'resnet"),
        ({"arch": "resnet50", "norm": "LN"}, "unknown norm 'LN'"),
        (
            {"arch": "resnet50", "out_features": ("res6",), "num_classes": 0},
            r"must name one or more of \('stem', 'res2'",
        ),
        ({"arch": "resnet50", "out_features": ("res2", "res2"), "num_classes": 0}, "each once"),
        ({"arch": "resnet50", "out_features": (), "num_classes": 0}, "one or more"),
        ({"arch": "resnet50", "out_features": ("res4",)}, "write num_classes=0"),
        ({"arch": "resnet50", "freeze_at": 6}, "freeze_at=6 must be 0"),
        ({"arch": "resnet50", "freeze_at": -1}, "freeze_at=-1 must be 0"),
        ({"arch": "resnet50", "res5_dilation": 3}, "res5_dilation must be 1, 2 or 4, got 3"),
        ({"arch": "resnet50", "res4_dilation": 4, "res5_dilation": 4}, "res4_dilation must be 1 or 2, got 4"),
        ({"arch": "resnet50", "res4_dilation": 2}, "after res4_dilation=2 write res5_dilation=4"),
        ({"arch": "resnet18", "res4_dilation": 2, "res5_dilation": 2}, "after res4_dilation=2 write res5_dilation=4"),
        ({"arch": "resnet50", "res5_multi_grid": (1, 2)}, r"\(1, 2\) must be 3 whole numbers .*, as in \(1, 2, 4\)"),
        ({"arch": "resnet18", "res5_multi_grid": (1, 2, 4)}, r"\(1, 2, 4\) must be 2 whole numbers .*, as in \(1, 2\)"),
        ({"arch": "plain34", "res5_multi_grid": (1, 0, 4)}, "3 whole numbers of 1 or more, .* that plain34 has"),
        ({"arch": "resnet50", "res5_multi_grid": (1, 1.5, 4)}, "3 whole numbers of 1 or more"),
        ({"arch": "resnet50", "stem": "DeepLab"}, "unknown stem 'DeepLab'; write one of 'basic', 'deeplab'"),
        ({"arch": "resnet18", "stride_in_1x1": True}, "write stride_in_1x1=False"),
        ({"arch": "vgg16", "stride_in_1x1": True}, "no 1x1 convolutions and no res5: leave out stride_in_1x1$"),
        ({"arch": "vgg16", "res5_dilation": 2}, "no 1x1 convolutions and no res5: leave out res5_dilation$"),
        (
            {"arch": "vgg19_bn", "stem": "deeplab", "res4_dilation": 2, "res5_multi_grid": [1, 2, 4]},
            "no stem, .*: leave out stem and res4_dilation and res5_multi_grid$",
        ),
        ({"arch": "vgg16", "norm": "BN"}, "take 'vgg16_bn'"),
        ({"arch": "vgg16_bn", "norm": ""}, "take 'vgg16'"),
        ({"arch": "resnet18", "num_classes": -1}, "num_classes=-1"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(**arguments)


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="pretrained"):
        create_model("resnet18", pretrained=True)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="already registered"):
        register_model("resnet18", ResNet)
