"""Memory format, precision and compilation of a trunk, set by one call."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

from resnet_backbone.models.acceleration import CUDA_GRAPH_MODES, Acceleration, accelerate, finish_for_inference
from resnet_backbone.models.layers import ConvNormActivation
from resnet_backbone.models.registry import create_model

ALL = ["plain18", "resnet18", "resnet50", "vgg16", "vgg16_bn", "cifar_resnet20"]


def pair(arch: str, how: Acceleration, **options) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    plain = create_model(arch, num_classes=0, **options).eval()
    fast = copy.deepcopy(plain)
    accelerate(fast, how, needed=1)
    return plain, fast


def images(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *(size or (97, 65)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ALL)
def test_channels_last_gives_the_same_values_in_that_format(arch):
    plain, fast = pair(arch, Acceleration(channels_last=True))
    torch.testing.assert_close(fast.state_dict(), plain.state_dict(), rtol=0, atol=0)
    with torch.inference_mode():
        expected, found = plain(images()), fast(images())
    for name, feature in expected.items():
        assert found[name].is_contiguous(memory_format=torch.channels_last), name
        torch.testing.assert_close(found[name], feature, rtol=1e-4, atol=1e-4 * float(feature.abs().max()))


@pytest.mark.parametrize("arch", ALL)
def test_a_precision_is_the_backbones_own_affair(arch):
    plain, fast = pair(arch, Acceleration(precision=torch.bfloat16))
    with torch.inference_mode():
        expected, found = plain(images()), fast(images())
        with torch.autocast("cpu", torch.bfloat16):
            autocast = plain(images())
    for name, feature in expected.items():
        assert found[name].dtype == torch.float32, name
        torch.testing.assert_close(found[name], autocast[name].float(), rtol=0, atol=0)
        assert not torch.equal(found[name], feature), f"{name} was computed in float32"


def test_an_autocast_around_the_backbone_decides():
    _, fast = pair("resnet18", Acceleration(precision=torch.bfloat16))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert fast(images())["res5"].dtype == torch.bfloat16


def test_a_classifier_of_another_precision_still_returns_float32_logits():
    model = create_model("resnet18", num_classes=10).eval()
    accelerate(model, Acceleration(precision=torch.bfloat16, channels_last=True), needed=1)
    with torch.inference_mode():
        assert model(images()).dtype == torch.float32


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_finished_for_inference_it_computes_what_it_did_before(precision, norm):
    _, fast = pair("resnet50", Acceleration(scale_weights=True, channels_last=True, precision=precision), norm=norm)
    with torch.inference_mode():
        expected = fast(images())
        finish_for_inference(fast)
        found = fast(images())
    convolutions = [m for m in fast.modules() if isinstance(m, ConvNormActivation)]
    assert all((m.norm is None) == (norm != "GN") for m in convolutions)
    assert {m.weight.dtype for m in convolutions} == {precision or torch.float32}
    tolerance = 1e-5 if precision is None else 0.05
    for name, feature in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - feature).abs().max() < tolerance * feature.abs().max(), name


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("arch", ["timm/convnext_tiny", "timm/swin_tiny_patch4_window7_224", "timm/mambaout_femto"])
def test_networks_of_linear_layers_compute_the_same_finished_for_inference(arch, precision):
    pytest.importorskip("timm")
    _, fast = pair(arch, Acceleration(scale_weights=True, channels_last=True, precision=precision))
    names = fast.state_dict().keys()
    with torch.inference_mode():
        expected = fast(images(224, 224))
        finish_for_inference(fast)
        found = fast(images(224, 224))
    linear = [module for module in fast.modules() if isinstance(module, torch.nn.Linear)]
    assert linear
    assert all((type(module) is torch.nn.Linear) == (precision is not None) for module in linear)
    assert {module.weight.dtype for module in linear} == {precision or torch.float32}
    assert fast.state_dict().keys() == names
    for name, feature in expected.items():
        assert (found[name] - feature).abs().max() <= 1e-5 * feature.abs().max(), name


def test_without_folding_the_norms_stay_in_inference_too():
    _, fast = pair("resnet18", Acceleration())
    finish_for_inference(fast)
    assert fast.stem.conv1.norm is not None


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Acceleration(compile_mode="fast"), "unknown compile mode 'fast'; write one of"),
        (Acceleration(checkpoint_stages=("conv1",)), r"unknown stages to checkpoint \['conv1'\]; this trunk has stem"),
        (Acceleration(compile_mode="default", checkpoint_stages=("res2",)), "leave out either"),
        (Acceleration(pad_to=100), "multiples of 32 here, which 100 is not"),
        (Acceleration(pad_to=-64), "multiples of 32 here, which -64 is not"),
    ],
)
def test_what_cannot_be_is_refused(how, message):
    model = create_model("resnet18", num_classes=0)
    with pytest.raises(ValueError, match=message):
        accelerate(model, how, needed=32)
    assert model.acceleration == Acceleration(), "nothing was changed"


def test_padding_is_the_greater_of_what_is_asked_for_and_what_is_needed():
    model = create_model("resnet18", num_classes=0)
    assert model.padded_to(32) == 32
    accelerate(model, Acceleration(pad_to=128), needed=32)
    assert model.padded_to(32) == 128


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("pad_to", [0, 64])
@pytest.mark.parametrize("arch", ["resnet18", "vgg16_bn"])
def test_compiled_it_computes_and_trains_the_same(arch, pad_to):
    how = Acceleration(compile_mode="default", scale_weights=True, channels_last=True, pad_to=pad_to)
    plain, fast = pair(arch, how, norm="FrozenBN", freeze_at=2)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for size in ((128, 192), (192, 128), (64, 64)):
        with torch.no_grad():
            expected, found = plain(images(*size)), fast(images(*size))
        for name, feature in expected.items():
            assert (found[name] - feature).abs().max() < 1e-4 * feature.abs().max(), (name, size)
    for model in (plain, fast):
        sum(feature.square().mean() for feature in model.train()(images(128, 128)).values()).backward()
    for (name, expected), found in zip(plain.named_parameters(), fast.parameters(), strict=True):
        if expected.grad is not None:
            assert (found.grad - expected.grad).abs().max() < 1e-3 * expected.grad.abs().max(), name


def test_the_modes_with_cuda_graphs_are_torchs():
    options = torch._inductor.list_mode_options()
    assert set(CUDA_GRAPH_MODES) == {mode for mode, values in options.items() if values.get("triton.cudagraphs")}
