"""The input that weights need, and the places of a lazy config that say what it gets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from resnet_backbone.config.weights_input import differing_keys, required_by_source
from resnet_backbone.weights.architecture import has_bottlenecks

logger = logging.getLogger(__name__)

_STRIDE = "MODEL.RESNETS.STRIDE_IN_1X1"
# Where a lazy config says what a yaml config says under one key.
PLACES = {
    "model.pixel_mean": "MODEL.PIXEL_MEAN",
    "model.pixel_std": "MODEL.PIXEL_STD",
    "model.input_format": "INPUT.FORMAT",
    "dataloader.train.mapper.image_format": "INPUT.FORMAT",
    "dataloader.test.mapper.image_format": "INPUT.FORMAT",
}
_PLACES_AND_STRIDE = {**PLACES, "stride_in_1x1": _STRIDE}


def use_weights(
    source: str, *, model: DictConfig, train: MutableMapping[str, Any], dataloader: MutableMapping[str, Any]
) -> None:
    """Start a lazy config from ``source``, in place, with the input and the stride placement that these weights need.

    Sets ``train.init_checkpoint``, the model's ``pixel_mean``, ``pixel_std``, ``input_format`` and the trunk's
    ``stride_in_1x1``, and ``image_format`` of the data loaders' mappers.

    Args:
        source: ``imagenet://ARCH/NAME``, an address or ``detectron2://`` name in the catalog, or a file that
            tools/package_weights.py wrote.
        model: with a :func:`trunk_node` at ``backbone``, or at its ``bottom_up``.
        train: as in Detectron2's ``configs/common/train.py``.
        dataloader: as in Detectron2's ``configs/common/data/coco.py``.

    Raises:
        ValueError: no trunk of ours, weights of which nothing is known, or a mapper that does not say its format.
        WeightsError: weights of another architecture.
    """
    trunk = model.backbone.get("bottom_up", model.backbone)
    if "arch" not in trunk:
        raise ValueError(
            "model.backbone is still Detectron2's own; first write model.backbone = trunk_node(...), fpn_node(...) or "
            "retinanet_fpn_node(...), or model.backbone.bottom_up = trunk_node(...)"
        )
    required = _required(source, trunk.arch)
    if "INPUT.FORMAT" not in required:
        raise ValueError(
            f"{source} does not say which input it was trained on. Package it with tools/package_weights.py, or write "
            f"train.init_checkpoint and {', '.join(PLACES)} yourself"
        )
    holders = {place: _holder({"model": model, "dataloader": dataloader}, place) for place in PLACES}
    if holders["dataloader.train.mapper.image_format"] is None:
        raise ValueError(
            f"dataloader.train.mapper has no image_format, which {source} needs to be "
            f"{required['INPUT.FORMAT']!r}; write it where the images are read"
        )
    train["init_checkpoint"] = source
    trunk.stride_in_1x1 = required.get(_STRIDE, False)
    for place, holder in holders.items():
        name = place.rpartition(".")[-1]
        if holder is not None and not OmegaConf.is_interpolation(holder, name):
            holder[name] = required[PLACES[place]]
            logger.info("from the weights: %s = %s", place, holder[name])


def check_places(weights: str, arch: str, stride_in_1x1: bool, found: Mapping[str, Any]) -> None:
    """Raise ValueError where the places of a config say another input than the weights need."""
    by_key = _required(weights, arch)
    found = {"stride_in_1x1": stride_in_1x1, **{place: value for place, value in found.items() if value is not None}}
    required = {place: by_key[key] for place, key in _PLACES_AND_STRIDE.items() if place in found and key in by_key}
    for key in by_key:
        if key not in map(_PLACES_AND_STRIDE.get, required):
            logger.warning("cannot see whether the input is that of %s, which needs %s: %s", weights, key, by_key[key])
    wrong = differing_keys(found, required)
    if wrong:
        lines = "\n".join(f"  {place} = {required[place]!r}   # the config has {found[place]!r}" for place in wrong)
        raise ValueError(f"the input does not match the weights {weights}; call use_weights(...), or write\n{lines}")


def _required(source: str, arch: str) -> dict[str, object]:
    """Return the yaml keys that ``source`` fixes, the place of the stride only where there is a choice."""
    required = required_by_source(source, arch)
    if not has_bottlenecks(arch):
        required.pop(_STRIDE, None)
    return required


def _holder(config: Mapping[str, Any], place: str) -> Any:
    """Return the node that holds the last part of a dotted place; None where there is none."""
    *parents, name = place.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent, {})
    return node if name in node else None
