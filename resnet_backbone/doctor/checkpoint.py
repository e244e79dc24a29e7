"""What a weight file or checkpoint is: architecture, norm, input format, classes, and its entry in the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from torch import Tensor

from resnet_backbone.config import required_input
from resnet_backbone.config.combinations import FCOS_PYRAMID, RETINANET_PYRAMID, RPN_PYRAMID, TRUNK_ALONE
from resnet_backbone.config.weights_input import INPUT_KEYS, read_torchvision
from resnet_backbone.weights import InputFormat, Weights, WeightsEntry, WeightsError, find_entry_by_sha256, read_weights
from resnet_backbone.weights.architecture import candidate_archs
from resnet_backbone.weights.catalog import SCHEMES, find_entry_by_address, parse_source
from resnet_backbone.weights.download import resolve
from resnet_backbone.weights.errors import shorten
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.read import RawFile, read_file, split_part
from resnet_backbone.weights.source import PACKAGE_KEY

CLASSIFIER, PACKAGED, DETECTOR = "a classifier's weights", "packaged weights", "a detector's checkpoint"
COUNTER = ".num_batches_tracked"  # of a batch norm
_BACKGROUND = 1
_SCORES = ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.0.cls_score.weight")


@dataclass(frozen=True)
class Checkpoint:
    """A file, or a name of the catalog, that was read and is complete."""

    source: str  # as the user wrote it
    kind: str  # CLASSIFIER, PACKAGED or DETECTOR
    # the tensors of the classifier or trunk; the input format and the place of the stride also where a detector's
    # checkpoint, or the address, tells them
    weights: Weights
    entry: WeightsEntry | None  # of the catalog; None for a file that it lacks
    builder: str = ""  # MODEL.BACKBONE.NAME of a detector, by the names of its tensors; "" for a classifier
    num_detected: int | None = None  # how many classes a detector tells apart; None where its tensors do not say
    class_names: tuple[str, ...] = ()  # of a detector; empty where nobody said

    @property
    def trains_norms(self) -> bool:
        """Whether the file has the counters of batch norms, which frozen ones lack."""
        return any(name.endswith(COUNTER) for name in self.weights.state_dict)

    def facts(self) -> dict[str, Any]:
        """Return plain containers, for JSON."""
        weights = self.weights
        return {
            "source": self.source,
            "kind": self.kind,
            "arch": weights.arch,
            "fits": list(candidate_archs(weights.state_dict)),
            "norm": weights.norm,
            "num_classes": weights.num_classes,
            "num_tensors": len(weights.state_dict),
            "other_tensors": len(weights.left_out),
            "input_format": weights.input_format.to_dict() if weights.input_format else None,
            "stride_in_1x1": weights.stride_in_1x1,
            "option_a_zeros": weights.option_a_zeros,
            "sha256": weights.sha256,
            "catalog_name": self.entry.full_name if self.entry else "",
            "licence": weights.licence,
            "acc1": weights.acc1,
            "builder": self.builder,
            "num_detected": self.num_detected,
            "class_names": list(self.class_names),
        }

    def summary(self) -> str:
        """Return what it is in one sentence."""
        weights = self.weights
        parts = [
            f"{self.source}: {self.kind} of {weights.arch or ' or '.join(candidate_archs(weights.state_dict)) or '?'}",
            f"norms: {weights.norm or 'none'}",
            f"a classifier of {weights.num_classes} classes" if weights.num_classes else "no classifier",
        ]
        if weights.option_a_zeros != "":
            parts.append(f"option A's zeros: {weights.option_a_zeros or 'nobody said where'}")
        if self.num_detected is not None:
            parts.append(f"detects {self.num_detected} classes")
        parts.append(self.entry.uri if self.entry else "not in the catalog")
        if weights.sha256:
            parts.append(f"SHA-256 {weights.sha256[:8]}")
        return ", ".join(parts)


def read_checkpoint(source: str, arch: str | None = None, written: str = "") -> Checkpoint:
    """Read what :func:`read_weights` reads, or a detector's checkpoint of either engine.

    Args:
        source: a name of the catalog, or a file.
        arch: the architecture that is expected; None takes any.
        written: what the user wrote, where that was resolved to ``source``.

    Raises:
        FileNotFoundError, DownloadError: it is not there.
        WeightsError: it is damaged, holds values that are not finite, or is of another architecture.
    """
    file = resolve(source)
    raw = read_torchvision(read_file(file)) if split_part(file)[0].is_file() else RawFile({}, {})
    weights = read_weights(raw if raw.source else source, arch)
    if holds_detector(raw.tensors):
        return _read_detector(written or source, weights, raw)
    entry = _find_entry(written or source, weights)
    if entry is not None:
        weights = replace(weights, input_format=entry.input_format, stride_in_1x1=entry.stride_in_1x1)
    return Checkpoint(written or source, PACKAGED if PACKAGE_KEY in raw.metadata else CLASSIFIER, weights, entry)


def config_lines(checkpoint: Checkpoint) -> str:
    """Return the YAML that a config needs to use the file as MODEL.WEIGHTS.

    Raises:
        ValueError: the architecture is not known.
    """
    weights = checkpoint.weights
    if weights.arch is None:
        raise ValueError(f"{checkpoint.source}: nobody knows of which architecture it is")
    norm = "FrozenBN" if weights.norm == "BN" else weights.norm
    if checkpoint.kind == DETECTOR and checkpoint.trains_norms:
        norm = "BN"
    source = checkpoint.entry.uri if checkpoint.entry else checkpoint.source
    tree: dict[str, Any] = {"MODEL": {"WEIGHTS": source}}
    if checkpoint.builder:
        tree["MODEL"]["BACKBONE"] = {"NAME": checkpoint.builder}
    tree["MODEL"]["RESNET_BACKBONE"] = {"ARCH": weights.arch, "NORM": norm}
    if weights.input_format is not None:
        for key, value in required_input(weights.arch, weights.input_format, weights.stride_in_1x1).items():
            *path, last = key.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = value
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120).rstrip()


def _find_entry(source: str, weights: Weights) -> WeightsEntry | None:
    if source.startswith(SCHEMES):
        return parse_source(source)
    return find_entry_by_address(source) or find_entry_by_sha256(weights.sha256)


def _read_detector(source: str, weights: Weights, raw: RawFile) -> Checkpoint:
    bad = [name for name, tensor in raw.tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(f"{source} has {len(bad)} tensors with values that are not finite: {shorten(bad)}")
    recorded = raw.metadata.get("input")
    if isinstance(recorded, Mapping) and recorded.keys() >= set(INPUT_KEYS):
        input_format = InputFormat(recorded["INPUT.FORMAT"], recorded["MODEL.PIXEL_MEAN"], recorded["MODEL.PIXEL_STD"])
        stride = recorded["MODEL.RESNETS.STRIDE_IN_1X1"] if weights.stride_in_1x1 is None else weights.stride_in_1x1
        weights = replace(weights, input_format=input_format, stride_in_1x1=stride)
    names = tuple(raw.metadata.get("class_names") or ())
    num_detected = len(names) or _num_scored(raw.tensors)
    return Checkpoint(source, DETECTOR, weights, None, _builder_of(raw.tensors), num_detected, names)


def _num_scored(tensors: Mapping[str, Tensor]) -> int | None:
    """The classes of Faster and Cascade R-CNN; RetinaNet scores classes times anchors, and has no number for either."""
    scores = next((tensors[name] for name in _SCORES if name in tensors), None)
    return None if scores is None else len(scores) - _BACKGROUND


def _builder_of(tensors: Mapping[str, Tensor]) -> str:
    if not any(name.startswith("backbone.bottom_up.") for name in tensors):
        return TRUNK_ALONE
    tops = [tensors.get(f"backbone.{top}.p6.weight") for top in ("top_block", "fpn.extra_blocks")]
    p6 = next((tensor for tensor in tops if tensor is not None), None)
    if p6 is None:
        return RPN_PYRAMID
    return FCOS_PYRAMID if p6.shape[0] == p6.shape[1] else RETINANET_PYRAMID  # of a level, or of the trunk
