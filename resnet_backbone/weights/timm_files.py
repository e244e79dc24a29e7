"""timm's networks and published files: what they are called, where they lie, which input they need, their tensors.

A network is ``timm/NAME``; its weights are ``timm://NAME`` or ``timm://NAME.TAG`` of timm's own registry, or
``hf-hub:OWNER/REPO``, with ``@REVISION`` behind it if need be. Source: timm's ``models/_pretrained.py``, ``_hub.py`` and
``_builder.py``. timm is the extra ``timm`` of this package, and is imported where it is needed.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnet_backbone.files.text import read_json
from resnet_backbone.weights.catalog import (
    HUB_SCHEME,
    INTERPOLATIONS,
    TIMM,
    TIMM_SCHEME,
    InputFormat,
    TestTransform,
    WeightsEntry,
)
from resnet_backbone.weights.download import cache_folder, download
from resnet_backbone.weights.errors import WeightsError

# How networks that are built for one size of images take any, of which timm's constructors know one or none. Windows
# are shifted in every stage, as in Swin's own detectors, not only where a map of the training size has several.
_ANY_SIZE = (
    {"strict_img_size": False, "always_partition": True},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)
# Of what a file on the hub says its network was built with, that which changes neither tensors nor what they compute.
_HARMLESS_ARGUMENTS = {"num_classes", "img_size", "global_pool", *(key for keys in _ANY_SIZE for key in keys)}
_FILTERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained", "pretrained_filter_fn")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_SAFETENSORS = "model.safetensors"


def import_timm() -> Any:
    """Return timm; raise WeightsError, with what to install, where it is absent."""
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            f"networks {TIMM}NAME and weights {TIMM_SCHEME}NAME and {HUB_SCHEME}OWNER/REPO need timm, which cannot be "
            f"imported ({error}); write pip install 'resnet_backbone[timm]'"
        ) from error
    return timm


def list_timm_models(pattern: str = f"{TIMM}*") -> list[str]:
    """Return the networks of timm whose names fit a pattern, such as ``"timm/convnext*"``, sorted as timm does."""
    return [f"{TIMM}{name}" for name in import_timm().list_models(pattern.removeprefix(TIMM))]


def timm_name(arch: str) -> str:
    """Return what timm calls the network ``"timm/NAME"``.

    Raises:
        WeightsError: timm has no such network, or the name has a tag; the message says what there is.
    """
    timm, name = import_timm(), arch.removeprefix(TIMM)
    plain, _, tag = name.partition(".")
    if not timm.is_model(plain):
        known = timm.list_models()
        near = [*difflib.get_close_matches(plain, known, n=4), *timm.list_models(f"{plain[:8]}*")[:4]] if plain else []
        raise WeightsError(
            f"timm {timm.__version__} has no network {plain!r}; "
            + (f"near are {', '.join(TIMM + one for one in dict.fromkeys(near))}; " if near else "")
            + f"all {len(known)}: resnet_backbone.list_models('{TIMM}*')"
        )
    if tag:
        raise WeightsError(
            f"{arch}: the tag {tag!r} names weights, not a network; write {TIMM}{plain} for the network, and "
            f"{TIMM_SCHEME}{name} for its weights"
        )
    return plain


@dataclass(frozen=True)
class TimmNetwork:
    """A network of timm as it is published, with its classifier, on the meta device: names and shapes, no values."""

    model: nn.Module
    options: Mapping[str, Any]  # of timm's constructor, with which it takes images of any size, as far as it can
    tensors: Mapping[str, Tensor]
    # timm's features_only flattens sequential children: "stages_0" there is "stages.0" in the published file
    flattened: Mapping[str, str]
    classifiers: tuple[str, ...]  # names of its last layers; empty for a network without one


@lru_cache(maxsize=16)
def timm_network(name: str) -> TimmNetwork:
    """Build timm's network ``name`` without memory for its parameters; it is shared: do not change it."""
    timm = import_timm()
    from timm.models._features import _module_list

    config = timm.get_pretrained_cfg(name)
    ways = _ANY_SIZE if config is not None and config.fixed_input_size else ()
    for options in (*ways, {}):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, **options)
            break
        except TypeError:  # a constructor without that option
            if not options:
                raise
    flattened = {new: old for new, old, _ in _module_list(model, flatten_sequential=True) if new != old}
    names = model.pretrained_cfg.get("classifier") or ()
    return TimmNetwork(
        model, options, model.state_dict(), flattened, (names,) if isinstance(names, str) else tuple(names)
    )


@dataclass(frozen=True)
class TimmEntry(WeightsEntry):
    """Published weights of timm's; its accuracy is unknown, and ``num_params`` is 0: nobody has counted them."""

    written: str = ""  # what a user writes for it
    classes: int = 0
    transform: TestTransform | None = None

    @property
    def num_classes(self) -> int:
        return self.classes

    @property
    def test_transform(self) -> TestTransform | None:
        return self.transform

    @property
    def uri(self) -> str:
        return self.written

    @property
    def file_name(self) -> str:
        return re.sub(r"[^\w.-]", "-", f"{self.arch}-{self.name}-{self.url.rpartition('/')[2]}")


def timm_entry(source: str, *, fetch: bool = True) -> TimmEntry:
    """Return the facts of ``timm://NAME``, ``timm://NAME.TAG`` or ``hf-hub:OWNER/REPO``.

    Args:
        source: without a tag, timm's default one; of ``hf-hub:timm/NAME.TAG`` timm knows as much as of its own name.
        fetch: whether the ``config.json`` of another repository may be downloaded the first time.

    Raises:
        WeightsError: an unknown name or tag, weights that cannot be read here, or facts that are not there yet.
        DownloadError: the facts could not be had.
    """
    timm = import_timm()
    if source.startswith(TIMM_SCHEME):
        arch, _, tag = source.removeprefix(TIMM_SCHEME).partition(".")
        name = timm_name(f"{TIMM}{arch}")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        config = timm.get_pretrained_cfg(f"{name}.{tag}" if tag in tags else name)
        if tag not in ("", *tags) or config is None or not config.has_weights:
            written = ", ".join(f"{TIMM_SCHEME}{name}.{one}" for one in tags)
            raise WeightsError(f"{source}: timm has {f'of {name} {written}' if tags else f'no weights for {name}'}")
        written = f"{TIMM_SCHEME}{name}" + f".{config.tag}" * bool(config.tag)
        return _entry(config, name, config.tag or "default", written)
    repository = source.removeprefix(HUB_SCHEME)
    if not _REPOSITORY.fullmatch(repository):
        raise WeightsError(f"{source!r} is not of the form {HUB_SCHEME}OWNER/REPO or {HUB_SCHEME}OWNER/REPO@REVISION")
    place, _, revision = repository.partition("@")
    owner, _, full_name = place.partition("/")
    if owner == "timm" and not revision and full_name in timm.list_pretrained(full_name):
        return _entry(timm.get_pretrained_cfg(full_name), full_name.partition(".")[0], repository, source)
    folder = cache_folder() / "weights" / re.sub(r"[^\w.-]", "-", f"hf-hub-{repository}")
    if not fetch and not (folder / "config.json").is_file():
        raise WeightsError(
            f"which input {source} needs is in its config.json, and building a network downloads nothing; fetch it "
            f"first: python tools/package_weights.py {source} OUT.pth, and name OUT.pth or {source}"
        )
    facts = read_json(download(_address(place, revision, "config.json"), folder / "config.json", max_bytes=1 << 20))
    return _hub_entry(facts, place, revision, source)


def _hub_entry(facts: Any, place: str, revision: str, source: str) -> TimmEntry:
    try:
        arguments = set(facts.get("model_args") or ()) - _HARMLESS_ARGUMENTS
        values = {**facts, **facts.get("pretrained_cfg", {}), "hf_hub_id": f"{place}@{revision}" if revision else place}
        kind = import_timm().models.PretrainedCfg
        config = kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})
        name = timm_name(f"{TIMM}{facts['architecture']}".partition(".")[0])
    except (AttributeError, KeyError, TypeError) as error:
        raise WeightsError(f"{source}: its config.json is none of timm's ({type(error).__name__}: {error})") from error
    if arguments:
        raise WeightsError(
            f"{source} was built with {', '.join(sorted(map(str, arguments)))} of its own, which {TIMM}{name} has not"
        )
    return _entry(config, name, config.hf_hub_id, source)


def _address(place: str, revision: str, file: str) -> str:
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{hub.rstrip('/')}/{place}/resolve/{revision or 'main'}/{file}"


def _entry(config: Any, name: str, weights: str, written: str) -> TimmEntry:
    """Bring timm's ``PretrainedCfg`` to our facts; it is a stranger's where it comes from the hub."""
    url = config.url
    if config.hf_hub_id:
        place, _, revision = config.hf_hub_id.partition("@")
        url = _address(place, revision, config.hf_hub_filename or _SAFETENSORS)
    if config.custom_load or not isinstance(url, str) or url.endswith((".npz", ".zip")):
        raise WeightsError(f"{written} is published in a format of its own, not as a state dict; take another tag")
    try:
        channels, *side = config.input_size
        if channels != 3:
            raise ValueError(f"it takes images of {channels} channels, expected 3")
        mean, std = ([255 * float(value) for value in values] for values in (config.mean, config.std))
        return TimmEntry(
            arch=f"{TIMM}{name}",
            name=weights,
            url=url,
            sha256=next(iter(re.findall(r"-([0-9a-f]{8})\.", url.rpartition("/")[2])), ""),
            licence=str(config.license or ""),
            num_params=0,
            acc1=None,
            acc5=None,
            source=str(config.origin_url or "timm"),
            input_format=InputFormat("RGB", mean, std),
            has_classifier=bool(config.num_classes),
            scheme=TIMM_SCHEME,
            written=written,
            classes=int(config.num_classes),
            transform=_transform(config, min(side)),
        )
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{written}: its description is damaged ({error})") from error


def _transform(config: Any, side: int) -> TestTransform | None:
    """Return how timm evaluates; None where it does otherwise than to resize and to crop the centre."""
    usual = config.crop_mode == "center" and config.interpolation in INTERPOLATIONS and 0 < config.crop_pct <= 1
    return TestTransform(math.floor(side / config.crop_pct), side, config.interpolation) if usual else None


def timm_part(tensors: Mapping[str, Tensor], arch: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a network of timm's under timm's names, and the names of all others in a file.

    A prefix is taken off (a detector's, a wrapper's), names of ``features_only`` become those of the published file,
    and where a file is older than timm's present names, timm's own conversion is called.
    """
    name = timm_name(arch)
    network = timm_network(name)

    def own(name: str) -> str:
        first, dot, rest = name.partition(".")
        return network.flattened.get(first, first) + dot + rest

    prefixes: Counter[str] = Counter()
    for one in tensors:
        parts = one.split(".")
        prefixes.update("".join(f"{p}." for p in parts[:n]) for n in range(len(parts)) if _known(network, own, parts[n:]))
    prefix = max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default="")
    part = {own(one.removeprefix(prefix)): tensor for one, tensor in tensors.items() if one.startswith(prefix)}
    others = [one for one in tensors if not one.startswith(prefix)]
    convert = next(filter(None, (getattr(sys.modules[_module(name)], one, None) for one in _FILTERS)), None)
    if convert is not None and part.keys() != network.tensors.keys():
        takes_model = len(inspect.signature(convert).parameters) > 1
        try:
            converted = convert(dict(part), network.model) if takes_model else convert(dict(part))
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
            converted = part  # of another network: its names tell the reader more than where a conversion broke
        converted = {one: tensor for one, tensor in converted.items() if isinstance(tensor, Tensor) and not tensor.is_meta}
        if len(converted.keys() & network.tensors.keys()) > len(part.keys() & network.tensors.keys()):
            part = converted
    return part, others


def _known(network: TimmNetwork, own: Any, parts: list[str]) -> bool:
    return own(".".join(parts)) in network.tensors


def _module(name: str) -> str:
    from timm.models import model_entrypoint

    return model_entrypoint(name).__module__


def timm_classes(tensors: Mapping[str, Tensor], arch: str) -> int:
    """Return the size of the classifier among tensors under timm's names, 0 for none."""
    layers = timm_network(timm_name(arch)).classifiers
    return next((len(tensors[f"{layer}.weight"]) for layer in layers if f"{layer}.weight" in tensors), 0)
