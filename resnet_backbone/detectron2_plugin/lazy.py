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
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import LazyCall, LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import locate
from omegaconf import Container, DictConfig, OmegaConf
from torch import nn

from resnet_backbone.config.weights_input import differing_keys, required_by_source
from resnet_backbone.detectron2_plugin.backbone import (
    TrunkBackbone,
    build_fcos_fpn,
    build_fpn,
    build_retinanet_fpn,
    to_backbone,
)
from resnet_backbone.detectron2_plugin.roi_heads import VGGBoxHead, res5_of
from resnet_backbone.models.registry import create_model
from resnet_backbone.weights.architecture import has_bottlenecks

logger = logging.getLogger(__name__)

_STRIDE = "MODEL.RESNETS.STRIDE_IN_1X1"
# The arguments, of whichever class or function, by which lazy configs say what a yaml config says under one key.
_ORDERS = ("image_format", "img_format", "input_format")
_ARGUMENTS = {
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
    **dict.fromkeys(_ORDERS, "INPUT.FORMAT"),
}
_COLOUR_ORDERS = ("BGR", "RGB", "L", "YUV-BT.601")  # of Detectron2's ``read_image``; others are no order of colours


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
    ``stride_in_1x1``, and wherever the data loaders have or take it ``image_format`` (``img_format`` in detrex). A
    mapper that takes neither is warned of.

    Args:
        source: ``imagenet://ARCH/NAME``, an address or ``detectron2://`` name in the catalog, or a file that
            tools/package_weights.py wrote.
        model: with a :func:`trunk_node` in it, at ``backbone`` or its ``bottom_up`` in Detectron2's own.
        train: as in Detectron2's ``configs/common/train.py``.
        dataloader: as in Detectron2's ``configs/common/data/coco.py``.

    Raises:
        ValueError: no trunk of ours, or weights of which nothing is known.
        WeightsError: weights of another architecture.
    """
    trunk = next((node for _, node in _nodes("model", model) if _target(node) is build_trunk_backbone), None)
    if trunk is None:
        raise ValueError(
            "model.backbone is still Detectron2's own; first write model.backbone = trunk_node(...), fpn_node(...), "
            "retinanet_fpn_node(...) or fcos_fpn_node(...), or model.backbone.bottom_up = trunk_node(...)"
        )
    required = _required(source, trunk.arch)
    if "INPUT.FORMAT" not in required:
        raise ValueError(
            f"{source} does not say which input it was trained on. Package it with resnet-backbone package, or write "
            "train.init_checkpoint, model.pixel_mean and pixel_std, and the image_format of all mappers yourself"
        )
    train["init_checkpoint"] = source
    trunk.stride_in_1x1 = required.get(_STRIDE, False)
    config = {"model": model, "dataloader": dataloader}
    for place, holder, name, _ in _input_places(config):
        if not _is_elsewhere(holder, name):
            holder[name] = required[_ARGUMENTS[name]]
            logger.info("from the weights: %s = %s", place, holder[name])
    _check_input(source, trunk.arch, trunk.stride_in_1x1, config)


def trunk_node(arch: str, out_features: Sequence[str], **options: Any) -> DictConfig:
    """Return the node of :func:`build_trunk_backbone`, to stand at ``model.backbone`` or its ``bottom_up``.

    When the model is built, the node compares the config's input with the weights, as the yaml builders do. It looks
    at ``train.init_checkpoint``, ``model`` and everything in ``dataloader`` of the config that it is in.

    Args:
        arch, out_features, options: those of :func:`build_trunk_backbone`, by name and with its defaults.

    Raises:
        TypeError: an unknown option.
    """
    given = signature(build_trunk_backbone).bind(
        arch,
        list(out_features),
        weights="${oc.select:train.init_checkpoint,null}",
        input_found={
            # Not the whole model, of which this node is a part.
            "model": {key: f"${{oc.select:model.{key},null}}" for key in ("_target_", *_ARGUMENTS)},
            "dataloader": "${oc.select:dataloader,null}",
        },
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
        input_found: the parts of a lazy config in which to look for the input, such as ``dataloader``, by name; None
            as a value is one that cannot be seen.

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
        _check_input(weights, arch, stride_in_1x1, input_found or {})
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
    return LazyCall(build_fpn)(
        bottom_up=bottom_up,
        in_features="${.bottom_up.out_features}",
        out_channels=out_channels,
        norm=norm,
        fuse_type=fuse_type,
    )


def retinanet_fpn_node(bottom_up: DictConfig, **options: Any) -> DictConfig:
    """Return that of ``p3`` to ``p7``, with P6 and P7 from the trunk's last map; options as of :func:`fpn_node`."""
    node = fpn_node(bottom_up, **options)
    node["_target_"] = build_retinanet_fpn
    return node


def fcos_fpn_node(bottom_up: DictConfig, **options: Any) -> DictConfig:
    """Return that of ``p3`` to ``p7``, with P6 and P7 from ``p5``; options as of :func:`fpn_node`."""
    node = fpn_node(bottom_up, **options)
    node["_target_"] = build_fcos_fpn
    return node


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


def _check_input(weights: str, arch: str, stride_in_1x1: bool, config: Mapping[str, Any]) -> None:
    """Raise ValueError where a lazy config says another input than the weights need; warn of what cannot be seen."""
    required = _required(weights, arch)
    found = {place: (_ARGUMENTS[name], value) for place, _, name, value in _input_places(config)}
    found["stride_in_1x1"] = _STRIDE, stride_in_1x1
    have = {place: value for place, (_, value) in found.items()}
    needed = {place: required[key] for place, (key, _) in found.items() if key in required}
    if wrong := differing_keys(have, needed):
        lines = "\n".join(f"  {place} = {needed[place]!r}   # the config has {have[place]!r}" for place in wrong)
        raise ValueError(f"the input does not match the weights {weights}; call use_weights(...), or write\n{lines}")
    for key in sorted(required.keys() - {key for key, _ in found.values()}):
        logger.warning("cannot see whether the input is that of %s, which needs %s: %s", weights, key, required[key])
    for place, node in _nodes("dataloader", config.get("dataloader")):
        mapper = f"{place}.mapper"
        # Augmentations, in a list, may say an order of colours, too, but read no images.
        has_own = "mapper" in node and not _is_elsewhere(node, "mapper")
        if has_own and not any(at.startswith(f"{mapper}.") and "[" not in at[len(mapper) :] for at in found):
            text = "cannot see in which order of colours %s reads images, which %s needs to be %s: it has none of %s"
            logger.warning(text, mapper, weights, required.get("INPUT.FORMAT"), ", ".join(_ORDERS))


def _input_places(config: Mapping[str, Any]) -> Iterator[tuple[str, Any, str, Any]]:
    """Yield where a config says its input: the place, the node that it is in, which of _ARGUMENTS it is, the value.

    Of an argument that is not written this is the default of the class or function that takes it, None without one.
    """
    for place, node in (found for part in config for found in _nodes(part, config[part])):
        try:
            defaults = {name: parameter.default for name, parameter in signature(_target(node)).parameters.items()}
        except (TypeError, ValueError):  # calls nothing, or what is written in C
            defaults = {}
        for name in _ARGUMENTS:
            value = defaults.get(name) if node.get(name) is None else node[name]
            if value is Parameter.empty:
                yield f"{place}.{name}", node, name, None
            elif value in _COLOUR_ORDERS if name in _ORDERS else value is not None:
                yield f"{place}.{name}", node, name, value


def _nodes(place: str, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield all mappings in a part of a config, with their places. Interpolations are not followed."""
    children = {}
    if isinstance(node, Mapping):
        yield place, node
        children = {f"{place}.{key}": key for key in node}
    elif isinstance(node, Sequence) and not isinstance(node, str):
        children = {f"{place}[{index}]": index for index in range(len(node))}
    for where, key in children.items():
        if not _is_elsewhere(node, key):
            yield from _nodes(where, node[key])


def _is_elsewhere(node: Any, key: Any) -> bool:
    is_node = isinstance(node, Container)
    return is_node and (OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key))


def _target(node: Any) -> Any:
    """Return the class or function that a node calls; None where it calls none, or one that is not there."""
    target = node.get("_target_")
    try:
        return locate(target) if isinstance(target, str) else target
    except ImportError:
        return None


def _required(source: str, arch: str) -> dict[str, object]:
    """Return the yaml keys that ``source`` fixes, the place of the stride only where there is a choice."""
    required = required_by_source(source, arch)
    if not has_bottlenecks(arch):
        required.pop(_STRIDE, None)
    return required
