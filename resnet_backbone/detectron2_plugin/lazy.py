"""The backbones in Detectron2's LazyConfig: nodes for trunks, pyramids and heads, and the input that weights need.

A stock config becomes one with another backbone by these lines in it:

    from resnet_backbone.detectron2_plugin.lazy import fpn_node, trunk_node, use_weights

    model.backbone = fpn_node(trunk_node("resnet34", ["res2", "res3", "res4", "res5"]))
    use_weights("imagenet://resnet34/IMAGENET1K_V1", model=model, train=train, dataloader=dataloader)

The ``*_node`` functions return nodes, which hold no number that depends on the architecture: an override such as
``model.backbone.bottom_up.arch=resnet50`` is followed everywhere. Detectron2's ``instantiate`` calls the ``build_*``
functions that they name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import LazyCall, LazyConfig
from detectron2.layers import ShapeSpec
from omegaconf import DictConfig, OmegaConf
from torch import nn

from resnet_backbone.config.weights_input import differing_keys, required_by_source
from resnet_backbone.detectron2_plugin.backbone import TrunkBackbone, build_fpn, build_retinanet_fpn, to_backbone
from resnet_backbone.detectron2_plugin.roi_heads import VGGBoxHead, res5_of
from resnet_backbone.models.registry import create_model
from resnet_backbone.weights.architecture import has_bottlenecks

logger = logging.getLogger(__name__)

_STRIDE = "MODEL.RESNETS.STRIDE_IN_1X1"
# Where a lazy config says what a yaml config says under one key.
_PLACES = {
    "model.pixel_mean": "MODEL.PIXEL_MEAN",
    "model.pixel_std": "MODEL.PIXEL_STD",
    "model.input_format": "INPUT.FORMAT",
    "dataloader.train.mapper.image_format": "INPUT.FORMAT",
    "dataloader.test.mapper.image_format": "INPUT.FORMAT",
}


def stock_config(name: str) -> DictConfig:
    """Load a config below Detectron2's ``configs/``, such as ``common/models/mask_rcnn_fpn.py``.

    Raises:
        FileNotFoundError: there is no such config.
    """
    package = Path(detectron2.__file__).parent
    for folder in (package / "model_zoo" / "configs", package.parent / "configs"):
        if (folder / name).is_file():
            return LazyConfig.load(str(folder / name))
    raise FileNotFoundError(f"Detectron2 at {package} has no config {name}; write a path below its configs/ folder")


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
            f"train.init_checkpoint and {', '.join(_PLACES)} yourself"
        )
    holders = {place: _holder({"model": model, "dataloader": dataloader}, place) for place in _PLACES}
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
            holder[name] = required[_PLACES[place]]
            logger.info("from the weights: %s = %s", place, holder[name])


def trunk_node(arch: str, out_features: Sequence[str], **options: Any) -> DictConfig:
    """Return the node of :func:`build_trunk_backbone`, to stand at ``model.backbone`` or its ``bottom_up``.

    When the model is built, the node compares the config's input with the weights, as the yaml builders do. It looks
    at ``train.init_checkpoint``, ``model`` and ``dataloader`` of the config that it is in.

    Args:
        arch, out_features, options: those of :func:`build_trunk_backbone`, by name and with its defaults.

    Raises:
        TypeError: an unknown option.
    """
    given = signature(build_trunk_backbone).bind(
        arch,
        list(out_features),
        weights="${oc.select:train.init_checkpoint,null}",
        input_found={place: f"${{oc.select:{place},null}}" for place in _PLACES},
        **options,
    )
    given.apply_defaults()
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in given.arguments.items()}
    return LazyCall(build_trunk_backbone)(**values)


def build_trunk_backbone(
    arch: str,
    out_features: Sequence[str],
    norm: str = "FrozenBN",
    freeze_at: int = 2,
    stride_in_1x1: bool = False,
    stem: str = "basic",
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: Sequence[int] = (1, 1, 1),
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
    in_channels: int = 3,
    strict_weights: bool = True,
    weights: str | None = None,
    input_found: Mapping[str, Any] | None = None,
) -> TrunkBackbone:
    """Build a trunk as a Detectron2 backbone, from plain values.

    Args:
        arch, ..., in_channels: see :func:`~resnet_backbone.create_model`; ``stride_in_1x1`` is True for MSRA's weights,
            ``res5_dilation`` 2 for DC5.
        strict_weights: see :class:`~resnet_backbone.detectron2_plugin.backbone.StrictModule`.
        weights: what the detector will be loaded with, to be compared with its input; None where that is not known.
        input_found: places in the config, such as ``"model.pixel_mean"``, with the values there; None as a value is
            one that cannot be seen.

    Raises:
        ValueError: options that do not fit the architecture, or an input that is not the one of ``weights``.
        WeightsError: weights of another architecture.
    """
    trunk = create_model(
        arch,
        num_classes=0,
        out_features=list(out_features),
        norm=norm,
        freeze_at=freeze_at,
        stride_in_1x1=stride_in_1x1,
        stem=stem,
        res4_dilation=res4_dilation,
        res5_dilation=res5_dilation,
        res5_multi_grid=res5_multi_grid,
        deform_on_per_stage=deform_on_per_stage,
        deform_modulated=deform_modulated,
        deform_num_groups=deform_num_groups,
        in_channels=in_channels,
    )
    if weights:
        _check_places(weights, arch, {"stride_in_1x1": stride_in_1x1, **(input_found or {})})
    elif weights is not None and (freeze_at > 0 or norm == "FrozenBN"):
        logger.warning(
            "train.init_checkpoint is empty, so layers stay random and never train: freeze_at is %d and norm is %r. To "
            "train from scratch write freeze_at=0 and norm='BN'",
            freeze_at,
            norm,
        )
    return to_backbone(trunk, strict_weights=strict_weights)


def fpn_node(bottom_up: DictConfig, *, out_channels: int = 256, norm: str = "", fuse_type: str = "sum") -> DictConfig:
    """Return the node of a pyramid ``p2`` to ``p6`` on all feature maps of a :func:`trunk_node`."""
    return _pyramid_node(build_fpn, bottom_up, out_channels, norm, fuse_type)


def retinanet_fpn_node(
    bottom_up: DictConfig, *, out_channels: int = 256, norm: str = "", fuse_type: str = "sum"
) -> DictConfig:
    """Return the node of a pyramid ``p3`` to ``p7`` on all feature maps of a :func:`trunk_node`."""
    return _pyramid_node(build_retinanet_fpn, bottom_up, out_channels, norm, fuse_type)


def _pyramid_node(
    build: Callable[..., nn.Module], bottom_up: DictConfig, out_channels: int, norm: str, fuse_type: str
) -> DictConfig:
    return LazyCall(build)(
        bottom_up=bottom_up,
        in_features="${.bottom_up.out_features}",
        out_channels=out_channels,
        norm=norm,
        fuse_type=fuse_type,
    )


def rpn_channels_node() -> DictConfig:
    """Return the node for ``model.proposal_generator.head.in_channels`` where the RPN reads the trunk itself."""
    return LazyCall(feature_channels)(arch="${....backbone.arch}", feature="${...in_features[0]}")


def feature_channels(arch: str, feature: str) -> int:
    """Return the channels of a feature map.

    Raises:
        ValueError: an unknown architecture, or one without the feature.
    """
    with torch.device("meta"):
        return create_model(arch, num_classes=0, out_features=[feature]).feature_info[feature].channels


def res5_node() -> DictConfig:
    """Return the node for ``model.roi_heads.res5`` of a C4 model: res5 of the trunk at ``model.backbone``."""
    of_trunk = [name for name in signature(build_res5).parameters if name != "out_channels"]
    return LazyCall(build_res5)(
        **{option: f"${{...backbone.{option}}}" for option in of_trunk},
        out_channels=LazyCall(feature_channels)(arch="${..arch}", feature="res5"),
    )


def build_res5(
    arch: str,
    norm: str,
    freeze_at: int,
    stride_in_1x1: bool,
    res4_dilation: int,
    res5_dilation: int,
    res5_multi_grid: Sequence[int],
    strict_weights: bool,
    out_channels: int,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
) -> nn.Module:
    """Build res5 of a ResNet as the head of a C4 model, on crops of res4.

    Args:
        arch, ..., strict_weights: those of the trunk, see :func:`build_trunk_backbone`.
        out_channels: of res5; what the box predictor and the mask head of the config read.

    Raises:
        ValueError: no ResNet, or another number of channels than it has.
    """
    trunk = create_model(
        arch,
        num_classes=0,
        out_features=["res5"],
        norm=norm,
        freeze_at=freeze_at,
        stride_in_1x1=stride_in_1x1,
        res4_dilation=res4_dilation,
        res5_dilation=res5_dilation,
        res5_multi_grid=res5_multi_grid,
        deform_on_per_stage=deform_on_per_stage,
        deform_modulated=deform_modulated,
        deform_num_groups=deform_num_groups,
    )
    if out_channels != trunk.feature_info["res5"].channels:
        raise ValueError(
            f"out_channels is {out_channels}, res5 of {arch} has {trunk.feature_info['res5'].channels}; write "
            f"roi_heads.res5 = res5_node()"
        )
    return res5_of(trunk, strict_weights=strict_weights)


def vgg_box_head_node(dropout: float = 0.0) -> DictConfig:
    """Return the node for ``model.roi_heads.box_head``: fc6 and fc7 of the VGG at ``model.backbone``, on its conv5."""
    size = "${...box_pooler.output_size}"
    return LazyCall(VGGBoxHead)(
        arch="${...backbone.arch}",
        input_shape=LazyCall(ShapeSpec)(
            channels=LazyCall(feature_channels)(arch="${...arch}", feature="${....box_in_features[0]}"),
            height=size,
            width=size,
        ),
        dropout=dropout,
        strict_weights="${...backbone.strict_weights}",
    )


def _check_places(weights: str, arch: str, found: Mapping[str, Any]) -> None:
    """Raise ValueError where the places of a config (None: cannot be seen) say another input than the weights need."""
    required_keys = _required(weights, arch)
    keys = {place: key for place, key in {**_PLACES, "stride_in_1x1": _STRIDE}.items() if found.get(place) is not None}
    required = {place: required_keys[key] for place, key in keys.items() if key in required_keys}
    for key, value in required_keys.items():
        if key not in keys.values():
            logger.warning("cannot see whether the input is that of %s, which needs %s: %s", weights, key, value)
    if wrong := differing_keys(found, required):
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
