"""Small data sets kept decoded on the GPU, and augmented there a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as F

from resnet_backbone.classification.transforms import mean_color, resize
from resnet_backbone.data.images.classes import ClassDataset
from resnet_backbone.engine.batches import BatchSampler, derive_seed
from resnet_backbone.weights import InputFormat, TestTransform

Batch = tuple[Tensor, Tensor]  # images (N, 3, H, W), labels (N,)


class DeviceImages:
    """All images of a data set as uint8 on a device.

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
        order = slice(None, None, -1) if self._reverse else slice(None)
        self._mean, self._std = (
            torch.tensor(values[order], device=device) / 255 for values in (input_format.mean, input_format.std)
        )
        self._span = torch.arange(self.size, device=device)

    def __len__(self) -> int:
        return len(self.labels)

    def plain(self, indices: Tensor) -> Tensor:
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
    ) -> Iterator[Batch]:
        """Yield endless batches in the order of :class:`~resnet_backbone.engine.batches.BatchSampler`.

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
            yield indices, self.plain(indices)


def _check_memory(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if needed > 0.8 * free:
        raise ValueError(
            f"DATALOADER.ON_DEVICE would keep {needed / 1e9:.1f} GB of images on a GPU with {free / 1e9:.1f} GB free; "
            f"write DATALOADER.ON_DEVICE False"
        )
