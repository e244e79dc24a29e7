"""timm's networks as trunks and classifiers, by the name ``timm/NAME``: every one that returns feature maps.

timm's own ``features_only`` builds and runs the trunk. Here its maps get our names, its parameters those of the
published file; its stages are frozen, its batch norms replaced. Source: timm, ``models/_features.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone.models.layers import check_images
from resnet_backbone.models.trunk import FeatureInfo, OptionError, Trunk, check_freeze_at, select_features
from resnet_backbone.weights.timm_files import import_timm, timm_name, timm_network

_REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)  # timm's, of options and of images
_DILATIONS = ("res4_dilation", "res5_dilation")


class _Map(NamedTuple):
    place: int  # in timm's list of feature maps
    module: str  # that computes it last
    info: FeatureInfo


class _Facts(NamedTuple):
    maps: dict[str, _Map]  # by our names, finest first
    first: str  # the module behind the stem
    multiple: int  # pixels that images must be multiples of


@lru_cache(maxsize=64)
def _facts(name: str, stride: int) -> _Facts:
    """Return what timm's network computes, dilated to ``stride`` where it is below 32: of each stride the last map."""
    with torch.device("meta"):
        usual = _build(name).feature_info.info
    strides = [info["reduction"] for info in usual]
    levels = {place: math.log2(one) for place, one in enumerate(strides) if usual[place]["module"]}
    levels = {place: level for place, level in levels.items() if level >= 1 and level.is_integer()}
    places = {"stem" if level == 1 else f"res{int(level)}": place for place, level in levels.items()}
    if not places:
        raise OptionError(f"its feature maps have strides {strides}, none a power of two", "arch")
    with torch.device("meta"):
        net = _build(name, stride, out_indices=tuple(places.values())).eval()
    infos = net.feature_info.info
    maps = {
        key: _Map(place, infos[place]["module"], FeatureInfo(infos[place]["num_chs"], infos[place]["reduction"]))
        for key, place in places.items()
    }
    coarsest = max(found.info.stride for found in maps.values())
    if coarsest > stride < 32:
        raise OptionError(f"timm does not dilate it: its strides stay {strides}", *_DILATIONS)
    whole = math.lcm(coarsest, net.pretrained_cfg["input_size"][-1])  # as windows of a fixed size need it
    refusal = _refusal(net, maps, coarsest)
    if refusal and _refusal(net, maps, whole):
        raise OptionError(f"it does not take images of any size, as detectors do: {refusal}", "arch")
    return _Facts(maps, usual[min(levels)]["module"], whole if refusal else coarsest)


def _refusal(net: Any, maps: dict[str, _Map], multiple: int) -> str:
    """Say why images of 3 x 5, and of 4 x 2, times ``multiple`` pixels do not give the maps that timm says."""
    for height, width in ((3 * multiple, 5 * multiple), (4 * multiple, 2 * multiple)):
        try:
            with torch.no_grad():
                found = _nchw(net, net(torch.empty(1, 3, height, width, device="meta")))
        except _REFUSALS as error:
            return f"on {height} x {width} pixels it ends in {type(error).__name__}: {error}"[:300]
        for x, (_, module, (channels, stride)) in zip(found, maps.values(), strict=True):
            if x.shape[1:] != (channels, height // stride, width // stride):
                return f"on {height} x {width} pixels {module}, of stride {stride}, returns {tuple(x.shape)}"
    return ""


def _build(name: str, stride: int = 32, **options: Any) -> Any:
    options |= {**timm_network(name).options, **({"output_stride": stride} if stride < 32 else {})}
    try:
        return import_timm().create_model(name, features_only=True, **options)
    except _REFUSALS as error:
        keys = _DILATIONS if stride < 32 else ("arch",)
        raise OptionError(f"timm does not build it with {options}: {error}"[:500], *keys) from error


def _nchw(net: Any, features: Sequence[Tensor]) -> list[Tensor]:
    is_last = str(getattr(net, "output_fmt", "")).endswith("NHWC")
    return [x.permute(0, 3, 1, 2).contiguous() for x in features] if is_last else list(features)


class TimmTrunk(Trunk):
    """A network of timm: without a head its ``features_only``, with one its classifier.

    Feature maps are ``stem`` at stride 2, where there is one, and ``res<n>`` at stride ``2 ** n``, of each stride the
    last; stages are called likewise, and ``stem`` is what comes before the first of them. For the arguments and errors
    see :func:`~resnet_backbone.models.registry.create_model`: ``norm`` None or ``""`` is the network's own,
    ``stochastic_depth`` timm's ``drop_path_rate`` (0 leaves what timm trains with), dilation its ``output_stride``.

    Attributes:
        stage_modules: by stage the names of all its modules; empty where timm does not tell the stages apart, as in
            networks with parallel branches.
    """

    rounds_down = True
    _net: Any  # timm's wrapper, and the network itself, which may be that: no children, since their parts are ours
    _root: Any

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
        stride = 8 if res4_dilation > 1 else 16 if res5_dilation > 1 else 32
        maps, first, self.multiple = _facts(name, stride)
        self.arch, self.in_channels = arch, in_channels
        self.num_classes = network.model.num_classes if num_classes is None else num_classes
        self.last_linear = tuple(f"{layer}.{last}" for layer in network.classifiers for last in ("weight", "bias"))
        self.feature_info = select_features({key: found.info for key, found in maps.items()}, out_features, 0)
        self.indices = [maps[key].place for key in self.feature_info]
        options: dict[str, Any] = {"in_chans": in_channels}
        options |= {"drop_path_rate": stochastic_depth} if stochastic_depth else {}
        if self.num_classes:
            net = import_timm().create_model(name, num_classes=self.num_classes, **network.options, **options)
        else:
            net = _build(name, stride, out_indices=tuple(self.indices), **options)
        net = _with_norms(net, arch, norm)
        inner = {"model", "body"} & net._modules.keys() if len(net._modules) == 1 else ()
        self.__dict__.update(_net=net, _root=net.get_submodule(next(iter(inner), "")))
        self._take(network.flattened)
        reached = list(maps)[: list(maps).index(next(reversed(self.feature_info))) + 1]
        self.stage_modules = self._find_stages({key: maps[key].module for key in reached}, first)
        self.stage_names = tuple(self.stage_modules)
        self.freeze_stages(freeze_at)
        self.spare = frozenset(network.tensors.keys() - self.state_dict().keys())

    def _take(self, flattened: Any) -> None:
        """Enter the parts of timm's network as this module's own, under the names that they have in its files."""
        for kind in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            setattr(self, kind, getattr(self._root, kind))
        for name, module in self._root.named_children():
            *path, last = flattened.get(name, name).split(".")
            holder: Any = self
            for part in path:
                holder = holder._modules.setdefault(part, nn.Sequential())
            holder._modules[last] = module

    def _find_stages(self, ends: dict[str, str], first: str) -> dict[str, list[str]]:
        """Cut the modules, in the order of timm's registration, behind the last of each stage."""
        names = [name for name, _ in self.named_modules(remove_duplicate=False)]
        order = list(ends) if "stem" in ends else ["stem", *ends]
        around = {end[: dot.start()] for end in ends.values() for dot in re.finditer(r"\.", end)}
        known = {*ends.values(), first} <= {*names}
        if not known or not all(isinstance(self.get_submodule(one), nn.Sequential | nn.ModuleList) for one in around):
            return {stage: [] for stage in order}
        behind = {"stem": names.index(first)}
        for stage, end in ends.items():
            inside = sum(name == end or name.startswith(f"{end}.") for name in names)
            behind[stage] = names.index(end) + inside
        cuts = [0, *(behind[stage] for stage in order)]
        in_order = cuts == sorted(cuts)
        return {stage: names[cuts[n] : cuts[n + 1]] if in_order else [] for n, stage in enumerate(order)}

    def freeze_stages(self, count: int) -> None:
        """Take the first ``count`` stages out of training, batch norms with them; ValueError where that cannot be."""
        check_freeze_at(count, self.stage_names)
        if count and not self.tells_stages_apart:
            raise OptionError(f"freeze_at={count}: timm does not tell its stages apart; write 0", "freeze_at")
        for name in [name for stage in self.stage_names[:count] for name in self.stage_modules[stage]]:
            module = self.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
            if isinstance(module, _BatchNorm):
                _freeze_norms((*self.modules(), *self._root.modules()), module)

    def stage_of(self, name: str) -> str:
        """See :meth:`Trunk.stage_of`; what stands behind the last stage counts as of it."""
        module = name.rpartition(".")[0]
        last = self.stage_names[-1] if self.tells_stages_apart else ""
        return next((stage for stage, modules in self.stage_modules.items() if module in modules), last)

    @property
    def tells_stages_apart(self) -> bool:
        return any(self.stage_modules.values())

    @property
    def size_divisibility(self) -> int:
        return self.multiple

    @property
    def checkpoint_stages(self) -> tuple[str, ...]:
        """Those whose modules of timm's recompute themselves, see ``Acceleration``."""
        return self.__dict__.get("_checkpoint_stages", ())

    @checkpoint_stages.setter
    def checkpoint_stages(self, names: tuple[str, ...]) -> None:
        for stage, modules in self.stage_modules.items():
            own = list(map(self.get_submodule, filter(None, modules)))
            switches = [module for module in own if hasattr(module, "grad_checkpointing")]
            moving = any(isinstance(module, _BatchNorm) for module in own)
            if stage in names and (moving or not switches):
                why = "would count each batch twice in its norms; write FrozenBN" if moving else "does not recompute"
                raise OptionError(f"CHECKPOINT_STAGES: {stage} of {self.arch} {why}", "checkpoint_stages")
            for switch in switches:
                switch.grad_checkpointing = stage in names  # type: ignore[assignment]
        self.__dict__["_checkpoint_stages"] = names

    def train(self, mode: bool = True) -> TimmTrunk:
        """Set the mode of timm's outer modules, too, which look at their own."""
        self._net.training = self._root.training = mode
        return super().train(mode)

    def forward_features(self, x: Tensor) -> dict[str, Tensor]:
        """See :meth:`Trunk.forward_features`; sizes that are no multiple of what it needs may end in timm's errors."""
        check_images(x, self.in_channels)
        if self.num_classes:
            found = self._root.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        else:
            found = _nchw(self._net, self._net(x))
        return dict(zip(self.feature_info, found, strict=True))

    def forward(self, x: Tensor) -> Any:
        """Return timm's logits, shape (N, num_classes); without a head, what :meth:`forward_features` returns."""
        if not self.num_classes:
            return super().forward(x)
        return self.accelerated(lambda x: {"logits": self._root(x)}, x)["logits"]

    def forward_head(self, x: Tensor) -> Tensor:
        raise ValueError(f"the head of {self.arch} reads more than the last feature map: call the network itself")

    def forward_dense_head(self, x: Tensor, window: int) -> Tensor:
        raise ValueError(f"{self.arch} is timm's, whose classifiers are not applied densely: take one size of images")


def _with_norms(net: nn.Module, arch: str, norm: str | None) -> nn.Module:
    """Replace the batch norms of a network that has just been built, as ``norm`` says."""
    if norm and (norm == "GN" or not any(isinstance(module, _BatchNorm) for module in net.modules())):
        kinds = sorted({kind for module in net.modules() if "norm" in (kind := type(module).__name__).lower()})
        raise OptionError(
            f"norm {norm!r} does not fit {arch}, whose norms are {', '.join(kinds) or 'none'}: write '', for its own",
            "norm",
        )
    if norm == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(net)
    if norm == "FrozenBN":
        _freeze_norms(net.modules())
    return net


def _freeze_norms(modules: Any, only: nn.Module | None = None) -> None:
    """Replace the batch norms, or one of them, among the children of ``modules`` by timm's frozen ones."""
    from timm.layers import freeze_batch_norm_2d

    frozen: dict[int, nn.Module] = {}
    for module in list(modules):
        for name, child in module._modules.items():
            if child is only if only else isinstance(child, _BatchNorm):
                module._modules[name] = frozen.setdefault(id(child), freeze_batch_norm_2d(child))
    if any(isinstance(norm, _BatchNorm) for norm in frozen.values()):
        raise OptionError(
            "timm does not freeze its batch norms of vectors: write a lower freeze_at, and norm ''", "freeze_at"
        )
