"""Loading a classifier, and predicting class probabilities for every image of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from resnet_backbone.classification.transforms import Views, multi_scale, one_crop, ten_crops
from resnet_backbone.data.images.classes import ClassDataset
from resnet_backbone.models.complexity import build_on_meta
from resnet_backbone.models.registry import create_model
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import InputFormat, TestTransform, Weights, WeightsError, read_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Classifier:
    """A network together with what it takes to use it."""

    model: Trunk  # with a head
    input_format: InputFormat  # the pixels that it reads
    test_transform: TestTransform  # how images are brought to its size
    class_names: tuple[str, ...]  # in the order of its outputs; empty where nobody said
    name: str  # for messages and tables


@dataclass(frozen=True)
class Member:
    """A classifier that can be tested: what is known of it before it is built."""

    source: str  # as a user names it
    name: str  # for tables
    arch: str
    sha256: str  # of its file
    input_format: InputFormat  # the pixels that it reads
    test_transform: TestTransform  # how images are brought to its size
    given_transform: bool  # whether the user said test_transform, and not the weights
    acc1: float | None  # published top-1, of one crop, in percent; None where unknown
    acc5: float | None  # likewise, top-5


def load_classifier(source: str | Path, *, test_transform: TestTransform | None = None) -> Classifier:
    """Build a classifier from published weights or a file that says what it is.

    Args:
        source: as for :func:`~resnet_backbone.weights.read_weights`.
        test_transform: where the source does not say one.

    Raises:
        WeightsError: as :func:`describe`; and what ``read_weights`` raises.
    """
    weights = read_weights(source)
    known = describe(weights, test_transform)
    model = create_model(known.arch, weights=weights)
    return Classifier(model, known.input_format, known.test_transform, weights.class_names, known.name)


def describe(weights: Weights, test_transform: TestTransform | None = None) -> Member:
    """Return what it takes to test a classifier.

    Args:
        weights: what was read.
        test_transform: where they do not say one.

    Raises:
        WeightsError: no classifier in the file, a fact that is missing, or a transform that contradicts the file's.
    """
    source = weights.source
    arch = weights.known_arch()
    if weights.num_classes == 0:
        raise WeightsError(f"{source} has no classifier, only a backbone of {weights.arch}; take weights that have one")
    if weights.input_format is None:
        raise WeightsError(
            f"{source} does not say on which pixels it was trained: package it with resnet-backbone package "
            f"--channel-order ... --mean ... --std ...; a run of resnet-backbone classify has a packaged weights.pth"
        )
    if weights.test_transform is not None and test_transform not in (None, weights.test_transform):
        raise WeightsError(
            f"{source} is tested with {weights.test_transform}, not {test_transform}; leave the transform out"
        )
    transform = weights.test_transform or test_transform
    if transform is None:
        raise WeightsError(
            f"{source} does not say how images are resized and cropped for its test: write --resize and --crop, as in "
            f"--resize 256 --crop 224; in Python test_transform=TestTransform(256, 224)"
        )
    return Member(
        source=source,
        name=source.rpartition("://")[2],
        arch=arch,
        sha256=weights.sha256,
        input_format=weights.input_format,
        test_transform=transform,
        given_transform=weights.test_transform is None,
        acc1=weights.acc1,
        acc5=weights.acc5,
    )


def predict(
    classifier: Classifier,
    dataset: ClassDataset,
    views: Views,
    *,
    device: torch.device | str,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Classify images number ``rank``, ``rank + world_size``, ... of a data set: each once, none left out.

    Of ten crops the probabilities are averaged. Of whole images the logits are averaged over the positions of each,
    then the probabilities over mirror images and scales. The random state of the process stays as it is. A terminal
    gets a progress bar.

    Args:
        classifier: its network is moved to ``device`` and is used in evaluation mode; the mode is restored.
        dataset: the images.
        views: what is shown of each.
        device: where the network runs.
        batch_size: images, or crops (ten at least), in one forward pass. Whole images, which differ in size, go one by
            one.
        num_workers: processes that decode images; 0 is none besides this one.
        rank, world_size: this process's share.
        dtype: float32, or that of autocast, bfloat16 or float16. Probabilities are computed in float32.

    Returns:
        The numbers of the images, int64 (n,), in the order of the data set, and the probabilities, float32 (n, K), both
        on the CPU.

    Raises:
        ValueError: arguments out of range, a network without a head, scales too small for it, or an image that cannot
            be read.
    """
    model = classifier.model
    if model.num_classes == 0:
        raise ValueError(f"{classifier.name} has no head, and cannot classify: build the network with num_classes")
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"batch_size must be 1 or more and num_workers 0 or more, got {batch_size} and {num_workers}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, got {rank} of {world_size}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype {dtype} must be one of {', '.join(map(str, DTYPES.values()))}")
    device = torch.device(device)
    model.to(device)
    numbers = range(rank, len(dataset), world_size)
    loader = DataLoader(
        _ViewsDataset(dataset, numbers, classifier, views),
        batch_size={"1-crop": batch_size, "10-crop": max(1, batch_size // 10), "multi-scale": None}[views.kind],
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # otherwise the loader would draw a seed from the process's own
    )
    parts = [torch.empty(0, model.num_classes)]
    bar = tqdm(total=len(numbers), desc=classifier.name, unit="image", disable=None, leave=False)
    with evaluating(model, device, dtype, varying_sizes=views.kind == "multi-scale"), bar:
        window = 0
        if views.kind == "multi-scale":
            window = dense_window(model, classifier.name, classifier.test_transform.crop, views.scales, device)
        for images in loader:
            if views.kind == "multi-scale":
                probabilities = _of_scales(model, [scaled.to(device) for scaled in images], window)
            elif views.kind == "10-crop":
                crops = images.to(device, non_blocking=images.is_pinned())  # (N, 10, 3, H, W)
                probabilities = _softmax(model(crops.flatten(0, 1))).unflatten(0, crops.shape[:2]).mean(1)
            else:
                probabilities = _softmax(model(images.to(device, non_blocking=images.is_pinned())))
            parts.append(probabilities.cpu())
            bar.update(len(probabilities))
    return torch.tensor(numbers, dtype=torch.int64), torch.cat(parts)


class _ViewsDataset(Dataset[Tensor | list[Tensor]]):
    """The views of some images of a data set."""

    def __init__(self, dataset: ClassDataset, numbers: Sequence[int], classifier: Classifier, views: Views) -> None:
        self.dataset = dataset
        self.numbers = numbers
        self.input_format = classifier.input_format  # without the network, which workers do not need
        self.transform = classifier.test_transform
        self.views = views

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Tensor | list[Tensor]:
        image, _ = self.dataset[self.numbers[index]]
        if self.views.kind == "multi-scale":
            return multi_scale(image, self.input_format, self.transform, self.views.scales)
        crop = ten_crops if self.views.kind == "10-crop" else one_crop
        return crop(image, self.input_format, self.transform)


@contextmanager
def evaluating(
    model: nn.Module, device: torch.device, dtype: torch.dtype, *, varying_sizes: bool = False
) -> Iterator[None]:
    """Evaluation mode, no gradients, autocast; afterwards everything is as before.

    cuDNN is not to search the fastest algorithm of a size that it sees once.
    """
    modes = {module: module.training for module in model.modules()}
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = benchmark and not varying_sizes
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        for module, mode in modes.items():
            module.training = mode


def check_views(views: Views, name: str, arch: str, num_classes: int, transform: TestTransform) -> None:
    """Raise ValueError where a network, before it is built, cannot be shown these views; ``name`` is for messages."""
    views.check(transform)
    if views.kind == "multi-scale":
        network = build_on_meta(arch, num_classes=num_classes)
        dense_window(network, name, transform.crop, views.scales, torch.device("meta"))


def dense_window(model: Trunk, name: str, crop: int, scales: Sequence[int], device: torch.device) -> int:
    """Return the side of the feature map of a crop: the cells that the head sees at each position of a larger map.

    Args:
        model: with a head, on ``device``, which may be ``meta``.
        name: of the network, for messages.
        crop: side of the square, in pixels, that the head was made for.
        scales: shorter sides, in pixels, of the images to come.

    Raises:
        ValueError: the head cannot slide with that window, or the map of a scale is smaller.
    """

    def feature_map(side: int) -> Tensor:
        return _last_features(model, torch.zeros(1, model.in_channels, side, side, device=device))

    of_crop = feature_map(crop)
    window = of_crop.shape[-1]
    model.forward_dense_head(of_crop, window)  # raises where it cannot
    for scale in scales:
        found = window if scale >= crop else feature_map(scale).shape[-1]
        if found < window:
            raise ValueError(
                f"scale {scale} gives {name} a map of {found} x {found} cells, and its head reads {window} x {window}, "
                f"those of a crop of {crop} pixels; write scales of {crop} or more"
            )
    return window


def _last_features(model: Trunk, images: Tensor) -> Tensor:
    return model.forward_features(images)[next(reversed(model.feature_info))]


def _of_scales(model: Trunk, scaled: list[Tensor], window: int) -> Tensor:
    """Return the probabilities (1, K) of one image from ``(2, 3, H, W)`` for every scale."""
    maps = (model.forward_dense_head(_last_features(model, images), window) for images in scaled)
    return torch.stack([_softmax(logits.float().mean((2, 3))) for logits in maps]).mean((0, 1))[None]


def _softmax(logits: Tensor) -> Tensor:
    return logits.float().softmax(1)
