"""What the message of a diverged training names, and that it names nothing where nothing is odd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_backbone.engine.divergence import (
    broken_tensors,
    diverging_images,
    explain_divergence,
    invalid_boxes,
    unusual_pixels,
)
from resnet_backbone.torchvision_plugin.config import load_config


@pytest.fixture
def cfg():
    return load_config("quickstart.yaml", ["MODEL.DEVICE", "cpu"])


def photograph() -> torch.Tensor:
    return torch.randint(0, 256, (3, 40, 50), generator=torch.Generator().manual_seed(0)).float()


def test_ordinary_pixels(cfg):
    assert unusual_pixels(cfg, [photograph(), photograph() / 2], [1, 2]) == []
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]  # Caffe's weights
    assert unusual_pixels(cfg, [photograph()], [1]) == []


@pytest.mark.parametrize(
    ("mean", "std"), [([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([123.0, 117.0, 104.0], [0.229, 0.224, 0.225])]
)
def test_pixels_on_another_scale(cfg, mean, std):
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean, std
    (text,) = unusual_pixels(cfg, [photograph()], [17])
    assert text.startswith("the pixels of image 17, normalised, have mean")


def test_pixels_that_are_no_numbers(cfg):
    assert "image 5" in unusual_pixels(cfg, [torch.full((3, 8, 8), torch.nan)], [5])[0]


@pytest.mark.parametrize("box", [[10, 5, 9, 20], [-9, 0, 5, 5], [0, 0, 52, 10], [0, 0, torch.nan, 10]])
def test_invalid_boxes(box):
    good = torch.tensor([[0.0, 0.0, 50.0, 40.0], [1.0, 1.0, 2.0, 2.0]])
    sizes = [(40, 50), (40, 50)]
    assert invalid_boxes(sizes, [good, good[:0]], [1, 2]) == []
    (text,) = invalid_boxes(sizes, [good, torch.tensor([box])], [1, 2])
    assert text.startswith("image 2 (40 x 50) has the box [")


def test_weights_that_are_spoiled_already():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert broken_tensors(model) == []
    model[1].running_var[2] = torch.inf
    assert "1.running_var" in broken_tensors(model)[0]


def test_the_images_whose_loss_alone_is_not_finite():
    losses = [torch.tensor(value) for value in (1.0, torch.nan, 2.0)]
    assert diverging_images(losses.__getitem__, [4, 5, 6]) == ["by itself, the loss is not finite on images [5]"]
    assert diverging_images(lambda _: torch.tensor(torch.nan), [4, 5]) == []  # all alike: not the images


def test_the_message(cfg):
    cfg.SOLVER.BASE_LR = 1.0
    text = explain_divergence(
        cfg, "the loss is not finite at iteration 3", [8, 9], Path("out/model_2.pth"), ["so it is"]
    )
    for part in ("at iteration 3 on images [8, 9].", "SOLVER.BASE_LR 1 is 1000 times", "- so it is", "out/model_2.pth"):
        assert part in text
    assert "There is no checkpoint yet" in explain_divergence(cfg, "x", [], None)
