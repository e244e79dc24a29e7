"""Reading a pickle of plain containers and numpy arrays, as Detectron and Detectron2 publish them, safely.

A pickle names the functions that rebuild its objects, and a hostile one names ``os.system``. Here every name but a few
is refused, and those few stand for the small classes below, so that neither numpy's nor anyone's code is reached.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.weights.errors import WeightsError


def read_array_pickle(path: Path) -> Any:
    """Return the containers in a ``.pkl`` file, with each array of numbers as a ``numpy.ndarray`` that owns its memory.

    Raises:
        WeightsError: the file is damaged, or holds anything but plain containers, numbers, text and arrays of numbers.
    """
    with path.open("rb") as file:
        try:
            return _plain_arrays(_ArrayUnpickler(file, encoding="latin1").load())
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"{path} is damaged, or holds more than arrays of numbers, which is refused since loading it could run "
                f"code ({error})"
            ) from error
        except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
            raise WeightsError(f"{path} is not a complete pickle ({error!r}); download it again") from error


class _DType:
    """Stands for ``numpy.dtype``: a type of numbers, and its byte order."""

    def __init__(self, typecode: Any = None, *_: Any) -> None:
        if not isinstance(typecode, str) or np.dtype(typecode).kind not in "fiub":
            raise pickle.UnpicklingError(f"it holds an array of {typecode!r}, expected numbers")
        self.dtype = np.dtype(typecode)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = state[1]
        if byte_order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds an array with byte order {byte_order!r}")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Stands for ``numpy.ndarray``: empty when named, filled by its state."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _from_bytes(data, dtype, shape, "F" if is_fortran else "C")


def _from_bytes(data: Any, dtype: Any, shape: tuple[int, ...], order: str) -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("it holds an array of something else than numbers")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise pickle.UnpicklingError(f"it holds an array of shape {shape} with {len(data)} bytes")
    native = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)  # type: ignore[call-overload]
    return native.astype(dtype.dtype.newbyteorder("="), order="C")


def _reconstruct(subtype: Any, *_: Any) -> _Array:
    if subtype is not _Array:
        raise pickle.UnpicklingError(f"it holds an array of type {subtype!r}")
    return _Array()


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    return _from_bytes(data, dtype, (), "C").item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it holds text in the encoding {encoding!r}")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    _allowed = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
        ("numpy.core.numeric", "_frombuffer"): _from_bytes,
        ("numpy._core.numeric", "_frombuffer"): _from_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._allowed[module, name]


def _plain_arrays(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        return {key: _plain_arrays(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_arrays(item) for item in value]
    return value
