"""Weights on Detectron2: ``imagenet://`` as a path, and refusing checkpoints that fill only a part of the trunk.

Detectron2's own checkpointer logs what is missing and continues. Modules of this class say no themselves, so that it
holds in any project.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from torch import nn

from resnet_backbone.weights import WeightsError
from resnet_backbone.weights.architecture import stage_of
from resnet_backbone.weights.catalog import SCHEMES, parse_source
from resnet_backbone.weights.errors import shorten
from resnet_backbone.weights.match import COUNTER, match_names
from resnet_backbone.weights.package import download_packaged

logger = logging.getLogger(__name__)

# Caffe2's files, MSRA's R-50.pkl for one, have a bias in front of the first norm, which no Detectron uses.
_HARMLESS = ("stem.conv1.bias",)
_FOREIGN = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "features.")


class StrictModule(nn.Module):
    """A module of which ``load_state_dict`` must fill every tensor, also with ``strict=False``.

    Counters of batch norm are neither asked for nor reported as unused.

    Attributes:
        arch: for messages.
        strict_weights: False lets everything pass, as Detectron2 does.
        strict_stages: the stages of the ImageNet classifier that this module consists of; it may have other children.
        strict_prefix: what the classifier has before the names of this module, as in ``"res5."``.
    """

    arch: str
    strict_weights: bool
    strict_stages: Sequence[str]
    strict_prefix: str = ""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Check before anything of this module is filled; ``load_state_dict`` calls it.

        Raises:
            WeightsError: tensors are missing, of another shape (the checkpointer has taken those out), or left over.
        """
        own = self.state_dict()
        for name in list(state_dict):
            if name.startswith(prefix) and name.endswith(COUNTER) and name.removeprefix(prefix) not in own:
                del state_dict[name]
        # The outermost module has put here what Detectron2's matching found no place for: names without a prefix.
        unexpected_keys[:] = [name for name in unexpected_keys if not name.endswith(COUNTER)]
        if self.strict_weights:
            inside = [self.strict_prefix + name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)]
            wanted = [self.strict_prefix + name for name in own if not name.endswith(COUNTER)]
            self._refuse_partial(wanted, inside, unexpected_keys, prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _refuse_partial(self, wanted: list[str], inside: list[str], outside: list[str], prefix: str) -> None:
        wanted = [name for name in wanted if self._is_own(name)]
        match = match_names(wanted, [name for name in inside if self._is_own(name)])
        unmatched = {name for name in outside if self._is_own(name) and name not in (*wanted, *_HARMLESS)}
        missing, leftover = match.missing, sorted(unmatched.union(match.left_over))
        where = prefix.rstrip(".") or "the model"
        if not missing and not leftover:
            logger.info("%s: the checkpoint fills all %d tensors of %s", self.arch, len(wanted), where)
            return
        lines = [f"the checkpoint does not fit {self.arch} at {where}; nothing of it was loaded there."]
        for what, names in (
            ("tensors are missing, or of another shape", missing),
            ("tensors of the file fit nothing", leftover),
        ):
            if names:
                lines.append(f"  {len(names)} of {len(wanted)} {what}: {shorten(names)}")
        lines.append(f"  {_advice(wanted, missing, leftover, outside)}")
        if len(missing) < len(wanted):
            lines.append("  MODEL.RESNET_BACKBONE.STRICT_WEIGHTS: False loads what fits.")
        raise WeightsError("\n".join(lines))

    def _is_own(self, name: str) -> bool:
        return stage_of(name) in self.strict_stages


def _advice(wanted: list[str], missing: list[str], leftover: list[str], outside: list[str]) -> str:
    if missing and any(name.startswith(_FOREIGN) for name in outside):
        return (
            "It has the names of torchvision or timm. Write MODEL.WEIGHTS: imagenet://ARCH/NAME, or package the file "
            "with tools/package_weights.py."
        )
    if missing and all(name.startswith(("fc6.", "fc7.")) for name in missing):
        return "The file has no classifier; take weights that have fc6 and fc7, such as IMAGENET1K_V1."
    if len(missing) == len(wanted):
        return (
            "Nothing in it has the names of this model. ImageNet weights load as MODEL.WEIGHTS: imagenet://ARCH/NAME, "
            "or packaged by tools/package_weights.py; detectors load into the config that they were trained with."
        )
    if leftover and not missing and all(".norm." in name for name in leftover):
        return "The file has batch norm: write MODEL.RESNET_BACKBONE.NORM: FrozenBN, BN or SyncBN."
    if missing and all(name.endswith(".shortcut.padding") for name in missing):
        return (
            "The file has shortcut option A, and nobody said where its zeros are: package it with "
            "tools/package_weights.py --option-a-zeros."
        )
    if missing and all(".norm." in name for name in missing):
        return (
            "The norms are not the same: MODEL.RESNET_BACKBONE.NORM: GN is for files with group norm, FrozenBN and BN "
            "for those with running statistics (files of the first Detectron have none, take Detectron2's)."
        )
    return "Is it of another depth? MODEL.RESNET_BACKBONE.ARCH must be the network of the file."


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
