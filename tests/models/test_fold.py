"""Norms folded into convolutions, for good and in each pass, against the networks with their norms in place."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision

from resnet_backbone.models.fitnet import WIDTHS
from resnet_backbone.models.layers import (
    ConvNormActivation,
    FrozenBatchNorm2d,
    NormActivation,
    fold_norms,
    scale_weights,
)
from resnet_backbone.models.registry import create_model, list_models
from tests.helpers import FAMILY

# The network of 1202 layers is that of 110 once more, in a minute.
NORMED = [name for name in list_models() if name not in ("vgg16", "vgg19", "cifar_resnet1202", *WIDTHS)]


def with_statistics(model: torch.nn.Module) -> torch.nn.Module:
    """Norms whose scale and shift are unlike the identity, and keep values in range over many blocks."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | FrozenBatchNorm2d):
            with torch.no_grad():
                module.weight.uniform_(0.2, 0.6, generator=generator)
                module.bias.normal_(std=0.1, generator=generator)
                module.running_mean.normal_(std=0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def make(arch: str, norm: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return with_statistics(create_model(arch, num_classes=0, norm=norm, **options))


def images(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (65, 97)) -> torch.Tensor:
    return torch.randn(2, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("arch", "norm"),
    [(arch, "BN") for arch in NORMED if arch not in FAMILY] + [("resnet50", "FrozenBN"), ("vgg16_bn", "FrozenBN")],
)
def test_a_folded_network_computes_the_same(arch, norm):
    model = make(arch, norm).double().eval()
    small = images(size=(33, 49))
    with torch.no_grad():
        expected = model(small)
        norms = sum(isinstance(m, torch.nn.BatchNorm2d | FrozenBatchNorm2d) for m in model.modules())
        assert model.fold_norms() == norms > 0
        found = model(small)
    assert list(found) == list(expected)
    for name, feature in expected.items():
        assert feature.std() > 0.01, name
        assert relative_error(found[name], feature) < 1e-12, name
    assert not [key for key in model.state_dict() if ".norm." in key]
    assert not [m for m in model.modules() if isinstance(m, ConvNormActivation) and m.weight.requires_grad]
    assert model.fold_norms() == 0


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnet101", "vgg16_bn"])
def test_a_folded_classifier_is_torchvisions_within_float32(arch):
    torch.manual_seed(0)
    theirs = with_statistics(getattr(torchvision.models, arch)(weights=None)).eval()
    ours = create_model(arch, weights=theirs.state_dict()).eval()
    ours.fold_norms()
    with torch.inference_mode():
        assert relative_error(ours(images(torch.float32)), theirs(images(torch.float32))) < 1e-5


@pytest.mark.parametrize("arch", ["vgg16", "vgg19"])
def test_a_network_without_norms_has_nothing_to_fold(arch):
    model = create_model(arch, num_classes=0)
    before = copy.deepcopy(model.state_dict())
    assert model.fold_norms() == 0
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_group_norms_depend_on_the_image_and_stay():
    model = make("resnet18", "GN")
    assert model.fold_norms() == 0 and model.stem.conv1.norm is not None


def test_norms_in_front_of_their_convolution_stay():
    model = make("resnet50", "BN", preactivation=True).double().eval()
    with torch.no_grad():
        expected = model(images())
        assert model.fold_norms() > 0
        found = model(images())
    assert [m for m in model.modules() if isinstance(m, NormActivation) and m.norm is not None]
    assert relative_error(found["res5"], expected["res5"]) < 1e-12


def test_statistics_that_are_still_moving_are_not_folded():
    model = make("resnet18", "BN").train()
    with pytest.raises(ValueError, match="call eval"):
        model.fold_norms()
    assert model.stem.conv1.norm is not None, "nothing was folded"
    frozen = make("resnet18", "FrozenBN").train()
    assert frozen.fold_norms() == 20, "frozen norms do not move"


def test_folding_keeps_type_and_memory_format():
    model = make("resnet18", "BN").to(memory_format=torch.channels_last).to(torch.bfloat16).eval()
    fold_norms(model)
    weight = model.res2[0].conv1.weight
    assert weight.dtype == model.res2[0].conv1.bias.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("freeze_at", [0, 2])
@pytest.mark.parametrize("arch", ["plain18", "resnet18", "resnet50", "vgg16_bn", "cifar_resnet20"])
def test_scaled_weights_train_as_scaled_feature_maps_do(arch, freeze_at):
    plain = make(arch, "FrozenBN", freeze_at=freeze_at).double()
    scaled = copy.deepcopy(plain)
    scale_weights(scaled)
    assert list(scaled.state_dict()) == list(plain.state_dict())
    gradients = []
    for model in (plain, scaled):
        features = model.train()(images())
        sum(feature.square().mean() for feature in features.values()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        if expected is None:
            assert gradients[1][name] is None, name
        else:
            assert expected.abs().max() > 0, name
            assert relative_error(gradients[1][name], expected) < 1e-10, name


def test_scaled_weights_leave_norms_that_learn_alone():
    model = make("resnet18", "BN").train()
    twin = copy.deepcopy(model)
    scale_weights(twin)
    torch.testing.assert_close(twin(images(torch.float32)), model(images(torch.float32)), rtol=0, atol=0)


def test_under_autocast_gradients_stay_float32_and_near_the_exact_ones():
    exact = make("resnet18", "FrozenBN").train()
    model = copy.deepcopy(exact)
    scale_weights(model)
    x = images(torch.float32)
    exact(x)["res5"].square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        feature = model(x)["res5"]
    feature.float().square().mean().backward()
    assert feature.dtype == torch.bfloat16
    for (name, found), expected in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert found.grad.dtype == torch.float32, name
        cosine = torch.nn.functional.cosine_similarity(found.grad.flatten(), expected.grad.flatten(), dim=0)
        assert cosine > 0.98, (name, cosine)
