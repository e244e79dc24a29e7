"""Refusing pickles that are small on disk and endless in memory or time, before they are unpickled.

Which names a pickle may use is the business of the unpicklers. But plain containers alone can do harm, too: a tuple of
two tuples of two tuples, sixty deep, takes a hundred bytes, and whoever hashes it, as a dict does with its keys, never
comes back; and one of a million levels ends the process. Here the opcodes are counted and the sizes of tuples are
added up, without building any of them.
"""

from __future__ import annotations

import pickle
import pickletools
from mmap import mmap
from typing import IO, NamedTuple

MAX_OPCODES = 1_000_000  # a checkpoint of ResNet-152 with its optimizer has 40 000
MAX_TUPLE_ITEMS = 100_000  # with those of the tuples in it
MAX_TUPLE_DEPTH = 32

_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


class _Item(NamedTuple):
    """Something on the unpickler's stack: how many items a hash of it visits, and how deep."""

    size: int = 1
    depth: int = 0


_SMALL, _MARK = _Item(), _Item(0)


def refuse_costly(stream: IO[bytes] | mmap) -> None:
    """Read one pickle from ``stream``, up to its end, and build nothing.

    Raises:
        pickle.UnpicklingError: it is damaged, or has more opcodes or larger tuples than any weight file needs.
    """
    stack: list[_Item] = []
    memo: dict[int, _Item] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]  # of mmap: it can read
            if count == MAX_OPCODES:
                raise pickle.UnpicklingError(f"it has more than {MAX_OPCODES:,} opcodes, too many for a weight file")
            _step(opcode, argument, stack, memo)
    except (ValueError, IndexError, OverflowError) as error:
        raise pickle.UnpicklingError(f"it is no complete pickle: {str(error)[:200]}") from error


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
