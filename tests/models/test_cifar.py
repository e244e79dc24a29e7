"""The networks of 6n + 2 layers against the paper's figures and a plain implementation."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.registry import create_model, list_models
from tests.helpers import spread_norms

CIFAR = [name for name in list_models() if name.startswith(("cifar_plain", "cifar_resnet"))]
# Table 6, in millions
PAPER_PARAMETERS = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}


def layers_of(arch: str) -> int:
    return int(re.search(r"\d+$", arch)[0])


def on_meta(arch: str, **options) -> nn.Module:
    with torch.device("meta"):
        return create_model(arch, **options)


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    tensors = (state[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, *tensors)


def convolved(state: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """A 3x3 convolution and its norm."""
    return norm(state, name, F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=1))


def plain_forward(state: dict[str, Tensor], depth: int, x: Tensor, *, residual: bool) -> Tensor:
    """Section 4.2 of the paper, line by line."""
    x = F.relu(convolved(state, "stem.conv1", x))
    for stage in (2, 3, 4):
        for block in range(depth):
            stride = 2 if stage > 2 and block == 0 else 1
            name = f"res{stage}.{block}"
            y = F.relu(convolved(state, f"{name}.conv1", x, stride))
            y = convolved(state, f"{name}.conv2", y)
            if residual:
                shortcut = x
                if stride == 2:
                    zeros = torch.zeros(len(x), y.shape[1] - x.shape[1], *y.shape[2:])
                    shortcut = torch.cat([x[:, :, ::2, ::2], zeros], 1)
                y = y + shortcut
            x = F.relu(y)
    return F.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"])


@pytest.mark.parametrize("size", [(32, 32), (31, 45)])
@pytest.mark.parametrize("arch", ["cifar_resnet20", "cifar_plain20", "cifar_resnet32", "cifar_plain32"])
def test_logits_are_those_of_a_plain_implementation(arch, size):
    torch.manual_seed(0)
    model = spread_norms(create_model(arch), most=1.5, std=0.2).eval()
    images = torch.randn(2, 3, *size)
    expected = plain_forward(model.state_dict(), (layers_of(arch) - 2) // 6, images, residual="resnet" in arch)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", CIFAR)
def test_layers_are_as_many_as_the_name_says(arch):
    model = on_meta(arch)
    weighted = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(weighted) == layers_of(arch) == 6 * ((layers_of(arch) - 2) // 6) + 2


@pytest.mark.parametrize("arch", CIFAR)
def test_parameters_are_the_papers(arch):
    """Shortcuts have none, so residual and plain networks have the same."""
    depth = (layers_of(arch) - 2) // 6
    convolutions = 9 * (3 * 16 + 2 * depth * 16**2 + (2 * depth - 1) * (32**2 + 64**2) + 16 * 32 + 32 * 64)
    norms = 2 * (16 + 2 * depth * (16 + 32 + 64))
    parameters = sum(parameter.numel() for parameter in on_meta(arch).parameters())
    assert parameters == convolutions + norms + 64 * 10 + 10
    printed = PAPER_PARAMETERS[layers_of(arch)]
    assert round(parameters / 1e6, 1 if printed > 1 else 2) == printed


@pytest.mark.parametrize("arch", ["cifar_resnet20", "cifar_plain20"])
def test_it_learns_every_parameter(arch):
    model = create_model(arch).train()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stem": "deeplab"}, "leave out stem"),
        ({"res5_dilation": 2}, "leave out res5_dilation"),
        ({"stride_in_1x1": True}, "leave out stride_in_1x1"),
        ({"out_features": ("res5",)}, "must name one or more of"),
        ({"freeze_at": 5}, "must be 0"),
    ],
)
def test_options_of_the_large_networks_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        create_model("cifar_resnet20", **options)


def test_a_trunk_is_built_as_far_as_it_is_asked_for():
    trunk = create_model("cifar_resnet20", num_classes=0, out_features=("res3",), freeze_at=2)
    assert trunk.res4 is None and not any(name.startswith(("res4.", "linear.")) for name in trunk.state_dict())
    assert trunk(torch.zeros(1, 3, 32, 32))["res3"].shape == (1, 32, 16, 16)
    assert {name.split(".")[0] for name, p in trunk.named_parameters() if p.requires_grad} == {"res3"}
