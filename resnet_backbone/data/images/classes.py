"""Images with one label each: class folders, as ImageNet comes, and the data sets of torchvision."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets as torchvision_datasets

from resnet_backbone.data.catalog import datasets_root
from resnet_backbone.data.images.files import PackedBytes
from resnet_backbone.data.images.media import image_endings, is_hidden
from resnet_backbone.data.images.read import open_image, to_rgb

logger = logging.getLogger(__name__)

TORCHVISION = "torchvision://"

_IMAGENET = "see datasets/README.md: ImageNet has to be asked for at image-net.org"
_CIFAR10 = "resnet-backbone prepare cifar10"
_CROPS = "resnet-backbone prepare shapes --crops"
_BUILTIN = {  # name: folder of class folders, below the root; how to get it
    "imagenet_train": ("imagenet/train", _IMAGENET),
    "imagenet_val": ("imagenet/val", _IMAGENET),
    "cifar10_jpeg_train": ("cifar10_jpeg/train", _CIFAR10),
    "cifar10_jpeg_test": ("cifar10_jpeg/test", _CIFAR10),
    "shapes_crops_train": ("shapes_crops/train", _CROPS),
    "shapes_crops_val": ("shapes_crops/val", _CROPS),
}
# Those whose items are an RGB image and the number of its class.
_OF_TORCHVISION = (
    "CIFAR10", "CIFAR100", "DTD", "Flowers102", "Food101", "GTSRB", "Imagenette", "ImageNet", "STL10", "SVHN",
)  # fmt: skip
_SPLITS = {"train": True, "test": False, "val": False}  # of the data sets that ask whether it is for training


class ClassDataset(Dataset[tuple[Image.Image, int]]):
    """Images with a class each, in a fixed order.

    Attributes:
        source: what :func:`open_classes` was asked for.
        location: the folder where it is.
        class_names: in the order of the labels.
        labels: int64, (N,).
    """

    def __init__(
        self,
        source: str,
        location: Path,
        class_names: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        read: Callable[[int], Image.Image],
        names: PackedBytes | None = None,
    ) -> None:
        self.source = source
        self.location = location
        self.class_names = tuple(class_names)
        self.labels = np.asarray(labels, dtype=np.int64)
        self._read = read
        self._names = names

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return image number ``index``, RGB, as it is stored, and its label."""
        return self._read(index), int(self.labels[index])

    def image_name(self, index: int) -> str:
        """Return the path of an image below its folder, or its number where it has none."""
        return os.fsdecode(self._names[index]) if self._names is not None else str(index)


class TransformedClasses(Dataset[tuple[Tensor, int]]):
    """A :class:`ClassDataset` whose images go through ``transform``."""

    def __init__(self, dataset: ClassDataset, transform: Callable[[Image.Image], Tensor]) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return self.transform(image), label


def open_classes(source: str) -> ClassDataset:
    """Open images with labels.

    Args:
        source: a built-in name such as ``imagenet_val``; ``torchvision://NAME/SPLIT`` such as
            ``torchvision://CIFAR10/train``; or a folder that has a folder of images for each class, whose names,
            sorted, are the classes.

    Raises:
        FileNotFoundError: the folder or data set is not there; the message says how to get it.
        ValueError: an unknown name, or a folder without images.
    """
    if source.startswith(TORCHVISION):
        return _open_torchvision(source)
    if source in _BUILTIN:
        folder, command = _BUILTIN[source]
        path = datasets_root() / folder
        if not path.is_dir():
            raise FileNotFoundError(
                f"data set {source!r} is not there: no folder {path.absolute()}\n(looked below "
                f"{datasets_root()}, which $DETECTRON2_DATASETS sets). Get it with: {command}"
            )
        return _open_folder(source, path)
    path = Path(source).expanduser()
    if not path.is_dir():
        near = difflib.get_close_matches(source, _BUILTIN, n=4, cutoff=0.6) or list(_BUILTIN)
        raise FileNotFoundError(
            f"{source!r} is neither a folder (looked from {Path.cwd()}) nor a data set by name; did you mean "
            f"{', '.join(near)}, or torchvision://NAME/SPLIT, as in torchvision://CIFAR10/train?"
        )
    return _open_folder(source, path)


def missing_classes(source: str) -> str | None:
    """Return the command that gets a data set of the built-in names, where its folder is not there; None otherwise."""
    if source not in _BUILTIN:
        return None
    folder, command = _BUILTIN[source]
    return None if (datasets_root() / folder).is_dir() else command


def _open_folder(source: str, folder: Path) -> ClassDataset:
    """Open class folders, in the order of torchvision's ``ImageFolder``."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    classes = [name for name in names if not is_hidden(name)]
    hidden = list(filter(is_hidden, names))
    paths = [_images_below(folder, name, hidden) for name in classes]
    empty = [name for name, images in zip(classes, paths, strict=True) if not images]
    if empty or not classes:
        flat = [entry.name for entry in folder.iterdir() if entry.is_file() and not is_hidden(entry.name)][:3]
        what = f"there are none in {', '.join(empty[:20])}" if empty else f"it holds files such as {', '.join(flat)}"
        raise ValueError(
            f"{folder} must hold a folder for each class, each with images in it: {what}; images end in "
            f"{' '.join(sorted(image_endings()))}"
        )
    if hidden:
        logger.warning("%s: left out %d hidden folders and images, such as %s", folder, len(hidden), min(hidden))
    packed = PackedBytes(map(os.fsencode, chain.from_iterable(paths)))
    labels = np.repeat(np.arange(len(classes)), [len(images) for images in paths])
    return ClassDataset(source, folder, classes, labels, partial(_read_path, folder, packed), packed)


def _images_below(root: Path, name: str, hidden: list[str]) -> list[str]:
    """Paths of the images in a folder and below it, relative to ``root``; those that are hidden go to ``hidden``."""
    endings = tuple(image_endings())
    found: list[str] = []
    for parent, _, files in sorted(os.walk(root / name, followlinks=True)):
        below = Path(parent).relative_to(root)
        left_out = any(map(is_hidden, below.parts))
        for file in sorted(files):
            if file.lower().endswith(endings):
                (hidden if left_out or is_hidden(file) else found).append(f"{below}/{file}")
    return found


def read_rgb(path: str | Path) -> Image.Image:
    """Read an image file as RGB, as torchvision does: a rotation in its EXIF data is not applied.

    Of 16-bit gray it is the high byte, where Pillow alone makes nearly all of it white.

    Raises:
        ValueError: no image, one that is cut off, or 32-bit pixels whose range is unknown.
    """
    try:
        with open_image(path) as image:
            image.load()
    except Exception as error:  # of a broken file Pillow's decoders raise nearly anything
        reason = str(error)[:300]
        raise ValueError(f"{path} is not an image that can be read ({reason}); take it out of its folder") from error
    return to_rgb(image, path)


def _open_torchvision(source: str) -> ClassDataset:
    name, separator, split = source.removeprefix(TORCHVISION).partition("/")
    if not separator or name not in _OF_TORCHVISION:
        raise ValueError(
            f"{source!r} is not of the form torchvision://NAME/SPLIT with NAME one of {', '.join(_OF_TORCHVISION)}"
        )
    build = getattr(torchvision_datasets, name)
    root = datasets_root() / "torchvision" if name != "ImageNet" else datasets_root() / "imagenet"
    options: dict[str, Any] = {"split": split}
    if "split" not in inspect.signature(build).parameters:
        if split not in _SPLITS:
            raise ValueError(f"{source!r}: {name} has the splits train and test")
        options = {"train": _SPLITS[split]}
    try:
        found = build(root=str(root), **options)
    except RuntimeError as error:  # what torchvision raises where files are missing or damaged
        option = ", ".join(f"{key}={value!r}" for key, value in options.items())
        fetch = f"python -c \"import torchvision; torchvision.datasets.{name}('{root}', {option}, download=True)\""
        raise FileNotFoundError(f"{source} is not complete below {root}: {error}\nGet it with: {fetch}") from error
    labels = _labels(found)
    return ClassDataset(source, root, _class_names(found, labels), labels, partial(_read_item, found))


# Functions of the module, as workers of a loader get them by name where it starts them without fork.
def _read_path(folder: Path, names: PackedBytes, index: int) -> Image.Image:
    return read_rgb(folder / os.fsdecode(names[index]))


def _read_item(found: Any, index: int) -> Image.Image:
    return found[index][0].convert("RGB")


def _labels(found: Any) -> list[int]:
    for attribute in ("targets", "labels", "_labels", "_samples", "samples"):
        if hasattr(found, attribute):
            labels = getattr(found, attribute)
            return [int(item[1] if attribute.endswith("samples") else item) for item in labels]
    raise ValueError(f"torchvision's {type(found).__name__} does not say its labels without reading its images")


def _class_names(found: Any, labels: Sequence[int]) -> list[str]:
    names = getattr(found, "classes", None)
    if names is None:
        return [str(label) for label in range(max(labels) + 1)]
    return [name if isinstance(name, str) else name[0] for name in names]
