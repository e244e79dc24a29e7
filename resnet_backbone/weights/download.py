"""Fetching one file over HTTPS: resumed, checked, and under its final name only when complete."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

ATTEMPTS = 5
BACKOFF_S = 0.5  # doubled after each attempt that brought nothing
TIMEOUT_S = 30
MAX_BYTES = 4 << 30  # of a file whose size nobody said beforehand; the largest published weights have half a gigabyte
CHUNK_BYTES = 1 << 20
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_WORTH_ANOTHER_TRY = (408, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """A file could not be fetched. The message says which, what happened, and how to get it by hand."""


class _Dropped(Exception):
    """The connection failed in a way that another attempt may mend."""


def download(
    url: str,
    destination: str | Path,
    *,
    sha256: str = "",
    md5: str = "",
    progress: bool = True,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Fetch ``url`` to ``destination``, unless it is already there.

    What arrives is kept in ``<destination>.part`` and resumed by the next attempt or the next call, as long as the
    server still offers the same file. Processes that want the same destination wait for each other, and fetch once.

    Args:
        url: ``https://``; ``http://`` only for this machine itself.
        destination: the file to write; its folder is made.
        sha256: the leading hexadecimal digits that the file's SHA-256 must have; ``""`` for no check.
        md5: likewise for MD5, where that is all that a publisher gives.
        progress: show a bar on a terminal.
        max_bytes: what the file may have at most; a server that sends more is left, before the disk is full.

    Returns:
        ``destination``.

    Raises:
        ValueError: another scheme, or hashes that are not hexadecimal digits.
        DownloadError: the network, the server, the disk or the hash fails. No file is left under the final name.
    """
    _check_url(url)
    wanted = _wanted_hashes(sha256, md5)
    destination = Path(destination).expanduser().absolute()
    if destination.is_file():
        return destination
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(destination.with_name(destination.name + ".lock")):
            if not destination.is_file():
                _fetch(url, destination, wanted, progress, max_bytes)
    except DownloadError:
        raise
    except OSError as error:
        raise _failure(url, destination, f"{error.strerror or error} ({error.filename or destination})") from error
    return destination


def file_hash(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file's content, read in pieces. ``algorithm`` is ``"sha256"`` or ``"md5"``."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    raise ValueError(
        f"{url!r} is not fetched: only https:// is, since http:// can be changed on the way. Get the file by other "
        "means, and name it"
    )


def _wanted_hashes(sha256: str, md5: str) -> dict[str, str]:
    wanted = {name: value.lower() for name, value in (("sha256", sha256), ("md5", md5)) if value}
    for name, value in wanted.items():
        if not re.fullmatch("[0-9a-f]+", value):
            raise ValueError(f"{name} must be hexadecimal digits, got {value!r}")
    return wanted


def _failure(url: str, destination: Path, what: str) -> DownloadError:
    return DownloadError(f"cannot download {url}: {what}.\nDownload it elsewhere and put it at {destination}")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process. The empty file stays: removing it would let two processes hold it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that downloads %s", path.with_suffix(""))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass
class _Partial:
    """What is already there of a file, and which version of the file it is of."""

    path: Path
    url: str
    etag: str = ""
    last_modified: str = ""
    total: int | None = None  # bytes of the whole file, None until a server said so

    @property
    def _note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @classmethod
    def find(cls, path: Path, url: str) -> _Partial:
        """Return what an earlier call left, if its note shows that it is of the same address."""
        found = cls(path, url)
        try:
            note = json.loads(found._note.read_text())
            known = cls(path, note["url"], note["etag"], note["last_modified"], note["total"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            known = None
        if known is not None and known.url == url and known._has_right_types():
            return known
        found.discard()
        return found

    def _has_right_types(self) -> bool:
        texts = isinstance(self.etag, str) and isinstance(self.last_modified, str)
        return texts and (self.total is None or type(self.total) is int)

    def restart(self, etag: str, last_modified: str, total: int | None) -> None:
        """Forget the bytes, and note which version of the file comes now."""
        self.discard()
        self.etag, self.last_modified, self.total = etag, last_modified, total
        values: dict[str, Any] = {key: value for key, value in asdict(self).items() if key != "path"}
        self._note.write_text(json.dumps(values))

    def discard(self) -> None:
        if self.path.is_file():
            self.path.unlink()
        self._note.unlink(missing_ok=True)

    def become(self, destination: Path) -> None:
        self.path.replace(destination)
        self._note.unlink(missing_ok=True)


def _fetch(url: str, destination: Path, wanted: dict[str, str], progress: bool, max_bytes: int) -> None:
    partial = _Partial.find(destination.with_name(destination.name + ".part"), url)
    resumed = partial.size > 0
    _receive_all(partial, destination, progress, max_bytes)
    wrong = _wrong_hash(partial.path, wanted)
    if wrong and resumed:
        logger.warning("%s: %s after resuming; starting again", destination, wrong)
        partial.discard()
        _receive_all(partial, destination, progress, max_bytes)
        wrong = _wrong_hash(partial.path, wanted)
    if wrong:
        partial.discard()
        raise _failure(url, destination, f"{wrong}, so the file was thrown away")
    partial.become(destination)


def _wrong_hash(path: Path, wanted: dict[str, str]) -> str:
    for algorithm, expected in wanted.items():
        found = file_hash(path, algorithm)
        if not found.startswith(expected):
            return f"its {algorithm} is {found[: len(expected)]}, expected {expected}"
    return ""


def _receive_all(partial: _Partial, destination: Path, progress: bool, max_bytes: int) -> None:
    """Ask until every byte is there. Attempts that bring bytes do not count."""
    failures = 0
    with tqdm(desc=destination.name, unit="B", unit_scale=True, disable=None if progress else True) as bar:
        while True:
            before = partial.size
            try:
                _receive(partial, destination, bar, max_bytes)
                return
            except _Dropped as error:
                failures = 1 if partial.size > before else failures + 1
                if failures >= ATTEMPTS:
                    raise _failure(partial.url, destination, f"{error}, {ATTEMPTS} times in a row") from error
                logger.warning("%s: %s; trying again", partial.url, error)
                time.sleep(BACKOFF_S * 2 ** (failures - 1))


def _receive(partial: _Partial, destination: Path, bar: tqdm, max_bytes: int) -> None:
    """Make one request, and append what it brings. Raises _Dropped where bytes are still missing."""
    if partial.total is not None and partial.size == partial.total:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "resnet_backbone"}
    validator = partial.etag or partial.last_modified
    if partial.size and validator:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": validator}
    try:
        with _OPENER.open(urllib.request.Request(partial.url, headers=headers), timeout=TIMEOUT_S) as response:
            _prepare(partial, response)
            _check_size(partial, partial.total or 0, max_bytes, destination)
            _check_space(partial, destination)
            bar.total, bar.n = partial.total, partial.size
            with partial.path.open("ab") as file:
                while chunk := response.read1(CHUNK_BYTES):
                    _check_size(partial, file.tell() + len(chunk), max_bytes, destination)
                    _write(file, chunk, partial.url, destination)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.discard()
        elif error.code not in _WORTH_ANOTHER_TRY:
            raise _failure(partial.url, destination, f"the server answers {error.code} {error.reason}") from error
        raise _Dropped(f"the server answers {error.code} {error.reason}") from error
    except DownloadError:
        raise
    except (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _Dropped(f"the connection failed ({error})") from error
    except ValueError as error:  # of urllib, about an address that a redirect names
        raise _failure(partial.url, destination, f"the server's answer is damaged ({error})") from error
    if partial.total is not None and partial.size != partial.total:
        raise _Dropped(f"the connection ended after {partial.size} of {partial.total} bytes")


def _prepare(partial: _Partial, response: Any) -> None:
    """Keep the bytes that are there if the answer continues them, and start again if it does not."""
    etag = _validator(response, "ETag")
    etag = "" if etag.startswith("W/") else etag  # a weak tag does not promise the same bytes
    last_modified = _validator(response, "Last-Modified")
    if response.status == http.client.PARTIAL_CONTENT:
        match = re.fullmatch(
            r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", response.headers.get("Content-Range", "")
        )
        same = match is not None and (int(match[1]), int(match[2])) == (partial.size, partial.total)
        if same and (etag == partial.etag):
            return
        partial.discard()
        partial.etag, partial.last_modified, partial.total = "", "", None
        raise _Dropped("the file has changed since the first part of it was fetched")
    length = response.headers.get("Content-Length", "")
    if length and not re.fullmatch("[0-9]{1,18}", length):
        raise ValueError(f"its Content-Length is {length[:80]!r}")
    partial.restart(etag, last_modified, int(length) if length else None)


def _validator(response: Any, name: str) -> str:
    """Return a header that is sent back with the next request, if it can be sent: one line of plain text."""
    value = response.headers.get(name, "")
    return value if len(value) <= 1000 and value.isascii() and value.isprintable() else ""


def _check_size(partial: _Partial, size: int, max_bytes: int, destination: Path) -> None:
    if size > max_bytes:
        partial.discard()
        raise _failure(
            partial.url, destination, f"the server sends {size:,} bytes or more, at most {max_bytes:,} were expected"
        )


def _check_space(partial: _Partial, destination: Path) -> None:
    needed = (partial.total or 0) - partial.size
    free = shutil.disk_usage(destination.parent).free
    if needed > free:
        raise _failure(
            partial.url,
            destination,
            f"{needed / 1e9:.1f} GB are needed in {destination.parent}, {free / 1e9:.1f} GB are free",
        )


def _write(file: IO[bytes], chunk: bytes, url: str, destination: Path) -> None:
    try:
        file.write(chunk)
        file.flush()
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else os.strerror(error.errno or 0)
        raise _failure(url, destination, f"{what} while writing {file.name}; it is resumed by the next call") from error


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect that leaves HTTPS."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        try:
            _check_url(newurl)
        except ValueError as error:
            raise urllib.error.HTTPError(req.full_url, code, f"(redirect refused: {error})", headers, fp) from error
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SafeRedirects)
