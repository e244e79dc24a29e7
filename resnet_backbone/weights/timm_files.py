"""timm's networks and published files: what they are called, where they lie, which input they need, their tensors.

A network is ``timm/NAME``; its weights are ``timm://NAME`` or ``timm://NAME.TAG`` of timm's own registry, or
``hf-hub:OWNER/REPO``, with ``@REVISION`` behind it if need be. timm is imported where it is needed. Sources: timm,
``models/_pretrained.py``, ``models/_hub.py`` and ``models/_builder.py``.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
from resnet_backbone.weights.download import cache_folder, download, hub_url
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.names import without_wrapper_names

# How networks that are built for one size of images take any, of which timm's constructors know one or none. Windows
# are shifted in every stage, as in Swin's own detectors, not only where a map of the training size has several.
_ANY_SIZE: tuple[dict[str, Any], ...] = (
    {"strict_img_size": False, "always_partition": True},
    {"dynamic_img_size": True},
    {"strict_img_size": False},
)
# Of what a file on the hub says its network was built with, that which changes neither tensors nor what they compute.
_HARMLESS = {"num_classes", "img_size", "global_pool", *(key for options in _ANY_SIZE for key in options)}
_CONVERSIONS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained", "pretrained_filter_fn")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def import_timm() -> Any:
    """Return timm; WeightsError says what to install where it is absent."""
    try:
        import timm
    except ImportError as error:
        why = f"{TIMM}NAME and its weights need timm ({error})"
        raise WeightsError(f"{why}: pip install 'resnet_backbone[timm]'") from error
    return timm


def timm_name(arch: str) -> str:
    """Return what timm calls the network ``"timm/NAME"``; WeightsError says what there is instead of an unknown one."""
    timm = import_timm()
    name, _, tag = arch.removeprefix(TIMM).partition(".")
    if not timm.is_model(name):
        known = timm.list_models()
        near = [*difflib.get_close_matches(name, known, n=4), *timm.list_models(f"{name[:8]}*")[:4]]
        raise WeightsError(
            f"timm {timm.__version__} has no network {name!r}; near are {', '.join(dict.fromkeys(near)) or 'none'}; "
            f"all {len(known)}: resnet_backbone.list_models('{TIMM}*')"
        )
    if tag:
        raise WeightsError(
            f"{arch}: the tag {tag!r} names weights; write {TIMM}{name}, and {TIMM_SCHEME}{name}.{tag} for the weights"
        )
    return name


class TimmNetwork(NamedTuple):
    """A network of timm as it is published, with its classifier, on the meta device: names and shapes, no values."""

    model: Any
    options: dict[str, Any]  # of timm's constructor, with which it takes images of any size, as far as it can
    tensors: Mapping[str, Tensor]
    flattened: Mapping[str, str]  # names of features_only, as "stages_0", by which files have "stages.0"
    classifiers: tuple[str, ...]  # names of its last layers; empty for a network without one


@lru_cache(maxsize=16)
def timm_network(name: str) -> TimmNetwork:
    """Build timm's network ``name`` without memory for its parameters; it is shared: do not change it."""
    timm = import_timm()
    from timm.models._features import _module_list

    config = timm.get_pretrained_cfg(name)
    for options in (*(_ANY_SIZE if config and config.fixed_input_size else ()), {}):
        try:
            with torch.device("meta"):
                model = timm.create_model(name, **options)
            break
        except TypeError:  # a constructor without that option
            if not options:
                raise
    flattened = {new: old for new, old, _ in _module_list(model, flatten_sequential=True) if new != old}
    last = model.pretrained_cfg.get("classifier") or ()
    layers = (last,) if isinstance(last, str) else tuple(last)
    return TimmNetwork(model, options, model.state_dict(), flattened, layers)


@dataclass(frozen=True)
class TimmEntry(WeightsEntry):
    """Published weights of timm's; its accuracy is unknown, and ``num_params`` is 0: nobody has counted them."""

    uri: str = ""  # what a user writes for it
    num_classes: int = 0
    test_transform: TestTransform | None = None
    file_name: str = ""


def timm_entry(source: str, *, fetch: bool = True) -> TimmEntry:
    """Return the facts of ``timm://NAME``, ``timm://NAME.TAG`` or ``hf-hub:OWNER/REPO``.

    Without a tag it is timm's default one. Where a repository is not in timm's registry its ``config.json`` is fetched
    the first time, unless ``fetch`` is False.

    Raises:
        WeightsError: an unknown name or tag, weights that cannot be read here, or facts that are not there.
        DownloadError: the facts could not be had.
    """
    timm = import_timm()
    if source.startswith(TIMM_SCHEME):
        arch, _, tag = source.removeprefix(TIMM_SCHEME).partition(".")
        name = timm_name(f"{TIMM}{arch}")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        config = timm.get_pretrained_cfg(f"{name}.{tag}" if tag in tags else name)
        if tag not in ("", *tags) or config is None or not config.has_weights:
            there = ", ".join(f"{TIMM_SCHEME}{name}.{one}" for one in tags)
            raise WeightsError(f"{source}: timm has of {name} {there or 'no weights'}")
        return _entry(config, name, f"{TIMM_SCHEME}{name}" + f".{config.tag}" * bool(config.tag))
    repository = source.removeprefix(HUB_SCHEME)
    place, _, revision = repository.partition("@")
    full_name = place.partition("/")[2]
    if not _REPOSITORY.fullmatch(repository):
        raise WeightsError(f"{source!r} is not of the form {HUB_SCHEME}OWNER/REPO or {HUB_SCHEME}OWNER/REPO@REVISION")
    if repository == f"timm/{full_name}" and full_name in timm.list_pretrained(full_name):
        return _entry(timm.get_pretrained_cfg(full_name), full_name.partition(".")[0], source)
    path = cache_folder() / "weights" / re.sub(r"[^\w.-]", "-", source) / "config.json"
    if not fetch and not path.is_file():
        raise WeightsError(
            f"which input {source} needs is in its config.json, and building a network downloads nothing; fetch it "
            f"first: resnet-backbone package {source} OUT.pth, and name OUT.pth or {source}"
        )
    facts = read_json(download(hub_url(repository, "config.json"), path, max_bytes=1 << 20))
    try:
        arguments = {*(facts.get("model_args") or ())} - _HARMLESS
        values = {**facts, **facts.get("pretrained_cfg", {}), "hf_hub_id": repository, "hf_hub_filename": None}
        kind = timm.models.PretrainedCfg
        config = kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})
        name = timm_name(f"{TIMM}{facts['architecture']}".partition(".")[0])
    except (AttributeError, KeyError, TypeError) as error:
        raise WeightsError(f"{source}: its config.json is none of timm's ({type(error).__name__}: {error})") from error
    if arguments:
        raise WeightsError(f"{source} was built with {', '.join(sorted(arguments))}, which {TIMM}{name} is not")
    return _entry(config, name, source)


def _entry(config: Any, name: str, written: str) -> TimmEntry:
    """Bring timm's ``PretrainedCfg`` to our facts; it is a stranger's where it comes from the hub."""
    try:
        url = config.url
        if config.hf_hub_id:
            url = hub_url(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
        if config.custom_load and (config.custom_load == "hf" or not config.hf_hub_id):
            raise ValueError("it is published in a format of its own, not as a state dict; take another tag")
        channels, *side = config.input_size
        if channels != 3:
            raise ValueError(f"it takes images of {channels} channels, expected 3")
        mean, std = (tuple(255 * float(value) for value in values) for values in (config.mean, config.std))
        centred = config.crop_mode == "center" and config.interpolation in INTERPOLATIONS and 0 < config.crop_pct <= 1
        resize = math.floor(min(side) / config.crop_pct) if centred else 0
        return TimmEntry(
            arch=f"{TIMM}{name}",
            name=re.sub(r"^.*?[.:]/*", "", written) or "default",
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
            uri=written,
            num_classes=int(config.num_classes),
            test_transform=TestTransform(resize, min(side), config.interpolation) if centred else None,
            file_name=re.sub(r"[^\w.-]", "-", f"{written}-{url.rpartition('/')[2]}"),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise WeightsError(f"{written}: {error}") from error


def timm_part(tensors: Mapping[str, Tensor], arch: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a network of timm's under the names of its files, and the names of all others.

    A prefix is taken off (a detector's, a wrapper's), names of ``features_only`` become those of the published file,
    and where a file is older than timm's present names, timm's own conversion is called.
    """
    name = timm_name(arch)
    network = timm_network(name)
    known = {without_wrapper_names(one): one for one in network.tensors}
    for new, old in network.flattened.items():
        inside = [one for one in network.tensors if one.startswith(f"{old}.")]
        known |= {without_wrapper_names(new + one.removeprefix(old)): one for one in inside}
    plain = {without_wrapper_names(one): one for one in tensors}
    prefixes: Counter[str] = Counter()
    for one in plain:
        starts = [0, *(match.end() for match in re.finditer(r"\.", one))]
        prefixes.update(one[:start] for start in starts if one[start:] in known)
    prefix = max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default="")
    inside = [one for one in plain if one.startswith(prefix)]
    part = {known.get(own, own): tensors[plain[prefix + own]] for own in (one[len(prefix) :] for one in inside)}
    others = [written for one, written in plain.items() if not one.startswith(prefix)]
    from timm.models import model_entrypoint

    module = sys.modules[model_entrypoint(name).__module__]
    convert = next((getattr(module, one) for one in _CONVERSIONS if hasattr(module, one)), None)
    if convert is not None and not part.keys() <= network.tensors.keys():
        takes_model = len(inspect.signature(convert).parameters) > 1
        try:
            found = convert(dict(part), network.model) if takes_model else convert(dict(part))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            found = part  # of another network: its names tell the reader more than where a conversion broke
        fit, before = (len(names.keys() & network.tensors.keys()) for names in (found, part))
        if (fit, -len(found)) > (before, -len(part)):
            part = {one: tensor for one, tensor in found.items() if isinstance(tensor, Tensor) and not tensor.is_meta}
    return part, others
