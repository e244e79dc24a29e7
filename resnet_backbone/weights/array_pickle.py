"""Reading a pickle of plain containers and numpy arrays, as Detectron and Detectron2 publish them, safely.

A pickle names the functions that rebuild its objects, and a hostile one names ``os.system``. Here every name but a few
is refused, and those few stand for the small classes below, so that neither numpy's nor anyone's code is reached. They
only keep what they are given; arrays are made of it after everything has been read, and counted.
"""

from __future__ import annotations

import math
import mmap
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.pickle_check import refuse_costly
from resnet_backbone.weights.plain import MAX_DEPTH

_MAX_DIMENSIONS = 32
_MAX_UNFOLDED = 8  # bytes of all arrays for a byte of the file, whose arrays may share their bytes
_UNFOLDED_ANYHOW = 1 << 26
_TYPECODES = {"b1", "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}


def read_array_pickle(path: Path) -> Any:
    """Return the containers in a ``.pkl`` file, with each array of numbers as a ``numpy.ndarray`` that owns its memory.

    Raises:
        WeightsError: the file is damaged, or holds anything but plain containers, numbers, text and arrays of numbers.
    """
    with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        try:
            refuse_costly(content)
            content.seek(0)
            read = _ArrayUnpickler(content, encoding="latin1").load()
            return _Arrays(max(_MAX_UNFOLDED * len(content), _UNFOLDED_ANYHOW)).of(read)
        except pickle.UnpicklingError as error:
            raise WeightsError(
                f"{path} is damaged, or holds more than arrays of numbers, which is refused since loading it could run "
                f"code ({str(error)[:500]})"
            ) from error
        except Exception as error:  # a damaged pickle makes the unpickler raise nearly anything
            reason = f"{type(error).__name__}: {error}"[:500]
            raise WeightsError(f"{path} is not a complete pickle ({reason}); download it again") from error


class _StandIn:
    """What a pickle may name. It has no attributes that the pickle could set beside its own state."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(
            f"it gives a {type(self).__name__.strip('_').lower()} a state that it does not have"
        )


class _DType(_StandIn):
    """Stands for ``numpy.dtype``: a type of numbers, and its byte order."""

    __slots__ = ("dtype",)

    def __init__(self, typecode: Any = None, *_: Any) -> None:
        if not isinstance(typecode, str) or typecode.lstrip("<>=|") not in _TYPECODES:
            raise pickle.UnpicklingError(f"it holds an array of {_brief(typecode)}, expected numbers")
        self.dtype = np.dtype(typecode)

    def __setstate__(self, state: Any) -> None:
        byte_order = state[1]
        if byte_order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds an array with byte order {_brief(byte_order)}")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Bytes(_StandIn):
    """Stands for ``_codecs.encode``, by which protocol 2 writes bytes as text."""

    __slots__ = ("text",)

    def __init__(self, text: Any, encoding: Any) -> None:
        if encoding != "latin1" or not isinstance(text, str):
            raise pickle.UnpicklingError(f"it holds text in the encoding {_brief(encoding)}")
        self.text = text


class _Array(_StandIn):
    """Stands for ``numpy.ndarray``: empty when named, filled by its state."""

    __slots__ = ("data", "dtype", "order", "shape")

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, is_fortran, self.data = state
        self.order = "F" if is_fortran else "C"
        self.dtype = _numbers(dtype)


class _Reconstruct(_StandIn):
    """Stands for numpy's ``_reconstruct``: makes an empty array."""

    __slots__ = ()

    def __new__(cls, subtype: Any, *_: Any) -> Any:
        if subtype is not _Array:
            raise pickle.UnpicklingError(f"it holds an array of type {_brief(subtype)}")
        return _Array()


class _FromBuffer(_StandIn):
    """Stands for numpy's ``_frombuffer``: makes a filled array."""

    __slots__ = ()

    def __new__(cls, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
        array = _Array()
        array.data, array.shape, array.dtype, array.order = data, shape, _numbers(dtype), order
        return array


class _Scalar(_StandIn):
    """Stands for numpy's ``scalar``: makes a number."""

    __slots__ = ()

    def __new__(cls, dtype: Any, data: Any) -> Any:
        array = _Array()
        array.data, array.shape, array.dtype, array.order = data, (), _numbers(dtype), "C"
        return _to_numpy(array).item()


class _OrderedDict(_StandIn, dict):
    """A dict in the order of its file."""

    __slots__ = ()


class _ArrayUnpickler(pickle.Unpickler):
    _allowed = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _Bytes,
        ("collections", "OrderedDict"): _OrderedDict,
        ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
        ("numpy.core.multiarray", "scalar"): _Scalar,
        ("numpy._core.multiarray", "scalar"): _Scalar,
        ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
        ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {_brief(module)}.{_brief(name)}".replace("'", ""))
        return self._allowed[module, name]


def _numbers(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _DType):
        raise pickle.UnpicklingError("it holds an array of something else than numbers")
    return dtype.dtype


def _to_numpy(array: _Array) -> np.ndarray:
    """Return an array that owns its memory, in the byte order of this machine."""
    data, shape = array.data, array.shape
    text = data.text if isinstance(data, _Bytes) else data
    if not isinstance(text, str | bytes | bytearray) or array.order not in ("C", "F"):
        raise pickle.UnpicklingError("it holds an array of something else than numbers")
    if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS or not all(type(side) is int for side in shape):
        raise pickle.UnpicklingError("it holds an array whose shape is no tuple of whole numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * array.dtype.itemsize != len(text):
        raise pickle.UnpicklingError(f"it holds an array of shape {str(shape)[:200]} with {len(text)} bytes")
    buffer = text.encode("latin1") if isinstance(text, str) else text  # Python 2 wrote bytes as text
    read = np.frombuffer(buffer, array.dtype).reshape(shape, order=array.order)  # type: ignore[call-overload]
    return read.astype(array.dtype.newbyteorder("="), order="C")


class _Arrays:
    """Replaces the stand-ins in containers. What is shared stays shared; ``room`` bytes of arrays may be made."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.made: dict[int, Any] = {}

    def of(self, value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f"its containers are nested more than {MAX_DEPTH} deep")
        if id(value) in self.made:
            return self.made[id(value)]
        if isinstance(value, dict):
            made: Any = {key: self.of(item, depth + 1) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            made = [self.of(item, depth + 1) for item in value]
        elif isinstance(value, _Array):
            made = self._array(value)
        elif isinstance(value, _Bytes):
            made = value.text  # its bytes are of no use here
        else:
            return value
        self.made[id(value)] = made
        return made

    def _array(self, value: _Array) -> np.ndarray:
        if not hasattr(value, "data"):
            raise pickle.UnpicklingError("it holds an array without numbers")
        self.room -= len(value.data.text if isinstance(value.data, _Bytes) else value.data)
        if self.room < 0:
            raise pickle.UnpicklingError("its arrays share their numbers, and would unfold to many times the file")
        return _to_numpy(value)


def _brief(value: Any) -> str:
    return (
        repr(value[:80]) if isinstance(value, str) else repr(value)[:80] if isinstance(value, type) else "another kind"
    )
