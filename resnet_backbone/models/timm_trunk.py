"""Networks of timm as trunks and classifiers: every one that returns feature maps, by the name ``timm/NAME``.

timm's own ``features_only`` builds and runs the trunk; here its maps get our names, its parameters the names that they
have in the published file, its stages are frozen and its batch norms replaced. Source: timm, ``models/_features.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone.models.layers import FrozenBatchNorm2d, check_images
from resnet_backbone.models.trunk import FeatureInfo, OptionError, Trunk, check_freeze_at, select_features
from resnet_backbone.weights.timm_files import import_timm, timm_name, timm_network

_REFUSES = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)  # what timm raises on an image


class FrozenBatchNormAct(FrozenBatchNorm2d):
    """A frozen norm of timm's: on maps, or on vectors (N, C), with the dropout and activation that stand behind it."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.drop: nn.Module | None = None
        self.act: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x``, shape (N, num_features, ...)."""
        if x.ndim == 4:
            x = super().forward(x)
        else:
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        for layer in (self.drop, self.act):
            x = x if layer is None else layer(x)
        return x

    @classmethod
    def from_batch_norm(cls, norm: Any) -> FrozenBatchNormAct:
        """Return the frozen layer, see :class:`FrozenBatchNorm2d`, with the activation of ``norm`` itself."""
        frozen = cls(norm.num_features, norm.eps)
        for name, tensor in norm.state_dict(keep_vars=True).items():
            if name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(frozen, name, tensor.detach().clone())
        frozen.drop, frozen.act = getattr(norm, "drop", None), getattr(norm, "act", None)
        return frozen


class _Map(NamedTuple):
    index: int  # in timm's list of feature maps
    module: str  # that computes it last
    info: FeatureInfo


class _Facts(NamedTuple):
    maps: dict[str, _Map]  # by our names, finest first
    first: str  # the module behind the stem
    multiple: int  # pixels that images must be multiples of


@lru_cache(maxsize=64)
def _facts(name: str, output_stride: int) -> _Facts:
    """Return what timm's network ``name`` computes: of each stride the last map, ``res<n>`` of stride ``2 ** n``.

    Raises:
        OptionError: no such maps, or images of one size alone.
    """
    dilation = _dilation(output_stride)
    with torch.device("meta"):
        plain = _build(name, None, 3, {})
        net = _build(name, None, 3, dilation) if dilation else plain
    strides = [info["reduction"] for info in plain.feature_info.info]
    maps, first = {}, ""
    for index, (stride, info) in enumerate(zip(strides, net.feature_info.info, strict=True)):
        level = math.log2(stride)
        if level >= 1 and level.is_integer() and info["module"]:
            first = first or info["module"]
            found = _Map(index, info["module"], FeatureInfo(info["num_chs"], info["reduction"]))
            maps["stem" if level == 1 else f"res{int(level)}"] = found
    if not maps:
        raise OptionError(f"its feature maps have strides {strides}, none of them a power of two", "arch")
    stride = max(found.info.stride for found in maps.values())
    if dilation and stride > output_stride:
        raise OptionError(f"timm has it with strides {strides} alone, not dilated", "res4_dilation", "res5_dilation")
    indices = [found.index for found in maps.values()]
    if not {*indices} <= {*(index % len(strides) for index in net.feature_info.out_indices)}:
        with torch.device("meta"):
            net = _build(name, indices, 3, dilation)
    side = net.pretrained_cfg["input_size"][-1]
    refusals = []
    for multiple in (stride, math.lcm(stride, side)):
        refusals.append(_refusal(net.eval(), maps, multiple))
        if not refusals[-1]:
            return _Facts(maps, first, multiple)
    why = refusals[0]
    raise OptionError(f"it does not take images of any size, as detectors have them: {why}; take another one", "arch")


def _refusal(net: Any, maps: dict[str, _Map], multiple: int) -> str:
    """Say why images of 3 x 5, and of 4 x 2, times ``multiple`` pixels do not give the maps that timm says."""
    places = [index % len(net.feature_info.info) for index in net.feature_info.out_indices]
    for height, width in ((3 * multiple, 5 * multiple), (4 * multiple, 2 * multiple)):
        try:
            with torch.no_grad():
                found = _nchw(net, net(torch.empty(1, 3, height, width, device="meta")))
        except _REFUSES as error:
            return f"images of {height} x {width} pixels end in {type(error).__name__}: {error}"[:300]
        for name, (index, _, (channels, stride)) in maps.items():
            shape = tuple(found[places.index(index)].shape[1:])
            if shape != (channels, height // stride, width // stride):
                return f"of images of {height} x {width} pixels it makes {name} {shape}, at a stride of {stride}"
    return ""


def _build(name: str, indices: Sequence[int] | None, in_channels: int, options: dict[str, Any]) -> Any:
    """Return timm's ``features_only``, for the maps ``indices``; None are those that it returns by itself."""
    options = {**timm_network(name).options, **options, "in_chans": in_channels}
    if indices is not None:
        options["out_indices"] = tuple(indices)
    try:
        return import_timm().create_model(name, features_only=True, **options)
    except _REFUSES as error:
        dilated = ("res4_dilation", "res5_dilation") if "output_stride" in options else ()
        raise OptionError(f"timm cannot build it with {options} ({error})"[:500], *dilated or ("arch",)) from error


def _dilation(output_stride: int) -> dict[str, Any]:
    return {"output_stride": output_stride} if output_stride < 32 else {}


def _nchw(net: Any, features: Sequence[Tensor]) -> list[Tensor]:
    is_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")
    return [x.permute(0, 3, 1, 2).contiguous() for x in features] if is_last else list(features)


class TimmTrunk(Trunk):
    """A network of timm: without a head its ``features_only``, with one its classifier.

    Feature maps are ``stem`` at stride 2, where it has one, and ``res<n>`` at stride ``2 ** n``, of each stride the
    last. Stages are called likewise; ``stem`` is what comes before the first of them.

    Args:
        arch: ``timm/NAME``.
        num_classes: None is what timm's network has; 0 leaves out the head, and what no map needs.
        norm: None and ``""`` are the network's own norms; ``BN``, ``SyncBN`` and ``FrozenBN`` need batch norms.
        stochastic_depth: timm's ``drop_path_rate``.
        **others: see :func:`~resnet_backbone.models.registry.create_model`.

    Attributes:
        spare: names of timm's network that this one does without: its head, stages after the last.

    Raises:
        ValueError: an unknown network, one for a single size of images, or options that it does not have.
    """

    rounds_down = True

    def __init__(
        self,
        arch: str,
        *,
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        norm: str | None = None,
        freeze_at: int = 0,
        stochastic_depth: float = 0.0,
        res4_dilation: int = 1,
        res5_dilation: int = 1,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        name = timm_name(arch)
        network = timm_network(name)
        output_stride = 8 if res4_dilation > 1 else 16 if res5_dilation > 1 else 32
        facts = _facts(name, output_stride)
        self.arch = arch
        self.in_channels = in_channels
        self.num_classes = int(network.model.num_classes) if num_classes is None else num_classes
        self.last_linear = tuple(f"{layer}.{last}" for layer in network.classifiers for last in ("weight", "bias"))
        self.multiple = facts.multiple
        self.feature_info = select_features({key: m.info for key, m in facts.maps.items()}, out_features, 0)
        options = _dilation(output_stride)
        if stochastic_depth:
            options["drop_path_rate"] = stochastic_depth
        self.indices = [facts.maps[key].index for key in self.feature_info]
        net: Any
        if self.num_classes:
            options = {**network.options, **options, "in_chans": in_channels, "num_classes": self.num_classes}
            net = import_timm().create_model(name, **options)
        else:
            net = _build(name, self.indices, in_channels, options)
        inner = {"model", "body"} & {name for name, _ in net.named_children()} if len(net._modules) == 1 else ()
        root = next((net.get_submodule(one) for one in inner), net)
        # No children: under the names of the published file, which timm's wrappers change, they are this module's own.
        self.__dict__.update(_net=_convert_norms(net, arch, norm), _root=root)
        self._take(network.flattened)
        last = list(facts.maps).index(next(reversed(self.feature_info)))
        self._stages = self._find_stages({key: facts.maps[key].module for key in list(facts.maps)[: last + 1]}, facts)
        self.stage_names = tuple(self._stages)
        self.freeze_stages(freeze_at)
        self.spare = frozenset(network.tensors.keys() - self.state_dict().keys())
        self.checkpoint_stages = ()

    def _take(self, flattened: Any) -> None:
        """Enter the parts of timm's network as this module's own, under the names that they have in its files."""
        self._parameters, self._buffers = self._root._parameters, self._root._buffers
        self._non_persistent_buffers_set = self._root._non_persistent_buffers_set
        for name, module in self._root.named_children():
            *path, last = flattened.get(name, name).split(".")
            holder: nn.Module = self
            for part in path:
                holder = holder._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
            holder._modules[last] = module

    def _find_stages(self, ends: dict[str, str], facts: _Facts) -> dict[str, list[str]]:
        """Return names of all modules, in the order of timm's registration, by the stage that they are of.

        ``ends`` are the last modules of the stages. Modules behind the last one are of none, and where timm does not
        tell the stages apart, as in networks with parallel branches, nothing is of any.
        """
        names = [name for name, _ in self.named_modules(remove_duplicate=False)]
        order = list(ends) if "stem" in ends else ["stem", *ends]
        if not {*ends.values(), facts.first} <= {*names}:
            return {stage: [] for stage in order}
        places = {stage: _span(names, end)[1] for stage, end in ends.items()}
        places = {"stem": _span(names, facts.first)[0], **places}
        starts = [0, *(places[stage] for stage in order)]
        if starts != sorted(starts):
            return {stage: [] for stage in order}
        return {stage: names[start:end] for stage, start, end in zip(order, starts, starts[1:], strict=False)}

    def freeze_stages(self, count: int) -> None:
        """Take the first ``count`` stages out of training: their parameters, and the statistics of batch norms.

        Raises:
            ValueError: more than there are, or a network whose stages timm does not tell apart.
        """
        check_freeze_at(count, self.stage_names)
        if count and not any(self._stages.values()):
            raise OptionError(f"freeze_at={count}: timm does not tell the stages of {self.arch} apart; write 0", "freeze_at")
        for name in [name for stage in self.stage_names[:count] for name in self._stages[stage]]:
            module = self.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, _BatchNorm):
                self._replace(module)

    def stage_parameters(self, stage: str) -> list[nn.Parameter]:
        """Return the parameters of a stage, in no order that means anything."""
        return [one for name in self._stages[stage] for one in self.get_submodule(name).parameters(recurse=False)]

    def _replace(self, norm: nn.Module) -> None:
        """Freeze a batch norm, in timm's module and in this one, where both have it."""
        frozen = FrozenBatchNormAct.from_batch_norm(norm)
        for module in (*self.modules(), *self._root.modules()):
            for key, child in module._modules.items():
                if child is norm:
                    module._modules[key] = frozen

    @property
    def size_divisibility(self) -> int:
        return self.multiple

    @property
    def checkpoint_stages(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those whose modules of timm's recompute themselves, see ``Acceleration``."""
        return self._checkpoint_stages

    @checkpoint_stages.setter
    def checkpoint_stages(self, names: tuple[str, ...]) -> None:
        for stage, modules in self._stages.items():
            switches = [self.get_submodule(module) for module in modules]
            switches = [module for module in switches if module is not self and hasattr(module, "grad_checkpointing")]
            if stage in names and not switches:
                raise OptionError(
                    f"timm does not checkpoint {stage} of {self.arch} by itself: leave it out of CHECKPOINT_STAGES",
                    "checkpoint_stages",
                )
            moving = [m for switch in switches for m in switch.modules() if isinstance(m, _BatchNorm)]
            if stage in names and moving:
                raise OptionError(
                    f"CHECKPOINT_STAGES: {stage} of {self.arch} would count each batch twice in the statistics of its "
                    f"norms; write norm FrozenBN",
                    *("checkpoint_stages", "norm"),
                )
            for switch in switches:
                switch.grad_checkpointing = stage in names  # type: ignore[assignment]
        self._checkpoint_stages = names

    def train(self, mode: bool = True) -> TimmTrunk:
        """Set the mode of timm's outer modules, too, which look at their own."""
        self._net.training = self._root.training = mode
        return super().train(mode)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """See :meth:`Trunk.forward_features`; ValueError also for an image size that timm refuses."""
        check_images(x, self.in_channels)
        try:
            if self.num_classes:
                found = self._root.forward_intermediates(x, indices=self.indices, intermediates_only=True)
            else:
                found = _nchw(self._net, self._net(x))
        except (AssertionError, RuntimeError) as error:
            height, width = x.shape[-2:]
            if height % self.multiple == 0 and width % self.multiple == 0:
                raise
            raise ValueError(
                f"{self.arch} refuses images of {height} x {width} pixels ({error}); pad them to multiples of "
                f"{self.multiple}"
            ) from error
        return dict(zip(self.feature_info, found, strict=True))

    def forward(self, x: Tensor) -> Any:
        """Return timm's logits, shape (N, num_classes); without a head, what :meth:`forward_features` returns."""
        if not self.num_classes:
            return super().forward(x)
        forward: Callable[[Tensor], dict[str, Tensor]] = lambda x: {"logits": self._root(x)}  # noqa: E731
        return self.accelerated(forward, x)["logits"]

    def forward_head(self, x: Tensor) -> Tensor:
        raise ValueError(f"{self.arch} is timm's: its head reads more than the last feature map; call the network")

    def forward_dense_head(self, x: Tensor, window: int) -> Tensor:
        raise ValueError(f"{self.arch} is timm's, whose classifiers are not applied densely; take one image size")


def _span(names: list[str], module: str) -> tuple[int, int]:
    """The places of a module and of what is in it, first and behind the last."""
    first = names.index(module)
    return first, first + sum(name == module or name.startswith(f"{module}.") for name in names)


def _convert_norms(net: nn.Module, arch: str, norm: str | None) -> nn.Module:
    """Replace the batch norms of a network that has just been built, as ``norm`` says."""
    if not norm:
        return net
    kinds = {type(module).__name__ for module in net.modules() if "norm" in type(module).__name__.lower()}
    if norm == "GN" or not any(isinstance(module, _BatchNorm) for module in net.modules()):
        raise OptionError(
            f"norm {norm!r} does not fit {arch}, whose norms are {', '.join(sorted(kinds)) or 'none'}: write '', which "
            "leaves a network of timm's its own",
            "norm",
        )
    if norm == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(net)
    for module in list(net.modules()) if norm == "FrozenBN" else ():
        for key, child in module._modules.items():
            if isinstance(child, _BatchNorm):
                module._modules[key] = FrozenBatchNormAct.from_batch_norm(child)
    return net
