"""The base class of every network: a classifier, or a trunk whose feature maps a detector reads.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174); torch.utils.checkpoint.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from resnet_backbone.models.acceleration import Accelerated
from resnet_backbone.models.layers import fold_norms
from resnet_backbone.weights.architecture import LAST_LINEAR, stage_of


@contextmanager
def _statistics_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms normalise by the batch, as in training, and leave their running statistics as they are."""
    layers = [layer for module in modules for layer in module.modules()]
    norms: list[Any] = [layer for layer in layers if isinstance(layer, nn.BatchNorm2d | nn.SyncBatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class FeatureInfo(NamedTuple):
    """Shape facts of one feature map; adapters read these and never guess."""

    channels: int
    stride: int  # input pixels per feature-map cell


class Trunk(Accelerated):
    """Base of the networks. :meth:`forward` classifies, :meth:`forward_features` returns named feature maps.

    Attributes:
        arch: name in the registry, such as ``"resnet50"``.
        num_classes: size of the classifier; 0 means that there is none.
        in_channels: channels of the input images.
        stride_in_1x1: True where bottlenecks carry their stride on the first 1x1 convolution.
        shortcut: ``"A"``, ``"B"`` or ``"C"``, the paper's options; ``""`` in networks without shortcuts.
        preactivation: True where norm and ReLU stand before the convolutions.
        feature_info: name to (channels, stride) of what :meth:`forward_features` returns, in its order.
        stage_names: those that were built, in order.
        checkpoint_stages: those of which training keeps the input alone, see
            :class:`~resnet_backbone.models.acceleration.Acceleration`.
        rounds_down: whether sizes that are no multiple of a stride are rounded down, and lose a part of the image.
        spare: names of tensors in published files that this network does without.
        last_linear: names of the tensors of the layer that knows the classes.
    """

    arch: str
    num_classes: int
    in_channels: int
    stride_in_1x1: bool = False
    shortcut: str = ""
    preactivation: bool = False
    feature_info: dict[str, FeatureInfo]
    stage_names: tuple[str, ...]
    checkpoint_stages: tuple[str, ...] = ()
    rounds_down: bool = False
    spare: frozenset[str] = frozenset()
    last_linear: tuple[str, ...] = LAST_LINEAR

    @property
    def size_divisibility(self) -> int:
        """Pixels that height and width should be multiples of, so that no feature map loses a part of the image."""
        return max(info.stride for info in self.feature_info.values())

    @property
    def padding_alone(self) -> int:
        """Pixels that images are padded to multiples of where no pyramid reads the maps; 0 for none.

        Where odd sizes are rounded up, as by Detectron2's own ResNets, nothing is lost; where they are rounded down it
        is :attr:`size_divisibility`.
        """
        return self.size_divisibility if self.rounds_down else 0

    @abstractmethod
    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """Map images (N, in_channels, H, W) to ``{name: (N, channels, H / stride, W / stride)}``.

        The images are normalised with the mean and std of the loaded weights, in their channel order.

        Raises:
            ValueError: ``x`` is not of shape (N, in_channels, H, W).
        """

    @abstractmethod
    def forward_head(self, x: Tensor) -> Tensor:
        """Map the last feature map to logits, shape (N, num_classes)."""

    @abstractmethod
    def forward_dense_head(self, x: Tensor, window: int) -> Tensor:
        """Map the last feature map to a map of logits, shape (N, num_classes, H - window + 1, W - window + 1).

        Each position sees ``window`` x ``window`` cells as the head does, so that on a map of just that size the only
        position has the logits of :meth:`forward_head`. Source: Simonyan & Zisserman 2014 (arXiv 1409.1556), section
        3.2, "applied densely".
        """

    @property
    def tells_stages_apart(self) -> bool:
        """Whether it is known which of its tensors is of which stage."""
        return True

    def stage_of(self, name: str) -> str:
        """Return the stage that one of this network's tensors is of; ``""`` where its stages are not told apart."""
        return stage_of(name)

    def fold_norms(self) -> int:
        """Fold every batch norm into its convolution, in place: see ``fold_norms`` of :mod:`.layers`."""
        return fold_norms(self)

    def run_stage(
        self, name: str, forward: Callable[[Tensor], Tensor], x: Tensor, modules: Sequence[nn.Module]
    ) -> Tensor:
        """Return ``forward(x)``, which runs the ``modules`` of stage ``name``; see :attr:`checkpoint_stages`."""
        if name not in self.checkpoint_stages or not self.training or not torch.is_grad_enabled():
            return forward(x)
        return checkpoint(
            forward, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(modules))
        )

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """Return logits, shape (N, num_classes); without a head, what :meth:`forward_features` returns."""
        features = self.accelerated(self.forward_features, x)
        if self.num_classes == 0:
            return features
        return self.forward_head(features[next(reversed(self.feature_info))])


class OptionError(ValueError):
    """Options of ``create_model`` that do not fit the architecture, or each other.

    Args:
        message: what was found, what was expected.
        options: the names of those that it speaks of.
    """

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.options = options


def select_features(
    all_features: dict[str, FeatureInfo], out_features: Sequence[str] | None, num_classes: int
) -> dict[str, FeatureInfo]:
    """Return the facts of the features asked for, in network order; None asks for all.

    Raises:
        ValueError: an unknown or repeated name, none at all, or a head without the last feature map.
    """
    if out_features is None:
        return all_features
    unknown = [name for name in out_features if name not in all_features]
    if unknown or not out_features or len(set(out_features)) != len(out_features):
        raise OptionError(
            f"out_features {tuple(out_features)} must name one or more of {tuple(all_features)}, each once",
            "out_features",
        )
    last = next(reversed(all_features))
    if num_classes and last not in out_features:
        raise ValueError(
            f"a head of {num_classes} classes reads {last!r}: add it to out_features, or write num_classes=0"
        )
    return {name: info for name, info in all_features.items() if name in out_features}


def check_freeze_at(freeze_at: int, stages: Sequence[str]) -> None:
    """Raise ValueError unless ``freeze_at`` counts some of the first ``stages``."""
    if not 0 <= freeze_at <= len(stages):
        raise OptionError(
            f"freeze_at={freeze_at} must be 0 (nothing) to {len(stages)} (all of {', '.join(stages)})", "freeze_at"
        )
