"""Reading weights that a user names (by the catalog, a file, a state dict), with what is known of their training."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_backbone.weights.architecture import (
    HEAD,
    LAST,
    LAYOUTS,
    candidate_archs,
    has_bottlenecks,
    has_padding,
    is_preactivated,
    norm_of,
    num_classes_of,
    shortcut_of,
    stem_of,
)
from resnet_backbone.weights.catalog import (
    CATALOG,
    SCHEMES,
    TIMM,
    InputFormat,
    TestTransform,
    WeightsEntry,
    find_entry_by_sha256,
    get_entry,
    list_weights,
    parse_source,
)
from resnet_backbone.weights.download import download_weights, resolve
from resnet_backbone.weights.errors import WeightsError, shorten
from resnet_backbone.weights.names import classifier_part, to_our_names, without_wrappers, zeros_behind
from resnet_backbone.weights.read import PART, RawFile, log_other_networks, read_file, split_part
from resnet_backbone.weights.safe_pickle import shown
from resnet_backbone.weights.timm_files import timm_name, timm_network, timm_part

logger = logging.getLogger(__name__)

PACKAGE_KEY = "resnet_backbone"
FORMAT_VERSION = 1
OPTION_A_ZEROS = ("behind", "both")
# What the catalog and packaged files say of weights.
_FACTS = ("arch", "input_format", "stride_in_1x1", "licence", "acc1", "acc5", "test_transform", "class_names")


@dataclass(frozen=True)
class Weights:
    """Tensors in our names, and what is known of how they were trained.

    Attributes:
        state_dict: our names to tensors on the CPU, all finite. They may be mapped from a file: copy, don't change.
        arch: the architecture; None where the tensors fit several (the stem alone, say).
        input_format: the pixels that the network was trained on; None where nobody said.
        stride_in_1x1: where bottlenecks carry the stride; None where nobody said; False for other architectures.
        norm: ``"BN"``, ``"GN"``, or ``""`` for a network without norms.
        source: what was read, for messages and records.
        sha256: of the file's content, 64 hexadecimal digits; ``""`` for a state dict.
        num_classes: size of the classifier; 0 where there is none.
        licence: SPDX identifier; ``""`` where unknown.
        acc1: published ImageNet-1K top-1 in percent; None where unknown.
        acc5: likewise, top-5.
        test_transform: what the accuracy was measured with; None where nobody said.
        class_names: of the classifier, in its order; empty where nobody said.
        left_out: names in the file that are no part of a classifier: a detector's heads, say.
        option_a_zeros: where the shortcuts of the network that was trained, of the paper's option A, have their zeros:
            ``"behind"`` the copied channels, as ours, or on ``"both"`` sides, for which the channels in ``state_dict``
            are permuted so that our networks compute the same. None where nobody said; ``""`` without option A.
    """

    state_dict: Mapping[str, Tensor]
    arch: str | None
    input_format: InputFormat | None
    stride_in_1x1: bool | None
    norm: str
    source: str
    sha256: str
    num_classes: int
    licence: str = ""
    acc1: float | None = None
    acc5: float | None = None
    test_transform: TestTransform | None = None
    class_names: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    option_a_zeros: str | None = ""

    @property
    def shortcut(self) -> str | None:
        """The option, see :func:`shortcut_of`; None where the tensors or the architecture do not tell."""
        return shortcut_of(self.arch, self.state_dict) if self.arch else None

    @property
    def preactivation(self) -> bool:
        """Whether norm and ReLU stand before the convolutions."""
        return is_preactivated(self.state_dict)

    @property
    def stem(self) -> str:
        """``"basic"``, or ``"deeplab"`` for three convolutions."""
        return stem_of(self.state_dict)

    def known_arch(self) -> str:
        """Return the architecture.

        Raises:
            WeightsError: the tensors fit several or none, and nobody said which.
        """
        if self.arch is not None:
            return self.arch
        fits = candidate_archs(self.state_dict)
        if not fits:
            raise WeightsError(
                f"{self.source} fits no network that we know, or is a part of one: is it complete, is it one with "
                "another first convolution?"
            )
        why = ", shortcut option A having no tensors of its own" if any("plain" in arch for arch in fits) else ""
        raise WeightsError(
            f"{self.source} can be {' or '.join(fits)}: the tensors are the same{why}. Say which: "
            f"arch={fits[-1]!r}, or resnet-backbone package --arch {fits[-1]}"
        )


def read_weights(
    source: str | Path | RawFile, arch: str | None = None, *, option_a_zeros: str | None = None
) -> Weights:
    """Read weights, downloading published ones the first time.

    Args:
        source: ``"imagenet://resnet50/IMAGENET1K_V1"``, ``"resnet50/IMAGENET1K_V1"``, ``"IMAGENET1K_V1"`` together with
            ``arch``, ``"cifar10://cifar_resnet20/AKAMASTER"``; an address, see
            :func:`~resnet_backbone.weights.download.resolve`; or a file, see
            :func:`~resnet_backbone.weights.read.read_file`, also for one of several networks in it. A published file is
            recognised by its SHA-256, and one that ``package_weights`` wrote says itself what it is; of others the
            input format stays unknown. What :func:`read_file` has read is not read again.
        arch: the architecture that is expected. It settles which of several it is that the tensors fit.
        option_a_zeros: of a network with shortcut option A, where the file does not say it: ``"behind"`` or ``"both"``,
            see :class:`Weights`.

    Raises:
        FileNotFoundError: neither a known name nor a file.
        WeightsError: an unknown name, a damaged file, another architecture, values that are not finite, or
            ``option_a_zeros`` that contradicts what is known.
        DownloadError: published weights could not be had.
    """
    entry = None
    if isinstance(source, RawFile):
        raw, source = source, source.source
    else:
        path, part, entry = _find_file(source, arch)
        raw = read_file(f"{path}{PART}{part}" if part else path)
    if not split_part(raw.source)[1]:
        log_other_networks(source, raw)
    if entry is not None and not raw.sha256.startswith(entry.sha256):
        raise WeightsError(
            f"{raw.path} is damaged: its SHA-256 is {raw.sha256}, published is {entry.sha256}...; delete the file"
        )
    return _interpret(raw, str(source), arch, entry, option_a_zeros)


def weights_from_state_dict(
    state_dict: Mapping[str, Tensor], arch: str | None = None, *, option_a_zeros: str | None = None
) -> Weights:
    """Return what the tensors alone tell.

    Args:
        state_dict: names to tensors.
        arch, option_a_zeros: as for :func:`read_weights`.

    Raises:
        TypeError: values that are not tensors.
        WeightsError: tensors of no network that we know, of another than ``arch``, or not finite.
    """
    others = [f"{name} ({type(value).__name__})" for name, value in state_dict.items() if not isinstance(value, Tensor)]
    if others:
        raise TypeError(f"expected a state dict, names with tensors; found also {shorten(others)}")
    return _interpret(RawFile(without_wrappers(state_dict), {}), "a state dict", arch, None, option_a_zeros)


def _find_file(source: str | Path, arch: str | None) -> tuple[Path, str, WeightsEntry | None]:
    """Return the file that a user names, which part of it, and its entry where it is named by the catalog."""
    resolved = resolve(source) if isinstance(source, str) else str(source)
    path, part = split_part(resolved)
    entry = None if isinstance(source, Path) else _named_entry(resolved.removesuffix(f"{PART}{part}"), arch)
    if entry is not None:
        if arch is not None and arch != entry.arch:
            names = ", ".join(list_weights(arch)) or f"a file (none is for {arch})"
            raise WeightsError(f"{source} is for {entry.arch}, not {arch}; write one of {names}")
        path = download_weights(entry)
    elif not path.is_file():
        raise FileNotFoundError(
            f"{source} is neither a file nor a name in the catalog; write the path of a weight file, or "
            f"imagenet://ARCH/NAME, as in imagenet://resnet50/IMAGENET1K_V1, or cifar10://cifar_resnet20/AKAMASTER"
        )
    return path, part, entry


def _named_entry(source: str, arch: str | None) -> WeightsEntry | None:
    if source.startswith(SCHEMES):
        return parse_source(source)
    if source in CATALOG:
        return CATALOG[source]
    scheme = next((entry.scheme for entry in CATALOG.values() if entry.name == source), "")
    if scheme and arch is None:
        raise WeightsError(f"{source} is published for several architectures; write {scheme}ARCH/{source}")
    looks_like_name = not Path(source).is_file() and source.replace("_", "").isalnum()
    return get_entry(arch, source) if arch is not None and (scheme or looks_like_name) else None


def _interpret(
    raw: RawFile, source: str, arch: str | None, entry: WeightsEntry | None, option_a_zeros: str | None
) -> Weights:
    """Bring the tensors of a file to our names, and put beside them what its package or the catalog knows."""
    packaged = package_facts(raw.metadata, source) if PACKAGE_KEY in raw.metadata else None
    if packaged is None and entry is None and raw.sha256:
        entry = find_entry_by_sha256(raw.sha256)
    stated = packaged["arch"] if packaged else entry.arch if entry else arch
    of_timm = stated is not None and stated.startswith(TIMM)  # whose tensors keep timm's names
    with _naming(source):
        part, left_out = timm_part(raw.tensors, str(stated)) if of_timm else classifier_part(raw.tensors)
        state_dict = part if of_timm else to_our_names(part)
    if packaged is None and entry is not None and not entry.has_classifier:
        left_out += [name for name in state_dict if name.startswith(HEAD)]
        state_dict = {name: tensor for name, tensor in state_dict.items() if not name.startswith(HEAD)}
    facts = packaged or ({name: getattr(entry, name) for name in _FACTS} if entry else {})
    arch = _resolve_arch(state_dict, source, facts.get("arch"), arch, raw.metadata.get("arch"))
    if bad := [name for name, tensor in state_dict.items() if not _is_finite(tensor)]:
        raise WeightsError(f"{source} has {len(bad)} tensors with values that are not finite: {shorten(bad)}")
    zeros_of_entry = entry.option_a_zeros or None if entry and not packaged else None
    state_dict, zeros = _with_zeros(state_dict, arch, source, zeros_of_entry, option_a_zeros)
    # The first Detectron's files have batch norm without statistics, which alone would look like group norm.
    norm = "BN" if any("_bn_" in name for name in part) else norm_of(state_dict)
    known: dict[str, Any] = {
        "input_format": None,
        "stride_in_1x1": None if arch is None or has_bottlenecks(arch) else False,
        "norm": norm.replace("GN", "") if of_timm else norm,
        **facts,
        "arch": arch,
        "option_a_zeros": facts.get("option_a_zeros") or zeros,
    }
    return Weights(
        state_dict=state_dict,
        source=source,
        sha256=raw.sha256,
        num_classes=num_classes_of(state_dict, timm_network(timm_name(str(arch))).classifiers if of_timm else LAST),
        left_out=tuple(sorted([*left_out, *raw.others])),
        **known,
    )


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Put the name of what is read in front of messages."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error


def _with_zeros(
    state_dict: dict[str, Tensor], arch: str | None, source: str, stated: str | None, asked: str | None
) -> tuple[dict[str, Tensor], str | None]:
    """Bring a network with shortcut option A to zeros behind the copied channels; see :attr:`Weights.option_a_zeros`.

    Where they are is ``stated`` by the catalog, and ``asked`` by the user.
    """
    if asked not in (None, *OPTION_A_ZEROS):
        raise WeightsError(f"option_a_zeros is {asked!r}; write one of {', '.join(map(repr, OPTION_A_ZEROS))}")
    if arch is None or shortcut_of(arch, state_dict) != "A":
        if asked is not None:
            raise WeightsError(
                f"{source}: option_a_zeros={asked!r} is of networks with shortcut option A, which "
                f"{arch or 'a network of unknown architecture'} is not known to have here; write arch=, or leave it out"
            )
        return state_dict, ""
    padded = has_padding(state_dict)  # by our own networks, which have the zeros behind
    stated = "behind" if padded else stated
    if None not in (stated, asked) and stated != asked:
        raise WeightsError(f"{source} has option_a_zeros={stated!r}, not {asked!r}; leave option_a_zeros out")
    zeros = stated or asked
    if zeros is None or padded:
        return state_dict, zeros
    with _naming(source):
        return zeros_behind(state_dict, zeros), zeros


def package_facts(metadata: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what the metadata of a packaged file says of it, by the names of the attributes of :class:`Weights`.

    Args:
        metadata: what :func:`~resnet_backbone.weights.read.read_file` read, with :data:`PACKAGE_KEY`.
        source: its name, for messages.

    Raises:
        WeightsError: facts of another release's format, or damaged ones.
    """
    facts: Any = metadata[PACKAGE_KEY]
    try:
        facts = json.loads(facts) if isinstance(facts, str) else facts  # of safetensors
        if facts["format_version"] != FORMAT_VERSION:
            raise WeightsError(
                f"{source} is of format version {shown(facts['format_version'])}, this release reads {FORMAT_VERSION}; "
                "upgrade"
            )
        class_names = facts.get("class_names", ())  # of older files neither these nor what follows them
        if not isinstance(class_names, list | tuple) or not all(isinstance(name, str) for name in class_names):
            raise TypeError("class_names are not a list of names")
        return {
            **{key: _typed(facts, key, str) for key in ("arch", "norm", "licence")},
            "stride_in_1x1": _typed(facts, "stride_in_1x1", bool),
            "input_format": InputFormat.from_dict(facts["input_format"]),
            "acc1": _accuracy(facts["acc1"]),
            "class_names": tuple(class_names),
            "acc5": _accuracy(facts.get("acc5")),
            "test_transform": TestTransform(**facts["test_transform"]) if facts.get("test_transform") else None,
            "option_a_zeros": _typed(facts, "option_a_zeros", str) if "option_a_zeros" in facts else None,
        }
    except WeightsError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:500]
        raise WeightsError(f"{source}: its description is damaged ({reason}); package the weights again") from error


def _typed(facts: Mapping[str, Any], key: str, kind: type) -> Any:
    if not isinstance(facts[key], kind):
        raise TypeError(f"{key} is a {type(facts[key]).__name__}, expected {kind.__name__}")
    return facts[key]


def _accuracy(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100):
        raise TypeError("an accuracy is not a number of percent")
    return value


def _resolve_arch(
    state_dict: Mapping[str, Tensor], source: str, stated: str | None, expected: str | None, written: object = None
) -> str | None:
    """Return the architecture that the tensors show, settled by what is stated or expected where they fit several.

    What the catalog or a packaged file has ``stated`` must fit, and what the user ``expected``; what a checkpoint has
    ``written`` under ``arch``, in whatever language, counts where it is one that fits.
    """
    candidates = () if str(stated or expected).startswith(TIMM) else candidate_archs(state_dict)
    if stated is None and written in candidates:
        stated = str(written)
    for arch in (stated, expected):
        if arch is not None and candidates and arch not in candidates:
            raise _of_another(source, candidates, arch)
    if stated is not None and expected is not None and stated != expected:
        raise _of_another(source, (stated,), expected)
    if stated is not None:
        return stated
    if len(candidates) == 1:
        return candidates[0]
    may_be_expected = expected in candidates or (not candidates and expected not in LAYOUTS)
    return expected if may_be_expected else None


def _of_another(source: str, found: tuple[str, ...], expected: str) -> WeightsError:
    names = " or ".join(found)
    return WeightsError(
        f"{source} holds the weights of {names}, not of {expected}; write {names} for the architecture, or take other "
        "weights"
    )


def _is_finite(tensor: Tensor) -> bool:
    """Look at the extremes, which a NaN becomes part of: one pass, and no mask of the tensor's size."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax())
