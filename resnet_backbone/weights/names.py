"""Renaming the tensors of published files to our names, and finding the network in files that have more.

Our names are Detectron2's for ResNet (``stem.conv1.norm.weight``, ``res2.0.shortcut.weight``, ``linear.bias``) and
those of the Caffe models for VGG (``conv1_1.weight``, ``fc8.bias``). The renaming of Caffe2 blobs follows Detectron2's
``checkpoint/c2_model_loading.py``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from resnet_backbone.weights.architecture import LAYOUTS
from resnet_backbone.weights.errors import WeightsError, shorten

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_NORM = "|".join(NORM_TENSORS)

_OURS = re.compile(
    rf"stem\.conv[123]\.(weight|norm\.({_NORM}))"
    rf"|res[2-5]\.\d{{1,4}}\.(conv[123]|shortcut)\.(weight|norm\.({_NORM}))"
    rf"|res[2-5]\.\d{{1,4}}\.shortcut\.(padding|conv\.(weight|norm\.({_NORM})))"
    r"|res[2-5]\.\d{1,4}\.conv2_offset\.(weight|bias)"
    rf"|res[2-5]\.\d{{1,4}}\.preact\.norm\.({_NORM})"
    rf"|postact\.norm\.({_NORM})"
    rf"|conv[1-5]_[1-4]\.(weight|bias|norm\.({_NORM}))"
    r"|block[1-3]\.\d{1,2}\.(weight|bias)"
    rf"|(conv[123]|inception[3-5][a-e]\.branch[1-4](\.[01])?)\.(conv\.weight|bn\.({_NORM}))"  # GoogLeNet, torchvision's
    r"|(linear|fc6|fc7|fc8|hidden|fc)\.(weight|bias)"
)
_BLOCK = re.compile(r"res\d\.\d+(?=\.)")
_DETECTRON2_HEAD = re.compile(r"(?:stem\.fc|fc1000)\.(weight|bias)")

_TORCHVISION = (
    (re.compile(r"conv1\.weight"), r"stem.conv1.weight"),
    (re.compile(rf"bn1\.({_NORM})"), r"stem.conv1.norm.\1"),
    (re.compile(r"(layer[1-4])\.(\d{1,4})\.(conv[123])\.weight"), r"\1.\2.\3.weight"),
    (re.compile(rf"(layer[1-4])\.(\d{{1,4}})\.bn([123])\.({_NORM})"), r"\1.\2.conv\3.norm.\4"),
    (re.compile(r"(layer[1-4])\.(\d{1,4})\.(?:downsample|shortcut)\.0\.weight"), r"\1.\2.shortcut.weight"),
    (re.compile(rf"(layer[1-4])\.(\d{{1,4}})\.(?:downsample|shortcut)\.1\.({_NORM})"), r"\1.\2.shortcut.norm.\3"),
    (re.compile(r"(?:fc|linear)(?:\.\d{1,2})?\.(weight|bias)"), r"linear.\1"),  # numbered beside dropout
)
_RESNET_D = (  # timm's names; a stem of three convolutions, and an average before those of shortcuts
    (re.compile(r"conv1\.0\.weight"), r"stem.conv1.weight"),
    (re.compile(rf"conv1\.1\.({_NORM})"), r"stem.conv1.norm.\1"),
    (re.compile(r"conv1\.3\.weight"), r"stem.conv2.weight"),
    (re.compile(rf"conv1\.4\.({_NORM})"), r"stem.conv2.norm.\1"),
    (re.compile(r"conv1\.6\.weight"), r"stem.conv3.weight"),
    (re.compile(rf"bn1\.({_NORM})"), r"stem.conv3.norm.\1"),
    (re.compile(r"(layer[1-4])\.(\d{1,4})\.downsample\.1\.weight"), r"\1.\2.shortcut.conv.weight"),
    (re.compile(rf"(layer[1-4])\.(\d{{1,4}})\.downsample\.2\.({_NORM})"), r"\1.\2.shortcut.conv.norm.\3"),
    *_TORCHVISION,
)
_STAGE_OF_LAYER = {"layer1": "res2", "layer2": "res3", "layer3": "res4", "layer4": "res5"}

_CAFFE2 = (
    (re.compile(r"conv1_w"), r"stem.conv1.weight"),
    (re.compile(r"(?:res_)?conv1_(?:bn|gn)_(\w+)"), r"stem.conv1.norm.\1"),
    (re.compile(r"(res[2-5])_(\d{1,4})_(branch1|branch2[abc])_w"), r"\1.\2.\3.weight"),
    (re.compile(r"(res[2-5])_(\d{1,4})_(branch1|branch2[abc])_(?:bn|gn)_(\w+)"), r"\1.\2.\3.norm.\4"),
    (re.compile(r"(?:fc1000|pred|linear)_w"), r"linear.weight"),
    (re.compile(r"(?:fc1000|pred|linear)_b"), r"linear.bias"),
)
_CONV_OF_BRANCH = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
_NORM_OF_CAFFE2 = {
    **{name: name for name in ("running_mean", "running_var")},
    **{"s": "weight", "gamma": "weight", "b": "bias", "beta": "bias", "rm": "running_mean", "riv": "running_var"},
}
_CAFFE2_UNUSED = ("conv1_b",)

_VGG_LINEAR = {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}

# What PyTorch puts into names: DistributedDataParallel and AveragedModel, torch.compile, FSDP, checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# A network is where its first convolution is, in one of the namings; whatever stands before that name is its prefix.
_PREFIX = r"(?:(?P<prefix>[^.]+(?:\.[^.]+)*?)\.)??"
_FIRST = re.compile(_PREFIX + r"(?:(?:stem\.conv1|conv1(?:\.0)?|conv1_1|features\.0)\.weight|conv1_w)")
_NEXT = re.compile(_PREFIX + r"(?:layer1\.|res2\.|conv1_2\.|features\.[23]\.|res2_0_)")
_WITHIN = re.compile(r"(?:.*\.)?(?:stem|(?:layer|res)\d(?:\.\d+)?)")  # what has a conv1 of its own in a network
_DETECTOR_PREFIXES = ("backbone.bottom_up.", "backbone.body.", "backbone.")
_DETECTOR_RES5 = "roi_heads.res5."
_MMPRETRAIN_HEAD = "head.fc."
# Of self-supervised trainings, and GoogLeNet's auxiliary classifiers.
_TRAINING_HEADS = re.compile(r"(?:projection_head|projector|predictor|prototypes|aux[12])\.")
_NUMBERED_HEAD = re.compile(r"(?:fc|linear)\.\d+\.")  # of several layers it is no classifier, as in MoCo v2
_DETECTRON2_PARTS = ("backbone.bottom_up.", "proposal_generator.")


def without_wrapper_names(name: str) -> str:
    """``"module.encoder_q."`` -> ``"encoder_q"``."""
    return _WRAPPERS.sub("", f"{name}.").strip(".")


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take ``module.``, ``_orig_mod.`` and the like out of names, unless two names would become one."""
    names = {name: _WRAPPERS.sub("", name) for name in tensors}
    return {names[name]: tensors[name] for name in tensors} if len({*names.values()}) == len(names) else dict(tensors)


def find_networks(names: Iterable[str]) -> list[str]:
    """Return the prefixes, such as ``"encoder_q."``, of the networks that the names of tensors show, ``""`` first."""
    names = list(names)
    found = {match["prefix"] or "" for name in names if (match := _FIRST.fullmatch(name))}
    found = {prefix for prefix in found if not _WITHIN.fullmatch(prefix)}
    if len(found) > 1:  # blocks of networks of another kind have convolutions of this name, too, but no stages
        found &= {match["prefix"] or "" for name in names if (match := _NEXT.match(name))}
    return sorted(f"{prefix}." if prefix else "" for prefix in found)


def detector_prefix(names: Collection[str]) -> str:
    """Return what all names of a detector have in front of ``backbone.`` and its other parts, such as ``"model."``."""
    prefixes = {prefix.partition("backbone.")[0] for prefix in find_networks(names) if ".backbone." in f".{prefix}"}
    outer = prefixes.pop() if len(prefixes) == 1 else ""
    return outer if all(name.startswith(outer) for name in names if "." in name) else ""


def holds_detector(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict is of a detector, and not of a classifier alone.

    One with a trunk in torchvision's names, as torchvision's and MMDetection's detectors and MMPretrain's classifiers
    have it, is of no detector that can be filled here: its trunk is read as a classifier's.
    """
    if not any(name.startswith("backbone.") for name in state_dict):
        return False
    prefixes = find_networks(state_dict)
    foreign = {f"{prefix}{first}.weight" for prefix in prefixes for first in ("conv1", "conv1.0", "features.0")}
    return foreign.isdisjoint(state_dict) or any(name.startswith(_DETECTRON2_PARTS) for name in state_dict)


def classifier_part(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Take the classifier or trunk out of a state dict that has more, and off its prefix.

    Returns:
        The tensors of the classifier or trunk, and the names of all others: necks, proposals and heads of a detector
        (``backbone.bottom_up.`` of Detectron2, ``backbone.body.`` of torchvision; ``roi_heads.res5`` belongs to the
        backbone), losses, queues and counters of a training, and ``conv1_b`` of Caffe2 files, a bias in front of a norm
        that neither Detectron uses.

    Raises:
        WeightsError: there are several networks side by side.
    """
    networks = find_networks(state_dict)
    if len(networks) > 1 and networks[0]:
        raise WeightsError(several_networks({prefix.partition(".backbone.")[0].rstrip(".") for prefix in networks}))
    fallback = next((p for p in _DETECTOR_PREFIXES if any(name.startswith(p) for name in state_dict)), "")
    prefix = networks[0] if networks else fallback
    has_modules = any("." in name for name in state_dict)
    part: dict[str, Tensor] = {}
    others: list[str] = []
    heads = {match[0] for name in state_dict if (match := _NUMBERED_HEAD.match(name.removeprefix(prefix)))}
    for name, tensor in state_dict.items():
        is_counter = has_modules and "." not in name and tensor.numel() == 1  # n_averaged, say
        own = name.removeprefix(prefix)
        is_head = _TRAINING_HEADS.match(own) or (len(heads) > 1 and _NUMBERED_HEAD.match(own))
        if name in _CAFFE2_UNUSED or is_counter or is_head:
            others.append(name)
        elif name.startswith(prefix):
            part[own] = tensor
        elif name.startswith(_DETECTOR_RES5):
            part[name.removeprefix("roi_heads.")] = tensor
        elif prefix == "backbone." and name.startswith(_MMPRETRAIN_HEAD):
            part[name.removeprefix("head.")] = tensor
        else:
            others.append(name)
    return part, others


def several_networks(parts: Collection[str]) -> str:
    """Return the message for a file with several networks, none of which is more usual than another."""
    return f"it holds several networks, {shorten(parts)}; name one behind the file, as in weights.pth#{min(parts)}"


def to_our_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a classifier or trunk.

    Args:
        state_dict: in the names of torchvision or timm (ResNet, VGG), Caffe2 (Detectron), Detectron2 or our own, see
            :func:`classifier_part` for detectors.

    Returns:
        The same tensors in our names.

    Raises:
        WeightsError: tensors that are no part of the networks we know, or two tensors for one name.
    """
    layout = _layout(state_dict)
    rename = {"ours": _from_ours, "caffe2": _from_caffe2}.get(layout, _from_torchvision_resnet)
    if layout == "timm's ResNet-D":
        rename = partial(_from_torchvision_resnet, patterns=_RESNET_D)
    if layout == "torchvision" and any(name.startswith("features.") for name in state_dict):
        new_names = _from_torchvision_vgg(state_dict)
    else:
        new_names = {name: rename(name) for name in state_dict}
    unknown = [name for name, new_name in new_names.items() if new_name is None]
    if unknown:
        raise WeightsError(
            f"{len(unknown)} of {len(new_names)} tensors are no part of a ResNet or VGG as we know them "
            f"(read as the naming of {layout}): {shorten(unknown)}"
        )
    renamed = {new_name: state_dict[name] for name, new_name in new_names.items() if new_name is not None}
    if len(renamed) < len(new_names):
        raise WeightsError("two tensors of the file have the same meaning, as in 'fc1000.bias' and 'linear.bias'")
    return renamed


def zeros_behind(state_dict: Mapping[str, Tensor], zeros: str) -> dict[str, Tensor]:
    """Return the tensors of a network with shortcut option A as our networks compute it, with our buffers ``padding``.

    Where the number of channels grows, option A copies the old ones and fills the new ones with zeros. Our networks
    have the zeros behind the copied channels, as facebook/fb.resnet.torch; others have a half of them on each side, as
    akamaster/pytorch_resnet_cifar10. Only the order of the channels between the blocks differs, so they are permuted
    there; what the network computes stays the same but for rounding.

    Args:
        state_dict: in our names, from the stem or res2 on.
        zeros: ``"behind"`` or ``"both"``, where the network that was trained has them.

    Raises:
        WeightsError: the first stages are missing, so that the order of the channels is unknown, or channels get fewer.
    """
    result = dict(state_dict)
    order = torch.empty(0, dtype=torch.int64)  # of the channels between the blocks: where each of ours is in the file
    for block in sorted({match[0] for name in state_dict if (match := _BLOCK.match(name))}, key=_stage_and_number):
        first, last = (f"{block}.conv{n}" for n in (1, 3 if f"{block}.conv3.weight" in state_dict else 2))
        inputs, outputs = state_dict[f"{first}.weight"].shape[1], state_dict[f"{last}.weight"].shape[0]
        if outputs < inputs or (not len(order) and block != "res2.0"):
            raise WeightsError(f"{block}: option A's zeros need the stages before it, and channels that get more")
        if not len(order):
            order = torch.arange(inputs)
        for name in _tensors_of(state_dict, f"{block}.preact"):
            result[name] = state_dict[name][order]
        result[f"{first}.weight"] = state_dict[f"{first}.weight"][:, order]
        if outputs > inputs:
            result[f"{block}.shortcut.padding"] = torch.tensor(outputs - inputs)
            left = (outputs - inputs) // 2 if zeros == "both" else 0
            copied = order + left
            new = torch.arange(outputs)
            order = torch.cat([copied, new[~torch.isin(new, copied)]])
        for name in _tensors_of(state_dict, last):
            result[name] = state_dict[name][order]
    for name in _tensors_of(state_dict, "postact"):
        result[name] = state_dict[name][order]
    if "linear.weight" in state_dict:
        result["linear.weight"] = state_dict["linear.weight"][:, order]
    return result


def _stage_and_number(block: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", block)]


def _tensors_of(state_dict: Mapping[str, Tensor], module: str) -> list[str]:
    """Names of a module's tensors with a value for each channel."""
    return [name for name, tensor in state_dict.items() if name.startswith(f"{module}.") and tensor.ndim]


def _layout(names: Mapping[str, Tensor]) -> str:
    if names and not any("." in name for name in names):
        return "caffe2"
    ours = [name for name in names if _from_ours(name)]
    if ours and not all(_from_torchvision_resnet(name) for name in ours):  # "linear.weight" alone is of either
        return "ours"
    is_d = "conv1.6.weight" in names or any(".downsample.2." in name for name in names)
    return "timm's ResNet-D" if is_d else "torchvision"


def _from_ours(name: str) -> str | None:
    if match := _DETECTRON2_HEAD.fullmatch(name):
        return f"linear.{match[1]}"
    return name if _OURS.fullmatch(name) else None


def _from_torchvision_resnet(name: str, patterns: Sequence[tuple[re.Pattern[str], str]] = _TORCHVISION) -> str | None:
    for pattern, replacement in patterns:
        if match := pattern.fullmatch(name):
            first, dot, rest = match.expand(replacement).partition(".")
            return _STAGE_OF_LAYER.get(first, first) + dot + rest
    return None


def _from_caffe2(name: str) -> str | None:
    for pattern, replacement in _CAFFE2:
        if match := pattern.fullmatch(name):
            *module, last = match.expand(replacement).split(".")
            if module[-1] == "norm" and (last := _NORM_OF_CAFFE2.get(last, "")) == "":
                return None
            return ".".join([*(_CONV_OF_BRANCH.get(part, part) for part in module), last])
    return None


def _from_torchvision_vgg(names: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Number the convolutions of ``features.N`` by the depths of VGG-16 or VGG-19, whichever fits."""
    with_norm = any(name.startswith("features.") and name.endswith("running_mean") for name in names)
    candidates: list[dict[str, str | None]] = []
    for arch in ("vgg16", "vgg19"):
        modules = dict(_vgg_modules(LAYOUTS[arch].depths, with_norm)) | _VGG_LINEAR
        split = {name: name.rpartition(".") for name in names}
        candidates.append({name: f"{modules[m]}.{t}" if m in modules else None for name, (m, _, t) in split.items()})
    return min(candidates, key=lambda renamed: list(renamed.values()).count(None))


def _vgg_modules(depths: tuple[int, ...], with_norm: bool) -> Iterator[tuple[str, str]]:
    index = 0
    for stage, depth in enumerate(depths, start=1):
        for position in range(1, depth + 1):
            yield f"features.{index}", f"conv{stage}_{position}"
            if with_norm:
                yield f"features.{index + 1}", f"conv{stage}_{position}.norm"
            index += 3 if with_norm else 2
        index += 1
