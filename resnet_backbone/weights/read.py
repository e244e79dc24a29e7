"""Reading a weight file of any of the usual formats without running code that it may hold."""

from __future__ import annotations

import hashlib
import logging
import mmap
import pickle
import pickletools
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from resnet_backbone.files.atomic import file_hash
from resnet_backbone.files.text import known_format, read_json, walk
from resnet_backbone.weights.errors import WeightsError, shorten
from resnet_backbone.weights.names import (
    detector_prefix,
    find_networks,
    several_networks,
    without_wrapper_names,
    without_wrappers,
)
from resnet_backbone.weights.safe_pickle import (
    MAGIC,
    MAX_ITEMS,
    check_cost,
    check_torch_zip,
    is_plain_data,
    read_array_pickle,
    shown,
    stand_ins,
    stands_in_for,
)

logger = logging.getLogger(__name__)

PART = "#"  # "last.ckpt#state_dict_ema": one of the networks in a file
TORCH, SAFETENSORS, ARRAYS = "torch.save", "safetensors", "a pickle of arrays"
SHARDS = "an index of shards"  # model.safetensors.index.json of the hubs: which file has which tensor
# Where a file has its network; of several the first of these is taken.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "blobs", "net", "network")
_MAX_WRAPPINGS = 8
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before it wrote zip files
_PICKLE = b"\x80"
_MAX_TENSORS = 200_000
_MAX_HEADER = 100_000_000  # bytes, of safetensors itself
_MAX_DIMENSIONS = 8
_MAX_INDEX = 50_000_000  # bytes
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.[a-z]+)")
_LEGACY_PICKLES = 5  # magic number, version, system, the content, names of the storages
# What networks are made of; torch itself can do little with others, such as 4-bit numbers, and copies none into these.
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_DTYPES |= {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_MAX_UNFOLDED = 8  # bytes of all tensors for a byte of the file: tensors may share memory, and repeat it
_UNFOLDED_ANYHOW = 1 << 30  # the largest network here has half of it


@dataclass(frozen=True)
class RawFile:
    """What a weight file holds.

    Attributes:
        tensors: name as in the file (without ``module.``, ``_orig_mod.`` and the like) to tensor, on the CPU. They may
            be mapped from the file.
        metadata: what was stored beside the tensors, in plain containers. ``metadata["left_out"]`` lists what was
            not kept: optimizer states, momentum blobs, objects of other projects' classes.
        part: the network that was taken, as in ``"state_dict"``; ``""`` where the file is nothing but its tensors.
        others: the networks that it holds beside that one, as in ``("state_dict_ema",)``; in ``left_out``, too.
        source: what was read, with the part that was asked for; ``""`` for tensors that are of no file.
        shards: the files that the tensors are in, where ``source`` is their index.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    part: str = ""
    others: tuple[str, ...] = ()
    source: str = ""
    shards: tuple[Path, ...] = ()

    @property
    def path(self) -> Path:
        """The file."""
        return split_part(self.source)[0]

    @cached_property
    def sha256(self) -> str:
        """Of the file's content, 64 hexadecimal digits; of its shards' hashes; ``""`` for tensors of no file."""
        if self.shards:
            hashes = "".join(file_hash(shard, "sha256") for shard in self.shards)
            return hashlib.sha256(hashes.encode()).hexdigest()
        return file_hash(self.path, "sha256") if self.source else ""


def read_file(source: str | Path) -> RawFile:
    """Read what ``torch.save``, safetensors, or Detectron and Detectron2 (pickles of arrays) wrote, or a hub's shards.

    The content tells which it is, not the ending. ``{"model": ...}``, ``{"state_dict": ...}`` and the like are
    unwrapped, and what PyTorch's wrappers put into names is taken out.

    Args:
        source: the file, or the index of several (``model.safetensors.index.json``). Of several networks in it one can
            be named, as in ``"last.ckpt#state_dict_ema"`` for an entry or ``"moco.pth.tar#encoder_k"`` for names that
            begin with it.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: a file that is damaged or no weight file, that lacks the part, or would call functions. Nothing in
            the file is executed in any case.
    """
    path, part = split_part(source)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    shards: tuple[Path, ...] = ()
    metadata: dict[str, Any] = {}
    if check_readable(path) == SHARDS:
        content, shards = _read_shards(path)
    else:
        if (shard := _SHARD.fullmatch(path.name)) and int(shard[2]) > 1:
            index = f"{shard[1]}{shard[3]}.index.json"
            raise WeightsError(f"{path} is one of {int(shard[2])} parts of a network; name their index, {index}")
        content, metadata = _read_content(path)
    raw = replace(_unwrap(path, content, part, metadata), shards=shards)
    _check_unfolded([*shards] or [path], sum(tensor.numel() * tensor.element_size() for tensor in raw.tensors.values()))
    if len(raw.tensors) > _MAX_TENSORS:
        raise WeightsError(f"{path} holds {len(raw.tensors):,} tensors, at most {_MAX_TENSORS:,} were expected")
    return replace(raw, source=str(source))


def _read_content(path: Path) -> tuple[Any, dict[str, Any]]:
    """What a file holds, and what safetensors has beside it."""
    form = check_readable(path)
    if form == SAFETENSORS:
        return _read_safetensors(path)
    return (read_array_pickle(path) if form == ARRAYS else _load_torch(path, mapped=True, with_stand_ins=True)), {}


def shards_of(index: Path) -> dict[str, Path]:
    """Return the names of tensors, and the files beside ``index`` that have them.

    Raises:
        WeightsError: it is no index of shards, or names files elsewhere.
    """
    if index.stat().st_size > _MAX_INDEX:
        raise WeightsError(f"{index} has {index.stat().st_size:,} bytes, an index has at most {_MAX_INDEX:,}")
    try:
        content = read_json(index)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f'{index} is no weight file; of JSON only an index of shards is, with a "weight_map"')
    for shard in shards.values():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]*", shard):
            raise WeightsError(f"{index} names the file {shown(shard)}, expected one that lies beside it")
    return {name: index.with_name(shard) for name, shard in shards.items()}


def _read_shards(index: Path) -> tuple[dict[str, Any], tuple[Path, ...]]:
    places = shards_of(index)
    content: dict[str, Any] = {}
    shards = tuple(sorted(set(places.values())))
    for shard in shards:
        if not shard.is_file():
            raise FileNotFoundError(f"{index} names {shard.name}, which is not beside it; download all {len(shards)}")
        if check_readable(shard) == SHARDS:
            raise WeightsError(f"{index} names {shard.name}, which is an index itself")
        content |= _items(_read_content(shard)[0])
    if places.keys() != content.keys():
        odd = sorted(map(shown, places.keys() ^ content.keys()))
        raise WeightsError(f"{index} does not fit its files: {len(odd)} names are in one of them alone: {shorten(odd)}")
    return content, shards


def log_other_networks(source: str | Path, raw: RawFile) -> None:
    """Log that a file has more networks than the one that was taken."""
    if raw.others:
        ways = " or ".join(f"{PART}{other}" for other in raw.others)
        logger.warning("%s: took the network in %r; for another write %s behind the file", source, raw.part, ways)


def split_part(source: str | Path) -> tuple[Path, str]:
    """``"last.ckpt#state_dict_ema"`` -> the path of the file, and the part of it; ``""`` where none is named."""
    name, _, part = str(source).rpartition(PART)
    return (Path(name), part) if name and not Path(source).is_file() else (Path(source), "")


def check_readable(path: Path) -> str:
    """Return TORCH, SAFETENSORS, ARRAYS, or SHARDS, by the first bytes of a file.

    Raises:
        WeightsError: none of these.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if not head.strip():
        raise WeightsError(f"{path} is empty; download it again")
    if head.startswith(MAGIC) or _is_old_torch(head):
        return TORCH
    if head[8:9] == b"{" and 0 < struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8:
        return SAFETENSORS
    if head.startswith(_PICKLE):
        return ARRAYS
    if head.lstrip().startswith(b"{") and path.suffix.lower() == ".json":
        return SHARDS
    looks = "a tar archive; unpack it" if head[257:262] == b"ustar" else known_format(head)
    # What is left has no mark of its own: pickles of protocol 0 and 1, and what is damaged.
    if not looks and path.suffix.lower() in (".pkl", ".pickle", ".safetensors"):
        return SAFETENSORS if path.suffix.lower() == ".safetensors" else ARRAYS
    raise WeightsError(
        f"{path} is {looks or f'damaged, or no weight file: it begins with {head[:16]!r}'}; expected what torch.save, "
        "safetensors or Detectron wrote"
    )


def _is_old_torch(head: bytes) -> bool:
    try:
        return any(argument == _TORCH_MAGIC for _, argument, _ in islice(pickletools.genops(head), 4))
    except (ValueError, IndexError, OverflowError):
        return False


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in [*file.keys()]}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        reason = _reason(error)
        raise WeightsError(f"{path} is not a complete safetensors file ({reason}); download it again") from error
    except Exception as error:  # torch, of a type of numbers that it does not know
        raise WeightsError(f"{path} holds tensors that torch cannot read ({_reason(error)})") from error


def _check_header(path: Path) -> None:
    """Count the tensors before they are made: safetensors itself needs a kilobyte for each."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        count = file.read(min(length, _MAX_HEADER)).count(b'"data_offsets"')
    if count > _MAX_TENSORS:
        raise WeightsError(f"{path} names {count:,} tensors, at most {_MAX_TENSORS:,} were expected")


def read_torch_file(path: Path, *, mapped: bool) -> Any:
    """Read whatever ``torch.save`` wrote: tensors in plain containers, however deep, such as a training's checkpoint.

    Args:
        path: of the file.
        mapped: leave the tensors on the disk until they are used, in a file of torch's present format.

    Raises:
        WeightsError: it is damaged, or holds more than that. Nothing in it is executed in any case.
    """
    content = _load_torch(path, mapped=mapped)
    total, budget = 0, [MAX_ITEMS]
    try:
        for item in walk(content, budget):
            if isinstance(item, Tensor):
                tensor, fault = _as_tensor(item)
                if fault:
                    raise ValueError(f"it holds a tensor that no network has: {fault}")
                total += tensor.numel() * tensor.element_size()
            elif isinstance(item, dict):
                if not all(isinstance(key, tuple) or is_plain_data(key, budget) for key in dict.keys(item)):
                    raise ValueError("it holds a dict whose keys are not text or numbers")
            elif not isinstance(item, list | tuple) and not is_plain_data(item):
                raise ValueError(f"it holds a {type(item).__name__}, expected tensors and plain values")
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    _check_unfolded([path], total)
    return content


def _load_torch(path: Path, *, mapped: bool, with_stand_ins: bool = False) -> Any:
    try:
        zipped, names = _refuse_costly_torch(path)
        # Of this ending torch itself looks at the name alone, so it gets an open file.
        named = path.suffix != ".safetensors"
        with path.open("rb") as file, torch.serialization.safe_globals(stand_ins(names) if with_stand_ins else []):
            mmapped = zipped and mapped and named
            return torch.load(path if named else file, map_location="cpu", weights_only=True, mmap=mmapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors, which is refused since loading it could run code.\n"
            "If it is your own, load it where you trust it and save the tensors alone: "
            'torch.save({"model": model.state_dict()}, "weights.pth")\n'
            f"Found: {_reason(error)}"
        ) from error
    except Exception as error:  # a damaged archive makes torch raise nearly anything
        raise WeightsError(f"{path} is not a complete torch file ({_reason(error)}); download it again") from error


def _refuse_costly_torch(path: Path) -> tuple[bool, set[str]]:
    """Return whether it is a zip file, and which classes its pickles name."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return True, check_torch_zip(path)
        with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            return False, set().union(*(check_cost(content) for _ in range(_LEGACY_PICKLES)))


def _reason(error: Exception) -> str:
    """The line of torch's long message that names what was refused, or the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    chosen = [line for line in lines if "GLOBAL" in line or "WeightsUnpickler error" in line]
    line = (chosen or lines or [type(error).__name__])[0].rpartition("WeightsUnpickler error: ")[2]
    return line[:500]


def _unwrap(path: Path, content: Any, part: str, metadata: Mapping[str, Any] | None = None) -> RawFile:
    metadata = dict(metadata or {})
    left_out, taken, others = [], [], []
    asked = without_wrapper_names(part)
    budget = [MAX_ITEMS]  # of what may be looked at beside the network
    for _ in range(_MAX_WRAPPINGS):
        items = _items(content)
        dicts = {key: value for key, value in items.items() if isinstance(key, str) and isinstance(value, dict)}
        networks = [key for key, value in dicts.items() if _holds_network(value, budget)]
        named = next((key for key in (asked, asked.partition(".")[0]) if key and key in dicts), None)
        key = named or _network_of(path, items, networks, asked)
        if key is None:
            break
        asked = asked.removeprefix(named).removeprefix(".") if named else asked
        taken.append(key)
        others += [network for network in networks if network != key]
        for beside, value in items.items():
            if beside == key:
                continue
            if isinstance(beside, str) and is_plain_data(value, budget):
                metadata[beside] = value
            else:
                left_out.append(shown(beside))
        content = items[key]
    if not isinstance(content, dict) or stands_in_for(content):
        kind = stands_in_for(content) or type(content).__name__
        raise WeightsError(
            f"{path} holds a {kind}, expected names with tensors; of a network save its state_dict(), with torch.save"
        )

    tensors, unexpected = {}, []
    for name, value in _items(content).items():
        if not isinstance(name, str):
            unexpected.append(shown(name))
        elif name.endswith("_momentum"):
            left_out.append(name)
        elif isinstance(value, Tensor | np.ndarray):
            tensor, fault = _as_tensor(value)
            if fault:
                unexpected.append(f"{shown(name)} ({fault})")
            tensors[name] = tensor
        else:
            unexpected.append(f"{shown(name)} ({stands_in_for(value) or type(value).__name__})")
    if unexpected:
        raise WeightsError(f"{path}: expected nothing but names with tensors, found also {shorten(unexpected)}")
    if not tensors:
        raise WeightsError(f"{path} holds no tensors")
    tensors = without_wrappers(tensors)
    if part and not asked and f"{part}." in find_networks(tensors):  # "model" is both, an entry and in its names
        asked = part
    prefix = f"{asked}." if asked else detector_prefix(tensors)
    if prefix:
        # Of all names but the counters of a training, such as n_averaged, where nobody has asked for a part.
        rest = [name for name in tensors if not name.startswith(prefix)]
        left_out += rest
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if not tensors:
            inner = [network.rstrip(".") for network in find_networks(rest) if network]
            raise WeightsError(_lacks(path, asked, [*taken, *others, *inner]))
    metadata["left_out"] = sorted(left_out)
    return RawFile(tensors, metadata, part or ".".join(taken), tuple(others))


def _lacks(path: Path, asked: str, known: list[str]) -> str:
    return f"{path} holds no {asked!r}; it has {shorten(known) or 'one network: name the file alone'}"


def _network_of(path: Path, items: Mapping[Any, Any], networks: list[str], asked: str) -> str | None:
    """Return the key of the network; None for what is no more wrapped."""
    usual = [key for key in _WRAPPERS if isinstance(items.get(key), dict)]
    choice = [key for key in usual if key in networks] or networks or usual
    if len(choice) > 1 and choice[0] not in _WRAPPERS:
        raise WeightsError(_lacks(path, asked, choice) if asked else f"{path}: {several_networks(choice)}")
    return choice[0] if choice else None


def _holds_network(value: Any, budget: list[int], levels: int = 3) -> bool:
    """Return whether a network is somewhere in a dict, by the names of its tensors; of endless dicts nobody knows."""
    items = _items(value)
    budget[0] -= 1 + len(items)
    if budget[0] < 0:
        return False
    tensors = [name for name, item in items.items() if isinstance(name, str) and isinstance(item, Tensor | np.ndarray)]
    if find_networks(tensors):
        return True
    return levels > 1 and any(
        _holds_network(part, budget, levels - 1) for part in items.values() if isinstance(part, dict)
    )


def _items(content: Any) -> dict[Any, Any]:
    """What a dict holds, whatever attributes a file gave it: an OrderedDict can bring its own ``items``."""
    return dict(dict.items(content)) if isinstance(content, dict) else {}


def _as_tensor(value: Tensor | np.ndarray) -> tuple[Tensor, str]:
    """Return a plain tensor of the same memory, and what is wrong with it; nothing for one that a network can have."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if type(value) not in (Tensor, nn.Parameter):
        return value, type(value).__name__
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
        return value, f"a {value.layout} tensor of {value.dtype} on {value.device}, expected plain numbers"
    if value.dtype not in _DTYPES:
        return value, f"{value.dtype}, expected real numbers of 8 to 64 bits"
    if value.ndim > _MAX_DIMENSIONS:
        return value, f"{value.ndim} dimensions"
    return torch.detach(value), ""  # not value.detach: a file can give a parameter an attribute of that name


def _check_unfolded(files: Sequence[Path], unfolded: int) -> None:
    """Refuse tensors that repeat the few numbers of a file so often that a copy of them fills the memory."""
    size = sum(file.stat().st_size for file in files)
    if unfolded > max(_MAX_UNFOLDED * size, _UNFOLDED_ANYHOW):
        raise WeightsError(
            f"{files[0]} has {size:,} bytes, and tensors that would unfold to {unfolded:,}; save them again "
            "with memory of their own: {name: tensor.clone() for name, tensor in state_dict.items()}"
        )
