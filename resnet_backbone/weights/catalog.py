"""The published checkpoints that can be named, each with the facts that using it correctly takes.

Sources: torchvision's weight enums; timm's ``results-imagenet.csv`` and ResNet configurations (``v0.1-rsb-weights``);
Detectron2's MODEL_ZOO.md, ``checkpoint/catalog.py`` and ``tools/convert-torchvision-to-d2.py``; the table of
KaimingHe/deep-residual-networks for the accuracy of MSRA's files; akamaster/pytorch_resnet_cifar10 for the networks of
CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.input_format import MSRA_BGR, TORCHVISION_RGB, VGG_FEATURES_RGB, InputFormat, TestTransform

SCHEMES = ("imagenet://", "cifar10://")  # one for each data set that published classifiers were trained on
IMAGENET_CLASSES = 1000
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class WeightsEntry:
    """One published checkpoint.

    Attributes:
        arch: architecture, such as ``"resnet50"``.
        name: name of the weights, such as ``"IMAGENET1K_V1"``.
        url: where the file is published.
        sha256: the leading hexadecimal digits of the file's SHA-256, as many as are known: the 8 that publishers put
            into a name, or all 64 (see ``_WHOLE_HASHES``); ``""`` where none are (Detectron2's ``.pkl`` files).
        licence: SPDX identifier, as stated by the publisher.
        num_params: parameters of the architecture with its classifier.
        acc1: top-1 in percent, one crop of ImageNet-1K's validation or CIFAR-10's test images; None where unknown.
        acc5: likewise, top-5.
        input_format: the pixels that the network was trained on.
        stride_in_1x1: True where bottlenecks carry their stride on the first 1x1 convolution. The tensors hide it.
        norm: ``"BN"``, or ``""`` for a network without norms.
        has_classifier: False where the file holds no usable classifier.
        num_classes: classes that the network was trained on.
        resize: shorter side before the crop, in pixels, at which the accuracy was measured.
        crop: side of the centre crop, in pixels, likewise.
        interpolation: of the resize, ``"bilinear"`` or ``"bicubic"``.
        source: who trained the network, or the recipe.
        scheme: of :data:`SCHEMES`.
        class_names: in the order of the classifier; empty for ImageNet's, the sorted WordNet ids.
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
    input_format: InputFormat
    stride_in_1x1: bool
    norm: str
    has_classifier: bool
    num_classes: int
    resize: int
    crop: int
    interpolation: str
    source: str
    scheme: str = SCHEMES[0]
    class_names: tuple[str, ...] = ()
    option_a_zeros: str = ""

    @property
    def test_transform(self) -> TestTransform:
        """What the accuracy was measured with."""
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


_NUM_PARAMS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
}


def _entry(
    arch: str,
    name: str,
    url: str,
    acc1: float | None,
    acc5: float | None,
    *,
    sha256: str,
    licence: str,
    source: str,
    input_format: InputFormat = TORCHVISION_RGB,
    stride_in_1x1: bool = False,
    has_classifier: bool = True,
    resize: int = 256,
    crop: int = 224,
    interpolation: str = "bilinear",
) -> WeightsEntry:
    return WeightsEntry(
        arch=arch,
        name=name,
        url=url,
        sha256=sha256,
        licence=licence,
        num_params=_NUM_PARAMS[arch],
        acc1=acc1,
        acc5=acc5,
        input_format=input_format,
        stride_in_1x1=stride_in_1x1,
        norm="" if arch in ("vgg16", "vgg19") else "BN",
        has_classifier=has_classifier,
        num_classes=IMAGENET_CLASSES,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        source=source,
    )


# Begin with the 8 digits in the published name; the others as at least two projects on GitHub have measured them.
_WHOLE_HASHES = (
    "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",  # resnet18/IMAGENET1K_V1
    "b627a593bcbe140c234610266fe4f8ae95ea42fc881d091c9b6052e6b1d0590f",  # resnet34/IMAGENET1K_V1
    "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",  # resnet50/IMAGENET1K_V1
    "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",  # resnet101/IMAGENET1K_V1
    "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",  # resnet152/IMAGENET1K_V1
    "11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",  # resnet50/IMAGENET1K_V2
    "cd907fc2a0de2292b2ba2b27d2216bc672d84632d1cf20058d01c0c03b5e020e",  # resnet101/IMAGENET1K_V2
    "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",  # vgg16/IMAGENET1K_V1
    "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",  # vgg19/IMAGENET1K_V1
)


def _hash_in_name(url: str) -> str:
    digits = url.rsplit("-", 1)[-1].removesuffix(".pth")
    return next((whole for whole in _WHOLE_HASHES if whole.startswith(digits)), digits)


def _torchvision(name: str, resize: int, arch: str, file: str, acc1: float | None, acc5: float | None) -> WeightsEntry:
    url = f"https://download.pytorch.org/models/{file}"
    recipe = "the paper's recipe" if name == "IMAGENET1K_V1" else "the recipe of 2021"
    return _entry(
        arch,
        name,
        url,
        acc1,
        acc5,
        sha256=_hash_in_name(url),
        licence="BSD-3-Clause",
        source=f"torchvision, {recipe}",
        resize=resize,
    )


def _timm(name: str, resize: int, crop: int, arch: str, file: str, acc1: float, acc5: float) -> WeightsEntry:
    url = f"https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/{file}"
    return _entry(
        arch,
        name,
        url,
        acc1,
        acc5,
        sha256=_hash_in_name(url),
        licence="Apache-2.0",
        source=f"timm, recipe {name[-2:]} of 'ResNet strikes back' (arXiv 2110.00476)",
        resize=resize,
        crop=crop,
        interpolation="bicubic",
    )


def _akamaster(depth: int, sha256: str, num_params: int, error: float) -> WeightsEntry:
    return WeightsEntry(
        arch=f"cifar_resnet{depth}",
        name="AKAMASTER",
        url="https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
        f"resnet{depth}-{sha256[:8]}.th",
        sha256=sha256,
        licence="BSD-2-Clause",
        num_params=num_params,
        acc1=round(100 - error, 2),
        acc5=None,
        input_format=TORCHVISION_RGB,
        stride_in_1x1=False,
        norm="BN",
        has_classifier=True,
        num_classes=len(CIFAR10_CLASSES),
        resize=32,
        crop=32,
        interpolation="bilinear",
        source="akamaster/pytorch_resnet_cifar10, trained on CIFAR-10's 50,000 training images",
        scheme="cifar10://",
        class_names=CIFAR10_CLASSES,
        option_a_zeros="both",
    )


_V1 = partial(_torchvision, "IMAGENET1K_V1", 256)
_V2 = partial(_torchvision, "IMAGENET1K_V2", 232)
_A1 = partial(_timm, "TIMM_A1", 288, 288)
_A2 = partial(_timm, "TIMM_A2", 288, 288)
_A3 = partial(_timm, "TIMM_A3", 235, 224)
_detectron2 = partial(_entry, sha256="", licence="CC-BY-SA-3.0")
_DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained"
_MSRA_SOURCE = "MSRA (KaimingHe/deep-residual-networks), converted by Detectron2"

_ENTRIES = (
    _V1("resnet18", "resnet18-f37072fd.pth", 69.758, 89.078),
    _V1("resnet34", "resnet34-b627a593.pth", 73.314, 91.420),
    _V1("resnet50", "resnet50-0676ba61.pth", 76.130, 92.862),
    _V1("resnet101", "resnet101-63fe2227.pth", 77.374, 93.546),
    _V1("resnet152", "resnet152-394f9c45.pth", 78.312, 94.046),
    _V1("vgg16", "vgg16-397923af.pth", 71.592, 90.382),
    _V1("vgg16_bn", "vgg16_bn-6c64b313.pth", 73.360, 91.516),
    _V1("vgg19", "vgg19-dcbb9e9d.pth", 72.376, 90.876),
    _V1("vgg19_bn", "vgg19_bn-c79401a0.pth", 74.218, 91.842),
    _V2("resnet50", "resnet50-11ad3fa6.pth", 80.858, 95.434),
    _V2("resnet101", "resnet101-cd907fc2.pth", 81.886, 95.780),
    _V2("resnet152", "resnet152-f82ba261.pth", 82.284, 96.002),
    _entry(
        "vgg16",
        "IMAGENET1K_FEATURES",
        "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth",
        None,
        None,
        sha256="88682ab5",
        licence="MIT",
        source="amdegroot/ssd.pytorch, through torchvision; the file's classifier holds no values",
        input_format=VGG_FEATURES_RGB,
        has_classifier=False,
    ),
    _A1("resnet18", "resnet18_a1_0-d63eafa0.pth", 73.164, 91.054),
    _A1("resnet34", "resnet34_a1_0-46f8f793.pth", 77.930, 93.758),
    _A1("resnet50", "resnet50_a1_0-14fe96d1.pth", 81.240, 95.112),
    _A1("resnet101", "resnet101_a1_0-cdcb52a9.pth", 82.326, 95.630),
    _A1("resnet152", "resnet152_a1_0-2eee8a7a.pth", 82.742, 95.734),
    _A2("resnet18", "resnet18_a2_0-b61bd467.pth", 72.364, 90.620),
    _A2("resnet34", "resnet34_a2_0-82d47d71.pth", 77.150, 93.288),
    _A2("resnet50", "resnet50_a2_0-a2746f79.pth", 80.774, 94.978),
    _A2("resnet101", "resnet101_a2_0-6edb36c7.pth", 82.218, 95.740),
    _A2("resnet152", "resnet152_a2_0-b4c6978f.pth", 82.614, 95.748),
    _A3("resnet18", "resnet18_a3_0-40c531c8.pth", 68.250, 88.172),
    _A3("resnet34", "resnet34_a3_0-a20cabb6.pth", 72.996, 91.116),
    _A3("resnet50", "resnet50_a3_0-59cae1ef.pth", 78.052, 93.780),
    _A3("resnet101", "resnet101_a3_0-1db14157.pth", 79.836, 94.608),
    _A3("resnet152", "resnet152_a3_0-134d4688.pth", 80.548, 95.004),
    _detectron2(
        "resnet50",
        "MSRA",
        f"{_DETECTRON2_URL}/MSRA/R-50.pkl",
        75.3,
        92.2,
        source=_MSRA_SOURCE,
        input_format=MSRA_BGR,
        stride_in_1x1=True,
    ),
    _detectron2(
        "resnet101",
        "MSRA",
        f"{_DETECTRON2_URL}/MSRA/R-101.pkl",
        76.4,
        92.9,
        source=_MSRA_SOURCE,
        input_format=MSRA_BGR,
        stride_in_1x1=True,
    ),
    _detectron2(
        "resnet50",
        "DETECTRON2_TORCHVISION",
        f"{_DETECTRON2_URL}/torchvision/R-50.pkl",
        None,
        None,
        source="torchvision, converted by Detectron2",
    ),
    _akamaster(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8", 269_722, 8.27),
    _akamaster(32, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850", 464_154, 7.37),
    _akamaster(44, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4", 658_586, 6.90),
    _akamaster(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367", 853_018, 6.61),
)
CATALOG = {entry.full_name: entry for entry in _ENTRIES}


def list_weights(arch: str | None = None) -> list[str]:
    """Return the sorted names ``"ARCH/NAME"`` of the catalog, of one architecture or of all."""
    return sorted(full_name for full_name, entry in CATALOG.items() if arch in (None, entry.arch))


def get_entry(arch: str, name: str) -> WeightsEntry:
    """Return the facts of ``"ARCH/NAME"``.

    Raises:
        WeightsError: there is none; the message lists the names that there are.
    """
    entry = CATALOG.get(f"{arch}/{name}")
    if entry is not None:
        return entry
    names = [full_name.split("/")[1] for full_name in list_weights(arch)]
    if names:
        raise WeightsError(f"no weights {name!r} for {arch}; write one of {', '.join(names)}")
    archs = sorted({known.arch for known in _ENTRIES})
    raise WeightsError(f"no weights are published for {arch!r}; there are some for {', '.join(archs)}")


def parse_source(source: str) -> WeightsEntry:
    """Return the facts of ``"imagenet://resnet101/IMAGENET1K_V1"`` or ``"cifar10://cifar_resnet20/AKAMASTER"``.

    In ``cifar10://`` names the ``cifar_`` of the architecture may be left out.

    Raises:
        WeightsError: another form, a name that the catalog lacks, or one of the other scheme.
    """
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
    entry = next((entry for entry in CATALOG.values() if entry.url == address), None)
    if entry is not None:
        return entry
    for entry in CATALOG.values():
        published = entry.url.removeprefix(_DETECTRON2_URL)
        if published != entry.url and address.endswith(f"ImageNetPretrained{published}"):
            return entry
    return None


def find_entry_by_sha256(hexdigest: str) -> WeightsEntry | None:
    """Return the entry of a file by the SHA-256 of its content, all 64 hexadecimal digits; None for an unknown file."""
    if len(hexdigest) != 64:
        raise ValueError(f"expected the 64 hexadecimal digits of a SHA-256, got {hexdigest!r}")
    digest = hexdigest.lower()
    return next((entry for entry in _ENTRIES if entry.sha256 and digest.startswith(entry.sha256)), None)
