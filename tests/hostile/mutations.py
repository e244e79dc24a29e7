"""Strategies that damage valid files, and that put together what no program would write."""

# ruff: noqa: E501  # tables of inputs, one a line
from __future__ import annotations

import struct
from collections.abc import Sequence

from hypothesis import strategies as st

from tests.hostile.weights import PICKLES, lists, text

_PIECES = [
    b"(", b")", b"}", b"]", b"N", b"\x88", b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"e", b"a", b"s", b"u", b"b", b"R",
    b"\x81", b"\x92", b"0", b"1", b"2", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"\x94", b"\x8f", b"\x90", b"\x91", b"Q",
    b"K\x04", b"J\xff\xff\xff\xff", b"\x8a\x08" + bytes(7) + b"\x7f", b"G" + struct.pack(">d", 1e308), b"C\x0412345678"[:6],
    b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n",
    b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"cnumpy.core.numeric\n_frombuffer\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_parameter\n",
    text("model"), text("conv1.weight"), text("f4"), text("latin1"), text("storage"), text("cpu"), b"cos\nsystem\n",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, valid: Sequence[bytes]) -> bytes:
    """A valid file with a few bytes changed, parts repeated, moved or taken from another one, or the end cut off."""
    content = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
        match draw(st.sampled_from(["flip", "number", "cut", "repeat", "remove", "splice"])):
            case "flip" if content:
                content[at] ^= draw(st.integers(1, 255))
            case "number":
                value = draw(st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
                content[at : at + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", value)
            case "cut":
                del content[at:]
            case "repeat":
                content[at:at] = content[at : at + length] * draw(st.integers(1, 20))
            case "remove":
                del content[at : at + length]
            case _:
                other = draw(st.sampled_from(valid))
                begin = draw(st.integers(0, len(other)))
                content[at:at] = other[begin : begin + length]
    return bytes(content)


def pickles() -> st.SearchStrategy[bytes]:
    """Opcodes in any order, among them those of the hostile files."""
    pieces = st.sampled_from([*_PIECES, *PICKLES.values(), lists(30)])
    return st.lists(st.sampled_from(_PIECES) | pieces, max_size=40).map(
        lambda parts: b"\x80\x02" + b"".join(parts) + b"."
    )


def json_values() -> st.SearchStrategy[object]:
    """What JSON can say, with numbers beyond those of a float."""
    plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    return st.recursive(
        plain | st.just(10**400),
        lambda inner: (
            st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "size", "counts", "a"]), inner)
        ),
        max_leaves=8,
    )


def yaml_texts() -> st.SearchStrategy[bytes]:
    """Pieces of YAML in any order."""
    pieces = ["MODEL:", "SOLVER:", "MAX_ITER", ": ", "\n", "  ", "{", "}", "[", "]", "- ", "&a ", "*a", "<<", "!!int ", "!!map ",
              "!!python/name:os.system ", "_BASE_: ", "c.yaml", "5", "~", ".nan", "'", '"', "|", ">", "%", "? ", "---", "#", ","]  # fmt: skip
    return st.lists(st.sampled_from(pieces), max_size=40).map(lambda parts: "".join(parts).encode())
