"""Weight files as an attacker makes them."""

# ruff: noqa: E501  # tables of inputs, one a line
from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import safetensors.torch
import torch

from resnet_backbone.weights.read import read_file
from resnet_backbone.weights.source import read_weights
from tests.hostile.case import MARKER, Case, unique

TENSORS = {"conv1.weight": torch.ones(4, 3, 7, 7), "bn1.weight": torch.ones(4)}
TOUCH = f"touch {MARKER}".encode()
ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR(I1\n%s(cnumpy\ndtype\n(%sI0\nI1\ntR"
    b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\n%stb"
)


def torch_bytes(content: Any, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def zipped_pickle(payload: bytes, storage: bytes = bytes(16), **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in {
            "data.pkl": payload,
            "byteorder": b"little",
            "data/0": storage,
            "version": b"3\n",
        }.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def storage_id(kind: bytes = b"FloatStorage", numel: bytes = b"K\x04", key: str = "0") -> bytes:
    return b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + numel + b"tQ"


def long(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def rebuilt(size: bytes, stride: bytes, offset: bytes = b"K\x00", storage: bytes | None = None) -> bytes:
    """A torch pickle of one tensor made by hand."""
    made = b"ctorch._utils\n_rebuild_tensor_v2\n((" + (storage or storage_id())[1:] + offset + size + stride
    return b"\x80\x02}" + text("conv1.weight") + made + b"\x89ccollections\nOrderedDict\n)RtRs."


def laughs(levels: int = 60, make: bytes = b"h%ch%c\x86") -> bytes:
    """A pickle of containers, each of which holds the one before twice."""
    body = b"".join(make % (level, level) + b"q" + bytes([level + 1]) for level in range(levels))
    return b"\x80\x02)q\x00" + body


def lists(levels: int) -> bytes:
    return b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (level, level, level + 1) for level in range(levels))


PICKLES: dict[str, bytes] = {
    "os-system-protocol-0": b"cos\nsystem\n(S'" + TOUCH + b"'\ntR.",
    "os-system-stack-global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x10" + TOUCH.ljust(16) + b"\x85R.",
    "posix-system": b"cposix\nsystem\n(S'" + TOUCH + b"'\ntR.",
    "inst": b"(S'" + TOUCH + b"'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'" + TOUCH + b"'\no.",
    "newobj": b"\x80\x02csubprocess\nPopen\n" + text(TOUCH.decode()) + b"\x85\x81.",
    "newobj-ex": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92.",
    "dotted-stack-global": b"\x80\x04\x8c\x05numpy\x8c\x13ctypeslib.os.system\x93\x8c\x10"
    + TOUCH.ljust(16)
    + b"\x85R.",
    "numpy-load": b"cnumpy\nload\n(S'x'\ntR.",
    "numpy-runstring": b"cnumpy.testing._private.utils\nrunstring\n(S'1'\n(dtR.",
    "fullwidth-module": b"c" + "ｎumpy".encode() + b"\nndarray\n.",
    "homoglyph-name": b"cnumpy\n" + "ndаrray".encode() + b"\n.",
    "zero-width-module": b"\x80\x04\x8c\x06" + "os\u200b"[:3].encode()[:6].ljust(6) + b"\x8c\x06system\x93.",
    "builtins-getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'__class__'\ntR.",
    "python-2-builtin": b"c__builtin__\neval\n(S'1'\ntR.",
    "ext1": b"\x80\x02\x82\x01.",
    "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "persid": b"Pevil\n.",
    "binpersid": b"\x80\x02" + text("evil") + b"Q.",
    "next-buffer": b"\x80\x05\x97.",
    "readonly-buffer": b"\x80\x05\x98.",
    "proto-99": b"\x80\x63}.",
    "build-on-class": b"cnumpy\nndarray\n(dS'x'\nI1\nsb.",
    "build-slots-on-class": b"ccollections\nOrderedDict\n(N(dS'__iter__'\nI1\nstb.",
    "build-slots-on-function": b"cnumpy._core.multiarray\n_reconstruct\n(N(dS'__defaults__'\nI1\nstb.",
    "build-on-encode": b"c_codecs\nencode\n(N(dS'__code__'\nI1\nstb.",
    "build-attribute-items": b"ccollections\nOrderedDict\n)R(dS'items'\nI5\nsb.",
    "build-number": b"I1\n(dS'x'\nI1\nsb.",
    "dtype-object": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"S'O8'\n", b"C\x0812345678") + b"s.",
    "dtype-subarray": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"S'(1000000000,)f4'\n", b"C\x0812345678") + b"s.",
    "dtype-structured": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"S'f4,f4'\n", b"C\x0812345678") + b"s.",
    "dtype-datetime": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"S'M8[s]'\n", b"C\x0812345678") + b"s.",
    "dtype-complex": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"S'c8'\n", b"C\x0812345678") + b"s.",
    "dtype-longdouble": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"S'f16'\n", b"C\x1012345678abcdefgh") + b"s.",
    "dtype-parentheses": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"S'" + b"(" * 50000 + b"'\n", b"C\x0812345678") + b"s.",
    "dtype-number": b"(dS'a'\n" + ARRAY % (b"(I1\nt", b"I5\n", b"C\x0812345678") + b"s.",
    "dtype-state-number": b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntRI5\nb.",
    "dtype-state-order": b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'?'\ntb.",
    "array-unfilled": b"(dS'a'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntRs.",
    "array-class-as-value": b"(dS'a'\ncnumpy\nndarray\ns.",
    "array-shape-negative": b"(dS'a'\n" + ARRAY % (b"(I-1\nI-2\nt", b"S'f4'\n", b"C\x0812345678") + b"s.",
    "array-shape-list": b"(dS'a'\n" + ARRAY % (b"(I2\nl", b"S'f4'\n", b"C\x0812345678") + b"s.",
    "array-shape-float": b"(dS'a'\n" + ARRAY % (b"(F2.0\nt", b"S'f4'\n", b"C\x0812345678") + b"s.",
    "array-shape-huge": b"(dS'a'\n" + ARRAY % (b"(" + long(2**62) * 9 + b"t", b"S'f4'\n", b"C\x0812345678") + b"s.",
    "array-shape-thousand-sides": b"(dS'a'\n"
    + ARRAY % (b"(" + b"K\x01" * 1000 + b"t", b"S'f8'\n", b"C\x0812345678")
    + b"s.",
    "array-data-number": b"(dS'a'\n" + ARRAY % (b"(I2\nt", b"S'f4'\n", b"I5\n") + b"s.",
    "array-state-number": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntRI5\nb.",
    "scalar-of-megabyte": b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f4'\ntRS'" + b"x" * 10**6 + b"'\ntR.",
    "encode-rot13": b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    "encode-number": b"c_codecs\nencode\n(I1\nS'latin1'\ntR.",
    "tuple-laughs": laughs(200) + b"0}h\xc8N s.".replace(b" ", b""),
    "tuple-laughs-as-key": b"\x80\x02}" + laughs(60)[2:] + b"Ns.",
    "tuple-laughs-in-set": b"\x80\x04\x8f(" + laughs(60)[2:] + b"\x90.",
    "tuple-laughs-by-dup": b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",
    "tuple-million-deep-as-key": b"\x80\x02})" + b"\x85" * 900_000 + b"Ns.",
    "list-million-deep": b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".",
    "list-of-itself": b"]q\x00h\x00a.",
    "dict-of-itself": b"}q\x00" + text("model") + b"h\x00s.",
    "two-million-opcodes": b"\x80\x02" + b"N0" * 1_000_000 + b"N.",
    "million-dicts": b"\x80\x02](" + b"}" * 1_500_000 + b"e.",
    "long-of-a-megabyte": b"\x80\x02}" + text("a") + b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"s.",
    "long-negative-length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "int-of-a-megabyte-in-text": b"I" + b"9" * 10**6 + b"\n.",
    "bytes-of-2-to-the-60": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",
    "bytes-of-20-gigabytes": b"\x80\x04\x8e" + struct.pack("<Q", 20 * 10**9) + b"x.",
    "text-of-4-gigabytes": b"X\xff\xff\xff\xffx.",
    "frame-of-2-to-the-60": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",
    "memo-index-200-million": b"\x80\x02}r" + struct.pack("<I", 200_000_000) + b".",
    "memo-index-2-to-the-31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "get-of-nothing": b"h\x05.",
    "pop-of-nothing": b"0.",
    "stop-at-once": b".",
    "mark-alone": b"(.",
    "no-stop": b"\x80\x02}",
    "unhashable-key": b"\x80\x02}]Ns.",
    "text-that-is-no-text": b"X\x02\x00\x00\x00\xff\xfe.",
    "lonely-surrogate": b"\x80\x04}\x8c\x03\xed\xa0\x80K\x01s.",
}


def shared_arrays() -> bytes:
    """A megabyte, and 20 000 arrays that say that it is theirs."""
    start = b"\x80\x02C\x00q\x00]q\x01" + b"B" + struct.pack("<I", 10**6) + bytes(10**6) + b"q\x02"
    dtype = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntRq\x03"
    arrays = b"".join(
        b"X\x05\x00\x00\x00%05dcnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR"
        b"(K\x01J%s\x85h\x03\x89h\x02tbs" % (index, struct.pack("<i", 10**6))
        for index in range(20_000)
    )
    return start + dtype + b"}" + arrays + b"."


def shared_tensors() -> bytes:
    """4 MB, and 3 000 tensors that share it: small in the file, 12 GB for whoever copies them."""
    base = torch.ones(1000, 1000)
    return torch_bytes({f"layer1.{index}.conv1.weight": base for index in range(3000)})


HAND_WRITTEN: dict[str, bytes] = {
    "array-over-bytes": b"cnumpy\nndarray\n((I1\ntS'O'\nS'12345678'\ntR.",
    "system": b"cos\nsystem\n(S'true'\ntR.",
    "eval": b"cbuiltins\neval\n(S'1'\ntR.",
    "dotted-name": b"cnumpy.core.multiarray\nos.system\n(S'true'\ntR.",
    "dotted-runstring": b"cnumpy\ntesting._private.utils.runstring\n(S'1'\nd.",
    "encode-rot13": b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
    "decode-hex": b"c_codecs\ndecode\n(S'x'\nS'hex'\ntR.",
    "reconstruct-a-dict": b"cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(I0\ntS'b'\ntR.",
    "reconstruct-within": b"(dS'model'\n(dS'a'\ncnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(I0\ntS'b'\ntRss.",
    "encode-within": b"(dS'a'\nc_codecs\nencode\n(S'x'\nS'utf-8'\ntRs.",
    "copyreg": b"ccopyreg\n_reconstructor\n(cbuiltins\nobject\ncbuiltins\nobject\nNtR.",
}


class Reduced:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


class OwnDict(dict):
    """A dict whose reconstruction names a class of ours."""


GOOD = np.ones(2, "f4")
OBJECTS: dict[str, Any] = {
    "os-system": Reduced(os.system, TOUCH.decode()),
    "eval": Reduced(eval, f"open({MARKER!r}, 'w')"),
    "exec": Reduced(exec, f"open({MARKER!r}, 'w')"),
    "getattr": Reduced(getattr, "".join, "__class__"),
    "import": Reduced(__import__, "os"),
    "nested": {"model": {"a": GOOD, "b": [{"c": Reduced(os.system, TOUCH.decode())}]}},
    "as-key": {("x", Reduced(os.system, TOUCH.decode())): GOOD},
    "after-the-tensors": {"model": {"a": GOOD}, "optimizer": Reduced(os.system, TOUCH.decode())},
    "own-class": OwnDict(a=GOOD),
    "namespace": {"model": {"a": GOOD}, "args": argparse.Namespace(lr=1)},
    "array-of-objects": {"a": np.array([Reduced(os.system, TOUCH.decode())], dtype=object)},
    "structured-array": {"a": np.zeros(2, dtype=[("x", "f4")])},
    "numpy-loader": Reduced(np.load, MARKER),
    "numpy-file": Reduced(np.memmap, MARKER, "uint8", "w+", 0, (1,)),
    "tensor-in-a-pickle": {"a": torch.ones(2)},
}  # fmt: skip
IN_TORCH = ("os-system", "eval", "getattr", "nested", "after-the-tensors", "own-class")


def wrapped_pickles() -> Iterator[tuple[str, Callable[[], bytes]]]:
    for name, payload in PICKLES.items():
        yield f"pkl-{name}", lambda payload=payload: payload
    for name, payload in HAND_WRITTEN.items():
        yield f"pkl-by-hand-{name}", lambda payload=payload: payload
    yield "safetensors-that-is-a-pickle", lambda: PICKLES["os-system-protocol-0"]
    yield "pth-that-is-a-pickle", lambda: PICKLES["os-system-protocol-0"]
    yield "pkl-arrays-that-share-a-megabyte", shared_arrays
    yield (
        "pkl-list-laughs-beside-the-tensors",
        lambda: b"\x80\x02}" + text("model") + b"}s" + text("note") + lists(100) + b"s.",
    )


def rewritten(change: Callable[[dict[str, bytes]], dict[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A good torch file with other records."""
    with zipfile.ZipFile(io.BytesIO(torch_bytes(TENSORS))) as good:
        records = {info.filename: good.read(info) for info in good.infolist()}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, content in change(records).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_field(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite a field of the first header with this signature."""
    at = content.index(signature) + offset
    return content[:at] + value + content[at + len(value) :]


def torch_files() -> Iterator[tuple[str, Callable[[], bytes]]]:
    for name in ("os-system-protocol-0", "newobj", "inst", "obj", "ext1", "persid", "tuple-laughs-as-key", "list-of-itself",
                 "tuple-million-deep-as-key", "list-million-deep", "dict-of-itself", "two-million-opcodes",
                 "build-attribute-items", "bytes-of-20-gigabytes", "numpy-load", "tuple-laughs-by-dup"):  # fmt: skip
        yield f"pth-zip-{name}", lambda name=name: zipped_pickle(PICKLES[name])
    for name in ("os-system-protocol-0", "tuple-laughs-as-key", "list-million-deep", "bytes-of-20-gigabytes"):
        yield f"pth-legacy-{name}", lambda name=name: torch_bytes({}, zipped=False).split(b"}")[0] + PICKLES[name]
    sizes = {
        "stride-0": (long(2**40) + b"\x85", b"K\x00\x85"),
        "stride-0-many-sides": (b"(" + long(2**10) * 4 + b"t", b"(" + b"K\x00" * 4 + b"t"),
        "size-beyond-storage": (long(2**33) + b"\x85", b"K\x01\x85"),
        "negative-size": (long(-4) + b"\x85", b"K\x01\x85"),
        "negative-stride": (b"K\x02\x85", long(-1) + b"\x85"),
        "size-2-to-the-62-twice": (long(2**62) * 2 + b"\x86", b"K\x00K\x00\x86"),
        "size-of-text": (text("4") + b"\x85", b"K\x01\x85"),
        "size-and-stride-differ": (b"K\x02K\x02\x86", b"K\x01\x85"),
        "thousand-sides": (b"(" + b"K\x01" * 1000 + b"t", b"(" + b"K\x01" * 1000 + b"t"),
    }
    for name, (size, stride) in sizes.items():
        yield f"pth-tensor-{name}", lambda size=size, stride=stride: zipped_pickle(rebuilt(size, stride))
    four, one = b"K\x04\x85", b"K\x01\x85"
    yield "pth-tensor-offset-beyond", lambda: zipped_pickle(rebuilt(four, one, long(2**40)))
    yield "pth-tensor-offset-negative", lambda: zipped_pickle(rebuilt(four, one, long(-2)))
    for name, storage in {
        "numel-negative": storage_id(numel=long(-4)),
        "numel-text": storage_id(numel=text("4")),
        "complex": storage_id(b"ComplexFloatStorage", b"K\x02"),
        "quantized": storage_id(b"QUInt8Storage", b"K\x10"),
        "no-such-key": storage_id(key="../../etc/passwd"),
        "no-such-type": storage_id(b"EvilStorage"),
    }.items():
        yield f"pth-storage-{name}", lambda storage=storage: zipped_pickle(rebuilt(four, one, storage=storage))
    indices = torch.zeros(1, 1, dtype=torch.long)
    for name, tensor in {
        "sparse": lambda: torch.sparse_coo_tensor(indices, torch.ones(1), (2**40,)),
        "sparse-csr": lambda: torch.eye(3).to_sparse_csr(),
        "meta": lambda: torch.empty(2**40, device="meta"),
        "complex64": lambda: torch.ones(2, dtype=torch.complex64),
        "conjugated": lambda: torch.ones(2, dtype=torch.complex64).conj(),
        "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
        "uint64": lambda: torch.ones(2, dtype=torch.uint64),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "subclass": lambda: torch.nn.parameter.UninitializedParameter(),
        "expanded": lambda: torch.ones(1).expand(2**40),
        "not-finite": lambda: torch.full((2,), float("nan")),
    }.items():
        yield f"pth-saved-{name}", lambda tensor=tensor: torch_bytes({"fc.weight": tensor(), "fc.bias": torch.ones(1)})
    yield "pth-3000-tensors-share-one-storage", shared_tensors
    for name, content in {
        "list": [1], "number": 5, "text": "x", "none": None, "set": {1}, "tensor": torch.ones(2), "empty": {},
        "key-number": {5: torch.ones(2)}, "key-tuple": {(1, 2): torch.ones(2)}, "value-list": {"a": [torch.ones(2)]},
        "name-of-a-megabyte": {"a" * 10**6: torch.ones(2)}, "value-number": {"a" * 10**6: 1},
        "block-number-of-5000-digits": {f"layer1.{'9' * 5000}.conv1.weight": torch.ones(2)},
        "nested-models": {"model": {"model": {"model": {"a": 1}}}},
    }.items():  # fmt: skip
        yield f"pth-content-{name}", lambda content=content: torch_bytes(content)
    facts: dict[str, Any] = {
        "format_version": 1, "arch": "resnet18", "stride_in_1x1": False, "norm": "BN", "licence": "", "acc1": None,
        "input_format": {"channel_order": "RGB", "mean": [1.0] * 3, "std": [1.0] * 3},
    }  # fmt: skip
    for name, change in {
        "list": None, "arch-list": {"arch": ["a"]}, "arch-number": {"arch": 5},
        "version-huge": {"format_version": 10**5000},
        "version-text": {"format_version": "9" * 10**5},
        "mean-huge": {"input_format": {**facts["input_format"], "mean": [10**400] * 3}},
        "mean-text": {"input_format": {**facts["input_format"], "mean": "abc"}}, "format-number": {"input_format": 5},
        "format-none": {"input_format": None}, "transform-list": {"test_transform": [1]}, "norm-list": {"norm": []},
        "transform-unknown-key": {"test_transform": {"evil": 1}},
        "transform-text": {"test_transform": {"resize": "a", "crop": "b"}},
        "names-number": {"class_names": 5}, "names-of-lists": {"class_names": [[1]]}, "accuracy-text": {"acc1": "high"},
        "stride-text": {"stride_in_1x1": "no"},
    }.items():  # fmt: skip
        described = [1] if change is None else {**facts, **change}
        yield (
            f"pth-facts-{name}",
            lambda described=described: torch_bytes({"model": TENSORS, "resnet_backbone": described}),
        )


def containers() -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield "pth-compressed", lambda: rewritten(lambda records: records, zipfile.ZIP_DEFLATED)
    yield "pth-bomb-in-the-pickle", lambda: zipped_pickle(bytes(2 * 10**8), compression=zipfile.ZIP_DEFLATED)
    yield (
        "pth-bomb-in-a-storage",
        lambda: zipped_pickle(rebuilt(b"K\x04\x85", b"K\x01\x85"), bytes(10**8), compression=zipfile.ZIP_DEFLATED),
    )
    yield "pth-lzma", lambda: rewritten(lambda records: records, zipfile.ZIP_LZMA)
    yield "pth-no-pickle", lambda: rewritten(lambda records: {"archive/version": b"3"})
    yield "pth-no-records", lambda: b"PK\x03\x04" + rewritten(lambda records: {})
    yield "pth-torchscript", lambda: rewritten(lambda records: {**records, "archive/constants.pkl": b"\x80\x02)."})
    yield (
        "pth-two-pickles",
        lambda: rewritten(
            lambda records: {
                "ARCHIVE/DATA.PKL": PICKLES["tuple-laughs-as-key"],
                **records,
                "archive/data.pkl": b"\x80\x02}.",
            }
        ),
    )
    yield (
        "pth-nul-in-a-name",
        lambda: rewritten(lambda records: records).replace(b"archive/byteorder", b"archive/byteo\0der"),
    )
    yield "pth-size-lies", lambda: with_field(torch_bytes(TENSORS), b"PK\x01\x02", 24, struct.pack("<I", 2**31))
    yield (
        "pth-both-sizes-lie",
        lambda: with_field(torch_bytes(TENSORS), b"PK\x01\x02", 20, struct.pack("<II", 2**31, 2**31)),
    )
    yield "pth-offset-lies", lambda: with_field(torch_bytes(TENSORS), b"PK\x01\x02", 42, struct.pack("<I", 2**31))
    yield "pth-encrypted-flag", lambda: with_field(torch_bytes(TENSORS), b"PK\x01\x02", 8, b"\x01\x00")
    yield "pth-directory-lies", lambda: with_field(torch_bytes(TENSORS), b"PK\x06\x06", 48, struct.pack("<Q", 2**31))
    yield "pth-comment-after-the-end", lambda: torch_bytes(TENSORS) + bytes(30)
    yield "pth-polyglot-with-a-pickle", lambda: PICKLES["os-system-protocol-0"] + torch_bytes(TENSORS)
    yield "pth-ends-within-the-list", lambda: torch_bytes(TENSORS)[:-10]
    yield "pth-tar", tar_with_storages
    yield "pth-elf", lambda: b"\x7fELF" + bytes(1000)
    yield (
        "pth-legacy-numel-lies",
        lambda: torch_bytes(TENSORS, zipped=False).replace(b"M\x4c\x02", b"J\xff\xff\xff\x7f"),
    )
    yield "pth-legacy-cut", lambda: torch_bytes(TENSORS, zipped=False)[:-2000]
    yield "pth-web-page", lambda: b"<html>"
    yield "pth-empty", lambda: b""
    yield "pth-only-spaces", lambda: b" " * 100


def tar_with_storages() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()


def safe(header: Any, data: bytes = bytes(16)) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def safetensors_files() -> Iterator[tuple[str, Callable[[], bytes]]]:
    yield from (
        (f"safetensors-{name}", lambda content=content: content)
        for name, content in {
            "header-length-2-to-the-63": struct.pack("<Q", 2**63) + b"{}",
            "header-length-beyond-file": struct.pack("<Q", 10**8) + b"{}",
            "header-length-0": struct.pack("<Q", 0),
            "header-cut": safe({"a": entry()})[:12],
            "header-list": safe([]),
            "header-number": safe(5),
            "header-not-json": safe(b"{nothing}"),
            "header-not-text": safe(b"\xff\xfe{}"),
            "header-million-deep": safe(b'{"a":' + b"[" * 10**6 + b"}"),
            "overlapping": safe({"a": entry(), "b": entry()}),
            "hole": safe({"a": entry(offsets=(8, 24))}, bytes(24)),
            "offsets-beyond-file": safe({"a": entry(shape=(2**20,), offsets=(0, 2**22))}),
            "offsets-reversed": safe({"a": entry(offsets=(16, 0))}),
            "offsets-negative": safe({"a": entry(offsets=(-16, 0))}),
            "offsets-huge": safe({"a": entry(offsets=(0, 2**64))}),
            "offsets-text": safe({"a": entry(offsets=("0", "16"))}),
            "shape-does-not-fit": safe({"a": entry(shape=(5,))}),
            "shape-overflows": safe({"a": entry(shape=(2**32, 2**32, 4))}),
            "shape-negative": safe({"a": entry(shape=(-4,))}),
            "shape-zero-times-huge": safe({"a": entry(shape=(0, 2**63), offsets=(0, 0))}, b""),
            "dtype-unknown": safe({"a": entry("O")}),
            "dtype-complex": safe({"a": entry("C64", (2,))}),
            "dtype-float8": safe({"a": entry("F8_E4M3", (16,))}),
            "dtype-float4": safe({"a": entry("F4", (32,))}),
            "dtype-missing": safe({"a": {"shape": [4], "data_offsets": [0, 16]}}),
            "duplicate-keys": safe(
                b'{"a":%b,"a":%b}'
                % (
                    json.dumps(entry(shape=(2,), offsets=(0, 8))).encode(),
                    json.dumps(entry(shape=(2,), offsets=(8, 16))).encode(),
                )
            ),
            "metadata-not-text": safe({"__metadata__": {"a": 5}, "a": entry()}),
            "metadata-list": safe({"__metadata__": [], "a": entry()}),
            "trailing-bytes": safe({"a": entry()}, bytes(17)),
            "no-tensors": safe({}, b""),
            "unknown-network": safetensors.torch.save({"evil": torch.ones(2)}),
            "pickle": pickle.dumps({"a": np.ones(2)}),
        }.items()
    )
    yield (
        "safetensors-300000-tensors",
        lambda: safe({f"{index}": entry("F32", (0,), (0, 0)) for index in range(300_000)}, b""),
    )
    yield "safetensors-metadata-of-40-megabytes", lambda: safe({"__metadata__": {"a": "x" * (40 << 20)}, "b": entry()})


def _cases() -> Iterator[Case]:
    for make in (wrapped_pickles, torch_files, containers, safetensors_files):
        for name, content in make():
            suffix = name.split("-")[0]
            yield Case(f"weights-{name}", f"w.{suffix}", content, read_weights)
    for name, content in OBJECTS.items():
        for protocol in (0, 2, 4, 5):
            dumped = partial(pickle.dumps, content, protocol)
            says = "could run code|numbers|names"
            yield Case(f"weights-pkl-object-{name}-{protocol}", "w.pkl", dumped, read_file, says=says)
    for name in IN_TORCH:
        for kind in ("zip", "legacy"):
            saved = partial(torch_bytes, OBJECTS[name], zipped=kind == "zip")
            says = r"could run code|holds a tests\.hostile\.weights\.OwnDict"
            yield Case(f"weights-pth-object-{name}-{kind}", "w.pth", saved, read_file, says=says)
    yield Case("weights-dict-with-its-own-items", "w.pth", _dict_with_items, read_file, repaired=True)
    for name, tensors in {
        "scalar-where-a-matrix-belongs": {"fc.weight": torch.tensor(1.0)},
        "no-values": {"fc.weight": torch.ones(0)},
    }.items():  # read_weights tells no shapes; load_weights compares them with the model's
        yield Case(f"weights-{name}", "w.pth", partial(torch_bytes, tensors), read_weights, repaired=True)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.detach = 5  # type: ignore[method-assign, assignment]
    yield Case(
        "weights-parameter-with-its-own-detach",
        "w.pth",
        lambda: torch_bytes({"a": parameter}),
        read_file,
        repaired=True,
    )
    yield Case("weights-dict-laughs-are-left-out", "w.pth", _with_dict_laughs, read_file, repaired=True)
    yield Case("weights-list-laughs-are-left-out", "w.pth", _with_laughs, read_file, repaired=True)


def _dict_with_items() -> bytes:
    """An OrderedDict whose attribute ``items`` is a number, as its state can make it."""
    payload = rebuilt(b"K\x04\x85", b"K\x01\x85").replace(b"\x80\x02}", b"\x80\x02ccollections\nOrderedDict\n)R", 1)
    return zipped_pickle(payload[:-1] + b"}" + text("items") + b"K\x05sb.")


def _with_dict_laughs() -> bytes:
    note: dict[str, Any] = {}
    for _ in range(5):
        note = {str(index): note for index in range(1000)}
    return torch_bytes({"model": TENSORS, "first": note, "second": [note], "third": note})


def _with_laughs() -> bytes:
    note: list[Any] = []
    for _ in range(100):
        note = [note, note]
    return torch_bytes({"model": TENSORS, "note": note})


def cases() -> list[Case]:
    return unique(_cases())
