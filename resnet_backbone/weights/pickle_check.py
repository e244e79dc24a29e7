"""Refusing pickles that are small on disk and endless in memory or time, before they are unpickled.

Which names a pickle may use is the business of the unpicklers. But plain containers alone can do harm, too: a tuple of
two tuples of two tuples, sixty deep, takes a hundred bytes, and whoever hashes it, as a dict does with its keys, never
comes back; and one of a million levels ends the process. Here the opcodes are counted and the sizes of tuples are
added up, without building any of them.
"""

from __future__ import annotations

import pickle
import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Collection
from mmap import mmap
from typing import IO, Any, NamedTuple

import torch

from resnet_backbone.weights.plain import STANDS_IN_FOR

MAX_OPCODES = 1_000_000  # a checkpoint of ResNet-152 with its optimizer has 40 000
MAX_TUPLE_ITEMS = 100_000  # with those of the tuples in it
MAX_TUPLE_DEPTH = 32
_MAX_NAMES = 1000  # of classes and functions; a training's checkpoint has a few dozen

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


def refuse_costly(stream: IO[bytes] | mmap) -> set[str]:
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
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]  # of mmap: it can read
            if count == MAX_OPCODES:
                raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES:,} opcodes, too many for a weight file")
            if opcode.name == "GLOBAL":
                names.add(_named_now(str(argument)))
                if len(names) > _MAX_NAMES:
                    raise pickle.UnpicklingError(f"it names more than {_MAX_NAMES:,} classes and functions")
            _step(opcode, argument, stack, memo)
    except (ValueError, IndexError, OverflowError) as error:
        raise pickle.UnpicklingError(f"it is no complete pickle: {str(error)[:200]}") from error
    return names


def _named_now(argument: str) -> str:
    """Return the name of Python 3 for what pickles of protocol 2 call ``"__builtin__ set"``, as torch does."""
    module, _, name = argument.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


class _StandIn(type):
    """What stands for a class that a torch file names. It is no code of anybody's: it keeps nothing and does nothing.

    torch's restricted unpickler makes an object in one of two ways. It asks for an empty one, and gives that its
    attributes or items: this is how argparse.Namespace and Lightning's AttributeDict are stored, and they become a dict
    that :func:`~resnet_backbone.weights.plain.is_plain` tells from others. Or it calls the class or function: only the
    few of ``_VALUES`` allow that.
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


def _step(opcode: pickletools.OpcodeInfo, argument: object, stack: list[_Item], memo: dict[int, _Item]) -> None:
    name = opcode.name
    if name == "MARK":
        stack.append(_MARK)
    elif name == "TUPLE":
        stack.append(_tuple_of(_pop_to_mark(stack)))
    elif name in _TUPLES:
        count = _TUPLES[name]
        stack.append(_tuple_of([stack.pop() for _ in range(count)]))
    elif name in _GETS:
        stack.append(memo.get(int(str(argument)), _SMALL))
    elif name in _PUTS:
        index = int(str(argument))
        if not 0 <= index < MAX_OPCODES:  # the unpickler makes a list of that length
            raise pickle.UnpicklingError(f"it numbers one of its objects {index:,}, which would fill the memory")
        memo[index] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name == "DUP":
        stack.append(stack[-1])
    else:
        _change_as_stated(opcode, stack)


def _change_as_stated(opcode: pickletools.OpcodeInfo, stack: list[_Item]) -> None:
    """Take from the stack what the opcode takes, and put small items there: no other opcode makes a tuple."""
    before = list(opcode.stack_before)
    if pickletools.markobject in before:
        _pop_to_mark(stack)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        stack.pop()
    stack += [_SMALL] * len(opcode.stack_after)


def _pop_to_mark(stack: list[_Item]) -> list[_Item]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items


def _tuple_of(items: list[_Item]) -> _Item:
    made = _Item(1 + sum(item.size for item in items), 1 + max((item.depth for item in items), default=0))
    if made.size > MAX_TUPLE_ITEMS or made.depth > MAX_TUPLE_DEPTH:
        raise pickle.UnpicklingError("it holds tuples in tuples that would take more time or memory than there is")
    return made
