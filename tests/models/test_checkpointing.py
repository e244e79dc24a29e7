"""Activation checkpointing: the same training to the bit, with less kept for the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch

from resnet_backbone.models.acceleration import Acceleration, accelerate
from resnet_backbone.models.registry import create_model


def train_once(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], int]:
    """Return the gradients of a step, and how many bytes beside parameters were kept for them."""
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(3)  # stochastic depth
    images = torch.randn(2, 3, 97, 65, generator=torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = sum(feature.square().mean() for feature in model.train()(images).values())
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "GN"])
@pytest.mark.parametrize(
    ("arch", "stages"),
    [
        ("resnet18", ("res2", "res3")),
        ("resnet50", ("stem", "res2", "res3", "res4", "res5")),
        ("plain18", ("res4",)),
        ("vgg16_bn", ("conv1", "conv2", "conv3")),
        ("cifar_resnet20", ("res2", "res3")),
    ],
)
def test_a_step_is_the_same_to_the_bit_and_keeps_less(arch, stages, norm):
    torch.manual_seed(0)
    plain = create_model(arch, num_classes=0, norm=norm)
    saving = copy.deepcopy(plain)
    accelerate(saving, Acceleration(checkpoint_stages=stages), needed=1)
    (expected, all_of_it), (found, some_of_it) = train_once(plain), train_once(saving)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    # The running statistics have counted the batch once.
    torch.testing.assert_close(saving.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert some_of_it < 0.95 * all_of_it


def test_stochastic_depth_drops_the_same_blocks_in_the_second_pass():
    torch.manual_seed(0)
    plain = create_model("resnet18", num_classes=0, stochastic_depth=0.9)
    saving = copy.deepcopy(plain)
    accelerate(saving, Acceleration(checkpoint_stages=("res3", "res4", "res5")), needed=1)
    expected, found = train_once(plain)[0], train_once(saving)[0]
    assert len(expected) < len(list(plain.parameters())), "some block was dropped"
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["resnet50", "vgg16"])
def test_frozen_stages_keep_no_activations(arch):
    torch.manual_seed(0)
    norm = "" if arch == "vgg16" else "FrozenBN"
    frozen = create_model(arch, num_classes=0, norm=norm, freeze_at=2)
    trained = create_model(arch, num_classes=0, norm=norm, freeze_at=0)
    first_two = {"resnet50": ("stem", "res2"), "vgg16": ("conv1", "conv2")}[arch]
    alone = create_model(arch, num_classes=0, norm=norm, freeze_at=2, out_features=[first_two[-1]])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        assert not alone.train()(torch.randn(2, 3, 64, 64))[first_two[-1]].requires_grad
    assert kept == []
    assert train_once(frozen)[1] < 0.75 * train_once(trained)[1]


def test_without_gradients_nothing_is_computed_twice(monkeypatch):
    model = create_model("resnet18", num_classes=0)
    accelerate(model, Acceleration(checkpoint_stages=("res2",)), needed=1)
    passes = []
    model.res2[0].conv1.register_forward_hook(lambda *_: passes.append(1))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        model.eval()(images), model.train()(images)
    assert len(passes) == 2
    model(images)["res5"].mean().backward()
    assert len(passes) == 4, "the hook sees the second pass of a training step"
