"""Standard deviations of the layers' responses, against torchvision's networks and against code of its own here."""

from __future__ import annotations

import copy
import csv
import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn

from resnet_backbone import create_model, list_models, load_weights
from resnet_backbone.classification.figures import (
    LayerResponse,
    Responses,
    measure_responses,
    responses_text,
    write_responses,
)
from resnet_backbone.weights.architecture import LAYOUTS
from tests.helpers import FAMILY, quickly


def stir(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give the norms statistics and parameters that matter."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.3, 1.0),
                (module.bias, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def std(outputs: list[torch.Tensor]) -> float:
    """The plain computation: all values at once."""
    return torch.std(torch.cat([output.flatten() for output in outputs]).double(), unbiased=False).item()


def naive_of_torchvision(model: nn.Module, names: list[str], batches: list[torch.Tensor]) -> list[float]:
    """Collect what the modules of these names return, before a ReLU changes it in place."""
    collected: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: collected[name].append(output.clone())
        )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return [std(outputs) for outputs in collected.values()]


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_resnets_against_torchvision(arch):
    torch.manual_seed(0)
    reference = stir(torchvision.models.get_model(arch))
    model = create_model(arch)
    load_weights(model, reference.state_dict())
    norm = r"layer\d\.\d+\.bn2" if arch == "resnet50" else r"layer\d\.\d+\.bn[12]"
    names = [name for name, _ in reference.named_modules() if re.fullmatch(norm, name)]
    batches = [images(2, 3, 64, 64), images(1, 3, 64, 64, seed=2)]
    measured = measure_responses(model, batches)
    assert [layer.std for layer in measured.layers] == pytest.approx(
        naive_of_torchvision(reference, names, batches), rel=1e-6
    )
    as_ours = [re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", name).replace("bn", "conv") for name in names]
    assert [layer.name for layer in measured.layers] == as_ours
    assert measured.num_images == 3 and measured.has_shortcuts and measured.name == measured.arch == arch


@pytest.mark.parametrize("arch", ["vgg16", "vgg16_bn"])
def test_vgg_against_torchvision(arch):
    torch.manual_seed(0)
    reference = stir(getattr(torchvision.models, arch)(num_classes=2))
    for module in reference.features:
        if isinstance(module, nn.Conv2d):
            module.bias.data.uniform_(-0.2, 0.2)
    model = create_model(arch, num_classes=0)
    load_weights(model, reference.state_dict())
    kind = nn.BatchNorm2d if arch.endswith("_bn") else nn.Conv2d
    names = [str(index) for index, module in enumerate(reference.features) if isinstance(module, kind)]
    batches = [images(2, 3, 32, 48)]
    measured = measure_responses(model, batches)
    expected = naive_of_torchvision(reference.features, names, batches)
    assert [layer.std for layer in measured.layers] == pytest.approx(expected, rel=1e-6)
    assert [layer.name for layer in measured.layers][:3] == ["conv1_1", "conv1_2", "conv2_1"]
    assert not measured.has_shortcuts


def naive_cifar(model: nn.Module, batches: list[torch.Tensor], *, residual: bool, preactivation: bool) -> list[float]:
    """The CIFAR networks once more, from their tensors alone."""
    tensors = model.state_dict()
    depth = len({name.split(".")[1] for name in tensors if name.startswith("res2.")})
    collected: dict[str, list[torch.Tensor]] = {}

    def norm(x, name):
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(tensors[f"{name}.norm.{key}"] for key in keys))

    def layer(x, name, stride=1, normed=True):
        x = F.conv2d(x, tensors[f"{name}.weight"], stride=stride, padding=1)
        x = norm(x, name) if normed else x
        collected.setdefault(name, []).append(x)
        return x

    for batch in batches:
        x = layer(batch, "stem.conv1").relu()
        for stage in ("res2", "res3", "res4"):
            for index in range(depth):
                block = f"{stage}.{index}"
                stride = 2 if index == 0 and stage != "res2" else 1
                has_preact = f"{block}.preact.norm.weight" in tensors
                y = norm(x, f"{block}.preact").relu() if has_preact else x
                y = layer(y, f"{block}.conv1", stride).relu()
                y = layer(y, f"{block}.conv2", normed=not preactivation)
                if residual:
                    x = x[:, :, ::stride, ::stride]
                    y = y + torch.cat([x, torch.zeros(*x.shape[:1], y.shape[1] - x.shape[1], *x.shape[2:])], dim=1)
                x = y if preactivation else y.relu()
    return [std(outputs) for outputs in collected.values()]


@pytest.mark.parametrize(
    ("arch", "preactivation"), [("cifar_plain20", False), ("cifar_resnet20", False), ("cifar_resnet20", True)]
)
def test_cifar_networks_against_code_of_its_own(arch, preactivation):
    torch.manual_seed(0)
    model = stir(create_model(arch, preactivation=preactivation))
    batches = [images(3, 3, 32, 32), images(2, 3, 32, 32, seed=2)]
    with torch.no_grad():
        expected = naive_cifar(model, batches, residual="resnet" in arch, preactivation=preactivation)
    measured = measure_responses(model, batches)
    assert len(measured.layers) == 19  # 6n + 1: the stem, too
    assert [layer.std for layer in measured.layers] == pytest.approx(expected, rel=1e-6)


# The network of 1202 layers is that of 110 once more; untrained, each of its 600 blocks doubles the variance.
@pytest.mark.parametrize("arch", quickly(name for name in list_models() if name != "cifar_resnet1202"))
def test_every_network_has_its_3x3_layers_in_the_order_they_run(arch):
    model = create_model(arch, num_classes=0).eval()
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
    order: list[str] = []
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: order.append(name))
        for name, module in modules.items()
        if module.kernel_size == (3, 3)
    ]
    measured = measure_responses(model, [x])
    assert [layer.name for layer in measured.layers] == order
    assert all(layer.std > 0 for layer in measured.layers)
    stage_layers = {"resnet50": 16, "resnet101": 33, "resnet152": 50, "vgg16": 13, "vgg19": 16}
    stage_layers |= {"cifar_fitnet19": 17, "cifar_highway19": 17, "cifar_highway32": 15}  # before a hidden layer
    layers = int(re.search(r"\d+", arch)[0])
    if arch in FAMILY:
        layout = LAYOUTS[arch]
        stage_layers[arch] = sum(layout.depths) * (1 if layout.kind == "bottleneck" else 2) + 3 * layout.is_d
    assert len(order) == stage_layers.get(arch.removesuffix("_bn"), layers - (1 if "cifar" in arch else 2))
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        after = model(x)  # the network is what it was
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_network_computes_the_same_while_it_is_measured():
    model = stir(create_model("resnet18", num_classes=5))
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = images(2, 3, 64, 64)
    measure_responses(model, [x])
    with torch.no_grad():
        assert torch.equal(seen[0], model(x))


@pytest.mark.parametrize("sizes", [[6], [1, 2, 3], [5, 1]])
def test_batches_do_not_matter_and_neither_does_a_mean_far_from_zero(sizes):
    model = stir(create_model("cifar_plain20"))
    model.stem.conv1.norm.bias.data += 1000.0  # where a sum of squares would lose its digits
    whole = images(6, 3, 32, 32)
    with torch.no_grad():
        naive = naive_cifar(model, [whole], residual=False, preactivation=False)
    measured = measure_responses(model, whole.split(sizes))
    assert measured.num_images == 6
    assert [layer.std for layer in measured.layers] == pytest.approx(naive, rel=1e-5)
    assert measured.layers[0].mean == pytest.approx(1000, abs=2)


def test_parts_of_a_batch(monkeypatch):
    model = stir(create_model("cifar_resnet20"))
    x = images(3, 3, 32, 32)
    whole = measure_responses(model, [x])
    monkeypatch.setattr("resnet_backbone.classification.figures._MOST_AT_ONCE", 1)
    in_parts = measure_responses(model, [x])
    assert [one.std for one in in_parts.layers] == pytest.approx([one.std for one in whole.layers], rel=1e-12)


def test_modes_hooks_and_statistics_stay():
    model = create_model("cifar_resnet20", stochastic_depth=0.5).train()
    model.res2.eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    measure_responses(model, [images(2, 3, 32, 32)])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="expected images"):
        measure_responses(model, [images(2, 1, 32, 32)])
    assert [module.training for module in model.modules()] == modes
    assert model.res3[0].conv1.activation and not model.res3[0].conv2.activation


def test_what_is_refused():
    model = create_model("cifar_plain20")
    with pytest.raises(ValueError, match="no images"):
        measure_responses(model, [])
    model.res3[0].conv1.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"responds in res3\.0\.conv1 with values that are not finite"):
        measure_responses(model, [images(1, 3, 32, 32)])


@pytest.fixture
def two() -> list[Responses]:
    return [
        Responses("a $5", "cifar_plain20", False, 4, tuple(LayerResponse(f"l{i}", 0.0, i / 2) for i in (2, 1, 4))),
        Responses("b", "cifar_resnet20", True, 4, tuple(LayerResponse(f"l{i}", -1.0, i / 8) for i in (3, 5))),
    ]


def test_report(two, tmp_path):
    table, picture = write_responses(two, tmp_path / "new")
    rows = list(csv.DictReader(table.open()))
    assert [(row["network"], row["index"], row["layer"], row["std"], row["rank"]) for row in rows] == [
        ("a $5", "1", "l2", "1.0", "2"),
        ("a $5", "2", "l1", "0.5", "3"),
        ("a $5", "3", "l4", "2.0", "1"),
        ("b", "1", "l3", "0.375", "2"),
        ("b", "2", "l5", "0.625", "1"),
    ]
    with Image.open(picture) as image:
        assert image.format == "PNG" and min(image.size) > 500
    last = responses_text(two).splitlines()[-1]
    assert last.split() == ["b", "cifar_resnet20", "4", "2", "0.500", "0.500", "0.625", "(l5)", "0.375", "(l3)"]
