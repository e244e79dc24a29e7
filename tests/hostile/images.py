"""Image files as an attacker makes them."""

# ruff: noqa: E501  # tables of inputs, one a line
from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from resnet_backbone.data.images.read import read_image
from tests.hostile.case import MARKER, Case, unique

Changed = Callable[[bytes], bytes]
EPS = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(%pipe%touch {MARKER}) (w) file\nshowpage\n".encode()


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_of(height: int, width: int) -> bytes:
    """A good file whose header states another size."""
    good = encoded("JPEG")
    at = good.index(b"\xff\xc0") + 5
    return good[:at] + struct.pack(">HH", height, width) + good[at + 4 :]


def two_headers() -> bytes:
    """A JPEG file with a second frame header, of another size."""
    good = encoded("JPEG")
    at = good.index(b"\xff\xc0")
    header = good[at : at + 19]
    return good[:at] + header[:5] + struct.pack(">HH", 65500, 65500) + header[9:] + good[at:]


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def tiff(entries: list[tuple[int, int, int, int]], size: int = 1 << 12) -> bytes:
    """Little-endian TIFF of one directory: (tag, type, count, value)."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (b"II*\0" + struct.pack("<I", 8) + directory + b"\0\0\0\0").ljust(size, b"\0")


def tiff_of(width: int, height: int, **changes: int) -> bytes:
    values = {"width": width, "height": height, "bits": 8, "compression": 1, "photometric": 1, "offset": 1024,
              "rows": height, "bytes": 1024} | changes  # fmt: skip
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offset": 273,
            "rows": 278, "bytes": 279}  # fmt: skip
    return tiff([(tags[key], 4, 1, value & 0xFFFFFFFF) for key, value in values.items()])


def text_bomb(kind: bytes = b"zTXt", count: int = 1) -> bytes:
    bomb = zlib.compress(bytes(100 << 20), 9)
    head = {b"zTXt": b"a\0\0", b"iTXt": b"a\0\x01\0\0\0", b"iCCP": b"a\0\0"}[kind]
    good = zlib.compress(bytes(17 * 49))
    return png(16, 16, good, *[chunk(kind, head + bomb)] * count)


def _contents() -> dict[str, Callable[[], bytes]]:
    return {
        "a.jpg-empty": lambda: b"",
        "a.jpg-zeros": lambda: bytes(1000),
        "a.jpg-text": lambda: b"hello world",
        "a.jpg-web-page": lambda: b"<html></html>",
        "a.jpg-svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "a.jpg-pdf": lambda: b"%PDF-1.7\n" + bytes(100),
        "a.jpg-postscript": lambda: EPS,
        "a.eps-postscript": lambda: EPS,
        "a.jpg-postscript-behind-a-dos-header": lambda: struct.pack("<IIIIIIII", 0xC6D3D0C5, 32, len(EPS), 0, 0, 0, 0, 0) + EPS,
        "a.jpg-pickle": lambda: b"cos\nsystem\n(S'touch x'\ntR.",
        "a.jpg-zip": lambda: b"PK\x03\x04" + bytes(100),
        "a.jpg-wmf": lambda: b"\xd7\xcd\xc6\x9a" + bytes(100),
        "a.jpg-psd": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30000, 30000, 8, 3) + bytes(40),
        "a.jpg-fits": lambda: b"SIMPLE  =                    T".ljust(2880),
        "a.jpg-xbm": lambda: b"#define a_width 99999999\n#define a_height 99999999\nstatic char a[] = {\n",
        "a.jpg-end-within-header": lambda: encoded("JPEG")[:100],
        "a.jpg-end-within-pixels": lambda: encoded("JPEG")[:-40],
        "a.jpg-only-markers": lambda: b"\xff\xd8\xff\xd9",
        "a.jpg-endless-fill-bytes": lambda: b"\xff\xd8" + b"\xff" * 1_000_000,
        "a.jpg-size-absurd": lambda: jpeg_of(65500, 65500),
        "a.jpg-size-zero": lambda: jpeg_of(0, 0),
        "a.jpg-two-frame-headers": two_headers,
        "a.jpg-segment-lengths-lie": lambda: b"\xff\xd8" + b"\xff\xe0\xff\xff" + bytes(10),
        "a.png-size-2-to-the-31": lambda: png(2**31 - 1, 2**31 - 1),
        "a.png-size-50000": lambda: png(50_000, 50_000),
        "a.png-size-zero": lambda: png(0, 0),
        "a.png-wide": lambda: png(2**31 - 1, 1),
        "a.png-size-16000-squared-one-bit": lambda: png(16_000, 16_000, zlib.compress(bytes(1000)), depth=1, color=0),
        "a.png-no-pixels": lambda: png(16, 16),
        "a.png-pixels-are-no-zlib": lambda: png(16, 16, b"hello"),
        "a.png-depth-99": lambda: png(16, 16, b"", depth=99),
        "a.png-color-99": lambda: png(16, 16, b"", color=99),
        "a.png-palette-missing": lambda: png(16, 16, b"x", color=3),
        "a.png-text-bomb": text_bomb,
        "a.png-international-text-bomb": lambda: text_bomb(b"iTXt"),
        "a.png-color-profile-bomb": lambda: text_bomb(b"iCCP"),
        "a.png-hundred-text-bombs": lambda: text_bomb(count=100),
        "a.png-chunk-length-lies": lambda: png(16, 16)[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT",
        "a.png-crc-wrong": lambda: png(16, 16)[:29] + b"\0\0\0\0" + png(16, 16)[33:],
        "a.png-cut": lambda: encoded("PNG")[:60],
        "a.bmp-size-absurd": lambda: bmp(2**31 - 1, 2**31 - 1),
        "a.bmp-size-negative": lambda: bmp(-5, -5),
        "a.bmp-no-pixels": lambda: bmp(100, 100),
        "a.bmp-header-huge": lambda: b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<I", 2**32 - 1),
        "a.gif-cut": lambda: encoded("GIF")[:30],
        "a.gif-size-absurd": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x00;",
        "a.gif-no-frame": lambda: b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b";",
        "a.gif-endless-comments": lambda: b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b"!\xfe\x01a\x00" * 200_000,
        "a.tif-size-absurd": lambda: tiff_of(2**32 - 1, 2**32 - 1),
        "a.tif-size-60000": lambda: tiff_of(60_000, 60_000),
        "a.tif-size-zero": lambda: tiff_of(0, 0),
        "a.tif-offset-beyond": lambda: tiff_of(16, 16, offset=2**32 - 1),
        "a.tif-compression-unknown": lambda: tiff_of(16, 16, compression=999),
        "a.tif-bits-999": lambda: tiff_of(16, 16, bits=999),
        "a.tif-directory-of-itself": lambda: tiff([(330, 4, 1, 8)]),
        "a.tif-count-2-to-the-31": lambda: tiff([(256, 4, 2**31, 8)]),
        "a.tif-no-tags": lambda: tiff([]),
        "a.tif-directory-beyond": lambda: b"II*\0\xff\xff\xff\xff",
        "a.tif-floats-not-finite": lambda: _float_tiff(),
        "a.webp-cut": lambda: encoded("WEBP")[:40],
        "a.webp-size-lies": lambda: b"RIFF\xff\xff\xff\xffWEBPVP8 " + bytes(30),
        "a.webp-lossless-absurd": lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 18) + b"\x2f\xff\xff\xff\x0f" + bytes(13),
        "a.ppm-size-absurd": lambda: b"P6 999999999 999999999 255\n",
        "a.ppm-size-of-a-megabyte": lambda: b"P6 " + b"9" * 10**6 + b" 1 255\n",
        "a.ppm-size-negative": lambda: b"P6 -5 -5 255\n",
        "a.ppm-cut": lambda: b"P6 100 100 255\n" + bytes(50),
        "a.pgm-maximum-zero": lambda: b"P5 2 2 0\n" + bytes(4),
        "a.jp2-cut": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30),
        "a.jp2-size-absurd": lambda: b"\xff\x4f\xff\x51\x00\x29" + bytes(2) + struct.pack(">IIII", 2**31, 2**31, 0, 0) + bytes(60),
        "a.ico-no-entries": lambda: b"\0\0\1\0\0\0",
        "a.ico-entry-beyond": lambda: b"\0\0\1\0\1\0" + bytes(8) + struct.pack("<II", 2**31, 2**31),
        "a.tga-size-absurd": lambda: bytes([0, 0, 2]) + bytes(9) + struct.pack("<HHBB", 65535, 65535, 24, 0),
        "a.pcx-size-absurd": lambda: b"\x0a\x05\x01\x08" + struct.pack("<HHHH", 0, 0, 65534, 65534) + bytes(120),
        "a.sgi-size-absurd": lambda: struct.pack(">HBBHHHH", 474, 1, 1, 3, 65535, 65535, 3) + bytes(500),
        "a.avif-cut": lambda: b"\0\0\0\x1cftypavif" + bytes(40),
    }  # fmt: skip


def _float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def _read() -> dict[str, Callable[[], bytes]]:
    """What is read all the same: it is damaged where no pixel depends on it, or only its name is wrong."""
    note = PngImagePlugin.PngInfo()
    note.add_text("script", "<script>")
    return {
        "a.jpg-that-is-a-png": lambda: encoded("PNG"),
        "a.png-that-is-a-jpeg": lambda: encoded("JPEG"),
        "a.jpg-exif-is-garbage": lambda: encoded("JPEG", exif=b"Exif\0\0garbage"),
        "a.jpg-exif-directory-of-itself": lambda: encoded("JPEG", exif=b"Exif\0\0" + tiff([(34665, 4, 1, 8)], 64)),
        "a.jpg-exif-orientation-text": lambda: encoded("JPEG", exif=b"Exif\0\0" + tiff([(274, 2, 4, 0x41414141)], 64)),
        "a.jpg-exif-orientation-99": lambda: encoded("JPEG", exif=b"Exif\0\0" + tiff([(274, 3, 1, 99)], 64)),
        "a.jpg-exif-count-2-to-the-31": lambda: encoded("JPEG", exif=b"Exif\0\0" + tiff([(274, 3, 2**31, 99)], 64)),
        "a.jpg-with-a-zip-behind-it": lambda: encoded("JPEG") + b"PK\x05\x06" + bytes(18),
        "a.png-with-a-script-behind-it": lambda: encoded("PNG", pnginfo=note) + b"<script>",
        "a.jpg-comment-of-60-kilobytes": lambda: encoded("JPEG", comment=b"x" * 60_000),
        "a.jpg-segment-length-0": lambda: b"\xff\xd8\xff\xe1\x00\x00" + encoded("JPEG")[2:],
    }  # fmt: skip


def _cases() -> Iterator[Case]:
    for contents, repaired in ((_contents(), False), (_read(), True)):
        for name, content in contents.items():
            yield Case(f"image-{name}", name.split("-")[0], content, _pixels, repaired=repaired)


def _pixels(path: Path) -> None:
    pixels = read_image(path)
    assert pixels.shape[0] == 3 and pixels.ndim == 3


def cases() -> list[Case]:
    return unique(_cases())
