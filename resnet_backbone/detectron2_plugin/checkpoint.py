"""Detectron2's detectors and their files: built from a config, filled from weights and checkpoints that run no code."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.config import fit_input
from resnet_backbone.config.acceleration import acceleration_of
from resnet_backbone.config.weights_input import refuse_unknown_input, required_by, required_by_metadata
from resnet_backbone.detectron2_plugin.backbone import StrictModule, TrunkBackbone
from resnet_backbone.detectron2_plugin.config import check_context, with_context_heads
from resnet_backbone.detectron2_plugin.datasets import set_num_classes
from resnet_backbone.engine.divergence import broken_tensors
from resnet_backbone.files.checkpoints import BEST, last_checkpoint, write_checkpoint
from resnet_backbone.models.acceleration import accelerate_heads, finish_for_inference
from resnet_backbone.weights import Weights, WeightsError, read_weights
from resnet_backbone.weights.catalog import SCHEMES, parse_source
from resnet_backbone.weights.detectors import is_of_torchvision, is_of_torchvision_engine, to_detectron2
from resnet_backbone.weights.download import MATCHING, resolve
from resnet_backbone.weights.errors import shorten
from resnet_backbone.weights.match import COUNTER, Match
from resnet_backbone.weights.names import holds_detector
from resnet_backbone.weights.package import download_packaged
from resnet_backbone.weights.read import RawFile, log_other_networks, read_file, read_torch_file, split_part

logger = logging.getLogger(__name__)


class WeightsFile:
    """The file that MODEL.WEIGHTS names, downloaded if it must be, and read once.

    ``arch`` is that of the trunk, for files that do not say theirs; None takes any.

    Attributes:
        path: of the file on this machine.
        raw: its content.
        is_detector: whether that is a detector, and not a classifier.

    Raises:
        OSError, WeightsError: see :func:`local_file`; or the file is damaged, or could run code.
    """

    def __init__(self, source: str, arch: str | None) -> None:
        self.source = source
        self._local = local_file(source)
        self._arch = arch
        self.path, self.part = split_part(self._local)
        self.raw = read_file(self._local)
        if is_of_torchvision(self.raw.tensors):
            raise WeightsError(
                f"{source} is a detector of torchvision's own, with its arithmetic: --engine torchvision"
            )
        if is_of_torchvision_engine(self.raw.tensors):
            self.raw = replace(self.raw, tensors=to_detectron2(self.raw.tensors))
        self.is_detector = holds_detector(self.raw.tensors)

    @cached_property
    def classifier(self) -> Weights:
        """The weights of a classifier, in our names, checked against ``arch``."""
        return read_weights(self.raw, arch=self._arch)

    def required_input(self, cfg: CfgNode) -> dict[str, object]:
        """Return the config keys that fix what the file was trained on; nothing where the user has said it in ``cfg``.

        Raises:
            ValueError: neither the file nor the config says it; or weights of another architecture than ``cfg`` has.
        """
        required = required_by_metadata(self.raw.metadata, self.source, cfg.MODEL.RESNET_BACKBONE.ARCH)
        if required:
            return required
        if self.is_detector:
            refuse_unknown_input(cfg, self.source)
            return {}
        return required_by(self.classifier, cfg)

    def content(self, *, for_run: bool) -> dict[str, Any]:
        """Return what Detectron2's checkpointer loads.

        Args:
            for_run: with optimizer and schedule, which are beside the model of a run's checkpoint.
        """
        if not self.is_detector:
            if self.classifier.left_out:
                logger.warning("not used of %s: %s", self._local, shorten(self.classifier.left_out))
            return {"model": dict(self.classifier.state_dict), "matching_heuristics": True}
        beside: dict[str, Any] = self.raw.metadata
        if for_run and not self.part:
            beside = read_torch_file(self.path, mapped=False)
        elif not self.part:
            log_other_networks(self.path, self.raw)
        matching = {"matching_heuristics": True} if MATCHING in self.source else {}
        return {**beside, "model": dict(self.raw.tensors), **matching}


class SafeCheckpointer(DetectionCheckpointer):
    """Loads what Detectron2's does, and ImageNet classifiers in any naming that ``read_weights`` knows.

    Args:
        model, save_dir, checkpointables: as of Detectron2's.
        arch: of the trunk, for files that do not say theirs; None takes any, and fills what fits.
        facts: plain containers to write into every checkpoint: ``input``, ``class_names``, ``arch``, ``version``.

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
        """Write ``name.pth`` atomically, and make it the last checkpoint, unless it is the best.

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
        """Return the path of the newest undamaged checkpoint, "" where there is none."""
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
        return self.load_file(WeightsFile(path, self.arch), *args, **kwargs)

    def load_file(self, file: WeightsFile, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a file that was read before; the other arguments are those of ``load``."""
        self._file = file
        try:
            return super().load(str(file.path), *args, **kwargs)
        finally:
            del self._file

    def _load_file(self, filename: str) -> dict[str, Any]:
        return self._file.content(for_run=bool(self.checkpointables))


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


def strict_arch(cfg: CfgNode) -> str | None:
    """Return MODEL.RESNET_BACKBONE.ARCH; None with STRICT_WEIGHTS off: any weights then load as far as they fit."""
    node = cfg.MODEL.RESNET_BACKBONE
    return node.ARCH if node.STRICT_WEIGHTS else None


def load_detector_weights(model: nn.Module, file: WeightsFile, *, complete: bool) -> None:
    """Load a checkpoint, or the weights of a classifier, into a detector, in place.

    Raises ValueError for a file of another detector where the match must be ``complete``: every tensor filled, and of
    the parts that the detector has nothing left over.
    """
    checkpointer = SafeCheckpointer(model, "", arch=None, facts={}, save_to_disk=False)
    checkpointer.load_file(file, checkpointables=[])
    if not complete:
        return
    parts = {_part(name) for name, _ in model.named_parameters()}
    match = checkpointer.match
    match = replace(match, left_over=[name for name in match.left_over if _part(name) in parts])
    if not match.fits:
        raise ValueError(
            f"{file.source} is of another detector than the config describes; {'; '.join(match.lines())}. A checkpoint "
            f"of the torchvision engine is evaluated with --engine torchvision"
        )


def load_trunk_weights(model: nn.Module, source: str) -> None:
    """Fill each trunk of ours in a model, and heads made of a classifier, with its weights, in place.

    For models of several detectors, as teacher and student: Detectron2's checkpointer cannot match one file with two.

    Raises:
        OSError: ``source``, which is what MODEL.WEIGHTS can name, is not there, or cannot be downloaded.
        ValueError: it is a detector, unsafe or of another network; or the model has no trunk of ours.
    """
    parts = {name: part for name, part in model.named_modules() if isinstance(part, StrictModule)}
    trunk = next((part for part in parts.values() if isinstance(part, TrunkBackbone)), None)
    if trunk is None:
        raise ValueError("the model has no backbone of resnet_backbone to fill; see MODEL.BACKBONE.NAME")
    file = WeightsFile(source, trunk.arch)
    if file.is_detector:
        raise ValueError(f"{source} is a detector, not a classifier; load it by the checkpointer of the project")
    tensors = file.classifier.state_dict
    for name, part in parts.items():
        own = {key.removeprefix(part.strict_prefix): tensors[key] for key in tensors if part.is_own(key)}
        part.load_state_dict(own, strict=False)
        logger.info("%s: filled from %s", name, source)


def _part(name: str) -> str:
    """``roi_heads.box_head.fc1.weight`` -> ``roi_heads.box_head``. Whole parts, as a mask head, may be left over."""
    return ".".join(name.split(".")[:2])


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the detector that ``cfg`` describes, on MODEL.DEVICE, with random weights; see ``with_context_heads``.

    Raises:
        ValueError: parts that do not fit each other; Detectron2 itself asserts, or fails on the way, and is quoted.
    """
    cfg = with_context_heads(cfg)
    check_context(cfg)
    try:
        model = build_model(cfg)
        accelerate_heads(model, acceleration_of(cfg))
        return model
    except ValueError:
        raise
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"Detectron2 cannot build what the config describes: {type(error).__name__}: {error}"
        ) from error


def load_trained(cfg: CfgNode) -> tuple[CfgNode, nn.Module, tuple[str, ...]]:
    """Build the detector that a config describes, and fill every tensor of it from MODEL.WEIGHTS.

    A checkpoint that names no classes, as those of Detectron2's model zoo, has the classes of DATASETS.TEST.

    Returns:
        The config with the classes and the input format of the checkpoint, the detector in eval mode on MODEL.DEVICE,
        finished for inference, and the names of its classes.

    Raises:
        OSError: the checkpoint is not there, or cannot be downloaded.
        ValueError: it cannot be read safely, is of another detector than the config describes, or nobody says which
            classes it detects or which input it needs.
    """
    source = cfg.MODEL.WEIGHTS
    if not source:
        raise ValueError("MODEL.WEIGHTS is empty; name the checkpoint of a training")
    cfg = cfg.clone()
    file = WeightsFile(source, strict_arch(cfg))
    if not file.is_detector:
        raise ValueError(f"{source} is a classifier; name the checkpoint of a trained detector")
    class_names = _class_names(cfg, file.raw)
    set_num_classes(cfg, len(class_names))
    fit_input(cfg, file.required_input(cfg), source)
    model = build_detector(cfg).eval()
    load_detector_weights(model, file, complete=True)
    finish_for_inference(model)
    return cfg, model, class_names


def _class_names(cfg: CfgNode, raw: RawFile) -> tuple[str, ...]:
    if raw.metadata.get("class_names"):
        return tuple(raw.metadata["class_names"])
    for name in cfg.DATASETS.TEST:
        if name in MetadataCatalog and (names := MetadataCatalog.get(name).get("thing_classes")):
            return tuple(names)
    raise ValueError(
        f"{cfg.MODEL.WEIGHTS} does not name its classes, and DATASETS.TEST {list(cfg.DATASETS.TEST)} is no data set "
        f"that Detectron2 knows; write the one that it was trained for, such as DATASETS.TEST \"['coco_2017_val']\""
    )
