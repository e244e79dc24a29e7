"""Weight files made by the tests: torchvision's networks with every tensor told apart from every other."""

import functools
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor


@pytest.fixture(scope="session")
def torchvision_state() -> Callable[..., dict[str, Tensor]]:
    """``torchvision_state("resnet50")``: names and shapes of torchvision, the n-th tensor filled with n, no memory."""

    def make(arch: str, num_classes: int = 1000, head: bool = True) -> dict[str, Tensor]:
        with torch.device("meta"):
            model = getattr(torchvision.models, arch)(weights=None, num_classes=num_classes)
        return {
            name: torch.full((), index, dtype=tensor.dtype).expand(tensor.shape)
            for index, (name, tensor) in enumerate(model.state_dict().items())
            if head or not name.startswith(("fc.", "classifier."))
        }

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
