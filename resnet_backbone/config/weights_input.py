"""What a run writes into its config: the input that its weights need, and the number of classes of its data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fvcore.common.config import CfgNode

from resnet_backbone.config.reader import value_of
from resnet_backbone.config.schema import TORCHVISION_ANCHORS
from resnet_backbone.config.schema import TORCHVISION_KEYS as _KEYS
from resnet_backbone.weights import InputFormat, Weights, WeightsError
from resnet_backbone.weights.architecture import has_bottlenecks
from resnet_backbone.weights.catalog import SCHEMES, TORCHVISION_RGB, find_entry_by_address, parse_source
from resnet_backbone.weights.detectors import (
    TORCHVISION_KEYS,
    find_detector,
    from_torchvision,
    is_of_torchvision,
    torchvision_config,
    torchvision_keys,
)
from resnet_backbone.weights.download import MATCHING
from resnet_backbone.weights.read import SAFETENSORS, TORCH, RawFile, check_readable, read_file, split_part
from resnet_backbone.weights.source import PACKAGE_KEY, package_facts

logger = logging.getLogger(__name__)

INPUT_KEYS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.RESNETS.STRIDE_IN_1X1")


def required_input(arch: str, input_format: InputFormat, stride_in_1x1: bool | None) -> dict[str, object]:
    """Return the config keys that weights fix, with the values they need."""
    keys: dict[str, object] = {
        "INPUT.FORMAT": input_format.channel_order,
        "MODEL.PIXEL_MEAN": [round(value, 3) for value in input_format.mean],
        "MODEL.PIXEL_STD": [round(value, 3) for value in input_format.std],
    }
    if stride_in_1x1 is not None and has_bottlenecks(arch):
        keys["MODEL.RESNETS.STRIDE_IN_1X1"] = stride_in_1x1
    return keys


def required_by_source(source: str, arch: str) -> dict[str, object]:
    """Return what :func:`required_input` does, as far as MODEL.WEIGHTS tells it without a download.

    Args:
        source: MODEL.WEIGHTS: ``imagenet://ARCH/NAME``, ``timm://NAME`` or the like, an address or ``detectron2://``
            name in the catalog, or a file that ``package_weights`` or tools/train_net.py wrote. Nothing is known of
            others.
        arch: MODEL.RESNET_BACKBONE.ARCH.

    Raises:
        WeightsError: a name that the catalog lacks, or a classifier's weights of another architecture.
    """
    entry = parse_source(source, fetch=False) if source.startswith(SCHEMES) else find_entry_by_address(source)
    if entry is not None:
        _check_arch(source, entry.arch, arch)
        return required_input(arch, entry.input_format, entry.stride_in_1x1)
    file = source.removesuffix(MATCHING)
    path, _ = split_part(file)
    if not path.is_file():
        return {}
    try:
        metadata = read_torchvision(read_file(file)).metadata if check_readable(path) in (TORCH, SAFETENSORS) else {}
    except WeightsError as error:
        logger.warning("cannot check which input %s needs: %s", path, error)
        return {}
    return required_by_metadata(metadata, source, arch)


def required_by_metadata(metadata: Mapping[str, Any], source: str, arch: str) -> dict[str, object]:
    """Return what :func:`required_by_source` does, of a file that was read: see ``RawFile.metadata``."""
    if PACKAGE_KEY in metadata:
        facts = package_facts(metadata, source)
        _check_arch(source, facts["arch"], arch)
        return required_input(arch, facts["input_format"], facts["stride_in_1x1"])
    told = metadata.get("input")
    return {key: told[key] for key in INPUT_KEYS if key in told} if isinstance(told, Mapping) else {}


def read_torchvision(raw: RawFile) -> RawFile:
    """Return a detector of torchvision's own as the torchvision engine writes its checkpoints; other files as they are.

    That is with its names, and as metadata ``input``, :func:`required_input` and the keys of torchvision's arithmetic,
    and ``class_names``, empty where nobody knows them. Who has built it with another mean, std or arithmetic than
    torchvision's builders have says so in the config.

    Raises:
        WeightsError: its trunk is none that we know, or layers are missing.
    """
    if not is_of_torchvision(raw.tensors):
        return raw
    try:
        tensors, class_names = from_torchvision(raw.tensors, find_detector(raw.sha256))
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{raw.source} is no complete detector of torchvision's: {error}") from error
    keys = torchvision_keys(torchvision_config(raw.tensors))
    needed = {**required_input("resnet50", TORCHVISION_RGB, stride_in_1x1=False), **keys}
    return replace(raw, tensors=tensors, metadata={"input": needed, "class_names": class_names})


def required_by(weights: Weights, cfg: CfgNode) -> dict[str, object]:
    """Return what :func:`required_input` does for ImageNet weights; nothing where the user has said it in the config.

    Raises:
        ValueError: neither the weights nor the config say it.
    """
    node = cfg.MODEL.RESNET_BACKBONE
    if weights.input_format is not None:
        return required_input(node.ARCH, weights.input_format, weights.stride_in_1x1)
    refuse_unknown_input(cfg, weights.source)
    return {}


def refuse_unknown_input(cfg: CfgNode, source: str) -> None:
    """Raise ValueError for weights of which nobody said which input they need, unless the user says it."""
    if cfg.MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS:
        raise ValueError(
            f"{source} does not say which input it was trained on. Package ImageNet weights with "
            f"resnet-backbone package; or write INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and "
            f"MODEL.RESNETS.STRIDE_IN_1X1 as it was trained (Detectron2's zoo: mostly Detectron2's defaults), and "
            f"MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS: False"
        )


def fit_input(cfg: CfgNode, required: Mapping[str, object], source: str) -> None:
    """Write what the weights need into ``cfg``, in place, and log it; with INPUT_FROM_WEIGHTS off only check.

    Raises:
        ValueError: the config differs and may not be changed.
    """
    if not cfg.MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS:
        check_input(cfg, required, source)
    before = {key: value_of(cfg, key) for key in required}
    for key in differing_keys(before, required):
        cfg.merge_from_list([key, required[key]])
        logger.info("from the weights: %s: %s (was %s)", key, required[key], before[key])


def check_input(cfg: CfgNode, required: Mapping[str, object], source: str) -> None:
    """Raise ValueError, with the lines to write, where ``cfg`` differs from what the weights need."""
    have = {key: value_of(cfg, key) for key in required}
    wrong = differing_keys(have, required)
    if wrong:
        lines = "\n".join(f"  {key}: {required[key]}   # the config has {have[key]}" for key in wrong)
        raise ValueError(f"the input does not match the weights {source}; write\n{lines}")


def differing_keys(found: Mapping[str, object], required: Mapping[str, object]) -> list[str]:
    """Return the keys of ``required`` whose values in ``found`` are others, with 0.001 of tolerance on numbers."""
    return [key for key in required if not _same(found[key], required[key])]


def input_of(cfg: CfgNode) -> dict[str, object]:
    """Return the keys that a detector trained with ``cfg`` needs again, in plain containers, for its checkpoints."""
    arithmetic = TORCHVISION_KEYS if cfg.MODEL.ANCHOR_GENERATOR.NAME == TORCHVISION_ANCHORS else ()
    values = {key: value_of(cfg, key) for key in (*INPUT_KEYS, *arithmetic)}
    return {key: list(value) if isinstance(value, list | tuple) else value for key, value in values.items()}


def fit_num_classes(cfg: CfgNode, section: str, num_classes: int) -> None:
    """Write MODEL.<section>.NUM_CLASSES from the data, in place; a config that says another number is told."""
    node = cfg.MODEL[section]
    if node.NUM_CLASSES == num_classes:
        return
    is_default = node.NUM_CLASSES == _KEYS[f"MODEL.{section}.NUM_CLASSES"].default
    text = "MODEL.%s.NUM_CLASSES: %d, from the data; the config says %d: write %d, or take the line out"
    values = (section, num_classes, node.NUM_CLASSES, num_classes)
    logger.log(logging.INFO if is_default else logging.WARNING, text, *values)
    node.NUM_CLASSES = num_classes


def warn_of_random_weights(cfg: CfgNode) -> None:
    """Log a warning where MODEL.WEIGHTS is empty and yet layers are frozen."""
    if cfg.MODEL.BACKBONE.FREEZE_AT > 0 or cfg.MODEL.RESNET_BACKBONE.NORM == "FrozenBN":
        logger.warning(
            "MODEL.WEIGHTS is empty, so layers stay random and never train: MODEL.BACKBONE.FREEZE_AT is %d and "
            "MODEL.RESNET_BACKBONE.NORM is %r. To train from scratch write FREEZE_AT: 0 and NORM: BN",
            cfg.MODEL.BACKBONE.FREEZE_AT,
            cfg.MODEL.RESNET_BACKBONE.NORM,
        )


def _check_arch(source: str, found: str, expected: str) -> None:
    if found != expected:
        raise WeightsError(
            f"MODEL.WEIGHTS {source} is of {found}, MODEL.RESNET_BACKBONE.ARCH is {expected}; write ARCH: {found}, "
            f"or take weights of {expected}"
        )


def _same(a: object, b: object) -> bool:
    if isinstance(a, Sequence) and isinstance(b, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(abs(x - y) < 1e-3 for x, y in zip(a, b, strict=True))
    return a == b
