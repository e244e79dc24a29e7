"""Where published weights are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from resnet_backbone.weights.catalog import WeightsEntry
from resnet_backbone.weights.download import download, file_hash


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
    return path if path.is_file() else download(entry.url, path, sha256=entry.sha256)
