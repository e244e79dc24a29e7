"""Models and weight files made by the tests, with every tensor told apart from every other."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import Weights, WeightsError, load_weights
from tests.helpers import published_model


def _numbered(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: torch.full((), i, dtype=t.dtype).expand(t.shape) for i, (name, t) in enumerate(state.items())}


@pytest.fixture(scope="session")
def torchvision_state() -> Callable[..., dict[str, Tensor]]:
    """``torchvision_state("resnet50")``: names and shapes of torchvision or timm, the n-th tensor is n, no memory."""

    @functools.cache
    def made(arch: str, num_classes: int) -> dict[str, Tensor]:
        with torch.device("meta"):
            model = published_model(arch, num_classes=num_classes)
        return _numbered(model)

    def make(arch: str, num_classes: int = 1000, head: bool = True) -> dict[str, Tensor]:
        state = made(arch, num_classes)
        return {n: t for n, t in state.items() if head or not n.startswith(("fc.", "classifier."))}

    return make


@pytest.fixture(scope="session")
def random_torchvision() -> Callable[[str], torch.nn.Module]:
    """A torchvision ResNet whose norms are random too, so that no two of its tensors can be swapped unseen."""

    @functools.cache
    def make(arch: str, num_classes: int = 1000) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(len(arch))
        model = getattr(torchvision.models, arch)(weights=None, num_classes=num_classes).eval()
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith(("bias", "running_mean")):
                    tensor.uniform_(-0.1, 0.1, generator=generator)
                elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                    tensor.uniform_(0.8, 1.2, generator=generator)
        return model

    return make


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """Caches of our own and of torch.hub that hold nothing."""
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture(scope="session")
def empty_model() -> Callable[..., nn.Module]:
    """``empty_model("resnet50", **options)``: a model without the cost of initialising it; every value is -1."""

    def make(arch: str, **options) -> nn.Module:
        with torch.device("meta"):
            model = create_model(arch, **options)
        model = model.to_empty(device="cpu").eval()
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.fill_(-1)
        return model

    return make


@pytest.fixture(scope="session")
def meta_model() -> Callable[..., nn.Module]:
    """``meta_model("resnet50", num_classes, **options)``: a model without values, built once."""

    @functools.cache
    def make(arch: str, num_classes: int = 0, **options) -> nn.Module:
        with torch.device("meta"):
            return create_model(arch, num_classes=num_classes, **options)

    return make


@pytest.fixture(scope="session")
def numbered(meta_model: Callable[..., nn.Module]) -> Callable[..., dict[str, Tensor]]:
    """``numbered("resnet50", **options)``: a state dict in our names, the n-th tensor filled with n, no memory."""

    @functools.cache
    def made(arch: str, num_classes: int, **options) -> dict[str, Tensor]:
        return _numbered(meta_model(arch, num_classes, **options))

    return lambda arch, num_classes=1000, **options: dict(made(arch, num_classes, **options))


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """``refused(model, source, *said)``: loading must fail, say all of ``said``, and leave the model as it was."""

    def check(model: nn.Module, source: Path | Mapping[str, Tensor] | Weights, *said: str) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(WeightsError) as caught:
            load_weights(model, source)
        for text in said:
            assert text in str(caught.value)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name

    return check
