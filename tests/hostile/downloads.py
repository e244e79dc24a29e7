"""What a hostile server answers, byte by byte."""

# ruff: noqa: E501  # tables of inputs, one a line
from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from resnet_backbone.weights import download as module
from resnet_backbone.weights.download import download
from tests.hostile.case import Case, unique

MAX_BYTES = 1_000_000
OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "garbage": b"\0\1\2\3" * 100,
    "endless-status-line": b"HTTP/1.1 200 " + b"x" * 200_000,
    "status-text": b"HTTP/1.1 abc OK\r\n\r\n",
    "status-999": b"HTTP/1.1 999 Evil\r\n\r\n",
    "thousand-headers": OK + b"".join(b"A%d: b\r\n" % i for i in range(1000)) + b"\r\n",
    "endless-header": OK + b"A: " + b"x" * 200_000,
    "length-text": OK + b"Content-Length: many\r\n\r\nx",
    "length-negative": OK + b"Content-Length: -5\r\n\r\nx",
    "length-underscore": OK + b"Content-Length: 1_0\r\n\r\n" + b"x" * 10,
    "length-of-5000-digits": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    "length-too-large": OK + b"Content-Length: 99999999999\r\n\r\nx",
    "length-larger-than-body": OK + b"Content-Length: 100\r\n\r\nx",
    "endless-body": OK + b"\r\n" + b"x" * (3 * MAX_BYTES),
    "endless-chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"186a0\r\n%b\r\n" % (b"x" * 100_000) * 30,
    "chunk-size-text": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nx",
    "chunk-size-negative": OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nx",
    "chunk-size-huge": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 1000 + b"\r\nx",
    "partial-unasked": b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-9/10\r\n\r\nxxxxx",
    "partial-of-5000-digits": b"HTTP/1.1 206 P\r\nContent-Range: bytes " + b"9" * 5000 + b"-9/" + b"9" * 5000 + b"\r\n\r\nx",
    "redirect-to-file": b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n\r\n",
    "redirect-to-http": b"HTTP/1.1 302 F\r\nLocation: http://example.invalid/x\r\n\r\n",
    "redirect-to-ftp": b"HTTP/1.1 302 F\r\nLocation: ftp://example.invalid/x\r\n\r\n",
    "redirect-to-data": b"HTTP/1.1 302 F\r\nLocation: data:text/plain,evil\r\n\r\n",
    "redirect-to-itself": b"HTTP/1.1 302 F\r\nLocation: /x\r\n\r\n",
    "redirect-to-broken-ipv6": b"HTTP/1.1 302 F\r\nLocation: https://[::1/x\r\n\r\n",
    "redirect-to-broken-port": b"HTTP/1.1 302 F\r\nLocation: https://a:99999999/x\r\n\r\n",
    "redirect-to-long-label": b"HTTP/1.1 302 F\r\nLocation: https://" + b"a" * 300 + b".invalid/x\r\n\r\n",
    "redirect-with-control-characters": b"HTTP/1.1 302 F\r\nLocation: https://a.invalid/\x01\r\n\r\n",
    "redirect-nowhere": b"HTTP/1.1 302 F\r\n\r\n",
    "etag-of-two-lines": OK + b'ETag: "a\r\n b"\r\nContent-Length: 100\r\n\r\nx',
    "etag-not-ascii": OK + b'ETag: "\xe9"\r\nContent-Length: 100\r\n\r\nx',
    "etag-of-60-kilobytes": OK + b'ETag: "' + b"a" * 60_000 + b'"\r\nContent-Length: 100\r\n\r\nx',
    "range-not-satisfiable-for-ever": b"HTTP/1.1 416 No\r\n\r\n",
    "wrong-content": OK + b"Content-Length: 1\r\n\r\nx",
}  # fmt: skip


@contextmanager
def serving(answer: bytes) -> Iterator[str]:
    """Give each connection to this machine the same bytes; yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, answer), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/x"
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)


def _serve(server: socket.socket, answer: bytes) -> None:
    with suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                connection.sendall(answer)


def _fetch(answer: bytes, path: Path) -> None:
    path.unlink()
    module.BACKOFF_S = 0.001  # of the child that reads the cases
    with serving(answer) as url:
        try:
            download(url, path, sha256="00", max_bytes=MAX_BYTES)
        finally:
            assert not path.exists()
            assert sum(item.stat().st_size for item in path.parent.iterdir()) <= 2 * MAX_BYTES


def _nothing() -> bytes:
    return b"-"


def _cases() -> Iterator[Case]:
    for name, answer in ANSWERS.items():
        made = ("w.pth.lock", "w.pth.part", "w.pth.part.json")
        yield Case(f"download-{name}", "w.pth", _nothing, partial(_fetch, answer), makes=made)


def cases() -> list[Case]:
    return unique(_cases())
