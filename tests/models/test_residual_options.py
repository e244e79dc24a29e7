"""Shortcut options, pre-activation and stochastic depth, against plain implementations of their papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_backbone.models.layers import ConvNormActivation, FrozenBatchNorm2d
from resnet_backbone.models.registry import create_model, list_models
from resnet_backbone.models.resnet import ResidualBlock, ZeroPadShortcut, survival_rates
from resnet_backbone.weights import InputFormat, WeightsError, load_weights, package_weights, read_weights
from resnet_backbone.weights.architecture import candidate_archs, shortcut_of
from tests.helpers import spread_norms

RGB = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "cifar_resnet20": (3, 3, 3)}


def with_statistics(arch: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return spread_norms(create_model(arch, **{"num_classes": 10, **options})).eval()


class Plain:
    """A residual network from a state dict, one function of the papers after the other."""

    def __init__(self, state: dict[str, Tensor], arch: str, shortcut: str, preactivation: bool) -> None:
        self.state, self.arch, self.shortcut, self.preactivation = state, arch, shortcut, preactivation

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.batch_norm(x, *(self.state[f"{name}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")))

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def identity(self, name: str, x: Tensor, activated: Tensor, channels: int, stride: int) -> Tensor:
        changes = stride == 2 or x.shape[1] != channels
        if self.shortcut == "C" or (self.shortcut == "B" and changes):
            projected = self.conv(f"{name}.shortcut", activated, stride)
            return projected if self.preactivation else self.norm(f"{name}.shortcut.norm", projected)
        if not changes:
            return x
        small = x[:, :, ::stride, ::stride]
        return torch.cat([small, small.new_zeros(len(x), channels - x.shape[1], *small.shape[2:])], 1)

    def block(self, name: str, x: Tensor, stride: int, first: bool) -> Tensor:
        """Post-activated: arXiv 1512.03385. Pre-activated: arXiv 1603.05027, the activation shared by a projection."""
        convs = [n for n in ("conv1", "conv2", "conv3") if f"{name}.{n}.weight" in self.state]
        carries = convs[-2] if len(convs) == 3 else "conv1"
        activated = x
        if self.preactivation and not first:
            activated = F.relu(self.norm(f"{name}.preact.norm", x))
        y = activated
        for conv in convs:
            y = self.conv(f"{name}.{conv}", y, stride if conv == carries else 1)
            if not self.preactivation or conv != convs[-1]:
                y = self.norm(f"{name}.{conv}.norm", y)
            if conv != convs[-1]:
                y = F.relu(y)
        y = y + self.identity(name, x, activated, y.shape[1], stride)
        return y if self.preactivation else F.relu(y)

    def __call__(self, x: Tensor) -> Tensor:
        cifar = self.arch.startswith("cifar")
        x = F.relu(self.norm("stem.conv1.norm", self.conv("stem.conv1", x, 1 if cifar else 2)))
        if not cifar:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage, depth in enumerate(DEPTHS[self.arch], start=2):
            for index in range(depth):
                stride = 2 if stage > 2 and index == 0 else 1
                x = self.block(f"res{stage}.{index}", x, stride, first=stage == 2 and index == 0)
        if self.preactivation:
            x = F.relu(self.norm("postact.norm", x))
        return F.linear(x.mean((2, 3)), self.state["linear.weight"], self.state["linear.bias"])


@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("arch", DEPTHS)
def test_logits_are_those_of_a_plain_implementation(arch, shortcut, preactivation):
    model = with_statistics(arch, shortcut=shortcut, preactivation=preactivation)
    images = torch.randn(2, 3, 64, 48)
    expected = Plain(model.state_dict(), arch, shortcut, preactivation)(images)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-4)
    assert (model.shortcut, model.preactivation) == (shortcut, preactivation)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "cifar_resnet20"])
def test_a_preactivated_network_learns_every_parameter(arch):
    model = create_model(arch, num_classes=10, preactivation=True).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_resnet34_has_thirteen_more_projections_with_option_c():
    """Section 4.1: "extra parameters introduced by many (thirteen) projection shortcuts"."""
    projections = {}
    for option in "ABC":
        model = create_model("resnet34", shortcut=option)
        shortcuts = [module.shortcut for module in model.modules() if isinstance(module, ResidualBlock)]
        projections[option] = sum(isinstance(shortcut, ConvNormActivation) for shortcut in shortcuts)
        assert sum(isinstance(shortcut, ZeroPadShortcut) for shortcut in shortcuts) == (3 if option == "A" else 0)
    assert projections == {"A": 0, "B": 3, "C": 16}


def test_option_a_has_the_parameters_of_the_plain_network():
    count = lambda model: sum(p.numel() for p in model.parameters())  # noqa: E731
    for depth in ("18", "34"):
        plain, residual = create_model(f"plain{depth}"), create_model(f"resnet{depth}", shortcut="A")
        assert count(plain) == count(residual)


@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("arch", [a for a in list_models() if "resnet" in a and not a.endswith("d")])
def test_the_tensors_tell_architecture_and_option(arch, shortcut):
    with torch.device("meta"):
        state = create_model(arch, shortcut=shortcut, preactivation=True).state_dict()
    assert candidate_archs(state) == (arch,)
    assert shortcut_of(arch, state) == shortcut


@pytest.mark.parametrize("preactivation", [False, True], ids=["post", "pre"])
@pytest.mark.parametrize("shortcut", ["A", "B", "C"])
@pytest.mark.parametrize("arch", ["resnet18", "cifar_resnet20"])
def test_a_packaged_file_rebuilds_the_network(tmp_path, arch, shortcut, preactivation):
    model = with_statistics(arch, shortcut=shortcut, preactivation=preactivation)
    torch.save(model.state_dict(), tmp_path / "raw.pth")
    package_weights(tmp_path / "raw.pth", tmp_path / "packaged.pth", input_format=RGB)
    weights = read_weights(tmp_path / "packaged.pth")
    assert (weights.arch, weights.shortcut, weights.preactivation) == (arch, shortcut, preactivation)
    again = create_model(arch, weights=tmp_path / "packaged.pth").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("kind", ["state dict", "file"])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {"num_classes": 7}),
        ("resnet18", {"num_classes": 0}),
        ("resnet18", {"shortcut": "C", "preactivation": True}),
        ("cifar_resnet20", {"shortcut": "B", "num_classes": 100}),
        ("cifar_resnet20", {"norm": "GN"}),
        ("cifar_plain20", {"norm": "", "num_classes": 3}),
        ("resnet50", {"stem": "deeplab", "num_classes": 4, "shortcut": "A"}),
    ],
    ids=str,
)
def test_what_is_not_said_comes_from_the_tensors(tmp_path, arch, options, kind):
    model = with_statistics(arch, **options)
    source = model.state_dict()
    if kind == "file":
        torch.save(source, tmp_path / "own.pth")
        source = tmp_path / "own.pth"
    again = create_model(arch, weights=source).eval()
    assert (again.num_classes, again.shortcut) == (model.num_classes, model.shortcut)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found, wanted = again(images), model(images)
    for name in wanted if isinstance(wanted, dict) else [...]:
        assert torch.equal(found[name], wanted[name])


def test_a_new_head_is_asked_for():
    state = create_model("cifar_resnet20", num_classes=7).state_dict()
    with pytest.raises(WeightsError, match="num_classes=7, or new_head=True"):
        create_model("cifar_resnet20", weights=state, num_classes=3)
    assert create_model("cifar_resnet20", weights=state, num_classes=3, new_head=True).linear.out_features == 3
    assert create_model("cifar_resnet20", weights=state, num_classes=0).num_classes == 0


def test_what_the_tensors_hide_and_is_assumed_is_logged(caplog):
    state = create_model("resnet50", num_classes=2).state_dict()
    caplog.set_level("WARNING")
    create_model("resnet50", weights=state, stride_in_1x1=False)
    assert not caplog.records
    create_model("resnet50", weights=state)
    assert "nobody said in which convolution of the bottlenecks" in caplog.text and "stride_in_1x1=True" in caplog.text


@pytest.mark.parametrize(
    ("file", "model", "said"),
    [
        ({"shortcut": "A"}, {"shortcut": "B"}, "in the file 'A'"),
        ({"shortcut": "B"}, {"shortcut": "C"}, "in the file 'B'"),
        ({"preactivation": True}, {}, "preactivation=True"),
        ({}, {"preactivation": True}, "preactivation=False"),
    ],
)
def test_another_option_is_refused_and_said(file, model, said):
    target = create_model("resnet18", **model)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match=said):
        load_weights(target, create_model("resnet18", **file).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(("plain", "residual"), [("plain18", "resnet18"), ("cifar_plain20", "cifar_resnet20")])
def test_a_plain_network_is_never_taken_for_one_with_parameter_free_shortcuts(plain, residual):
    """Their parameters have the same names and shapes. Ours with option A say so, files from elsewhere do not."""
    of_plain, of_residual = create_model(plain), create_model(residual, shortcut="A")
    with pytest.raises(WeightsError, match=f"can be {plain} or {residual}"):
        load_weights(of_residual, of_plain.state_dict())
    with pytest.raises(WeightsError, match=f"{residual}, not of {plain}"):
        load_weights(of_plain, of_residual.state_dict())


def test_survival_falls_linearly():
    assert survival_rates(4, 0.5) == [0.875, 0.75, 0.625, 0.5]  # arXiv 1603.09382, equation 4
    model = create_model("cifar_resnet110", stochastic_depth=0.5)
    rates = [module.survival for module in model.modules() if isinstance(module, ResidualBlock)]
    assert rates == pytest.approx([1 - 0.5 * number / 54 for number in range(1, 55)])
    expected_depth = sum(rates)
    assert expected_depth == pytest.approx(40, abs=1)  # section 4: "reduces to ... approximately 40" of 54


def test_a_dropped_block_is_the_identity_and_leaves_its_statistics():
    block = create_model("cifar_resnet20", stochastic_depth=0.5).res4[2].train()
    x = torch.rand(2, 64, 8, 8)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        before = block.conv1.norm.running_mean.clone()
        dropped = torch.equal(block(x), x)
        assert torch.equal(block.conv1.norm.running_mean, before) is dropped
        seen.add(dropped)
    assert seen == {True, False}


def test_a_block_survives_as_often_as_it_should():
    block = create_model("cifar_resnet20", stochastic_depth=0.8).res4[2].train()
    x = torch.rand(1, 64, 2, 2)
    torch.manual_seed(0)
    kept = sum(not torch.equal(block(x), x) for _ in range(1000))
    assert kept == pytest.approx(200, abs=50)  # four standard deviations


@pytest.mark.parametrize("preactivation", [False, True])
def test_evaluation_multiplies_the_residual_by_its_survival(preactivation):
    """Equation 5 of arXiv 1603.09382."""
    block = with_statistics("cifar_resnet20", stochastic_depth=0.5, preactivation=preactivation).res4[2]
    assert block.survival == 0.5
    x = torch.rand(2, 64, 8, 8)
    with torch.inference_mode():
        residual = block.residual(x if block.preact is None else block.preact(x))
        expected = 0.5 * residual + x
        torch.testing.assert_close(block(x), expected if preactivation else F.relu(expected))


def test_without_stochastic_depth_no_random_number_is_drawn():
    model = create_model("cifar_resnet20").train()
    images = torch.rand(2, 3, 32, 32)
    state = torch.random.get_rng_state()
    model(images)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arch", "options", "said"),
    [
        ("resnet18", {"shortcut": "D"}, "write one of 'A', 'B', 'C'"),
        ("plain18", {"shortcut": "A"}, "has no shortcuts"),
        ("plain18", {"preactivation": True}, "has no shortcuts"),
        ("cifar_plain20", {"stochastic_depth": 0.5}, "has no shortcuts"),
        ("vgg16", {"shortcut": "A"}, "leave out shortcut"),
        ("vgg16", {"stochastic_depth": 0.5}, "leave out stochastic_depth"),
        ("resnet18", {"preactivation": True, "norm": ""}, "norm='BN'"),
        ("resnet18", {"stochastic_depth": 1.0}, "below 1"),
        ("resnet18", {"stochastic_depth": -0.1}, "0 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused(arch, options, said):
    with pytest.raises(ValueError, match=said):
        create_model(arch, **options)


def test_freezing_a_preactivated_network_fixes_its_norms():
    model = create_model("resnet18", preactivation=True, freeze_at=3).train()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {name.split(".")[0] for name in norms} == {"res4", "res5", "postact"}
    assert isinstance(model.res3[0].preact.norm, FrozenBatchNorm2d)


@pytest.mark.parametrize("arch", ["plain18", "resnet50", "cifar_resnet20", "vgg16_bn"])
def test_the_dense_head_is_the_head_on_every_window(arch):
    """On a map of just the window's size it is the head, and elsewhere the head of what the window shows."""
    cifar = arch.startswith("cifar")
    model = create_model(arch, num_classes=10).eval()
    stride, window = (4, 8) if cifar else (32, 7)
    channels = model.feature_info[next(reversed(model.feature_info))].channels
    with torch.inference_mode():
        x = torch.rand(2, channels, window + 1, window + 2)
        dense = model.forward_dense_head(x, window)
        assert dense.shape == (2, 10, 2, 3)
        for top in range(2):
            for left in range(3):
                part = x[:, :, top : top + window, left : left + window]
                torch.testing.assert_close(dense[:, :, top, left], model.forward_head(part), rtol=1e-4, atol=1e-5)
    assert model.size_divisibility == stride
