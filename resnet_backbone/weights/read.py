"""Reading a weight file of any of the usual formats without running code that it may hold."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from resnet_backbone.weights.array_pickle import read_array_pickle
from resnet_backbone.weights.errors import WeightsError, shorten

SUFFIXES = (".pth", ".pt", ".safetensors", ".pkl")
_WRAPPERS = ("model", "state_dict", "blobs")
_PLAIN = (str, int, float, bool, type(None))


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
    if suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_array_pickle(path) if suffix == ".pkl" else _read_torch(path)
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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a complete safetensors file ({error}); download it again") from error
    return _unwrap(path, tensors, metadata)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors, which is refused since loading it could run code.\n"
            "If it is your own, load it where you trust it and save the tensors alone: "
            'torch.save({"model": model.state_dict()}, "weights.pth")\n'
            f"Found: {_reason(error)}"
        ) from error
    except Exception as error:  # a damaged archive makes torch raise nearly anything
        raise WeightsError(f"{path} is not a complete torch file ({_reason(error)}); download it again") from error


def _reason(error: Exception) -> str:
    """Return the line of torch's long message that names what was refused, or the first one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__)


def _unwrap(path: Path, content: Any, metadata: Mapping[str, Any] | None = None) -> RawFile:
    metadata = dict(metadata or {})
    left_out: list[str] = []
    while isinstance(content, Mapping):
        wrapper = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        for key, value in content.items():
            if key == wrapper:
                continue
            if isinstance(key, str) and _is_plain(value):
                metadata[key] = value
            else:
                left_out.append(str(key))
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected names with tensors")

    tensors: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, value in content.items():
        if not isinstance(name, str):
            strange.append(f"{name!r}")
        elif name.endswith("_momentum"):
            left_out.append(name)
        elif isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(value)
        else:
            strange.append(f"{name} ({type(value).__name__})")
    if strange:
        raise WeightsError(f"{path}: expected nothing but names with tensors, found also {shorten(strange)}")
    if not tensors:
        raise WeightsError(f"{path} holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    metadata["left_out"] = sorted(left_out)
    return RawFile(tensors, metadata)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)
