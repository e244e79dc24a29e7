"""Detectron2's builders of backbones, the trunk alone and with a feature pyramid; and how weights come into them.

``imagenet://`` is a path there. Detectron2's own checkpointer logs what is missing and continues; modules of
:class:`StrictModule` refuse checkpoints that fill a part of them, so that it holds in any project.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.utils.file_io import PathManager
from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry
from iopath.common.file_io import PathHandler
from torch import Tensor, nn

from resnet_backbone.config import build_trunk, check_input, required_by_source, warn_of_random_weights
from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.config.combinations import pyramid_strides
from resnet_backbone.detectron2_plugin.config import check_host_config, check_levels, check_single_scale
from resnet_backbone.models.acceleration import Accelerated, accelerate
from resnet_backbone.models.trunk import Trunk
from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.architecture import OFFSETS, lacks_offsets, stage_of
from resnet_backbone.weights.catalog import SCHEMES, parse_source
from resnet_backbone.weights.errors import shorten
from resnet_backbone.weights.match import COUNTER, NEW_OFFSETS, match_names
from resnet_backbone.weights.package import download_packaged

logger = logging.getLogger(__name__)

Builder = TypeVar("Builder", bound=Any)
Built = TypeVar("Built", "TrunkBackbone", "PyramidBackbone")
# Caffe2's files, MSRA's R-50.pkl for one, have a bias in front of the first norm, which no Detectron uses.
_HARMLESS = ("stem.conv1.bias",)
_FOREIGN = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "features.")


def register(registry: Registry, thing: Builder) -> Builder:
    """Enter ``thing`` under its name, unless this file, imported under another module name, did so before.

    Raises:
        ValueError: the name belongs to something else.
    """
    name = thing.__name__
    if name not in registry:
        registry.register(thing)
        return thing
    other = registry.get(name)
    if _file_of(other) != _file_of(thing):
        raise ValueError(
            f"{name} stands in Detectron2's registry already, from {_file_of(other)}; import either that or "
            f"{_file_of(thing)}"
        )
    return thing


def _file_of(thing: Any) -> Path:
    return Path(inspect.getfile(thing)).resolve()


class StrictModule(nn.Module):
    """A module of which ``load_state_dict`` must fill every tensor, also with ``strict=False``.

    Counters of batch norm are neither asked for nor reported as unused.

    Attributes:
        arch: for messages.
        strict_weights: False lets everything pass, as Detectron2 does.
        strict_stages: the stages of the ImageNet classifier that this module consists of; it may have other children.
        strict_prefix: what the classifier has before the names of this module, as in ``"res5."``.
        spare: names of the classifier that this module does without, though they are of its stages.
    """

    arch: str
    strict_weights: bool
    strict_stages: Sequence[str]
    strict_prefix: str = ""
    spare: Collection[str] = ()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check before anything of this module is filled; ``load_state_dict`` calls it.

        Raises:
            WeightsError: tensors are missing, of another shape (the checkpointer has taken those out), or left over.
        """
        own = self.state_dict()
        for name in list(state_dict):
            if name.startswith(prefix) and name.endswith(COUNTER) and name.removeprefix(prefix) not in own:
                del state_dict[name]
        # The outermost module has put here what Detectron2's matching found no place for: names without a prefix.
        unexpected_keys[:] = [name for name in unexpected_keys if not name.endswith(COUNTER)]
        if self.strict_weights:
            inside = [self.strict_prefix + name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
            wanted = [self.strict_prefix + name for name in own if not name.endswith(COUNTER)]
            self._refuse_partial(wanted, inside, unexpected_keys, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _refuse_partial(self, wanted: list[str], inside: list[str], outside: list[str], prefix: str) -> None:
        wanted = [name for name in wanted if self.is_own(name)]
        inside = [name for name in inside if self.is_own(name)]
        if lacks_offsets(wanted, inside):
            logger.info("%s: %s", self.arch, NEW_OFFSETS)
            wanted = [name for name in wanted if not name.endswith(OFFSETS)]
        match = match_names(wanted, inside)
        unmatched = {name for name in outside if self.is_own(name) and name not in (*wanted, *_HARMLESS)}
        missing, leftover = match.missing, sorted(unmatched.union(match.left_over))
        where = prefix.rstrip(".") or "the model"
        if not missing and not leftover:
            text = (
                "%s: the checkpoint fills all %d tensors of %s; what is called not found or not used is of other parts"
            )
            logger.info(text, self.arch, len(wanted), where)
            return
        lines = [f"the checkpoint does not fit {self.arch} at {where}; nothing of it was loaded there."]
        for what, names in (
            ("tensors are missing, or of another shape", missing),
            ("tensors of the file fit nothing", leftover),
        ):
            if names:
                lines.append(f"  {len(names)} of {len(wanted)} {what}: {shorten(names)}")
        lines.append(f"  {_advice(wanted, missing, leftover, outside)}")
        if len(missing) < len(wanted):
            lines.append("  MODEL.RESNET_BACKBONE.STRICT_WEIGHTS: False loads what fits.")
        raise WeightsError("\n".join(lines))

    def is_own(self, name: str) -> bool:
        """Whether a tensor of the classifier belongs into this module."""
        return stage_of(name) in self.strict_stages and name not in self.spare


def _advice(wanted: list[str], missing: list[str], leftover: list[str], outside: list[str]) -> str:
    if missing and any(name.startswith(_FOREIGN) for name in outside):
        return (
            "It has the names of torchvision or timm. Write MODEL.WEIGHTS: imagenet://ARCH/NAME, or package the file "
            "with resnet-backbone package."
        )
    if missing and all(name.startswith(("fc6.", "fc7.")) for name in missing):
        return "The file has no classifier; take weights that have fc6 and fc7, such as IMAGENET1K_V1."
    if len(missing) == len(wanted):
        return (
            "Nothing in it has the names of this model. ImageNet weights load as MODEL.WEIGHTS: imagenet://ARCH/NAME, "
            "or packaged by resnet-backbone package; detectors load into the config that they were trained with."
        )
    if leftover and not missing and all(".norm." in name for name in leftover):
        return "The file has batch norm: write MODEL.RESNET_BACKBONE.NORM: FrozenBN, BN or SyncBN."
    if missing and all(name.endswith(".shortcut.padding") for name in missing):
        return (
            "The file has shortcut option A, and nobody said where its zeros are: package it with "
            "resnet-backbone package --option-a-zeros."
        )
    if missing and all(".norm." in name for name in missing):
        return (
            "The norms are not the same: MODEL.RESNET_BACKBONE.NORM: GN is for files with group norm, FrozenBN and BN "
            "for those with running statistics (files of the first Detectron have none, take Detectron2's)."
        )
    return "Is it of another depth? MODEL.RESNET_BACKBONE.ARCH must be the network of the file."


class ImageNetHandler(PathHandler):
    """Resolves a name of the catalog to a packaged file in the cache, fetched once a machine.

    The file is in Detectron2's names and asks for its name matching, so the stock checkpointer fills any model with it.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return list(SCHEMES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Raises: WeightsError for an unknown name, DownloadError where the file cannot be had."""
        return str(download_packaged(parse_source(path)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if set(mode) - set("rb"):
            raise ValueError(f"{path} is read only, it cannot be opened with mode {mode!r}")
        return Path(self._get_local_path(path)).open(mode, buffering=buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            parse_source(path)
        except WeightsError:
            return False
        return True

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False


class TrunkBackbone(StrictModule, Accelerated, Backbone):
    """A trunk as Detectron2 wants a backbone: around the trunk's own modules, under the same parameter names.

    Args:
        trunk: of ``create_model(..., num_classes=0)``, or a network of your own that ``register_model`` knows.
        strict_weights: see :class:`StrictModule`.

    Attributes:
        trunk: computes the feature maps. What the backbone itself lacks is read from it: ``arch``, ``feature_info``,
            ``stride_in_1x1``, ...

    Raises:
        ValueError: the trunk has a classifier, which a detector would never use.
    """

    trunk: Trunk

    def __init__(self, trunk: Trunk, *, strict_weights: bool = True) -> None:
        super().__init__()
        if trunk.num_classes:
            raise ValueError(
                f"{trunk.arch} has a classifier of {trunk.num_classes} classes: build it with num_classes=0"
            )
        object.__setattr__(self, "trunk", trunk)  # no child: its tensors would have second names
        self._modules, self._parameters, self._buffers = trunk._modules, trunk._parameters, trunk._buffers
        self.training, self.acceleration = trunk.training, trunk.acceleration
        self.strict_weights = strict_weights
        self.spare = trunk.spare
        self.strict_stages = tuple(dict.fromkeys(stage_of(name) for name in self.state_dict()))
        # Projects written for Detectron2's ResNet read these.
        self._out_features = list(trunk.feature_info)
        self._out_feature_channels = {name: info.channels for name, info in trunk.feature_info.items()}
        self._out_feature_strides = {name: info.stride for name, info in trunk.feature_info.items()}

    def __getattr__(self, name: str) -> Any:
        if name == "trunk":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.trunk, name)

    @property
    def checkpoint_stages(self) -> tuple[str, ...]:
        """See :class:`~resnet_backbone.models.acceleration.Acceleration`."""
        return self.trunk.checkpoint_stages

    @checkpoint_stages.setter
    def checkpoint_stages(self, names: tuple[str, ...]) -> None:
        self.trunk.checkpoint_stages = names

    def train(self, mode: bool = True) -> TrunkBackbone:
        """Set the mode of the trunk, too, which looks at its own."""
        self.trunk.train(mode)
        return super().train(mode)

    @property
    def size_divisibility(self) -> int:
        """PAD_TO, or ``Trunk.padding_alone``."""
        return self.padded_to(self.trunk.padding_alone)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What Detectron2 after v0.6 reads instead of ``size_divisibility``."""
        return {"size_divisibility": self.size_divisibility}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each feature map, in network order."""
        infos = self.trunk.feature_info
        return {name: ShapeSpec(channels=info.channels, stride=info.stride) for name, info in infos.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised images (N, C, H, W) to ``{name: (N, channels, H / stride, W / stride)}``."""
        return self.accelerated(self.trunk.forward_features, x)


def to_backbone(trunk: Trunk, *, strict_weights: bool = True) -> TrunkBackbone:
    """Return a trunk as a Detectron2 backbone, which shares its modules; see :class:`TrunkBackbone`."""
    return TrunkBackbone(trunk, strict_weights=strict_weights)


class PyramidBackbone(Accelerated, FPN):
    """Detectron2's pyramid, run as its acceleration says."""

    output_shape: Callable[[], dict[str, ShapeSpec]]

    @property
    def size_divisibility(self) -> int:
        """The largest stride of the trunk, or what it needs, or PAD_TO."""
        trunk: Any = self.bottom_up
        return self.padded_to(max(super().size_divisibility, trunk.size_divisibility))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map normalised images (N, C, H, W) to the levels."""
        return self.accelerated(super().forward, x)


def build_imagenet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> TrunkBackbone:
    """Build the trunk alone: C4, C5 or DC5, as MODEL.RESNET_BACKBONE.OUT_FEATURES and RES5_DILATION say.

    Args:
        cfg: of Detectron2, with the keys of ``add_resnet_backbone_config``.
        input_shape: its channels are those of MODEL.PIXEL_MEAN, which is what is read.

    Raises:
        ValueError: options that contradict each other, or an input that is not the one of MODEL.WEIGHTS.
    """
    backbone = _build_trunk(cfg)
    check_single_scale(cfg, list(backbone.output_shape()))
    return _accelerated(backbone, cfg)


def build_imagenet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> PyramidBackbone:
    """Build a feature pyramid ``p2`` to ``p5`` on MODEL.FPN.IN_FEATURES, and ``p6``, its last level sub-sampled.

    On other strides the levels have the names that fit: ``p<n>`` has stride ``2 ** n``. Args and Raises are those of
    :func:`build_imagenet_backbone`.
    """
    return _pyramid(build_fpn, cfg)


def build_imagenet_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> PyramidBackbone:
    """Build a feature pyramid ``p3`` to ``p5`` on MODEL.FPN.IN_FEATURES, with P6 and P7 convolved from the last.

    Args and Raises are those of :func:`build_imagenet_backbone`.
    """
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME in ("FCOS", "CenterNet"):
        text = "P6 and P7 come from the trunk here; those of %s come from p5: write build_imagenet_fcos_fpn_backbone"
        logger.warning(text, cfg.MODEL.PROPOSAL_GENERATOR.NAME)
    return _pyramid(build_retinanet_fpn, cfg)


def build_imagenet_fcos_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> PyramidBackbone:
    """Build a feature pyramid ``p3`` to ``p5`` on MODEL.FPN.IN_FEATURES, with P6 and P7 convolved from ``p5``.

    It is that of FCOS (Tian et al. 2019, arXiv 1904.01355, section 3.2), CenterNet2, Detic and CenterMask2. Args and
    Raises are those of :func:`build_imagenet_backbone`.
    """
    return _pyramid(build_fcos_fpn, cfg)


def build_fpn(
    bottom_up: TrunkBackbone, in_features: Sequence[str], out_channels: int, norm: str = "", fuse_type: str = "sum"
) -> PyramidBackbone:
    """Build the pyramid of :func:`build_imagenet_fpn_backbone` on a trunk.

    Its ``in_features`` have strides that double from one to the next, the last one included. ``norm`` is as Detectron2
    names norms, ``""`` for none; ``fuse_type`` is ``sum`` or ``avg`` of a level and the coarser one.

    Raises:
        ValueError: features that do not make a pyramid.
    """
    top_block = LastLevelMaxPool()
    top_block.in_feature = _last_level(bottom_up, in_features)
    return PyramidBackbone(bottom_up, in_features, out_channels, norm=norm, top_block=top_block, fuse_type=fuse_type)


def build_retinanet_fpn(
    bottom_up: TrunkBackbone, in_features: Sequence[str], out_channels: int, norm: str = "", fuse_type: str = "sum"
) -> PyramidBackbone:
    """Build the pyramid of :func:`build_imagenet_retinanet_fpn_backbone` on a trunk; see :func:`build_fpn`."""
    pyramid_strides(bottom_up.feature_info, in_features)
    last = in_features[-1]
    top_block = LastLevelP6P7(bottom_up.feature_info[last].channels, out_channels, in_feature=last)
    return PyramidBackbone(bottom_up, in_features, out_channels, norm=norm, top_block=top_block, fuse_type=fuse_type)


def build_fcos_fpn(
    bottom_up: TrunkBackbone, in_features: Sequence[str], out_channels: int, norm: str = "", fuse_type: str = "sum"
) -> PyramidBackbone:
    """Build the pyramid of :func:`build_imagenet_fcos_fpn_backbone` on a trunk; see :func:`build_fpn`."""
    level = _last_level(bottom_up, in_features)
    top_block = LastLevelP6P7(out_channels, out_channels, in_feature=level)
    return PyramidBackbone(bottom_up, in_features, out_channels, norm=norm, top_block=top_block, fuse_type=fuse_type)


def _last_level(bottom_up: TrunkBackbone, in_features: Sequence[str]) -> str:
    return f"p{pyramid_strides(bottom_up.feature_info, in_features)[-1].bit_length() - 1}"


def _build_trunk(cfg: CfgNode) -> TrunkBackbone:
    if "RESNET_BACKBONE" not in cfg.MODEL:
        raise ValueError(
            "MODEL.RESNET_BACKBONE is not there: call add_resnet_backbone_config(cfg) right after get_cfg()"
        )
    node, source = cfg.MODEL.RESNET_BACKBONE, cfg.MODEL.WEIGHTS
    check_host_config(cfg)
    # Published weights have three channels: with another number, and strictness off, the rest is trained from scratch.
    if source and (node.STRICT_WEIGHTS or len(cfg.MODEL.PIXEL_MEAN) == 3):
        check_input(cfg, required_by_source(source, node.ARCH), source)
    elif not source:
        warn_of_random_weights(cfg)
    return to_backbone(build_trunk(cfg, out_features=node.OUT_FEATURES), strict_weights=node.STRICT_WEIGHTS)


def _pyramid(build: Callable[..., PyramidBackbone], cfg: CfgNode) -> PyramidBackbone:
    fpn = cfg.MODEL.FPN
    pyramid = build(_build_trunk(cfg), fpn.IN_FEATURES, fpn.OUT_CHANNELS, norm=fpn.NORM, fuse_type=fpn.FUSE_TYPE)
    check_levels(cfg, pyramid.output_shape())
    return _accelerated(pyramid, cfg)


def _accelerated(backbone: Built, cfg: CfgNode) -> Built:
    accelerate(backbone, acceleration_of(cfg), needed=backbone.size_divisibility)
    return backbone


for _builder in (
    build_imagenet_backbone,
    build_imagenet_fpn_backbone,
    build_imagenet_retinanet_fpn_backbone,
    build_imagenet_fcos_fpn_backbone,
):
    register(BACKBONE_REGISTRY, _builder)
PathManager.register_handler(ImageNetHandler(), allow_override=True)
