"""Reading a weight file of any of the usual formats without running code that it may hold."""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from resnet_backbone.weights.array_pickle import read_array_pickle
from resnet_backbone.weights.errors import WeightsError, shorten
from resnet_backbone.weights.pickle_check import refuse_costly
from resnet_backbone.weights.plain import MAX_ITEMS, is_plain, shown
from resnet_backbone.weights.torch_zip import MAGIC, check_torch_zip

SUFFIXES = (".pth", ".pt", ".th", ".safetensors", ".pkl")
_WRAPPERS = ("model", "state_dict", "blobs")
_MAX_WRAPPINGS = 8
_MAX_TENSORS = 200_000
_MAX_DIMENSIONS = 8
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
        tensors: name as in the file (without ``module.``) to tensor, on the CPU. They may be mapped from the file.
        metadata: what was stored beside the tensors, in plain containers. ``metadata["left_out"]`` lists what was
            not kept: optimizer states, a second model, momentum blobs.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read_file(path: str | Path) -> RawFile:
    """Read ``.pth`` and ``.pt`` (torch), ``.safetensors``, or ``.pkl`` (Detectron, Detectron2: arrays of numpy).

    ``{"model": ...}``, ``{"state_dict": ...}`` and ``{"blobs": ...}`` are unwrapped, and ``module.`` is taken off.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: another ending, a file that is damaged or no weight file, or one that holds more than tensors and
            plain values. Nothing in the file is executed in any case.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise WeightsError(f"{path}: a weight file ends in one of {', '.join(SUFFIXES)}, not {path.suffix!r}")
    _refuse_text(path)
    return _bounded(path, _read(path, suffix))


def _read(path: Path, suffix: str) -> RawFile:
    if suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_array_pickle(path) if suffix == ".pkl" else _load_torch(path, mapped=True)
    return _unwrap(path, content)


def _refuse_text(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if not head:
        raise WeightsError(f"{path} is empty; download it again")
    if head.startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not a weight file; the address that it came from has changed")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull`")


def _read_safetensors(path: Path) -> RawFile:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = list(file.keys())
            if len(names) > _MAX_TENSORS:
                raise WeightsError(f"{path} names {len(names):,} tensors, at most {_MAX_TENSORS:,} were expected")
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = dict(file.metadata() or {})
    except WeightsError:
        raise
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a complete safetensors file ({_reason(error)}); download it again"
        ) from error
    except Exception as error:  # torch, of a type of numbers that it does not know
        raise WeightsError(f"{path} holds tensors that torch cannot read ({_reason(error)})") from error
    return _unwrap(path, tensors, metadata)


def read_torch_file(path: Path, *, mapped: bool) -> Any:
    """Read whatever ``torch.save`` wrote: tensors in plain containers, however deep, such as a training's checkpoint.

    Args:
        path: of the file.
        mapped: leave the tensors on the disk until they are used, in a file of torch's present format.

    Raises:
        WeightsError: it is damaged, or holds more than that. Nothing in it is executed in any case.
    """
    content = _load_torch(path, mapped=mapped)
    total, seen, waiting = 0, 0, [content]
    while waiting:
        item, seen = waiting.pop(), seen + 1
        if isinstance(item, Tensor):
            tensor, fault = _as_tensor(item)
            if fault:
                raise WeightsError(f"{path} holds a tensor that no network has: {fault}")
            total += tensor.numel() * tensor.element_size()
        elif isinstance(item, dict | list | tuple):
            waiting += [*_items(item), *_items(item).values()] if isinstance(item, dict) else item
        elif not is_plain(item):
            raise WeightsError(f"{path} holds a {type(item).__name__}, expected tensors and plain values")
        if seen > MAX_ITEMS:
            raise WeightsError(f"{path} holds more than {MAX_ITEMS:,} values")
    _check_unfolded(path, total)
    return content


def _load_torch(path: Path, *, mapped: bool) -> Any:
    try:
        zipped = _refuse_costly_torch(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped and mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors, which is refused since loading it could run code.\n"
            "If it is your own, load it where you trust it and save the tensors alone: "
            'torch.save({"model": model.state_dict()}, "weights.pth")\n'
            f"Found: {_reason(error)}"
        ) from error
    except Exception as error:  # a damaged archive makes torch raise nearly anything
        raise WeightsError(f"{path} is not a complete torch file ({_reason(error)}); download it again") from error


def _refuse_costly_torch(path: Path) -> bool:
    """Look over the container and its pickles; return whether it is a zip file, as torch tells it."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            check_torch_zip(path)
            return True
        with closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            for _ in range(_LEGACY_PICKLES):
                refuse_costly(content)
    return False


def _reason(error: Exception) -> str:
    """Return the line of torch's long message that names what was refused, or the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__)
    return line[:500]


def _unwrap(path: Path, content: Any, metadata: Mapping[str, Any] | None = None) -> RawFile:
    metadata = dict(metadata or {})
    left_out: list[str] = []
    for _ in range(_MAX_WRAPPINGS):
        items = _items(content)
        wrapper = next((key for key in _WRAPPERS if isinstance(items.get(key), dict)), None)
        if wrapper is None:
            break
        for key, value in items.items():
            if key == wrapper:
                continue
            if isinstance(key, str) and is_plain(value):
                metadata[key] = value
            else:
                left_out.append(shown(key))
        content = items[wrapper]
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected names with tensors")

    tensors: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, value in _items(content).items():
        if not isinstance(name, str):
            strange.append(shown(name))
        elif name.endswith("_momentum"):
            left_out.append(name)
        elif isinstance(value, Tensor | np.ndarray):
            tensor, fault = _as_tensor(value)
            if fault:
                strange.append(f"{shown(name)} ({fault})")
            tensors[name] = tensor
        else:
            strange.append(f"{shown(name)} ({type(value).__name__})")
    if strange:
        raise WeightsError(f"{path}: expected nothing but names with tensors, found also {shorten(strange)}")
    if not tensors:
        raise WeightsError(f"{path} holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    metadata["left_out"] = sorted(left_out)
    return RawFile(tensors, metadata)


def _items(content: Any) -> dict[Any, Any]:
    """Return what a dict holds, whatever attributes a file gave it: an OrderedDict can bring its own ``items``."""
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


def _bounded(path: Path, raw: RawFile) -> RawFile:
    """Refuse tensors that repeat the few numbers of a file so often that a copy of them fills the memory."""
    _check_unfolded(path, sum(tensor.numel() * tensor.element_size() for tensor in raw.tensors.values()))
    if len(raw.tensors) > _MAX_TENSORS:
        raise WeightsError(f"{path} holds {len(raw.tensors):,} tensors, at most {_MAX_TENSORS:,} were expected")
    return raw


def _check_unfolded(path: Path, unfolded: int) -> None:
    if unfolded > max(_MAX_UNFOLDED * path.stat().st_size, _UNFOLDED_ANYHOW):
        raise WeightsError(
            f"{path} has {path.stat().st_size:,} bytes, and tensors that would unfold to {unfolded:,}; save them again "
            "with memory of their own: {name: tensor.clone() for name, tensor in state_dict.items()}"
        )
