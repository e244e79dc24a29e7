"""Reading pickles and zip containers of weights without running code from them, in bounded time and memory.

A pickle names the functions that rebuild its objects, and a hostile one names ``os.system``. Here every name but a few
is refused, and those few stand for small classes that only keep what they are given; arrays are made of it afterwards.

Plain containers alone can do harm, too: a tuple of two tuples of two tuples, sixty deep, takes a hundred bytes, and
whoever hashes it, as a dict does with its keys, never comes back. So the opcodes are counted and the sizes of tuples
added up before anything is built.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from resnet_backbone.files.text import walk
from resnet_backbone.weights.errors import WeightsError

MAX_ITEMS = 1_000_000
MAX_DEPTH = 32
STANDS_IN_FOR = "stands_in_for"  # attribute of a dict in place of an object of another class
_PLAIN = (str, int, float, bool, type(None))
MAX_OPCODES = 1_000_000  # a checkpoint of ResNet-152 with its optimizer has 40 000
MAX_TUPLE_ITEMS = 100_000  # with those of the tuples in it
MAX_TUPLE_DEPTH = 32
_MAX_NAMES = 1000  # of classes and functions; a training's checkpoint has a few dozen

_MAX_DIMENSIONS = 32
_MAX_UNFOLDED = 8  # bytes of all arrays for a byte of the file, whose arrays may share their bytes
_UNFOLDED_ANYHOW = 1 << 26
_TYPECODES = {"b1", "?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"}

MAGIC = b"PK\x03\x04"  # of a zip file, and what its last record begins with
_END = b"PK\x05\x06"
_END_BYTES = 22
_MAX_RECORDS = 200_000


def is_plain_data(value: Any, budget: list[int] | None = None) -> bool:
    """Return whether ``value`` is text, a number, or lists and dicts with text as keys of such, of a bearable size.

    ``budget`` is as of :func:`~resnet_backbone.files.text.walk`, by default MAX_ITEMS.
    """
    try:
        return all(map(_is_plain, walk(value, [MAX_ITEMS] if budget is None else budget, MAX_DEPTH)))
    except ValueError:
        return False


def _is_plain(item: Any) -> bool:
    if isinstance(item, dict):
        return not stands_in_for(item) and all(isinstance(key, str) for key in dict.keys(item))
    return isinstance(item, (*_PLAIN, list, tuple))


def stands_in_for(value: Any) -> str:
    """Return the class of the object that a file had here; "" where ``value`` is what the file had."""
    return str(getattr(value, "__dict__", {}).get(STANDS_IN_FOR, ""))


def shown(key: Any, length: int = 80) -> str:
    """Return a name for a message: short, and of a key that is no text not more than its type where it may be long."""
    if isinstance(key, str):
        return key if len(key) <= length else f"{key[:length]}..."
    if isinstance(key, float | bool | type(None)) or (isinstance(key, int) and key.bit_length() <= 64):
        return repr(key)
    return f"a key of type {type(key).__name__}"


# What may be called to make a value that is left out, and is not called either: a number, a path, a time.
_NUMPY = [f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")]
_PATHS = [f"pathlib{part}.{name}Path" for part in ("", "._local") for name in ("Posix", "PurePosix", "Windows")]
_TIMES = [f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")]
_DICTS = ("collections.defaultdict",)
_VALUES = {"numpy.dtype", *_NUMPY, *_PATHS, *_TIMES, *_DICTS}

_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


class _Item(NamedTuple):
    """Something on the unpickler's stack: how many items a hash of it visits, and how deep."""

    size: int = 1
    depth: int = 0


_SMALL, _MARK = _Item(), _Item(0)


def check_cost(stream: IO[bytes] | mmap.mmap) -> set[str]:
    """Read one pickle from ``stream``, up to its end, and build nothing.

    Returns:
        The classes and functions that it names, as in ``"argparse.Namespace"``.

    Raises:
        pickle.UnpicklingError: it is damaged, or has more opcodes or larger tuples than any weight file needs.
    """
    names: set[str] = set()
    stack: list[_Item] = []
    memo: dict[int, _Item] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]  # mmap reads
            if count == MAX_OPCODES:
                raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES:,} opcodes, too many for a weight file")
            if opcode.name == "GLOBAL":  # "__builtin__ set" in pickles of protocol 2, which torch reads as Python 3's
                module, _, name = str(argument).partition(" ")
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                names.add(f"{module}.{name}")
                if len(names) > _MAX_NAMES:
                    raise pickle.UnpicklingError(f"it names more than {_MAX_NAMES:,} classes and functions")
            _step(opcode, argument, stack, memo)
    except (ValueError, IndexError, OverflowError) as error:
        raise pickle.UnpicklingError(f"it is no complete pickle: {str(error)[:200]}") from error
    return names


class _StandIn(type):
    """What stands for a class that a torch file names: it keeps nothing and does nothing.

    torch's restricted unpickler asks it for an empty object, whose attributes or items it then sets: that is a dict
    here, of argparse.Namespace, say. Or it calls the class or function: only those of ``_VALUES`` allow it.
    """

    def __call__(cls, *_: Any) -> Any:
        if cls.__name__ in _DICTS:
            return {}
        if cls.__name__ not in _VALUES:
            raise pickle.UnpicklingError(f"it calls {cls.__name__}")
        return object.__new__(cls)  # type: ignore[arg-type]


def _empty(cls: type, *_: Any) -> OrderedDict[Any, Any]:
    made: OrderedDict[Any, Any] = OrderedDict()
    setattr(made, STANDS_IN_FOR, cls.__name__)
    return made


def _forget(self: object, state: object) -> None:
    """In place of ``__setstate__``."""


def stand_ins(names: Collection[str]) -> list[Any]:
    """Return inert stand-ins for ``torch.serialization.safe_globals``, but for what the user has declared safe.

    What torch itself knows, such as the functions that rebuild tensors, goes before these.
    """
    declared = torch.serialization.get_safe_globals()
    known = {one[1] if isinstance(one, tuple) else f"{one.__module__}.{one.__qualname__}" for one in declared}
    members = {"__new__": _empty, "__setstate__": _forget, "__slots__": ()}
    return [(_StandIn(name, (), dict(members)), name) for name in sorted(set(names) - known)]


def _step(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[_Item], memo: dict[int, _Item]) -> None:
    name = opcode.name
    if name in _PUTS:
        if not 0 <= argument < MAX_OPCODES:  # the unpickler makes a list of that length
            raise pickle.UnpicklingError(f"it numbers one of its objects {argument:,}, which would fill the memory")
        memo[argument] = stack[-1]
    elif name in _GETS:
        stack.append(memo.get(argument, _SMALL))
    elif name in _TUPLES:
        stack.append(_tuple_of([stack.pop() for _ in range(_TUPLES[name])]))
    elif name == "TUPLE":
        stack.append(_tuple_of(_pop_to_mark(stack)))
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name == "DUP":
        stack.append(stack[-1])
    else:  # no other opcode makes a tuple
        to_mark, taken, put = _EFFECTS[name]
        if to_mark:
            _pop_to_mark(stack)
        for _ in range(taken):
            stack.pop()
        stack += [_SMALL] * put


def _effect_of(opcode: pickletools.OpcodeInfo) -> tuple[bool, int, int]:
    """Whether an opcode takes all down to the last mark, how many items it takes below that, and puts there."""
    before = list(opcode.stack_before)
    to_mark = pickletools.markobject in before
    return to_mark, before.index(pickletools.markobject) if to_mark else len(before), len(opcode.stack_after)


_EFFECTS = {opcode.name: _effect_of(opcode) for opcode in pickletools.opcodes}


def _pop_to_mark(stack: list[_Item]) -> list[_Item]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items


def _tuple_of(items: list[_Item]) -> _Item:
    made = _Item(1 + sum([item.size for item in items]), 1 + max([item.depth for item in items], default=0))
    if made.size > MAX_TUPLE_ITEMS or made.depth > MAX_TUPLE_DEPTH:
        raise pickle.UnpicklingError("it holds tuples in tuples that would take more time or memory than there is")
    return made


def read_array_pickle(path: Path) -> Any:
    """Return the containers in a ``.pkl`` file, with each array of numbers as a ``numpy.ndarray`` that owns its memory.

    Raises:
        WeightsError: the file is damaged, or holds anything but plain containers, numbers, text and arrays of numbers.
    """
    with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        try:
            check_cost(content)
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


class _Kept:
    """What a call in a pickle leaves of one of the few functions that it may call: its arguments and its state."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayType(_Kept):
    """``numpy.ndarray``, which ``_reconstruct`` is called with."""


class _DType(_Kept):
    """``numpy.dtype``, whose state has the byte order."""


class _Bytes(_Kept):
    """``_codecs.encode``, by which protocol 2 writes bytes as text."""


class _Reconstruct(_Kept):
    """An array, whose state has shape, type and numbers."""


class _FromBuffer(_Kept):
    """An array of its arguments."""


class _Scalar(_Kept):
    """A number of its arguments."""


class _OrderedDict(dict):
    """A dict in the order of its file, without attributes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it gives a dict a state, which no weight file does")


class _ArrayUnpickler(pickle.Unpickler):
    _allowed = {
        "numpy.ndarray": _ArrayType,
        "numpy.dtype": _DType,
        "_codecs.encode": _Bytes,
        "collections.OrderedDict": _OrderedDict,
        **{f"numpy.{core}.multiarray._reconstruct": _Reconstruct for core in ("core", "_core")},
        **{f"numpy.{core}.multiarray.scalar": _Scalar for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": _FromBuffer for core in ("core", "_core")},
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._allowed:
            raise pickle.UnpicklingError(f"it names {ascii(f'{module}.{name}'[:160])[1:-1]}")
        return self._allowed[f"{module}.{name}"]


class _Arrays:
    """Makes arrays of what was kept in containers, of at most ``room`` bytes. What is shared stays shared."""

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
        elif isinstance(value, _Reconstruct | _FromBuffer):
            made = self._array(value)
        elif isinstance(value, _Scalar):
            made = self._array(value).item()
        elif isinstance(value, _Bytes):
            made = _text(value)  # its bytes are of no use here
        else:
            return value
        self.made[id(value)] = made
        return made

    def _array(self, kept: _Kept) -> np.ndarray:
        """Return an array that owns its memory, in the byte order of this machine."""
        shape: tuple[int, ...] = ()
        order = "C"
        if isinstance(kept, _FromBuffer):
            data, dtype, shape, order = kept.arguments
        elif isinstance(kept, _Scalar):
            dtype, data = kept.arguments
        else:
            if kept.arguments[0] is not _ArrayType:
                raise pickle.UnpicklingError("it holds an array of another type than numpy.ndarray")
            if kept.state is None:
                raise pickle.UnpicklingError("it holds an array without numbers")
            _, shape, dtype, is_fortran, data = kept.state
            order = "F" if is_fortran else "C"
        numbers, data = _numbers(dtype), _text(data) if isinstance(data, _Bytes) else data
        if not isinstance(data, str | bytes | bytearray) or order not in ("C", "F"):
            raise pickle.UnpicklingError("it holds an array of something else than numbers")
        if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS or not all(type(side) is int for side in shape):
            raise pickle.UnpicklingError("it holds an array whose shape is no tuple of whole numbers")
        if min(shape, default=0) < 0 or math.prod(shape) * numbers.itemsize != len(data):
            raise pickle.UnpicklingError(f"it holds an array of shape {str(shape)[:200]} with {len(data)} bytes")
        self.room -= len(data)
        if self.room < 0:
            raise pickle.UnpicklingError("its arrays share their numbers, and would unfold to many times the file")
        buffer = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as text
        read = np.frombuffer(buffer, numbers).reshape(shape, order=order)  # type: ignore[call-overload]
        return read.astype(numbers.newbyteorder("="), order="C")


def _numbers(kept: Any) -> np.dtype:
    typecode = kept.arguments[0] if isinstance(kept, _DType) else None
    byte_order = kept.state[1] if typecode and kept.state else None
    known = isinstance(typecode, str) and typecode.lstrip("<>=|") in _TYPECODES
    if not known or byte_order not in ("<", ">", "|", "=", None):
        raise pickle.UnpicklingError("it holds an array of something else than numbers")
    dtype = np.dtype(typecode)
    return dtype if byte_order is None else dtype.newbyteorder(byte_order)


def _text(kept: _Bytes) -> str:
    text, encoding = kept.arguments
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("it holds text in another encoding than latin1")
    return text


def check_torch_zip(path: Path) -> set[str]:
    """Refuse what ``torch.save`` does not write and what could fill the memory.

    Records are stored as they are, without compression, so that all of them together fit into the file.

    Returns:
        The classes and functions that its pickles name.

    Raises:
        zipfile.BadZipFile: the container is damaged.
        pickle.UnpicklingError: it is not as ``torch.save`` writes it, or see :func:`check_cost`.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(-min(_END_BYTES, file_bytes), os.SEEK_END)
        end = file.read()
    # Zip readers search for the end record, each in its own way: here it stands where all of them look first.
    if not end.startswith(_END) or len(end) < _END_BYTES:
        raise zipfile.BadZipFile("the list of records at its end is missing")
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = [record.filename.lower() for record in records]  # as torch looks records up
        _check_kind(names)
        if len(records) > _MAX_RECORDS:
            raise pickle.UnpicklingError(f"it has {len(records):,} records, at most {_MAX_RECORDS:,} were expected")
        for record in records:
            _check_record(record, file_bytes)
        if sum(record.file_size for record in records) > file_bytes:
            raise pickle.UnpicklingError("its records overlap: together they are larger than the file")
        if len(set(names)) < len(names):
            raise pickle.UnpicklingError("two of its records have the same name")
        pickles = [record for record, name in zip(records, names, strict=True) if name.endswith(".pkl")]
        return set().union(*(check_cost(io.BytesIO(archive.read(record))) for record in pickles))


def _check_kind(names: list[str]) -> None:
    if any(name.endswith("/constants.pkl") for name in names):
        raise pickle.UnpicklingError(
            "it is a program of TorchScript, code and all; save the state_dict() of the network that it was made of"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise zipfile.BadZipFile(f"it is a zip file, but not of torch.save: it holds {names[:3]}")


def _check_record(record: zipfile.ZipInfo, file_bytes: int) -> None:
    name = record.orig_filename[:80]
    if record.orig_filename != record.filename or not record.filename.isprintable():
        raise pickle.UnpicklingError(f"the name of its record {name!r} is damaged")
    if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
        raise pickle.UnpicklingError(f"its record {name!r} is compressed, which torch.save never does")
    if record.flag_bits & 1:
        raise pickle.UnpicklingError(f"its record {name!r} is encrypted")
    if record.header_offset + record.file_size > file_bytes:
        raise pickle.UnpicklingError(f"its record {name!r} is larger than the file")
