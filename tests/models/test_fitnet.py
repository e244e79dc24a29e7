"""FitNet-19 and the highway networks against the published counts and a plain implementation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.config.schema import ConfigError
from resnet_backbone.models.complexity import build_on_meta
from resnet_backbone.models.fitnet import HighwayConv
from resnet_backbone.models.registry import create_model
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.weights import InputFormat, package_weights, read_weights

# Millions, Table 6 of arXiv 1512.03385; layers; widths of the convolutions
FITNET_4 = [32] * 3 + [48] * 2 + [80] * 6 + [128] * 6  # arXiv 1412.6550
NETWORKS = {
    "cifar_fitnet19": (2.5, 19, FITNET_4),
    "cifar_highway19": (2.3, 19, FITNET_4),
    "cifar_highway32": (1.25, 32, [16] * 8 + [48] * 10 + [96] * 12),
}
POOLED_AFTER = {"cifar_fitnet19": (5, 11), "cifar_highway19": (5, 11), "cifar_highway32": (8, 18)}


def stirred(arch: str, **options) -> nn.Module:
    """With biases and gates that matter."""
    torch.manual_seed(0)
    model = create_model(arch, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("arch", NETWORKS)
def test_parameters_and_layers_are_the_published_ones(arch):
    millions, layers, widths = NETWORKS[arch]
    model = build_on_meta(arch)
    counted, channels = 0, 3
    for number, width in enumerate(widths):
        pixels = 1 if arch == "cifar_highway32" and number % 2 else 9
        two = "fitnet" in arch or channels == width
        counted += (1 + two) * width * (pixels * channels + 1)
        channels = width
    hidden = 1000 if "fitnet" in arch else 500
    counted += hidden * (channels + 1) + 10 * 501
    assert sum(parameter.numel() for parameter in model.parameters()) == counted
    digits = len(str(millions).partition(".")[2])
    assert round(counted / 1e6, digits) == millions
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == layers


def plain_forward(arch: str, state: dict[str, Tensor], x: Tensor) -> Tensor:
    """H and T, or the two pieces, as convolutions of their own, in the notation of the papers."""
    weights = [state[name] for name in state if name.startswith("block") and name.endswith("weight")]
    biases = [state[name] for name in state if name.startswith("block") and name.endswith("bias")]
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        padding = weight.shape[-1] // 2
        width = NETWORKS[arch][2][number]
        parts = [
            F.conv2d(x, w, b, padding=padding) for w, b in zip(weight.split(width), bias.split(width), strict=True)
        ]
        if "fitnet" in arch:
            x = torch.stack(parts).amax(0)
        elif len(parts) == 1:
            x = parts[0].clamp(min=0)
        else:
            gate = 1 / (1 + (-parts[1]).exp())
            x = parts[0].clamp(min=0) * gate + x * (1 - gate)
        if number + 1 in POOLED_AFTER[arch]:
            x = F.max_pool2d(x, 2)
    x = F.linear(x.amax((2, 3)), state["hidden.weight"], state["hidden.bias"])
    x = x.unflatten(1, (2, 500)).amax(1) if "fitnet" in arch else x.clamp(min=0)
    return F.linear(x, state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize("arch", NETWORKS)
def test_logits_are_those_of_a_plain_implementation(arch):
    model = stirred(arch).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = plain_forward(arch, model.state_dict(), images)
        assert expected.std(0).max() > 1e-3  # the images are told apart
        torch.testing.assert_close(model(images), expected)
        dense = model.forward_dense_head(model.forward_features(images)["block3"], 8)
        torch.testing.assert_close(dense, expected[:, :, None, None])


@pytest.mark.parametrize("arch", NETWORKS)
def test_every_parameter_learns_and_the_gates_begin_nearly_closed(arch):
    torch.manual_seed(0)
    model = create_model(arch).train()
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    gates = [module for module in model.modules() if isinstance(module, HighwayConv)]
    assert len(gates) == {"cifar_fitnet19": 0, "cifar_highway19": 13, "cifar_highway32": 27}[arch]
    for gate in gates:
        transform_bias, gate_bias = gate.bias.detach().chunk(2)
        assert transform_bias.eq(0).all() and gate_bias.eq(-2).all()


def test_closed_gates_carry_and_open_ones_transform():
    layer, x = HighwayConv(4, 3), torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        for bias, expected in ((-40.0, x), (40.0, F.relu(F.conv2d(x, layer.weight[:4], padding=1)))):
            layer.bias[4:] = bias
            torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"norm": "BN"}, "has no norms: leave out norm"),
        ({"shortcut": "B"}, "leave out shortcut"),
        ({"stem": "deeplab", "preactivation": True}, "leave out preactivation and stem|leave out stem"),
        ({"out_features": ("res5",)}, "must name one or more of"),
        ({"freeze_at": 4}, "must be 0"),
    ],
)
def test_options_of_other_networks_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        create_model("cifar_highway19", **options)


@pytest.mark.parametrize("arch", ["cifar_fitnet19", "cifar_highway32"])
def test_a_packaged_file_says_what_it_is_and_fills_network_and_trunk(arch, tmp_path):
    model = stirred(arch, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "tensors.pth")
    input_format = InputFormat("RGB", (120.0,) * 3, (60.0,) * 3)
    package_weights(tmp_path / "tensors.pth", tmp_path / "w.pth", arch, input_format)
    weights = read_weights(tmp_path / "w.pth")
    assert (weights.arch, weights.num_classes, weights.norm) == (arch, 7, "")
    images = torch.randn(1, 3, 32, 32)
    trunk = create_model(arch, weights=weights, num_classes=0, out_features=("block2",), freeze_at=1)
    with torch.no_grad():
        assert torch.equal(create_model(arch, weights=weights).eval()(images), model(images))
        assert torch.equal(trunk(images)["block2"], model.forward_features(images)["block2"])
    assert {name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad} == {"block2"}
    with pytest.raises(ValueError, match="does not fit|not of"):
        create_model("cifar_highway19", weights=model.state_dict(), num_classes=7)


def test_a_detector_on_one_says_what_does_not_fit():
    words = ["MODEL.RESNET_BACKBONE.ARCH", "cifar_highway19"]
    with pytest.raises(ConfigError, match="has no norms"):
        load_config("quickstart.yaml", words)
    with pytest.raises(ConfigError, match="must name one or more of .'block1', 'block2', 'block3'."):
        load_config("quickstart.yaml", [*words, "MODEL.RESNET_BACKBONE.NORM", ""])
