"""Every network by name, and the one function that builds it, with weights if asked for."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from resnet_backbone.models.fitnet import WIDTHS, FitNet
from resnet_backbone.models.resnet import (
    NO_MULTI_GRID,
    NOT_DEFORMABLE,
    SHORTCUTS,
    BasicBlock,
    Block,
    Bottleneck,
    CifarResNet,
    PlainBlock,
    ResNet,
    ResNetD,
)
from resnet_backbone.models.trunk import OptionError, Trunk
from resnet_backbone.models.vgg import VGG
from resnet_backbone.weights import Weights, load_weights
from resnet_backbone.weights.architecture import CIFAR_WIDTH, LAYOUTS, Layout, deformable_of
from resnet_backbone.weights.catalog import CIFAR10_CLASSES, IMAGENET_CLASSES, TIMM
from resnet_backbone.weights.match import weights_of
from resnet_backbone.weights.timm_files import import_timm

logger = logging.getLogger(__name__)

_MODELS: dict[str, Callable[..., Trunk]] = {}
_BLOCKS: dict[str, Block] = {"plain": PlainBlock, "basic": BasicBlock, "bottleneck": Bottleneck}
_IMAGENET_RESNET_OPTIONS = {
    "stride_in_1x1": False,
    "stem": "basic",
    "res4_dilation": 1,
    "res5_dilation": 1,
    "res5_multi_grid": NO_MULTI_GRID,
    **NOT_DEFORMABLE,
}
_CLASSIFIER_ALONE = "googlenet"
_TIMM_LACKS = {"stride_in_1x1": False, "stem": "basic", "res5_multi_grid": NO_MULTI_GRID, "shortcut": None}
_TIMM_LACKS |= {"preactivation": False, **NOT_DEFORMABLE}
_VGG_LACKS = {**_IMAGENET_RESNET_OPTIONS, "shortcut": None, "preactivation": False, "stochastic_depth": 0.0}


def register_model(arch: str, build: Callable[..., Trunk]) -> None:
    """Make ``create_model(arch)`` call ``build(arch, **options)``.

    Raises:
        ValueError: the name is taken.
    """
    if arch in _MODELS:
        raise ValueError(f"model {arch!r} is already registered")
    _MODELS[arch] = build


def _resnet(
    layout: Layout,
    arch: str,
    *,
    norm: str | None,
    shortcut: str | None,
    num_classes: int | None,
    **options: Any,
) -> ResNet:
    block = _BLOCKS[layout.kind]
    network, usual_shortcut, usual_classes = ResNet, "B", IMAGENET_CLASSES
    if layout.is_d:
        network, usual_shortcut = ResNetD, "D"
        _refuse(options, {"stem": "basic"}, f"{arch} has a stem of its own")
    if shortcut and (shortcut == "D") != layout.is_d:
        write = "'D', or leave it out" if layout.is_d else f"one of {', '.join(map(repr, SHORTCUTS))}"
        raise OptionError(f"shortcut={shortcut!r} is not of {arch}: write {write}", "shortcut")
    if layout.width == CIFAR_WIDTH:
        network, usual_shortcut, usual_classes = CifarResNet, "A", len(CIFAR10_CLASSES)
        _refuse(options, _IMAGENET_RESNET_OPTIONS, f"{arch} has another stem, no 1x1 convolutions and no res5")
    if block is PlainBlock and shortcut:
        raise OptionError(f"{arch} has no shortcuts: leave out shortcut={shortcut!r}", "shortcut")
    return network(
        arch,
        block,
        layout.depths,
        groups=layout.groups,
        width_per_group=layout.width_per_group,
        norm="BN" if norm is None else norm,
        shortcut=shortcut or usual_shortcut,
        num_classes=usual_classes if num_classes is None else num_classes,
        **options,
    )


def _vgg(layout: Layout, arch: str, *, norm: str | None, num_classes: int | None, **options: Any) -> VGG:
    _refuse(options, _VGG_LACKS, f"{arch} has no stem, no shortcuts, no 1x1 convolutions and no res5")
    has_norm = layout.kind == "vgg_bn"
    if norm is None:
        norm = "BN" if has_norm else ""
    if bool(norm) != has_norm:
        other = arch.removesuffix("_bn") if has_norm else f"{arch}_bn"
        raise OptionError(
            f"norm {norm!r} does not fit {arch}, which has {'' if has_norm else 'no '}norms: take {other!r}", "norm"
        )
    num_classes = IMAGENET_CLASSES if num_classes is None else num_classes
    return VGG(arch, layout.depths, norm=norm, num_classes=num_classes, **options)


def _fitnet(arch: str, *, norm: str | None, num_classes: int | None, **options: Any) -> FitNet:
    _refuse(options, _VGG_LACKS, f"{arch} has no stem, no shortcuts, no stride in convolutions and no res5")
    if norm:
        raise OptionError(f"{arch} has no norms: leave out norm={norm!r}", "norm")
    num_classes = len(CIFAR10_CLASSES) if num_classes is None else num_classes
    return FitNet(arch, num_classes=num_classes, **options)


def _googlenet(arch: str, *, num_classes: int | None, **options: Any) -> Trunk:
    from resnet_backbone.models.googlenet import GoogLeNet  # torchvision's models take a second to import

    lacks = {**_VGG_LACKS, "norm": None, "out_features": None, "freeze_at": 0, "in_channels": 3}
    _refuse(options, lacks, f"{arch} is torchvision's, without options")
    if num_classes == 0:
        raise OptionError(f"{arch} is a classifier alone, no trunk: leave out num_classes=0", "num_classes")
    return GoogLeNet(arch, num_classes or IMAGENET_CLASSES)


def _timm(arch: str, **options: Any) -> Trunk:
    from resnet_backbone.models.timm_trunk import TimmTrunk

    _refuse(options, _TIMM_LACKS, f"{arch} is as timm has it")
    return TimmTrunk(arch, **options)


def _refuse(options: dict[str, Any], lacks: Mapping[str, object], why: str) -> None:
    """Take the options that an architecture lacks out of ``options``; raise ValueError where one of them is set."""
    foreign = [name for name, default in lacks.items() if options.pop(name) != default]
    if foreign:
        raise OptionError(f"{why}: leave out {' and '.join(foreign)}", *foreign)


for _arch, _layout in LAYOUTS.items():
    register_model(_arch, partial(_vgg if _layout.is_vgg else _resnet, _layout))
for _arch in WIDTHS:
    register_model(_arch, _fitnet)
register_model(_CLASSIFIER_ALONE, _googlenet)


def list_models(pattern: str = "") -> list[str]:
    """Return the names of the networks that can be trained, or be trunks, in the order they were registered.

    With a ``pattern`` they are those of timm that it fits, as in ``"timm/*"`` and ``"timm/convnext*"``.
    """
    if pattern.startswith(TIMM):
        return [f"{TIMM}{name}" for name in import_timm().list_models(pattern.removeprefix(TIMM))]
    return [arch for arch in _MODELS if arch != _CLASSIFIER_ALONE]


def create_model(
    arch: str,
    *,
    weights: str | Path | Mapping[str, Tensor] | Weights | None = None,
    num_classes: int | None = None,
    out_features: Sequence[str] | None = None,
    norm: str | None = None,
    freeze_at: int = 0,
    stride_in_1x1: bool | None = None,
    shortcut: str | None = None,
    preactivation: bool | None = None,
    stochastic_depth: float = 0.0,
    stem: str | None = None,
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: Sequence[int] = NO_MULTI_GRID,
    deform_on_per_stage: Sequence[bool] | None = None,
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
    in_channels: int = 3,
    new_head: bool = False,
) -> Trunk:
    """Build a network.

    Args:
        arch: one of :func:`list_models`; ``timm/NAME``, see :class:`~resnet_backbone.models.timm_trunk.TimmTrunk`; or
            ``googlenet``, a classifier to evaluate.
        weights: a catalog name such as ``"IMAGENET1K_V1"``, ``"imagenet://resnet101/MSRA"``, a file, a state dict, or
            None for the initialisation of He et al.
        num_classes: size of the classifier; None takes it from the weights, 0 included, and is the 1000 of ImageNet, or
            the 10 of CIFAR-10 for ``cifar_*``, without any; 0 builds a trunk without one, whose ``model(images)``
            returns features.
        out_features: names of the feature maps to return, see ``feature_info``; None is all of them.
        norm: ``BN``, ``FrozenBN``, ``SyncBN``, ``GN`` or ``""``; None is that of the weights, and what the architecture
            was published with without any.
        freeze_at: how many stages to freeze, counted as in Detectron2 (1 = stem, 2 = stem and res2; VGG: conv1, conv2).
        stride_in_1x1: where bottlenecks carry the stride; None takes it from the weights where they say it, else it is
            False, which is logged as a warning.
        shortcut: ``A``, ``B`` or ``C`` of the paper (zeros, projections where dimensions change, projections); None
            takes it from the weights where they say it, and is the paper's ``B``, for ``cifar_*`` ``A``, without any.
            ResNet-D has its own, ``D``.
        preactivation: norm and ReLU before the convolutions (arXiv 1603.05027); None takes it from the weights.
        stochastic_depth: probability with which training drops the residual of the last block (arXiv 1603.09382),
            from 0 to below 1; the blocks before it are dropped less, linearly.
        stem: ``basic``, or ``deeplab`` for the three 3x3 convolutions of DeepLab's ResNets, which need weights of their
            own; None takes it from the weights, and is ``basic`` without any.
        res4_dilation: 2 leaves res4 at stride 8, and needs ``res5_dilation=4``.
        res5_dilation: 2 or 4 leaves res5 at the stride of res4 (2: DC5, DeepLab at stride 16).
        res5_multi_grid: factor on the dilation of each block of res5, DeepLab's (1, 2, 4); (1, 1, 1) is none. ResNet-18
            and plain-18, which have two blocks in res5, take two.
        deform_on_per_stage: which of res2, res3, res4 and res5 have deformable 3x3 convolutions, in bottlenecks; None
            takes all three options from the weights, and is no stage without any. Weights without offsets leave these
            at zero.
        deform_modulated: the samples have weights, too, see :class:`~resnet_backbone.models.layers.DeformableConv`.
        deform_num_groups: groups of channels with offsets of their own.
        in_channels: channels of the images, 3 or another number without published weights.
        new_head: a classifier of another size than that of the weights is new, see
            :func:`~resnet_backbone.weights.load_weights`.

    Raises:
        ValueError: an unknown name, options that do not fit the architecture, or weights that do not fit the model.
    """
    if arch not in _MODELS and not arch.startswith(TIMM):
        near = difflib.get_close_matches(arch, _MODELS)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown model {arch!r}; {hint}Known: {', '.join(_MODELS)}, and timm/NAME for timm's")
    if (num_classes is not None and num_classes < 0) or in_channels < 1:
        raise ValueError(f"num_classes={num_classes} must be 0 or more, in_channels={in_channels} 1 or more")
    known, own_norm = weights_of(weights, arch) if weights is not None else None, norm
    deform: dict[str, Any] = {"deform_modulated": deform_modulated, "deform_num_groups": deform_num_groups}
    if deform_on_per_stage is not None:
        deform["deform_on_per_stage"] = tuple(deform_on_per_stage)
    if known is not None and known.arch in (None, arch):  # for others load_weights has the message
        num_classes = known.num_classes if num_classes is None else num_classes
    if known is not None and known.arch in (None, arch) and not arch.startswith(TIMM):
        norm = known.norm if norm is None and known.norm != "BN" else norm
        stride_in_1x1 = known.stride_in_1x1 if stride_in_1x1 is None else stride_in_1x1
        shortcut = known.shortcut or None if shortcut is None else shortcut
        preactivation = known.preactivation if preactivation is None else preactivation
        stem = known.stem if stem is None else stem
        deform = deformable_of(known.state_dict) if deform_on_per_stage is None else deform
    model = _MODELS.get(arch, _timm)(
        arch,
        num_classes=num_classes,
        out_features=out_features,
        norm=norm,
        freeze_at=freeze_at,
        stride_in_1x1=bool(stride_in_1x1),
        shortcut=shortcut,
        preactivation=bool(preactivation),
        stochastic_depth=stochastic_depth,
        stem=stem or "basic",
        res4_dilation=res4_dilation,
        res5_dilation=res5_dilation,
        res5_multi_grid=tuple(res5_multi_grid),
        **{**NOT_DEFORMABLE, **deform},
        in_channels=in_channels,
    )
    if known is not None:
        assumed = (stride_in_1x1 is None and not arch.startswith(TIMM)) or (norm == "GN" and own_norm is None)
        level = logging.WARNING if assumed else logging.INFO
        logger.log(level, "%s", load_weights(model, known, new_head=new_head).summary())
    return model
