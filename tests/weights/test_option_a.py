"""Shortcut option A: no tensors tell it from a plain network, nor where its zeros are; the source or the user does."""

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import WeightsError, load_weights, package_weights, read_weights
from resnet_backbone.weights.catalog import CATALOG, TORCHVISION_RGB
from resnet_backbone.weights.source import weights_from_state_dict
from tests.helpers import spread_norms

ARCHS = ["cifar_resnet20", "cifar_resnet32", "resnet18", "resnet50"]


class Padded(nn.Module):
    """Every second pixel where the stride is 2, with zeros around the channels or behind them."""

    def __init__(self, inputs: int, outputs: int, stride: int, zeros: str) -> None:
        super().__init__()
        new = outputs - inputs
        self.padding = (new // 2, new // 2) if zeros == "both" else (0, new)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class Reference(nn.Module):
    """The network of another project, of torchvision's blocks, in the names of akamaster/pytorch_resnet_cifar10."""

    def __init__(self, arch: str, zeros: str) -> None:
        super().__init__()
        small = arch.startswith("cifar_")
        block = Bottleneck if arch == "resnet50" else BasicBlock
        number = int(arch.removeprefix("cifar_").removeprefix("resnet"))
        depths = [(number - 2) // 6] * 3 if small else {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[number]
        width = channels = 16 if small else 64
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stages = []
        for index, depth in enumerate(depths):
            stride, planes = 2 if index else 1, width * 2**index
            outputs = planes * block.expansion
            changes = channels != outputs
            blocks = [block(channels, planes, stride, Padded(channels, outputs, stride, zeros) if changes else None)]
            blocks += [block(outputs, planes) for _ in range(depth - 1)]
            self.stages.append(f"layer{index + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
            channels = outputs
        self.linear = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return self.linear(x.mean((2, 3)))


def reference(arch: str, zeros: str) -> Reference:
    torch.manual_seed(0)
    return spread_norms(Reference(arch, zeros).eval(), std=0.2, variance=0.2)


@torch.inference_mode()
def difference(model: nn.Module, other: nn.Module) -> float:
    """The largest difference on random images, relative to the largest output."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    wanted = other(images)
    return ((model.eval()(images) - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("zeros", ["behind", "both"])
@pytest.mark.parametrize("arch", ARCHS)
def test_both_places_of_the_zeros_are_read_exactly(arch, zeros):
    theirs = reference(arch, zeros)
    model = create_model(arch, weights=weights_from_state_dict(theirs.state_dict(), arch, option_a_zeros=zeros))
    assert (model.shortcut, model.num_classes) == ("A", 10)
    assert difference(model, theirs) < 1e-5
    other = "behind" if zeros == "both" else "both"
    wrong = create_model(arch, weights=weights_from_state_dict(theirs.state_dict(), arch, option_a_zeros=other))
    assert difference(wrong, theirs) > 1e-2


def test_a_pre_activated_network_is_read_exactly():
    """Undo our own order of the channels with the inverse of what is tested, and read it back."""
    torch.manual_seed(0)
    model = create_model("cifar_resnet20", preactivation=True).eval()
    bare = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("padding")}
    weights = weights_from_state_dict(bare, "cifar_resnet20", option_a_zeros="behind")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.state_dict.items())
    moved = weights_from_state_dict(bare, "cifar_resnet20", option_a_zeros="both")
    names = ("res3.0.preact.norm.bias", "res4.1.preact.norm.bias", "postact.norm.bias", "linear.weight")
    marked = {**bare, **{name: torch.arange(bare[name].numel()).view_as(bare[name]).float() for name in names}}
    read = weights_from_state_dict(marked, "cifar_resnet20", option_a_zeros="both").state_dict
    assert weights.state_dict.keys() == moved.state_dict.keys()
    assert read["res3.0.preact.norm.bias"].tolist() == list(range(16))
    # 16 channels lie at 8..23 of 32, and these at 16..47 of 64: ours are 24..39 first, then the zeros of res3.
    order = [*range(24, 40), *range(16, 24), *range(40, 48), *range(16), *range(48, 64)]
    for name in names[1:]:
        assert read[name].reshape(-1, 64)[0].tolist() == order, name


def test_plain_or_residual_stays_open_until_somebody_says_it():
    state = reference("cifar_resnet20", "both").state_dict()
    weights = weights_from_state_dict(state)
    assert weights.arch is None
    with pytest.raises(WeightsError, match=r"can be cifar_plain20 or cifar_resnet20.*--arch cifar_resnet20"):
        weights.known_arch()
    assert weights_from_state_dict(state, "cifar_resnet20").shortcut == "A"
    assert create_model("cifar_plain20", weights=state).num_classes == 10
    with pytest.raises(WeightsError, match=r"can be cifar_plain20 or cifar_resnet20(.|\n)*option_a_zeros"):
        create_model("cifar_resnet20", weights=state)
    with pytest.raises(WeightsError, match="not of cifar_resnet32"):
        create_model("cifar_resnet32", weights=state)


def test_a_checkpoint_that_names_its_architecture_settles_it(tmp_path):
    state = create_model("cifar_plain20").state_dict()
    torch.save({"arch": "cifar_plain20", "model": state}, tmp_path / "plain.pth")
    torch.save({"arch": "resnet20", "model": state}, tmp_path / "other.pth")  # another project's word
    assert read_weights(tmp_path / "plain.pth").arch == "cifar_plain20"
    with pytest.raises(WeightsError, match="cifar_plain20, not of cifar_resnet20"):
        read_weights(tmp_path / "plain.pth", "cifar_resnet20")
    assert read_weights(tmp_path / "other.pth").arch is None


@pytest.mark.parametrize(
    ("arch", "zeros", "said"),
    [
        (None, "both", "write arch="),
        ("cifar_plain20", "both", "cifar_plain20 is not known to have"),
        ("cifar_resnet20", "around", "'behind', 'both'"),
    ],
)
def test_a_place_of_zeros_that_cannot_be(arch, zeros, said):
    with pytest.raises(WeightsError, match=said):
        weights_from_state_dict(reference("cifar_resnet20", "both").state_dict(), arch, option_a_zeros=zeros)


def test_our_own_files_are_known_to_have_the_zeros_behind():
    state = create_model("cifar_resnet20").state_dict()
    assert weights_from_state_dict(state).option_a_zeros == "behind"
    with pytest.raises(WeightsError, match="leave option_a_zeros out"):
        weights_from_state_dict(state, option_a_zeros="both")
    assert weights_from_state_dict(create_model("resnet18").state_dict()).option_a_zeros == ""


def test_packaging_asks_for_the_architecture_and_the_zeros(load_script, tmp_path, capsys):
    theirs = reference("cifar_resnet20", "both")
    torch.save({"state_dict": {f"module.{name}": t for name, t in theirs.state_dict().items()}}, tmp_path / "raw.th")
    pixels = ["--channel-order", "RGB", "--mean", "123.675", "116.28", "103.53", "--std", "58.395", "57.12", "57.375"]
    words = [str(tmp_path / "raw.th"), str(tmp_path / "out.pth"), *pixels]
    main = load_script("tools/package_weights.py").main
    assert main(words) == 1
    assert "cifar_plain20 or cifar_resnet20" in capsys.readouterr().err
    assert main([*words, "--arch", "cifar_resnet20"]) == 1
    assert 'option_a_zeros="both"' in capsys.readouterr().err and not (tmp_path / "out.pth").exists()
    assert main([*words, "--arch", "cifar_resnet20", "--option-a-zeros", "both"]) == 0
    assert json.loads(capsys.readouterr().out)["option_a_zeros"] == "both"
    weights = read_weights(tmp_path / "out.pth")
    assert (weights.arch, weights.shortcut, weights.option_a_zeros) == ("cifar_resnet20", "A", "both")
    model = create_model("cifar_resnet20", weights=tmp_path / "out.pth")
    assert difference(model, theirs) < 1e-5
    assert "on both sides" in load_weights(model, tmp_path / "out.pth").summary()
    again = package_weights(tmp_path / "out.pth", tmp_path / "again.pth")
    assert again["option_a_zeros"] == "both"
    assert difference(create_model("cifar_resnet20", weights=tmp_path / "again.pth"), theirs) < 1e-5


@pytest.mark.parametrize("source", ["AKAMASTER", "cifar10://resnet20/AKAMASTER", "file"])
def test_published_files_are_recognised(tmp_path, empty_hub, source):
    """By name in the cache, and by content under any name."""
    entry = CATALOG["cifar_resnet20/AKAMASTER"]
    theirs = reference("cifar_resnet20", "both")
    path = empty_hub / "cache" / "weights" / entry.file_name
    path.parent.mkdir(parents=True)
    torch.save({"best_prec1": 91.73, "state_dict": theirs.state_dict()}, path)
    original = entry.sha256
    object.__setattr__(entry, "sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    try:
        source = str(path.rename(tmp_path / "renamed.pth")) if source == "file" else source
        weights = read_weights(source, "cifar_resnet20")
        assert weights.input_format == TORCHVISION_RGB and weights.class_names[0] == "airplane"
        assert difference(create_model("cifar_resnet20", weights=source), theirs) < 1e-5
        with pytest.raises(WeightsError, match=r"cifar_resnet20, not( of)? cifar_plain20|no weights|not cifar_plain20"):
            read_weights(source, "cifar_plain20")
    finally:
        object.__setattr__(entry, "sha256", original)


@pytest.mark.parametrize(("depth", "file"), [(20, "resnet20-12fca82f.th"), (56, "resnet56-4bfd9763.th")])
def test_the_published_networks(cifar10_resnets, depth, file):
    theirs = Reference(f"cifar_resnet{depth}", "both").eval()
    content = torch.load(cifar10_resnets / file, map_location="cpu", weights_only=True)["state_dict"]
    theirs.load_state_dict({name.removeprefix("module."): tensor for name, tensor in content.items()})
    weights = read_weights(cifar10_resnets / file)
    assert (weights.arch, weights.option_a_zeros, weights.licence) == (f"cifar_resnet{depth}", "both", "BSD-2-Clause")
    assert difference(create_model(f"cifar_resnet{depth}", weights=cifar10_resnets / file), theirs) < 1e-5


def test_facts_that_other_tensors_do_tell():
    """A stem of 3x3 for small images, and norms in front of their convolutions, are not our networks of these names."""
    small = reference("resnet18", "both").state_dict()
    small["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    weights = weights_from_state_dict(small)
    with pytest.raises(WeightsError, match="another first convolution"):
        weights.known_arch()
    with pytest.raises(WeightsError, match="first convolution of 3x3 is that of cifar_"):
        create_model("resnet18", weights=small)
    before = reference("cifar_resnet20", "both").state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        before[f"layer2.0.bn1.{name}"] = torch.ones(16)  # of the 16 channels that conv1 reads, not the 32 that it makes
    assert weights_from_state_dict(before).arch is None
    with pytest.raises(WeightsError, match="fits no network"):
        weights_from_state_dict(before).known_arch()
