"""torchvision's own data set with its v2 transforms on Pillow images, as its reference training has them by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2


def training_samples(json_path: Path, image_folder: Path, sizes: tuple[int, ...], max_size: int) -> Sequence[Any]:
    """Resize and flip on Pillow images, a uint8 tensor in the end."""
    steps = [
        v2.RandomShortestSize(list(sizes), max_size),
        v2.RandomHorizontalFlip(0.5),
        v2.ToImage(),
        v2.SanitizeBoundingBoxes(),
    ]
    dataset = CocoDetection(image_folder, json_path, transforms=v2.Compose(steps))
    return wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels"))
