"""Comparing the tensors of a file with those of a model by name and shape, and copying them into it, all or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_backbone.weights.architecture import (
    HEAD,
    LAST_LINEAR,
    LAYOUTS,
    OFFSETS,
    candidate_archs,
    deformable_of,
    has_bottlenecks,
    lacks_offsets,
    norm_of,
    stage_of,
)
from resnet_backbone.weights.catalog import TIMM, InputFormat
from resnet_backbone.weights.errors import WeightsError, shorten
from resnet_backbone.weights.source import Weights, read_weights, weights_from_state_dict

COUNTER = ".num_batches_tracked"
NEW_OFFSETS = "the offsets of its deformable convolutions are new: they keep their initialisation and need training"


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did.

    Attributes:
        source: what was read.
        arch: the model's architecture.
        loaded: how many tensors of the model were filled.
        ignored: why to which tensors of the file were rightly not used: ``"counters of batch norm"``,
            ``"classifier"``, ``"stages that the model lacks"``, of timm's networks ``"parts that the model lacks"``,
            ``"other parts of the file"``.
        new_head: True where the model's last linear layer keeps its initialisation, for other classes than the file's.
        input_format: the pixels that the weights were trained on; None where nobody said.
        sha256: of the file; ``""`` for a state dict.
        notes: what the tensors hide and was taken from elsewhere, in sentences.
    """

    source: str
    arch: str
    loaded: int
    ignored: dict[str, list[str]]
    new_head: bool
    input_format: InputFormat | None
    sha256: str
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Return a few lines for a log."""
        lines = [f"{self.arch}: {self.loaded} tensors from {self.source}"]
        lines += [f"  {len(names)} not used, {why}: {names[0]}, ..." for why, names in self.ignored.items()]
        if self.new_head:
            lines.append("  the last linear layer is new: it keeps its initialisation and needs training")
        lines += [f"  {note}" for note in self.notes]
        if self.input_format is None:
            lines.append("  input format unknown: nobody said on which colour order, mean and std they were trained")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Match:
    """How the tensors of a file fit those of a model, by name. Counters of batch norms, in one alone, do not matter.

    Attributes:
        missing: names of the model that the file lacks.
        left_over: names of the file that the model lacks.
        different: names of both whose tensors have another shape or kind of number, with what is in either.
    """

    missing: list[str]
    left_over: list[str]
    different: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether each tensor has its counterpart."""
        return not (self.missing or self.left_over or self.different)

    def lines(self) -> list[str]:
        """Return a line for each kind of fault: how many, and the first names."""
        kinds = {
            "tensors of the model are not in the file": self.missing,
            "tensors of the file fit nothing in the model": self.left_over,
            "tensors differ": self.different,
        }
        return [f"{len(names)} {what}: {shorten(names)}" for what, names in kinds.items() if names]


def match_tensors(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Match:
    """Compare the tensors of a model with those of a file."""
    match = match_names(wanted, found)
    both = [name for name in wanted if name in found]
    different = [f"{name} ({why})" for name in both if (why := _difference(name, wanted[name], found[name]))]
    return replace(match, different=different)


def match_names(wanted: Collection[str], found: Collection[str]) -> Match:
    """Compare the names of a model's tensors with those of a file, where the tensors themselves are not at hand."""
    model, file = set(wanted), set(found)
    missing = [name for name in wanted if name not in file and not name.endswith(COUNTER)]
    left_over = [name for name in found if name not in model and not name.endswith(COUNTER)]
    return Match(missing, left_over)


def _difference(name: str, target: Tensor, value: Tensor) -> str:
    """Return why ``value`` cannot be copied to ``target``; nothing where it can."""
    if target.shape != value.shape:
        return f"{tuple(value.shape)} in the file, {tuple(target.shape)} in the model"
    if target.is_floating_point() != value.is_floating_point() and not name.endswith(COUNTER):
        return f"{value.dtype} in the file, {target.dtype} in the model"
    return "the model is on the meta device and holds no values; write model.to_empty" if target.is_meta else ""


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Tensor] | Weights, *, new_head: bool = False
) -> LoadReport:
    """Copy weights into a model of :func:`~resnet_backbone.models.registry.create_model`.

    Every tensor of the model must be filled and every tensor of the file be used, except for what is harmless, which
    the report lists: counters of batch norm, a classifier that was not asked for, stages after the model's last. The
    offsets of deformable convolutions, of which a plain network has none, keep their initialisation, zero.

    Args:
        model: with the attributes ``arch``, ``num_classes`` and ``stride_in_1x1``.
        source: as for :func:`read_weights`, or a state dict in any naming that it knows, or its result.
        new_head: for another number of classes than the file's, the model's last linear layer keeps its initialisation,
            to be trained. With as many classes as the file's it is filled all the same.

    Raises:
        TypeError: not such a model, or not such a source.
        WeightsError: anything that does not fit, other classes without ``new_head`` among it; the model is then as it
            was before.
        FileNotFoundError, DownloadError: as :func:`read_weights`.
    """
    if not all(hasattr(model, attribute) for attribute in ("arch", "num_classes", "stride_in_1x1")):
        raise TypeError(f"{type(model).__name__} is no network of ours: build the model with create_model")
    arch, num_classes = str(model.arch), int(model.num_classes)  # type: ignore[arg-type]
    weights = weights_of(source, arch)
    _check_arch(arch, weights)
    _check_stride(arch, bool(model.stride_in_1x1), weights)
    new_head = _needs_new_head(num_classes, weights, allowed=new_head)
    last_linear: Collection[str] = getattr(model, "last_linear", LAST_LINEAR)

    targets = dict(model.state_dict(keep_vars=True))
    ignored = _not_needed(targets, weights, num_classes > 0, last_linear if new_head else (), model)
    unused = {name for names in ignored.values() for name in names}
    values = {name: value for name, value in weights.state_dict.items() if name not in unused}
    if new_head:
        targets = {name: target for name, target in targets.items() if name not in last_linear}
    new_offsets = lacks_offsets(targets, values)
    if new_offsets:
        targets = {name: target for name, target in targets.items() if not name.endswith(OFFSETS)}
    match = match_tensors(targets, values)
    is_whole = arch not in LAYOUTS or arch in candidate_archs(weights.state_dict)
    model_norm = norm_of(model.state_dict())
    fused = weights.norm == "BN" and model_norm == "GN"
    if not match.fits or not is_whole or fused:
        lines = [*match.lines(), *(() if arch.startswith(TIMM) else _advice(weights, match, model_norm))]
        raise WeightsError(
            f"{weights.source} does not fit {arch}; nothing was loaded." + "".join(f"\n  {line}" for line in lines)
        )
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
    return LoadReport(
        source=weights.source,
        arch=arch,
        loaded=len(values),
        ignored=ignored,
        new_head=new_head,
        input_format=weights.input_format,
        sha256=weights.sha256,
        notes=(*_notes(arch, bool(model.stride_in_1x1), weights), *[NEW_OFFSETS] * new_offsets),
    )


def _notes(arch: str, stride_in_1x1: bool, weights: Weights) -> tuple[str, ...]:
    notes = []
    if weights.option_a_zeros == "both":
        notes.append("trained with option A's zeros on both sides: the channels between the blocks are permuted for it")
    if has_bottlenecks(arch) and weights.stride_in_1x1 is None:
        notes.append(
            f"nobody said in which convolution of the bottlenecks it was trained with the stride: it is in the "
            f"{_stride_place(stride_in_1x1)} here; stride_in_1x1={not stride_in_1x1} puts it into the other"
        )
    if weights.norm == "GN":
        notes.append("its norms have no running statistics: they are taken for group norm")
    return tuple(notes)


def weights_of(source: str | Path | Mapping[str, Tensor] | Weights, arch: str) -> Weights:
    """Read what is not read yet, for a model of ``arch``; see :func:`load_weights`."""
    if isinstance(source, Weights):
        return source
    if isinstance(source, str | Path):
        return read_weights(source, arch=arch)
    if isinstance(source, Mapping):
        return weights_from_state_dict(source, arch=arch)
    raise TypeError(f"expected a catalog name, a file, a state dict or Weights, got {type(source).__name__}")


def _check_arch(arch: str, weights: Weights) -> None:
    looks_like = (weights.arch,) if weights.arch else candidate_archs(weights.state_dict)
    if arch in LAYOUTS and looks_like and arch not in looks_like:
        raise WeightsError(
            f"{weights.source} holds the weights of {' or '.join(looks_like)}, the model is {arch}; "
            f"write create_model({looks_like[0]!r}, ...), or take weights of {arch}"
        )


def _check_stride(arch: str, stride_in_1x1: bool, weights: Weights) -> None:
    if has_bottlenecks(arch) and weights.stride_in_1x1 not in (None, stride_in_1x1):
        raise WeightsError(
            f"{weights.source} was trained with the stride in the {_stride_place(weights.stride_in_1x1)} convolution "
            f"of bottlenecks, the model has it in the {_stride_place(stride_in_1x1)}; build the model with "
            f"stride_in_1x1={weights.stride_in_1x1}"
        )


def _stride_place(stride_in_1x1: bool | None) -> str:
    return "first 1x1" if stride_in_1x1 else "3x3"


def _needs_new_head(num_classes: int, weights: Weights, *, allowed: bool) -> bool:
    needed = num_classes not in (0, weights.num_classes)
    if needed and not allowed:
        has = f"a classifier of {weights.num_classes} classes" if weights.num_classes else "no classifier"
        raise WeightsError(
            f"{weights.source} has {has}, the model one of {num_classes}; write num_classes={weights.num_classes}, or "
            "new_head=True for a last layer that keeps its initialisation and is yet to be trained"
        )
    return needed


def _not_needed(
    targets: Mapping[str, Tensor], weights: Weights, has_head: bool, replaced: Collection[str], model: nn.Module
) -> dict[str, list[str]]:
    """See :attr:`LoadReport.ignored`; ``replaced`` are the names of a layer that is new."""
    stages = {stage_of(name) for name in targets}
    spare: Collection[str] = getattr(model, "spare", ())
    ignored: dict[str, list[str]] = {"other parts of the file": list(weights.left_out)}
    for name in weights.state_dict:
        if name in targets:
            why = "classifier" if name in replaced else ""
        elif name.endswith(COUNTER):
            why = "counters of batch norm"
        elif name in spare:
            why = "parts that the model lacks"
        elif name.startswith(HEAD):
            why = "" if has_head and name not in replaced else "classifier"
        else:
            why = "" if stage_of(name) in stages else "stages that the model lacks"
        if why:
            ignored.setdefault(why, []).append(name)
    return {why: sorted(names) for why, names in ignored.items() if names}


def _advice(weights: Weights, match: Match, model_norm: str) -> list[str]:
    advice = []
    file_norm = norm_of(weights.state_dict)
    if file_norm == "GN" and (weights.norm == "BN" or any(name.endswith(".running_mean") for name in match.missing)):
        advice.append('The file has norms without running statistics: with group norm, build the model with norm="GN";')
        advice.append("a file of the first Detectron has its batch norm fused, take Detectron2's instead.")
    elif file_norm != model_norm:
        choices = {"BN": 'norm="BN" or "FrozenBN"', "GN": 'norm="GN"', "": "an architecture without norms"}
        advice.append(f"The norms are not the same: build the model with {choices[file_norm]}.")
    if weights.option_a_zeros is None:
        fits = " or ".join(candidate_archs(weights.state_dict))
        advice.append(f"The file can be {fits}, with shortcut option A, and nobody said where its zeros are. Write")
        advice.append('read_weights(..., option_a_zeros="both") for both sides of the copied channels, or "behind"; or')
        advice.append("resnet-backbone package --option-a-zeros. akamaster/pytorch_resnet_cifar10 has both.")
    elif any(".shortcut." in name for name in [*match.missing, *match.left_over]):
        known = f", in the file {weights.shortcut!r}" if weights.shortcut else ""
        advice.append(f"The shortcuts are not the same{known}: write create_model(..., shortcut=...), in a config of a")
        advice.append("detector MODEL.RESNET_BACKBONE.SHORTCUT, of a classifier MODEL.SHORTCUT.")
    if any(".conv2_offset." in name for name in [*match.missing, *match.left_over, *match.different]):
        advice.append(
            f"The deformable convolutions are not the same. The file has {deformable_of(weights.state_dict)}:"
        )
        advice.append("write these for create_model, in a config MODEL.RESNET_BACKBONE.DEFORM_ON_PER_STAGE and so on.")
    if any(".preact." in name for name in [*match.missing, *match.left_over]):
        advice.append(f"The norms stand elsewhere: write preactivation={weights.preactivation}, in a config of a")
        advice.append(f"classifier MODEL.PREACTIVATION: {weights.preactivation}.")
    if any(name.startswith(HEAD) for name in match.missing):
        advice.append("The file has no complete classifier: build the model with num_classes=0.")
    if "stem.conv3.weight" in match.missing:
        advice.append('The model has the stem of DeepLab, the file has not: build the model with stem="basic", or take')
        advice.append("weights with that stem, as Detectron2's R-52.pkl for ResNet-50 and R-103.pkl for ResNet-101.")
    elif "stem.conv3.weight" in match.left_over:
        advice.append('The file has the stem of DeepLab: build the model with stem="deeplab".')
    elif any(name.startswith(("stem.conv1.weight ", "conv1_1.weight ")) for name in match.different):
        advice.append("Published weights take in_channels=3; a first convolution of 3x3 is that of cifar_* networks.")
    if not candidate_archs(weights.state_dict):
        advice.append("The file is no whole network that we know: is it complete?")
    return advice
