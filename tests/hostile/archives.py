"""Zip and tar files as an attacker makes them."""

# ruff: noqa: E501  # tables of inputs, one a line
from __future__ import annotations

import io
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from resnet_backbone.data.prepare.archives import extract_tar, extract_zip
from tests.hostile.case import Case, unique

MAX_BYTES = 10_000_000
NAMES = {
    "parent": "../evil", "parents-within": "a/../../evil", "absolute": "/tmp/evil", "two-slashes": "//evil",
    "backslash": "..\\evil", "drive": "C:/evil", "drive-relative": "C:evil", "unc": "\\\\host\\evil",
    "stream": "a:stream", "only-dots": "..", "escape-codes": "\x1b[31mevil", "newline": "a\nb", "wildcard": "a*b",
    "pipe": "a|b", "ends-with-a-dot": "a./b", "ends-with-a-space": "a /b", "of-250-characters": "a" * 250,
    "right-to-left": "a\u202egpj.exe",
}  # fmt: skip


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")
        for name, content in members.items():
            info = zipfile.ZipInfo()
            info.filename, info.compress_type = name, compression
            archive.writestr(info, content)
    return buffer.getvalue()


def zipped_twice(first: str, second: str) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(first, b"1")
        archive.writestr(second, b"2")
    return buffer.getvalue()


def zipped_as(mode: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.external_attr = (mode | 0o777) << 16
        archive.writestr(info, b"/etc/passwd")
    return buffer.getvalue()


def changed(content: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    at = content.index(signature) + offset
    return content[:at] + value + content[at + len(value) :]


def overlapping() -> bytes:
    """Twenty names of one deflated megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1 << 20))
    content = buffer.getvalue()
    at = content.index(b"PK\x01\x02")
    entry, end = content[at : content.index(b"PK\x05\x06")], content[content.index(b"PK\x05\x06") :]
    entries = b"".join(entry[:46] + bytes([97 + index]) for index in range(20))
    return content[:at] + entries + end[:8] + struct.pack("<HHI", 20, 20, len(entries)) + end[16:]


def tarred(*infos: tarfile.TarInfo, data: bytes = b"", form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info in infos:
            info.size = len(data) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def info(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **pax: str) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.pax_headers = kind, target, pax
    return made


def header(kind: bytes, size: int, name: str = "x", encoded: bytes = b"") -> bytes:
    """One tar header with a size that need not be true."""
    made = tarfile.TarInfo(name)
    made.type = kind
    raw = bytearray(made.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = encoded or (b"\x80" + size.to_bytes(11, "big"))
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def pax(records: bytes) -> bytes:
    return header(b"x", len(records)) + records.ljust(-(-len(records) // 512) * 512, b"\0") + tarred(info("a"))


def zip_files() -> Iterator[tuple[str, Callable[[], bytes]]]:
    for name, path in NAMES.items():
        yield f"name-{name}", lambda path=path: zipped({"good": b"good", path: b"evil"})
    good = {"a": b"x" * 1000, "b": b"y" * 1000}
    yield from {
        "empty": lambda: b"",
        "text": lambda: b"hello",
        "cut": lambda: zipped(good)[:-30],
        "head-only": lambda: b"PK\x03\x04" + bytes(50),
        "link": lambda: zipped_as(stat.S_IFLNK),
        "device": lambda: zipped_as(stat.S_IFCHR),
        "pipe": lambda: zipped_as(stat.S_IFIFO),
        "bomb": lambda: zipped({"a": bytes(MAX_BYTES + 1)}, zipfile.ZIP_DEFLATED),
        "bomb-of-many": lambda: zipped({f"{n}": bytes(MAX_BYTES // 10) for n in range(11)}, zipfile.ZIP_DEFLATED),
        "lzma": lambda: zipped(good, zipfile.ZIP_LZMA),
        "bzip2": lambda: zipped(good, zipfile.ZIP_BZIP2),
        "method-unknown": lambda: changed(zipped(good), b"PK\x01\x02", 10, b"\x63\x00"),
        "encrypted": lambda: changed(zipped(good), b"PK\x01\x02", 8, b"\x01\x00"),
        "crc-wrong": lambda: changed(zipped(good), b"xxxx", 0, b"zzzz"),
        "size-too-large": lambda: changed(zipped(good), b"PK\x01\x02", 24, struct.pack("<I", 2000)),
        "size-too-small": lambda: changed(zipped(good), b"PK\x01\x02", 24, struct.pack("<I", 10)),
        "size-zip64-without-one": lambda: changed(zipped(good), b"PK\x01\x02", 20, b"\xff" * 8),
        "offset-beyond": lambda: changed(zipped(good), b"PK\x01\x02", 42, struct.pack("<I", 2**31)),
        "directory-beyond": lambda: changed(zipped(good), b"PK\x05\x06", 16, struct.pack("<I", 2**31)),
        "directory-larger-than-file": lambda: changed(zipped(good), b"PK\x05\x06", 12, struct.pack("<I", 2**31)),
        "local-name-differs": lambda: changed(zipped(good), b"PK\x03\x04", 30, b"z"),
        "local-header-missing": lambda: changed(zipped(good), b"PK\x03\x04", 0, b"ZZZZ"),
        "same-name-twice": lambda: zipped_twice("a", "a"),
        "names-differ-in-case": lambda: zipped_twice("a", "A"),
        "file-and-folder-of-one-name": lambda: zipped_twice("a", "a/b"),
        "overlapping": overlapping,
        "deflated-garbage": lambda: changed(zipped(good, zipfile.ZIP_DEFLATED), b"PK\x03\x04", 31, b"\xff" * 8),
        "name-of-60000-characters": lambda: zipped({"a" * 60_000: b""}),
        "name-without-end": lambda: changed(zipped(good), b"PK\x01\x02", 28, b"\xff\xff"),
        "flag-utf-8-lies": lambda: changed(changed(zipped({"\xe9": b""}), b"PK\x01\x02", 8, b"\x00\x08"), b"PK\x01\x02", 46, b"\xff\xfe"),
    }.items()  # fmt: skip


def tar_files() -> Iterator[tuple[str, Callable[[], bytes]]]:
    for name, path in NAMES.items():
        yield f"name-{name}", lambda path=path: tarred(info("good"), info(path))
    good = b"x" * 2000
    yield from {
        "empty": lambda: b"",
        "text": lambda: b"hello" * 1000,
        "link": lambda: tarred(info("a", tarfile.SYMTYPE, "/etc/passwd")),
        "link-then-file-below": lambda: tarred(info("a", tarfile.SYMTYPE, "/tmp"), info("a/evil")),
        "hard-link": lambda: tarred(info("a", tarfile.LNKTYPE, "/etc/passwd")),
        "hard-link-to-nothing": lambda: tarred(info("a", tarfile.LNKTYPE, "nothing")),
        "character-device": lambda: tarred(info("a", tarfile.CHRTYPE)),
        "block-device": lambda: tarred(info("a", tarfile.BLKTYPE)),
        "pipe": lambda: tarred(info("a", tarfile.FIFOTYPE)),
        "sparse": lambda: header(tarfile.GNUTYPE_SPARSE, 0) + bytes(1024),
        "unknown-kind": lambda: header(b"Q", 10**13) + bytes(1024),
        "size-of-a-terabyte": lambda: header(b"0", 10**12) + bytes(1024),
        "size-of-2-to-the-80": lambda: header(b"0", 2**80) + bytes(1024),
        "size-negative": lambda: header(b"0", 0, encoded=b"\xff" * 12) + bytes(1024),
        "size-no-number": lambda: header(b"0", 0, encoded=b"99999999999\0") + bytes(1024),
        "long-name-of-20-gigabytes": lambda: header(b"L", 20 * 10**9) + b"a" * 512,
        "long-name-of-2-to-the-62": lambda: header(b"L", 2**62) + b"a" * 512,
        "long-link-of-20-gigabytes": lambda: header(b"K", 20 * 10**9) + b"a" * 512,
        "pax-header-of-20-gigabytes": lambda: header(b"x", 20 * 10**9) + b"30 path=a\n".ljust(512, b"\0"),
        "pax-chain": lambda: (header(b"x", 12) + b"12 path=abc\n".ljust(512, b"\0")) * 3000 + tarred(info("a")),
        "pax-length-lies": lambda: pax(b"999999999 path=a\n"),
        "pax-length-of-a-megabyte": lambda: pax(b"9" * 10**6 + b" path=a\n"),
        "pax-no-equals": lambda: pax(b"8 path\n\n"),
        "pax-size-huge": lambda: pax(b"30 size=9999999999999999999999\n"),
        "pax-size-negative": lambda: pax(b"12 size=-99\n"),
        "pax-path-outside": lambda: pax(b"16 path=../evil\n"),
        "pax-sparse-size": lambda: pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n35 GNU.sparse.realsize=99999999999\n"),
        "same-name-twice": lambda: tarred(info("a"), info("a")),
        "names-differ-in-case": lambda: tarred(info("a"), info("A")),
        "file-and-folder-of-one-name": lambda: tarred(info("a"), info("a/b")),
        "too-large": lambda: tarred(info("a"), data=bytes(MAX_BYTES + 1)),
        "cut": lambda: tarred(info("a"), data=good)[:1200],
        "checksum-wrong": lambda: b"z" + tarred(info("a"), data=good)[1:],
        "compressed": lambda: b"\x1f\x8b\x08" + bytes(1000),
    }.items()  # fmt: skip


def unpack(path: Path) -> None:
    unpack = extract_zip if path.suffix == ".zip" else extract_tar
    unpack(path, path.parent / "out", select=lambda name: name, max_bytes=MAX_BYTES)


def _cases() -> Iterator[Case]:
    for kind, files in (("zip", zip_files), ("tar", tar_files)):
        for name, content in files():
            repaired = name == "pax-no-equals"  # tarfile passes over a record that it cannot read
            yield Case(f"{kind}-{name}", f"x.{kind}", content, unpack, repaired, makes=("out",))


def cases() -> list[Case]:
    return unique(_cases())
