"""The depths and widths of every architecture, and recognising it by the tensors of a state dict in our names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

HEAD = ("linear.", "fc6.", "fc7.", "fc8.", "hidden.", "fc.")
LAST = ("linear", "fc8", "fc")
LAST_LINEAR = tuple(f"{layer}.{tensor}" for layer in LAST for tensor in ("weight", "bias"))
CIFAR_WIDTH = 16
OFFSETS = (".conv2_offset.weight", ".conv2_offset.bias")  # what deformable convolutions have that plain ones have not


@dataclass(frozen=True)
class Layout:
    """How many blocks (or convolutions, for VGG) the stages of an architecture have, and what is in one."""

    kind: str  # "bottleneck", "basic", "plain", "vgg" or "vgg_bn"
    depths: tuple[int, ...]
    width: int = 64  # of the stem, and of the 3x3 convolutions of res2; each stage after it has twice as many
    groups: int = 1  # of the 3x3 convolutions of bottlenecks, more in ResNeXt (arXiv 1611.05431)
    width_per_group: int = 64  # channels of such a group in res2, in place of width; more in wide ResNets (1605.07146)
    is_d: bool = False  # ResNet-D: a stem of three 3x3 convolutions, and shortcuts that average (arXiv 1812.01187)

    @property
    def is_vgg(self) -> bool:
        return self.kind.startswith("vgg")


LAYOUTS = {
    "plain18": Layout("plain", (2, 2, 2, 2)),
    "plain34": Layout("plain", (3, 4, 6, 3)),
    "resnet18": Layout("basic", (2, 2, 2, 2)),
    "resnet34": Layout("basic", (3, 4, 6, 3)),
    "resnet50": Layout("bottleneck", (3, 4, 6, 3)),
    "resnet101": Layout("bottleneck", (3, 4, 23, 3)),
    "resnet152": Layout("bottleneck", (3, 8, 36, 3)),
    "resnet18d": Layout("basic", (2, 2, 2, 2), is_d=True),
    "resnet34d": Layout("basic", (3, 4, 6, 3), is_d=True),
    "resnet50d": Layout("bottleneck", (3, 4, 6, 3), is_d=True),
    "resnet101d": Layout("bottleneck", (3, 4, 23, 3), is_d=True),
    "resnet152d": Layout("bottleneck", (3, 8, 36, 3), is_d=True),
    "resnext50_32x4d": Layout("bottleneck", (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x4d": Layout("bottleneck", (3, 4, 23, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Layout("bottleneck", (3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Layout("bottleneck", (3, 4, 23, 3), groups=64, width_per_group=4),
    "resnext152_32x8d": Layout("bottleneck", (3, 8, 36, 3), groups=32, width_per_group=8),
    "wide_resnet50_2": Layout("bottleneck", (3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Layout("bottleneck", (3, 4, 23, 3), width_per_group=128),
    "vgg16": Layout("vgg", (2, 2, 3, 3, 3)),
    "vgg16_bn": Layout("vgg_bn", (2, 2, 3, 3, 3)),
    "vgg19": Layout("vgg", (2, 2, 4, 4, 4)),
    "vgg19_bn": Layout("vgg_bn", (2, 2, 4, 4, 4)),
    **{f"cifar_plain{6 * n + 2}": Layout("plain", (n, n, n), CIFAR_WIDTH) for n in (3, 5, 7, 9, 18)},
    **{f"cifar_resnet{6 * n + 2}": Layout("basic", (n, n, n), CIFAR_WIDTH) for n in (3, 5, 7, 9, 18, 200)},
}
_OPTIONS = {"bottleneck": ("B", "A", "C"), "basic": ("B", "A", "C"), "plain": ("",), "vgg": ("",), "vgg_bn": ("",)}
_RESNET_MODULE = re.compile(r"res([2-5])\.(\d+)\.(conv[123]|shortcut\.padding|shortcut\.conv|shortcut|preact)(?:\.|$)")
_OFFSETS = re.compile(r"(res[2-5])\.\d+\.conv2_offset\.weight")
_VGG_MODULE = re.compile(r"conv([1-5])_([1-4])\.")


def has_bottlenecks(arch: str) -> bool:
    """Say whether ``arch`` has 1x1 convolutions that could carry the stride."""
    return arch in LAYOUTS and LAYOUTS[arch].kind == "bottleneck"


def has_res5(arch: str) -> bool:
    """Say whether ``arch`` is one of our ResNets, whose last stage can be the head of a C4 model."""
    return not arch.startswith(("vgg", "timm/"))


def stage_of(name: str) -> str:
    """Return the stage of a tensor in our names: ``"stem"``, ``"res2"``, ``"conv3"``, or ``"linear"``."""
    match = _VGG_MODULE.match(name)
    return f"conv{match[1]}" if match else name.split(".")[0]


def candidate_archs(state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the architectures that a state dict in our names can come from.

    Every stage that is there must have the right number of blocks of the right kind and width; stages may be absent. So
    a whole file names one architecture, the stem to res3 of ResNet-50 name two, and a half of a stage none.
    Shortcut option A has no parameters: without our buffer ``padding`` the tensors of a network of basic blocks with
    it are those of the plain network, and both are returned.
    """
    modules = _modules(state_dict)
    if not modules:
        if not any(name.startswith("stem.") for name in state_dict):
            return ()
        layouts = {arch: layout for arch, layout in LAYOUTS.items() if not layout.is_vgg}
        return tuple(arch for arch, layout in layouts.items() if _has_stem(layout, state_dict))
    return tuple(arch for arch, layout in LAYOUTS.items() if _fitting_options(layout, modules, state_dict))


def shortcut_of(arch: str, state_dict: Mapping[str, Tensor]) -> str | None:
    """Return the paper's option of the shortcuts of ``arch``, ``"A"``, ``"B"`` or ``"C"``, or ``"D"`` of ResNet-D.

    It is ``""`` for a network without shortcuts, and None where the tensors are too few to tell, or of another network.
    """
    fitting = _fitting_options(LAYOUTS[arch], _modules(state_dict), state_dict) if arch in LAYOUTS else []
    return fitting[0] if len(fitting) == 1 else None


def lacks_offsets(wanted: Collection[str], found: Collection[str]) -> bool:
    """Say whether a file is of a plain network where deformable convolutions want offsets: it has none at all."""
    return any(name.endswith(OFFSETS) for name in wanted) and not any(name.endswith(OFFSETS) for name in found)


def has_padding(state_dict: Mapping[str, Tensor]) -> bool:
    """Say whether the shortcuts have the buffer by which our networks show option A, which has no parameters."""
    return any(name.endswith(".shortcut.padding") for name in state_dict)


def stem_of(state_dict: Mapping[str, Tensor]) -> str:
    """Return ``"deeplab"`` for a stem of three convolutions, 128 channels wide, else ``"basic"``."""
    last = state_dict.get("stem.conv3.weight")
    return "deeplab" if last is not None and last.shape[:1] == (128,) else "basic"


def deformable_of(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options of ``create_model`` for a network's deformable convolutions, empty where it has none.

    What makes the offsets has 18 channels for each of their groups, 27 where it modulates, too; groups are powers of 2.
    """
    channels = {match[1]: tensor.shape[0] for name, tensor in state_dict.items() if (match := _OFFSETS.match(name))}
    if not channels:
        return {}
    number = next(iter(channels.values()))
    return {
        "deform_on_per_stage": tuple(f"res{stage}" in channels for stage in (2, 3, 4, 5)),
        "deform_modulated": number % 27 == 0,
        "deform_num_groups": max(number // (27 if number % 27 == 0 else 18), 1),
    }


def is_preactivated(state_dict: Mapping[str, Tensor]) -> bool:
    """Say whether the blocks have a norm in front of their convolutions."""
    return any(".preact.norm." in name for name in state_dict)


def num_classes_of(state_dict: Mapping[str, Tensor], last: Sequence[str] = LAST) -> int:
    """Return the size of the classifier in a state dict, 0 for none; ``last`` names the layers that can be it."""
    weights = [state_dict[f"{layer}.weight"] for layer in last if f"{layer}.weight" in state_dict]
    return next(iter(weights[0].shape), 0) if weights else 0


def norm_of(state_dict: Mapping[str, Tensor]) -> str:
    """Return ``"BN"``, ``"GN"`` (norms without running statistics), or ``""`` for no norms."""
    if any(name.endswith(".running_mean") for name in state_dict):
        return "BN"
    return "GN" if any(name.endswith(".norm.weight") for name in state_dict) else ""


_Modules = dict[int, dict[int, set[str]]]  # by stage and block: {2: {0: {"conv1", "conv2", "shortcut"}}}


def _modules(state_dict: Mapping[str, Tensor]) -> _Modules:
    modules: _Modules = defaultdict(lambda: defaultdict(set))
    for name in state_dict:
        if match := _RESNET_MODULE.match(name):
            modules[int(match[1])][int(match[2])].add(match[3])
        elif match := _VGG_MODULE.match(name):
            modules[int(match[1])][int(match[2])].add("norm" if ".norm." in name else "conv")
    return modules


def _fitting_options(layout: Layout, modules: _Modules, state_dict: Mapping[str, Tensor]) -> list[str]:
    """The options of the shortcuts with which ``layout`` has every stage in ``modules``."""
    if layout.is_vgg != any({"conv", "norm"} & parts for blocks in modules.values() for parts in blocks.values()):
        return []
    if not layout.is_vgg and not _has_stem(layout, state_dict):
        return []
    options = ("D",) if layout.is_d else _OPTIONS[layout.kind]
    return [option for option in options if _fits(layout, option, modules, state_dict)]


def _fits(layout: Layout, option: str, modules: _Modules, state_dict: Mapping[str, Tensor]) -> bool:
    first_stage, first_block = (1, 1) if layout.is_vgg else (2, 0)
    wide_stem, hides_a = stem_of(state_dict) == "deeplab", option == "A" and not has_padding(state_dict)
    for stage, blocks in modules.items():
        if stage - first_stage >= len(layout.depths):
            return False
        depth = layout.depths[stage - first_stage]
        if set(blocks) != set(range(first_block, first_block + depth)):
            return False
        for block, parts in blocks.items():
            expected = _expected_parts(layout.kind, option, stage, block, wide_stem)
            if parts - {"preact"} != (expected - {"shortcut.padding"} if hides_a else expected):
                return False
            if not layout.is_vgg and not _has_widths(layout, state_dict, stage, block):
                return False
    return True


def _expected_parts(kind: str, option: str, stage: int, block: int, wide_stem: bool) -> set[str]:
    """The modules of a block. After DeepLab's stem, 128 channels wide, the basic block res2.0 projects, too."""
    if kind == "vgg":
        return {"conv"}
    if kind == "vgg_bn":
        return {"conv", "norm"}
    parts = {"conv1", "conv2"}
    if kind == "bottleneck":
        parts.add("conv3")
    changes = block == 0 and (kind == "bottleneck" or stage > 2 or wide_stem)
    if option == "C" or (option == "B" and changes):
        parts.add("shortcut")
    elif option == "D" and changes:
        parts.add("shortcut.conv")
    elif option == "A" and changes:
        parts.add("shortcut.padding")
    return parts


def _has_stem(layout: Layout, state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the first convolution is as wide as res2 and 7x7; 3x3 for small images, and in stems of three of them.

    Of ResNet-D it has half the width.
    """
    weight = state_dict.get("stem.conv1.weight")
    side = 3 if layout.width == CIFAR_WIDTH or layout.is_d or stem_of(state_dict) == "deeplab" else 7
    width = layout.width // 2 if layout.is_d else layout.width
    return weight is None or (weight.ndim == 4 and weight.shape[0] == width and weight.shape[-1] == side)


def _has_widths(layout: Layout, state_dict: Mapping[str, Tensor], stage: int, block: int) -> bool:
    """Whether conv2 has the outputs, and the inputs of a group, of its stage: wide ResNets have more, ResNeXt groups.

    Every norm must have as many values as the convolution before it has outputs: in pre-activated networks of other
    projects it stands in front of the convolution of its number.
    """
    prefix = f"res{stage}.{block}."
    for number in (1, 2, 3):
        weight, norm = (state_dict.get(f"{prefix}conv{number}.{last}") for last in ("weight", "norm.weight"))
        if weight is not None and norm is not None and weight.shape[:1] != norm.shape[:1]:
            return False
    weight = state_dict.get(f"{prefix}conv2.weight")
    inputs = layout.width * layout.width_per_group // 64 * 2 ** (stage - 2)
    return weight is None or (weight.ndim == 4 and [*weight.shape[:2]] == [inputs * layout.groups, inputs])
