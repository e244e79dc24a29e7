"""What training does to an image at random: the paper's transforms for ImageNet and for CIFAR, and Inception's."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from resnet_backbone.weights import InputFormat


class ColorJitterAlexNet(nn.Module):
    """Add a multiple of the principal components of ImageNet's colours to every pixel, the same all over an image.

    The multiples are drawn from N(0, 0.1), for each component anew, and weighted by its eigenvalue.

    Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", section 4.1; the
    components of facebookarchive/fb.resnet.torch, ``datasets/imagenet.lua``.
    """

    STD = 0.1
    EIGENVALUES = (0.2175, 0.0188, 0.0045)  # of RGB in 0..1
    EIGENVECTORS = (
        (-0.5675, 0.7192, 0.4009),
        (-0.5808, -0.0045, -0.8140),
        (-0.5836, -0.6948, 0.4203),
    )  # one row a channel

    def __init__(self) -> None:
        super().__init__()
        self.components: Tensor
        self.register_buffer("components", torch.tensor(self.EIGENVECTORS) * torch.tensor(self.EIGENVALUES))

    def forward(self, image: Tensor) -> Tensor:
        """Map an RGB image, float in 0..1, (3, H, W), to one that may leave 0..1 a little."""
        shift = self.components @ torch.normal(0.0, self.STD, (3,))
        return image + shift[:, None, None]


def training_transform(cfg: CfgNode, input_format: InputFormat) -> v2.Compose:
    """Return the transform of a training image: PIL, RGB, to float (3, SIZE, SIZE), normalised, RGB.

    Args:
        cfg: reads INPUT.
        input_format: mean and std; the channels are put in order later, with the batch's.
    """
    node = cfg.INPUT
    mode = InterpolationMode(node.INTERPOLATION)
    steps: list[nn.Module] = [v2.PILToTensor()]
    if node.TRAIN_CROP == "short_side":
        low, high = node.SHORT_SIDE
        steps += [
            v2.RandomShortestSize(list(range(low, high + 1)), interpolation=mode),
            v2.RandomCrop(node.SIZE, pad_if_needed=True),  # rounding may leave a pixel too few
        ]
    elif node.TRAIN_CROP == "area":
        steps += [v2.RandomResizedCrop(node.SIZE, scale=tuple(node.AREA), interpolation=mode, antialias=True)]
    else:
        resize = v2.Resize(node.SIZE, interpolation=mode, antialias=True)
        steps += [resize, v2.RandomCrop(node.SIZE, padding=node.PAD, fill=mean_color(input_format))]
    if node.RANDOM_FLIP == "horizontal":
        steps.append(v2.RandomHorizontalFlip())
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if node.COLOR_AUGMENTATION == "alexnet":
        steps.append(ColorJitterAlexNet())
    steps.append(rgb_normalise(input_format))
    return v2.Compose(steps)


def mean_color(input_format: InputFormat) -> list[int]:
    """Return the RGB colour in 0..255 that normalisation turns into nearly zero."""
    return [round(value) for value in _rgb(input_format, input_format.mean)]


def rgb_normalise(input_format: InputFormat) -> v2.Normalize:
    """Return the normalisation of an RGB image in 0..1."""
    mean, std = (_rgb(input_format, values) for values in (input_format.mean, input_format.std))
    return v2.Normalize([value / 255 for value in mean], [value / 255 for value in std])


def _rgb(input_format: InputFormat, values: tuple[float, ...]) -> tuple[float, ...]:
    return values if input_format.channel_order == "RGB" else values[::-1]
