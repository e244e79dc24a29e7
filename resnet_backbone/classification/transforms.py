"""Image transforms of classification: training augmentation, test views, and both for images kept on the GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

from resnet_backbone.data.images.classes import ClassDataset
from resnet_backbone.engine.batches import BatchSampler, derive_seed
from resnet_backbone.weights import InputFormat, TestTransform


class ColorJitterAlexNet(nn.Module):
    """Add a multiple of the principal components of ImageNet's colours to every pixel, the same all over an image.

    The multiples are drawn from N(0, 0.1), for each component by itself, and weighted by its eigenvalue.

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


logger = logging.getLogger(__name__)

KINDS = ("1-crop", "10-crop", "multi-scale")
SCALES = (224, 256, 384, 480, 640)  # He et al. 2015, section 3.4


@dataclass(frozen=True)
class Views:
    """Which views of an image are averaged.

    Raises:
        ValueError: another kind, or scales that are not different whole numbers from 1 on.
    """

    kind: str  # "1-crop", see one_crop; "10-crop", see ten_crops; or "multi-scale", see multi_scale
    scales: tuple[int, ...] = SCALES  # lengths of the shorter side, in pixels, each once; of multi-scale alone

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(self.scales))
        if self.kind not in KINDS:
            raise ValueError(f"unknown views {self.kind!r}; write one of {', '.join(KINDS)}")
        pixels = all(isinstance(scale, int) and not isinstance(scale, bool) and scale > 0 for scale in self.scales)
        if not pixels or not self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError(
                f"scales are {list(self.scales)}; write one or more lengths in whole pixels, each once, as in "
                f"{list(SCALES)}"
            )

    def check(self, transform: TestTransform) -> None:
        """Raise ValueError where ten crops are all the same; warn where scales are far from what was trained on."""
        if self.kind == "10-crop" and transform.resize == transform.crop:
            raise ValueError(
                f"10-crop takes corners of an image larger than the crop, and both are {transform.crop} pixels; write "
                f"1-crop, or a larger resize"
            )
        if self.kind == "multi-scale" and max(self.scales) > 3 * transform.crop:
            logger.warning("scales %s are far from the crop of %d pixels", list(self.scales), transform.crop)

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(map(str, self.scales))})" if self.kind == "multi-scale" else self.kind


ONE_CROP = Views("1-crop")


def one_crop(image: Image.Image, input_format: InputFormat, transform: TestTransform) -> Tensor:
    """Return the centre of an image: resized as ``transform`` says, cropped and normalised.

    Args:
        image: RGB, of any size.
        input_format: of the network.
        transform: of its test.

    Returns:
        float32, (3, crop, crop), to the bit what torchvision's preset ``ImageClassification`` makes of it.
    """
    return to_input(F.center_crop(resize(image, transform.resize, transform), [transform.crop]), input_format)


def ten_crops(image: Image.Image, input_format: InputFormat, transform: TestTransform) -> Tensor:
    """Return the four corners and the centre of the resized image, and the same of its mirror image.

    Arguments are those of :func:`one_crop`.

    Returns:
        float32, (10, 3, crop, crop), in the order of torchvision's ``ten_crop``: top left, top right, bottom left,
        bottom right, centre, then those of the mirror image. Where the centre is half a pixel off, it is so in both.

    Source: Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks", section 4.1.
    There the image is first cropped to its central square; here the corners are those of the whole image, as in
    torchvision.
    """
    crops = F.ten_crop(resize(image, transform.resize, transform), [transform.crop, transform.crop])
    return torch.stack([to_input(crop, input_format) for crop in crops])


def multi_scale(
    image: Image.Image, input_format: InputFormat, transform: TestTransform, scales: Sequence[int]
) -> list[Tensor]:
    """Return the whole image at several sizes, each together with its mirror image.

    Args:
        image, input_format: as of :func:`one_crop`.
        transform: its interpolation is used.
        scales: lengths of the shorter side, in pixels.

    Returns:
        float32, (2, 3, H, W), for each scale; the mirror image is the second.

    Source: Simonyan & Zisserman 2014 (arXiv 1409.1556), section 3.2; He et al. 2015 (arXiv 1512.03385), section 3.4.
    """
    inputs = [to_input(resize(image, scale, transform), input_format) for scale in scales]
    return [torch.stack([one, one.flip(-1)]) for one in inputs]


def resize(image: Image.Image, shorter_side: int, transform: TestTransform) -> Image.Image:
    """Return the image with a shorter side of this length, in pixels, its shape kept."""
    return F.resize(image, [shorter_side], InterpolationMode(transform.interpolation), antialias=True)


def to_input(image: Image.Image, input_format: InputFormat) -> Tensor:
    """Return an RGB image as a network reads it: float32, (3, H, W), normalised, in the channel order of the format."""
    pixels = rgb_normalise(input_format)(F.convert_image_dtype(F.pil_to_tensor(image), torch.float32))
    return pixels.flip(0) if input_format.channel_order == "BGR" else pixels


class DeviceImages:
    """All images of a small data set, decoded and kept as uint8 on a device, and augmented there a batch at a time.

    Args:
        dataset: its images are brought to one size by resize and centre crop.
        transform: of that.
        input_format: of the batches.
        device: where the images are kept and augmented.
        pad: pixels of mean colour on each side of every image, kept with it.

    Raises:
        ValueError: the images need more memory than the device has free.
    """

    def __init__(
        self,
        dataset: ClassDataset,
        transform: TestTransform,
        input_format: InputFormat,
        device: torch.device,
        *,
        pad: int = 0,
    ) -> None:
        self.size = transform.crop
        self.pad = pad
        side = self.size + 2 * pad
        _check_memory(len(dataset) * side * side * 3, device)
        pixels = np.empty((len(dataset), side, side, 3), np.uint8)
        pixels[:] = mean_color(input_format)
        for index in range(len(dataset)):
            image = F.center_crop(resize(dataset[index][0], transform.resize, transform), [self.size])
            pixels[index, pad : pad + self.size, pad : pad + self.size] = np.asarray(image)
        self.pixels = torch.from_numpy(pixels).to(device)  # channels last
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self._reverse = input_format.channel_order == "BGR"
        self._mean, self._std = (
            torch.tensor(_rgb(input_format, values), device=device) / 255
            for values in (input_format.mean, input_format.std)
        )
        self._span = torch.arange(self.size, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def unchanged(self, indices: Tensor) -> Tensor:
        """Return images (N, 3, size, size), normalised, as they are."""
        span = self._span + self.pad
        return self._normalise(self.pixels[indices[:, None, None], span[None, :, None], span[None, None, :]])

    def augmented(self, indices: Tensor, generator: torch.Generator, *, flip: bool) -> Tensor:
        """Return images (N, 3, size, size), normalised, each a random crop of the padded image, mirrored half the time.

        Args:
            indices: (N,), on the device.
            generator: of the CPU, so that the crops are the same on every device.
            flip: whether to mirror at all.
        """
        device, count = self.pixels.device, len(indices)
        offsets = torch.randint(0, 2 * self.pad + 1, (2, count), generator=generator).to(device)
        mirrored = (torch.rand(count, generator=generator) < 0.5).to(device) & flip
        rows = offsets[0, :, None] + self._span
        columns = offsets[1, :, None] + torch.where(mirrored[:, None], self._span.flip(0), self._span)
        return self._normalise(self.pixels[indices[:, None, None], rows[:, :, None], columns[:, None, :]])

    def _normalise(self, pixels: Tensor) -> Tensor:
        images = (pixels.float() / 255 - self._mean) / self._std
        images = images.permute(0, 3, 1, 2)  # in memory it stays channels last
        return images.flip(1) if self._reverse else images

    def training_batches(
        self, batch_size: int, *, seed: int, flip: bool, rank: int, world_size: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield endless batches of images (N, 3, size, size) and labels (N,).

        Their order is that of :class:`~resnet_backbone.engine.batches.BatchSampler`.
        What a batch holds depends on ``seed``, its number and the process alone.
        """
        sampler = BatchSampler(
            np.ones(len(self)), batch_size, group=False, seed=seed, rank=rank, world_size=world_size, start=start
        )
        for number, draws in enumerate(sampler, start=start):
            generator = torch.Generator().manual_seed(derive_seed(seed, rank, number))
            indices = torch.tensor([index for _, index in draws]).to(self.pixels.device, non_blocking=True)
            yield self.augmented(indices, generator, flip=flip), self.labels[indices]

    def test_batches(self, batch_size: int, *, rank: int, world_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (indices, images) of one process's share, every image once over all processes."""
        for indices in torch.arange(rank, len(self), world_size, device=self.pixels.device).split(batch_size):
            yield indices, self.unchanged(indices)


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > 0.8 * free:
        raise ValueError(
            f"DATALOADER.ON_DEVICE would keep {needed / 1e9:.1f} GB of images on a GPU with {free / 1e9:.1f} GB free; "
            f"write DATALOADER.ON_DEVICE False"
        )
