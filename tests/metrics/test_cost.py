"""Multiply-adds against torchvision's published figures; measuring changes nothing."""

from contextlib import suppress

import pytest
import torch
import torchvision
from torch import nn

from resnet_backbone.metrics.run_facts import CostMeter, peak_memory_mib

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["ResNet50", "VGG16"])
def test_multiply_adds_and_parameters_are_the_published_ones(name):
    published = torchvision.models.get_weight(f"{name}_Weights.IMAGENET1K_V1").meta
    model = torchvision.models.get_model(name.lower(), weights=None).eval()
    with torch.inference_mode(), CostMeter(model, CPU) as meter:
        model(torch.zeros(1, 3, 224, 224))
    assert meter.multiply_adds / 1e9 == pytest.approx(published["_ops"], rel=1e-3)
    assert meter.parameters == published["num_params"]


class Areas(nn.Module):
    """Convolves every image of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.conv(image) for image in images]


def test_a_mean_image_of_a_list():
    model = Areas()
    images = [torch.rand(3, 10, 20), torch.rand(3, 30, 20)]
    with CostMeter(model, CPU) as meter:
        measured = model(images)
    torch.testing.assert_close(measured, model(images), rtol=0, atol=0)
    assert meter.multiply_adds == 8 * 3 * 9 * (10 * 20 + 30 * 20) / 2


def test_speed_needs_a_few_images_first():
    model = Areas()
    with CostMeter(model, CPU) as meter:
        assert meter.multiply_adds is None
        for _ in range(4):
            model([torch.rand(3, 8, 8)])
        assert meter.images_per_s is None
        model([torch.rand(3, 8, 8)] * 3)
    assert meter.images_per_s > 0
    counted = meter.multiply_adds
    model([torch.rand(3, 80, 80)])  # over: not measured any more
    assert meter.multiply_adds == counted


class Disturbed(Areas):
    """Takes a second over its sixth call, a tenth over others, as on a machine that does something else for a while."""

    calls = 0
    clock = 0.0

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        self.calls += 1
        self.clock += 1.0 if self.calls == 6 else 0.1
        return super().forward(images)


def test_one_slow_call_does_not_spoil_the_speed(monkeypatch):
    model = Disturbed()
    monkeypatch.setattr("resnet_backbone.metrics.run_facts.time.perf_counter", lambda: model.clock)
    with CostMeter(model, CPU) as meter:
        for _ in range(4 + 7):
            model([torch.rand(3, 8, 8)] * 2)
    assert meter.images_per_s == pytest.approx(20)


def test_memory_of_this_process_is_more_than_torch_and_less_than_the_machine():
    assert 50 < peak_memory_mib(CPU) < 100_000


class Failing(Areas):
    """Fails on two images, after it has computed."""

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        found = super().forward(images)
        if len(images) == 2:
            raise KeyboardInterrupt
        return found


def test_calls_that_fail_do_not_count_and_leave_no_mode_behind():
    model, image = Failing(), torch.rand(3, 8, 8)
    before = torch._C._len_torch_dispatch_stack()
    with pytest.raises(KeyboardInterrupt), CostMeter(model, CPU):
        model([image, image])
    assert torch._C._len_torch_dispatch_stack() == before
    with CostMeter(model, CPU) as meter:
        for images in ([image, image], [image], [image, image], [image]):
            with suppress(KeyboardInterrupt):
                model(images)
    assert torch._C._len_torch_dispatch_stack() == before
    assert meter.multiply_adds == 8 * 3 * 9 * 8 * 8
