"""Downloading: a file over HTTPS, resumed and checked; and weights, to the cache of this machine, once.

A download is under its final name only when it is complete.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import importlib.util
import json
import logging
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from resnet_backbone.files.atomic import check_free, file_hash, locked
from resnet_backbone.weights.catalog import SCHEMES, WeightsEntry, find_entry_by_address
from resnet_backbone.weights.detectors import DETECTRON2_URL, TORCHVISION, DetectorEntry, named_detector
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.read import PART, SHARDS, check_readable, shards_of

logger = logging.getLogger(__name__)

ATTEMPTS = 5
BACKOFF_S = 0.5  # doubled after each attempt that brought nothing
TIMEOUT_S = 30
ANSWER_S = 3  # for a question that somebody waits for
MAX_BYTES = 4 << 30  # of a file whose size nobody said beforehand; the largest published weights have half a gigabyte
CHUNK_BYTES = 1 << 20
MATCHING = "?matching_heuristics=True"  # behind a file: Detectron2's way to ask for its name matching
_DETECTRON2_ADDRESSES = ("detectron2://", DETECTRON2_URL)
_HUB = "hf://"
_HUB_FILE = re.compile(r"hf://([\w.-]+/[\w.-]+(?:@[\w.-]+)?)/([\w./-]+)")
_SHA256 = "sha256="
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
        max_bytes: what the file may have at most; a server that sends more is left, before the disk is full.

    Returns:
        ``destination``.

    Raises:
        ValueError: another scheme, or hashes that are not hexadecimal digits.
        DownloadError: the network, the server, the disk or the hash fails. No file is left under the final name.
    """
    _check_url(url)
    wanted = {name: value.lower() for name, value in {"sha256": sha256, "md5": md5}.items() if value}
    for name, value in wanted.items():
        if not re.fullmatch("[0-9a-f]+", value):
            raise ValueError(f"{name} must be hexadecimal digits, got {value!r}")
    destination = Path(destination).expanduser().absolute()
    if destination.is_file():
        return destination
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock, waiting = f"{destination.name}.lock", f"waiting for another process that downloads {destination}"
        with locked(destination.with_name(lock), waiting=waiting):
            if not destination.is_file():
                _fetch(url, destination, wanted, max_bytes)
    except DownloadError:
        raise
    except OSError as error:
        raise _failure(url, destination, f"{error.strerror or error} ({error.filename or destination})") from error
    return destination


def is_offered(url: str) -> bool:
    """Return whether a server says, within :data:`ANSWER_S`, that it has a file; nothing is fetched."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=ANSWER_S):
            return True
    except (OSError, http.client.HTTPException):
        return False


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    raise ValueError(
        f"{url!r} is not fetched: only https:// is, since http:// can be changed on the way. Get the file by other "
        "means, and name it"
    )


def _failure(url: str, destination: Path, what: str) -> DownloadError:
    return DownloadError(f"cannot download {url}: {what}.\nDownload it elsewhere and put it at {destination}")


class _Partial:
    """What is already there of a file, and which version of the file it is of, as a note beside it says."""

    def __init__(self, destination: Path, url: str) -> None:
        self.destination, self.url = destination, url
        self.path = destination.with_name(f"{destination.name}.part")
        self._note = destination.with_name(f"{destination.name}.part.json")
        self.etag = ""
        self.total: int | None = None  # bytes of the complete file, None until a server said so
        try:
            note = json.loads(self._note.read_text())
            if note["url"] == url and isinstance(note["etag"], str) and type(note["total"]) in (int, type(None)):
                self.etag, self.total = note["etag"], note["total"]
                return
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            pass
        self.discard()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def restart(self, etag: str, total: int | None) -> None:
        """Forget the bytes, and note which version of the file comes now."""
        self.discard()
        self.etag, self.total = etag, total
        self._note.write_text(json.dumps({"url": self.url, "etag": etag, "total": total}))

    def discard(self) -> None:
        if self.path.is_file():
            self.path.unlink()
        self._note.unlink(missing_ok=True)

    def failure(self, what: str) -> DownloadError:
        return _failure(self.url, self.destination, what)

    def check_size(self, size: int, max_bytes: int) -> None:
        """Raise DownloadError, and keep nothing, for more bytes than were expected."""
        if size > max_bytes:
            self.discard()
            raise self.failure(f"the server sends {size:,} bytes or more, at most {max_bytes:,} were expected")

    def write(self, file: IO[bytes], chunk: bytes) -> None:
        """Append to ``file``, which is open at :attr:`path`."""
        try:
            file.write(chunk)
            file.flush()
        except OSError as error:
            what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else os.strerror(error.errno or 0)
            raise self.failure(f"{what} while writing {self.path}; it is resumed by the next call") from error


def _fetch(url: str, destination: Path, wanted: dict[str, str], max_bytes: int) -> None:
    partial = _Partial(destination, url)
    resumed = partial.size > 0
    _receive_all(partial, max_bytes)
    wrong = _wrong_hash(partial.path, wanted)
    if wrong:
        partial.discard()
    if wrong and resumed:
        logger.warning("%s: %s after resuming; starting again", destination, wrong)
        _fetch(url, destination, wanted, max_bytes)
    elif wrong:
        raise partial.failure(f"{wrong}, so the file was thrown away")
    else:
        partial.path.replace(destination)
        partial.discard()


def _wrong_hash(path: Path, wanted: dict[str, str]) -> str:
    for algorithm, expected in wanted.items():
        found = file_hash(path, algorithm)
        if not found.startswith(expected):
            return f"its {algorithm} is {found[: len(expected)]}, expected {expected}"
    return ""


def _receive_all(partial: _Partial, max_bytes: int) -> None:
    """Ask until every byte is there. Attempts that bring bytes do not count."""
    failures = 0
    with tqdm(desc=partial.destination.name, unit="B", unit_scale=True, disable=None) as bar:
        while True:
            before = partial.size
            try:
                _receive(partial, bar, max_bytes)
                return
            except _Dropped as error:
                failures = 1 if partial.size > before else failures + 1
                if failures >= ATTEMPTS:
                    raise partial.failure(f"{error}, {ATTEMPTS} times in a row") from error
                logger.warning("%s: %s; trying again", partial.url, error)
                time.sleep(BACKOFF_S * 2 ** (failures - 1))


def _receive(partial: _Partial, bar: tqdm, max_bytes: int) -> None:
    """Make one request, and append what it brings. Raises _Dropped where bytes are still missing."""
    if partial.total is not None and partial.size == partial.total:
        return
    headers = {"Accept-Encoding": "identity", "User-Agent": "resnet_backbone"}
    if partial.size and partial.etag:
        headers |= {"Range": f"bytes={partial.size}-", "If-Range": partial.etag}
    try:
        with _OPENER.open(urllib.request.Request(partial.url, headers=headers), timeout=TIMEOUT_S) as response:
            _prepare(partial, response)
            partial.check_size(partial.total or 0, max_bytes)
            check_free(partial.destination.parent, (partial.total or 0) - partial.size, "it")
            bar.total, bar.n = partial.total, partial.size
            with partial.path.open("ab") as file:
                while chunk := response.read1(CHUNK_BYTES):
                    partial.check_size(file.tell() + len(chunk), max_bytes)
                    partial.write(file, chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        answer = f"the server answers {error.code} {error.reason}"
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            partial.discard()
        elif error.code not in _WORTH_ANOTHER_TRY:
            raise partial.failure(answer) from error
        raise _Dropped(answer) from error
    except DownloadError:
        raise
    except (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _Dropped(f"the connection failed ({error})") from error
    except ValueError as error:  # of urllib, about an address that a redirect names
        raise partial.failure(f"the server's answer is damaged ({error})") from error
    if partial.total is not None and partial.size != partial.total:
        raise _Dropped(f"the connection ended after {partial.size} of {partial.total} bytes")


def _prepare(partial: _Partial, response: Any) -> None:
    """Keep the bytes that are there if the answer continues them, and start again if it does not."""
    etag = response.headers.get("ETag", "")
    # It is sent back with the next request, as one line of plain text; a weak one does not promise the same bytes.
    if etag.startswith("W/") or len(etag) > 1000 or not (etag.isascii() and etag.isprintable()):
        etag = ""
    if response.status == http.client.PARTIAL_CONTENT:
        found = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", found)
        same = match is not None and (int(match[1]), int(match[2])) == (partial.size, partial.total)
        if same and etag == partial.etag:
            return
        partial.discard()
        partial.etag, partial.total = "", None
        raise _Dropped("the file has changed since the first part of it was fetched")
    length = response.headers.get("Content-Length", "")
    if length and not re.fullmatch("[0-9]{1,18}", length):
        raise ValueError(f"its Content-Length is {length[:80]!r}")
    partial.restart(etag, int(length) if length else None)


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


def cache_folder() -> Path:
    """``$RESNET_BACKBONE_CACHE``, by default ``~/.cache/resnet_backbone``."""
    return Path(os.environ.get("RESNET_BACKBONE_CACHE") or "~/.cache/resnet_backbone").expanduser()


def cached_weights_path(entry: WeightsEntry | DetectorEntry) -> Path:
    """Return where the file of an entry is or will be.

    That is ``weights`` below :func:`cache_folder`; a file that torch.hub has already fetched to its own ``checkpoints``
    folder is used from there if its hash is right, and one of the hub from the cache of the hub's own tools.
    """
    ours = cache_folder() / "weights" / entry.file_name
    if ours.is_file() or not entry.sha256:
        return ours if ours.is_file() else _cached_by_hub(entry.url) or ours
    of_torch_hub = Path(torch.hub.get_dir()) / "checkpoints" / entry.file_name
    if of_torch_hub.is_file() and file_hash(of_torch_hub, "sha256").startswith(entry.sha256):
        return of_torch_hub
    return ours


def download_weights(entry: WeightsEntry | DetectorEntry) -> Path:
    """Return the file of an entry, fetching it the first time.

    Raises:
        DownloadError: see :func:`download`.
    """
    path = cached_weights_path(entry)
    if not path.is_file():
        try:
            download(entry.url, path, sha256=entry.sha256)
        except DownloadError as error:  # repositories of the hub that are older than safetensors
            folder, _, file = entry.url.rpartition("/")
            if getattr(error.__cause__, "code", 0) != http.client.NOT_FOUND or file != "model.safetensors":
                raise
            download(f"{folder}/pytorch_model.bin", path)
        _tell_hash(entry.url, path, entry.sha256)
    return path


def resolve(source: str) -> str:
    """Return what a user names as weights as the readers take it: an address becomes the file that it was fetched to.

    Args:
        source: an address, ``https://``, ``detectron2://``, ``torchvision://BUILDER/WEIGHTS`` of one of its detectors,
            or ``hf://OWNER/REPO/FILE`` (``REPO@REVISION`` for another than ``main``; ``$HF_ENDPOINT`` is the hub, whose
            own cache is looked into first); or a file, or a name of
            the catalog, which stay as they are. ``#sha256=DIGITS`` behind it is checked, ``#PART`` names one of the
            networks in the file, see :func:`~resnet_backbone.weights.read.read_file`; both are joined by ``&``.

    Returns:
        A file, with ``#PART`` where one was named, or the name in the catalog of an address that is there.

    Raises:
        WeightsError: an address of another kind, a file with another hash, or what came is no weight file.
        DownloadError: it could not be fetched.
    """
    place, part, sha256 = _split(source)
    is_file = Path(place).is_file()
    entry = None if is_file else find_entry_by_address(place)
    if entry is not None:
        place = entry.uri
        path = download_weights(entry) if sha256 else Path()
    elif "://" in place and not is_file and not place.startswith(SCHEMES):
        path = _download_address(place, sha256)
        place = str(path)
    else:
        path = Path(place)
    if sha256:
        found = file_hash(path, "sha256") if path.is_file() else ""
        if not found.startswith(sha256):
            what = f"its SHA-256 is {found}" if found else "it is no file"
            raise WeightsError(f"{place}: {what}, expected was {sha256}")
    return f"{place}{PART}{part}" if part else place


def _split(source: str) -> tuple[str, str, str]:
    """The place, the part and the leading digits of the SHA-256 that a source names."""
    if Path(source).is_file():
        return source, "", ""
    place, _, fragment = source.rpartition(PART) if PART in source else (source, "", "")
    items = [item for item in fragment.split("&") if item]
    hashes = [item.removeprefix(_SHA256).lower() for item in items if item.startswith(_SHA256)]
    parts = [item for item in items if not item.startswith(_SHA256)]
    if len(hashes) > 1 or len(parts) > 1 or not all(re.fullmatch("[0-9a-f]{8,64}", digits) for digits in hashes):
        raise WeightsError(
            f"{source!r} ends in {PART}{fragment}; write {PART}PART, {PART}{_SHA256}DIGITS or "
            f"{PART}PART&{_SHA256}DIGITS, of 8 to 64 hexadecimal digits"
        )
    return place.removesuffix(MATCHING), "".join(parts), "".join(hashes)


def _download_address(address: str, sha256: str) -> Path:
    if address.startswith(TORCHVISION):
        return download_weights(named_detector(address))
    prefix, url = _DETECTRON2_ADDRESSES
    url = url + address.removeprefix(prefix) if address.startswith(prefix) else address
    if address.startswith(_HUB):
        match = _HUB_FILE.fullmatch(address)
        if match is None:
            raise WeightsError(
                f"{address!r} names no file of a hub; write hf://OWNER/REPO/FILE or hf://OWNER/REPO@REVISION/FILE, "
                "as in hf://timm/resnet50.a1_in1k/model.safetensors"
            )
        url = hub_url(*match.groups())
        if (cached := _cached_by_hub(url)) is not None:
            return cached
    name = urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])
    folder = cache_folder() / "weights" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / (re.sub(r"[^\w.-]", "_", name)[-100:] or "weights")
    if path.is_file():
        return path
    try:
        download(url, path, sha256=sha256)
    except ValueError as error:
        schemes = " and ".join(f"{scheme}ARCH/NAME" for scheme in SCHEMES)
        raise WeightsError(f"{error}. Published weights are {schemes}") from error
    try:
        shards = sorted(set(shards_of(path).values())) if check_readable(path) == SHARDS else []
    except WeightsError as error:
        path.unlink()
        raise WeightsError(f"{url} brought no weight file, so it was thrown away: {error}") from error
    for shard in shards:
        download(urllib.parse.urljoin(url, shard.name), shard)
    if not shards:
        _tell_hash(url, path, sha256)
    return path


def hub_url(repository: str, file: str) -> str:
    """Return the address of a file of ``OWNER/REPO`` or ``OWNER/REPO@REVISION`` on the hub, ``$HF_ENDPOINT``."""
    place, _, revision = repository.partition("@")
    hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{hub.rstrip('/')}/{place}/resolve/{revision or 'main'}/{file}"


def _cached_by_hub(url: str) -> Path | None:
    """Where the hub's own tools (timm, ``hf download``) have put a file on this machine, private ones too."""
    match = re.fullmatch(r".*/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url)
    if match is None or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(match[1], match[3], revision=match[2])
    if not isinstance(cached, str):
        return None
    path = Path(cached)
    if match[3].endswith(".json") and not all(shard.is_file() for shard in shards_of(path).values()):
        return None
    return path


def _tell_hash(url: str, path: Path, sha256: str) -> None:
    if not sha256:
        mark = f"{PART}{_SHA256}{file_hash(path, 'sha256')}"
        logger.warning("%s: no hash is known to check it by; write ...%s to have this file checked", url, mark)
