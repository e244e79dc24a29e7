"""How published checkpoints were trained: the pixels that each needs, and the facts of all that can be named.

The checkpoints themselves stand in ``catalog.yaml``, with their sources.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_backbone.files.text import read_yaml
from resnet_backbone.weights.errors import WeightsError

TIMM = "timm/"  # before the name of a network of timm's
TIMM_SCHEME, HUB_SCHEME = "timm://", "hf-hub:"  # of weights in timm's registry, and of others in its format
# What names published weights; the first two are one for each data set that classifiers were trained on.
SCHEMES = ("imagenet://", "cifar10://", TIMM_SCHEME, HUB_SCHEME)
IMAGENET_CLASSES = 1000
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CHANNEL_ORDERS = ("RGB", "BGR")
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class InputFormat:
    """How an image becomes the input of a network: ``(image - mean) / std``, for each channel.

    Attributes:
        channel_order: ``"RGB"`` or ``"BGR"``.
        mean: one value for each of the three channels, in ``channel_order``, for images in 0..255.
        std: likewise, greater than 0.

    ``mean`` and ``std`` are Detectron2's ``MODEL.PIXEL_MEAN`` and ``MODEL.PIXEL_STD`` as they stand.

    Raises:
        ValueError: another channel order, not three finite values, a std that is not positive, or a mean outside of
            0..255. A mean and std on the 0..1 scale, easily taken for these, are refused too.
    """

    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _floats("mean", self.mean))
        object.__setattr__(self, "std", _floats("std", self.std))
        if self.channel_order not in CHANNEL_ORDERS:
            raise ValueError(f"channel_order is {self.channel_order!r}; write one of {CHANNEL_ORDERS}")
        if min(self.mean) < 0 or max(self.mean) > 255:
            raise ValueError(f"mean {self.mean} must lie in 0..255")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be greater than 0")
        if max(self.std) < 1 and 0 < max(self.mean) <= 1:
            raise ValueError(
                f"mean {self.mean} and std {self.std} are for images in 0..1; multiply both by 255 for images in 0..255"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON, YAML and weight files."""
        return {"channel_order": self.channel_order, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputFormat:
        """Undo :meth:`to_dict`.

        Raises:
            ValueError: keys that are missing or unknown, or values that the class refuses.
        """
        if set(values) != {"channel_order", "mean", "std"}:
            raise ValueError(f"an input format has the keys channel_order, mean and std, found {sorted(values)}")
        return cls(**values)


def _floats(name: str, values: Sequence[float]) -> tuple[float, ...]:
    is_three = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3
    if not is_three or any(type(value) not in (int, float) or not math.isfinite(value) for value in values):
        raise ValueError(f"{name} must be three finite numbers, got {values!r}")
    return tuple(map(float, values))


@dataclass(frozen=True)
class TestTransform:
    """What is done to an image before a classifier's accuracy is measured: resize, then a centre crop.

    Attributes:
        resize: length of the shorter side, in pixels.
        crop: side of the square, in pixels, at most ``resize``.
        interpolation: of the resize, ``"bilinear"`` or ``"bicubic"``, both with antialiasing.

    Raises:
        ValueError: other values.
    """

    __test__ = False  # pytest takes a class of this name for tests

    resize: int
    crop: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop {self.crop} must be 1 or more pixels, and at most resize, {self.resize}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {self.interpolation!r} must be one of {', '.join(INTERPOLATIONS)}")


TORCHVISION_RGB = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""torchvision and timm: ``255 * (0.485, 0.456, 0.406)`` and ``255 * (0.229, 0.224, 0.225)``."""

MSRA_BGR = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
"""MSRA's ResNets in Detectron2: the std is absorbed in the first convolution."""

VGG_FEATURES_RGB = InputFormat("RGB", (255 * 0.48235, 255 * 0.45882, 255 * 0.40784), (1.0, 1.0, 1.0))
"""torchvision's ``VGG16_Weights.IMAGENET1K_FEATURES``: mean (123, 117, 104) up to rounding, std 1."""

FAIR_BGR = InputFormat("BGR", TORCHVISION_RGB.mean[::-1], TORCHVISION_RGB.std[::-1])
"""Facebook's ResNeXt of Caffe2, in Detectron2."""

# That catalog.yaml names.
INPUT_FORMATS = {"MSRA_BGR": MSRA_BGR, "FAIR_BGR": FAIR_BGR, "VGG_FEATURES_RGB": VGG_FEATURES_RGB}


@dataclass(frozen=True)
class WeightsEntry:
    """One published checkpoint.

    Attributes:
        arch: architecture, such as ``"resnet50"``.
        name: name of the weights, such as ``"IMAGENET1K_V1"``.
        url: where the file is published.
        sha256: the leading hexadecimal digits of the file's SHA-256, as many as are known: the 8 that publishers put
            into a name, or all 64; ``""`` where none are (Detectron2's ``.pkl`` files).
        licence: SPDX identifier, as stated by the publisher.
        num_params: parameters of the architecture with its classifier.
        acc1: top-1 in percent, one crop of ImageNet-1K's validation or CIFAR-10's test images; None where unknown.
        acc5: likewise, top-5.
        source: who trained the network, or the recipe.
        input_format: the pixels that the network was trained on.
        stride_in_1x1: True where bottlenecks carry their stride on the first 1x1 convolution. The tensors hide it.
        has_classifier: False where the file holds no usable classifier.
        resize: shorter side before the crop, in pixels, at which the accuracy was measured.
        crop: side of the centre crop, in pixels, likewise.
        interpolation: of the resize, ``"bilinear"`` or ``"bicubic"``.
        scheme: of :data:`SCHEMES`.
        option_a_zeros: where shortcut option A of the trained network has its zeros, ``"behind"`` the copied channels
            or on ``"both"`` sides; ``""`` without option A. The tensors hide it.
    """

    arch: str
    name: str
    url: str
    sha256: str
    licence: str
    num_params: int
    acc1: float | None
    acc5: float | None
    source: str
    input_format: InputFormat = TORCHVISION_RGB
    stride_in_1x1: bool = False
    has_classifier: bool = True
    resize: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    scheme: str = SCHEMES[0]
    option_a_zeros: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the classifier; empty for ImageNet's, the sorted WordNet ids."""
        return CIFAR10_CLASSES if self.scheme == "cifar10://" else ()

    @property
    def num_classes(self) -> int:
        """Classes that the network was trained on."""
        return len(self.class_names) or IMAGENET_CLASSES

    @property
    def test_transform(self) -> TestTransform | None:
        """What the accuracy was measured with; None where nobody said."""
        return TestTransform(self.resize, self.crop, self.interpolation)

    @property
    def full_name(self) -> str:
        """``"resnet50/IMAGENET1K_V1"``, unique in the catalog."""
        return f"{self.arch}/{self.name}"

    @property
    def uri(self) -> str:
        """``"imagenet://resnet50/IMAGENET1K_V1"``, what a user writes."""
        return f"{self.scheme}{self.full_name}"

    @property
    def file_name(self) -> str:
        """Name of the file in a cache. Published names without a hash are not unique, so those get a prefix."""
        published = self.url.rsplit("/", 1)[-1]
        return published if self.sha256 else f"{self.arch}-{self.name}-{published}"


def _read_entries(path: Path) -> Iterator[WeightsEntry]:
    content = read_yaml(path)
    for group in content["groups"]:
        url, files = group.pop("url"), group.pop("files")
        if "input_format" in group:
            group["input_format"] = INPUT_FORMATS[group["input_format"]]
        for arch, (file, acc1, acc5, *sha256) in files.items():
            in_name = re.findall(r"-([0-9a-f]{8})\.", file)
            yield WeightsEntry(
                arch=arch,
                url=f"{url}{file}",
                sha256=next(iter([*sha256, *in_name]), ""),
                num_params=content["num_params"][arch],
                acc1=acc1,
                acc5=acc5,
                **group,
            )


CATALOG = {entry.full_name: entry for entry in _read_entries(Path(__file__).with_name("catalog.yaml"))}


def list_weights(arch: str | None = None) -> list[str]:
    """Return the sorted names ``"ARCH/NAME"`` of the catalog, of one architecture or of all.

    Of a network of timm's, ``"timm/NAME"``, they are ``"timm://NAME.TAG"``.
    """
    if arch is not None and arch.startswith(TIMM):
        from resnet_backbone.weights.timm_files import import_timm, timm_name

        return [f"{TIMM_SCHEME}{name}" for name in import_timm().list_pretrained(f"{timm_name(arch)}.*")]
    return sorted(full_name for full_name, entry in CATALOG.items() if arch in (None, entry.arch))


def get_entry(arch: str, name: str) -> WeightsEntry:
    """Return the facts of ``"ARCH/NAME"``.

    Raises:
        WeightsError: there is none; the message lists the names that there are.
    """
    if arch.startswith(TIMM):
        return parse_source(f"{TIMM_SCHEME}{arch.removeprefix(TIMM)}.{name}")
    if f"{arch}/{name}" in CATALOG:
        return CATALOG[f"{arch}/{name}"]
    if names := [CATALOG[full_name].name for full_name in list_weights(arch)]:
        raise WeightsError(f"no weights {name!r} for {arch}; write one of {', '.join(names)}")
    archs = sorted({known.arch for known in CATALOG.values()})
    raise WeightsError(f"no weights are published for {arch!r}; there are some for {', '.join(archs)}")


def parse_source(source: str, *, fetch: bool = True) -> WeightsEntry:
    """Return the facts of ``"imagenet://resnet101/IMAGENET1K_V1"`` or ``"cifar10://cifar_resnet20/AKAMASTER"``.

    In ``cifar10://`` names the ``cifar_`` of the architecture may be left out. For ``timm://`` and ``hf-hub:``, and for
    ``fetch``, see :func:`~resnet_backbone.weights.timm_files.timm_entry`.

    Raises:
        WeightsError: another form, a name that the catalog lacks, or one of the other scheme.
    """
    if source.startswith((TIMM_SCHEME, HUB_SCHEME)):
        from resnet_backbone.weights.timm_files import timm_entry  # which reads what is above

        return timm_entry(source, fetch=fetch)
    scheme = next((scheme for scheme in SCHEMES if source.startswith(scheme)), "")
    arch, separator, name = source.removeprefix(scheme).partition("/")
    if not scheme or not separator:
        raise WeightsError(
            f"{source!r} is not of the form imagenet://ARCH/NAME or cifar10://ARCH/NAME, as in "
            "imagenet://resnet50/IMAGENET1K_V1 and cifar10://cifar_resnet20/AKAMASTER"
        )
    if scheme == "cifar10://" and not arch.startswith("cifar_"):
        arch = f"cifar_{arch}"
    entry = get_entry(arch, name)
    if entry.scheme != scheme:
        raise WeightsError(f"{source} is of another data set; write {entry.uri}")
    return entry


def find_entry_by_address(address: str) -> WeightsEntry | None:
    """Return the entry of a URL, a ``detectron2://`` name, or a path that ends like one; None for another.

    Detectron2 keeps what it downloads below folders of the URL, and its files have no published hash to know them by.
    """
    for entry in CATALOG.values():
        _, folder, published = entry.url.partition("/ImageNetPretrained/")
        if address == entry.url or (published and address.endswith(f"{folder[1:]}{published}")):
            return entry
    return None


def find_entry_by_sha256(hexdigest: str) -> WeightsEntry | None:
    """Return the entry of a file by the SHA-256 of its content, all 64 hexadecimal digits; None for an unknown file."""
    if len(hexdigest) != 64:
        raise ValueError(f"expected the 64 hexadecimal digits of a SHA-256, got {hexdigest!r}")
    digest = hexdigest.lower()
    return next((entry for entry in CATALOG.values() if entry.sha256 and digest.startswith(entry.sha256)), None)
