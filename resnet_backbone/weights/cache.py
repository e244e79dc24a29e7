"""Where weights from elsewhere are kept on this machine, and the files that addresses are fetched to."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import urllib.parse
from pathlib import Path

import torch

from resnet_backbone.weights.catalog import SCHEMES, WeightsEntry, find_entry_by_address
from resnet_backbone.weights.download import download, file_hash
from resnet_backbone.weights.errors import WeightsError
from resnet_backbone.weights.read import PART, check_readable

logger = logging.getLogger(__name__)

MATCHING = "?matching_heuristics=True"  # behind a file: Detectron2's way to ask for its name matching
_DETECTRON2 = ("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
_SHA256 = "sha256="


def cache_folder() -> Path:
    """``$RESNET_BACKBONE_CACHE``, by default ``~/.cache/resnet_backbone``."""
    return Path(os.environ.get("RESNET_BACKBONE_CACHE") or "~/.cache/resnet_backbone").expanduser()


def cached_weights_path(entry: WeightsEntry) -> Path:
    """Return where the file of an entry is or will be.

    That is ``weights`` below :func:`cache_folder`; a file that torch.hub has already fetched to its own ``checkpoints``
    folder is used from there if its hash is right.
    """
    ours = cache_folder() / "weights" / entry.file_name
    if ours.is_file() or not entry.sha256:
        return ours
    of_torch_hub = Path(torch.hub.get_dir()) / "checkpoints" / entry.file_name
    if of_torch_hub.is_file() and file_hash(of_torch_hub, "sha256").startswith(entry.sha256):
        return of_torch_hub
    return ours


def download_weights(entry: WeightsEntry) -> Path:
    """Return the file of an entry, fetching it the first time.

    Raises:
        DownloadError: see :func:`~resnet_backbone.weights.download.download`.
    """
    path = cached_weights_path(entry)
    if not path.is_file():
        download(entry.url, path, sha256=entry.sha256)
        _tell_hash(entry.url, path, entry.sha256)
    return path


def resolve(source: str) -> str:
    """Return what a user names as weights as the readers take it: an address becomes the file that it was fetched to.

    Args:
        source: an address, ``https://`` or ``detectron2://``; or a file, or a name of the catalog, which stay as they
            are. ``#sha256=DIGITS`` behind it is checked, ``#PART`` names one of the networks in the file, see
            :func:`~resnet_backbone.weights.read.read_file`; both are joined by ``&``.

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
    if sha256 and not (path.is_file() and file_hash(path, "sha256").startswith(sha256)):
        found = f"its SHA-256 is {file_hash(path, 'sha256')}" if path.is_file() else "it is no file"
        raise WeightsError(f"{place}: {found}, expected was {sha256}")
    return f"{place}{PART}{part}" if part else place


def _split(source: str) -> tuple[str, str, str]:
    """Return the place, the part and the leading digits of the SHA-256 that a source names."""
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
    prefix, url = _DETECTRON2
    url = url + address.removeprefix(prefix) if address.startswith(prefix) else address
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
        check_readable(path)
    except WeightsError as error:
        path.unlink()
        raise WeightsError(f"{url} brought no weight file, so it was thrown away: {error}") from error
    _tell_hash(url, path, sha256)
    return path


def _tell_hash(url: str, path: Path, sha256: str) -> None:
    if not sha256:
        found = file_hash(path, "sha256")
        logger.warning(
            "%s: no hash is known to check it by. Its SHA-256 is %s; write ...%s%s%s to have it checked",
            url,
            found,
            PART,
            _SHA256,
            found,
        )
