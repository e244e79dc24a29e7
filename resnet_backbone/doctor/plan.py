"""A training planned from a folder of images and labels: data, detector and schedule that fit them and the machine."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from fvcore.common.config import CfgNode

from resnet_backbone.config.acceleration import default_device
from resnet_backbone.config.reader import literal
from resnet_backbone.config.weights_input import required_input
from resnet_backbone.data.coco.checks import Checked
from resnet_backbone.data.coco.findings import refuse_findings
from resnet_backbone.data.prepare.folder import FolderData, read_folder
from resnet_backbone.doctor.dataset_report import CheckedSet, DatasetReport, SetToCheck, check_sets
from resnet_backbone.files.atomic import write_text, writing_alone
from resnet_backbone.weights.catalog import WeightsEntry, get_entry, list_weights
from resnet_backbone.weights.detectors import DetectorEntry, published_detectors, torchvision_detectors
from resnet_backbone.weights.download import cached_weights_path, is_offered

_Entry = TypeVar("_Entry", DetectorEntry, WeightsEntry)

PLAN, DATA = "plan.yaml", "data"  # in OUTPUT_DIR: the config, and the annotations
BYTES_PER_PIXEL = 4000  # of a training step in float32, estimated to be enough
_ON_CPU, _ON_GPU = "quickstart.yaml", "Base-RCNN-FPN.yaml"
# Passes over the data, and least and most iterations: on a GPU by what is started from, on a CPU for minutes. Chosen.
_LENGTHS = {"detector": (30, 1000, 20000), "classifier": (60, 2000, 90000), "scratch": (120, 5000, 90000)}
_LENGTH_ON_CPU = (7, 500, 2000)


@dataclass(frozen=True)
class Plan:
    """A training that can start."""

    cfg: CfgNode
    data: FolderData
    lines: tuple[str, ...]  # to read: five on the data, then the choices

    def write(self) -> Path:
        """Write the annotations and the config into OUTPUT_DIR, and return the config's path.

        Raises:
            OSError: the folder cannot be written to, or another run writes there.
        """
        folder = Path(self.cfg.OUTPUT_DIR)
        with writing_alone(folder):
            _write_parts(self.data, folder / DATA)
            write_text(folder / PLAN, self.cfg.dump())
        return folder / PLAN


def written_plan(root: Path, overrides: Sequence[str]) -> Path:
    """Return where :meth:`Plan.write` puts the config of a training planned for the folder ``root``."""
    return output_folder(root, overrides) / PLAN


def output_folder(root: Path, overrides: Sequence[str]) -> Path:
    """Return OUTPUT_DIR of ``KEY VALUE`` words, by default ``output`` and the name of the folder of data."""
    return Path(_pairs(overrides).get("OUTPUT_DIR") or Path("output", root.resolve().name or DATA))


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    return dict(zip(overrides[::2], overrides[1::2], strict=False))  # load_config tells of an odd number


def plan_training(
    root: Path,
    overrides: Sequence[str],
    load_config: Callable[[str, Sequence[str]], CfgNode],
    *,
    engine: str,
    group_by: str | None = None,
    processes: int = 1,
) -> Plan:
    """Read and check a folder, and choose how to train on it; nothing is written but temporary files.

    Args:
        root: see :func:`~resnet_backbone.data.prepare.folder.read_folder`, as ``group_by``.
        overrides: ``KEY VALUE`` words, which count for more than what is chosen; what depends on them follows them.
        load_config: of the ``engine``, ``torchvision`` or ``detectron2``.
        processes: that share a batch, one a GPU.

    Raises:
        FileNotFoundError, OSError, ValueError: the data cannot be trained on, or a key cannot be obeyed.
    """
    data = read_folder(root, group_by)
    with TemporaryDirectory() as name:
        sets = _check(data, Path(name))
    train, test = (one.checked for one in sets if one.checked is not None)
    planner = _Planner(train, engine, processes, _pairs(overrides))
    base = planner.plan()
    output = output_folder(root, overrides)
    own = {"DATASETS.TRAIN": ["my_train"], "DATASETS.TEST": [f"my_{data.evaluated}"], "OUTPUT_DIR": output}
    own["DATASETS.OWN"] = [
        {"NAME": f"my_{split}", "JSON": str(path.absolute()), "IMAGES": str(data.parts[split].image_folder.absolute())}
        for split, path in _paths(data, output / DATA).items()
    ]
    chosen = {key: value for key, value, _ in planner.choices}
    cfg = load_config(base, [*(str(word) for pair in {**own, **chosen}.items() for word in pair), *overrides])
    lines = [*_summary(root, data, sets, train, test), *(f"note: {note}" for note in data.notes)]
    lines += [f"plan, over configs/{base}; KEY VALUE behind the command overrides:"]
    lines += [f"  {key} {value!r}: {reason}" for key, value, reason in planner.choices]
    return Plan(cfg, data, (*lines, *planner.warnings))


def _paths(data: FolderData, folder: Path) -> dict[str, Path]:
    return {split: folder / f"{split}.json" for split in data.parts}


def _write_parts(data: FolderData, folder: Path) -> None:
    for split, path in _paths(data, folder).items():
        write_text(path, json.dumps(data.parts[split].document))


def _check(data: FolderData, folder: Path) -> list[CheckedSet]:
    """Return what is trained on, then what is evaluated, checked as a run does; ValueError where it would stop."""
    _write_parts(data, folder)
    used = {split: data.parts[split] for split in ("train", data.evaluated)}
    named = [
        SetToCheck(f"my_{split}", folder / f"{split}.json", part.image_folder, split == "train")
        for split, part in used.items()
    ]
    sets = check_sets(named, deep=False)
    for (split, part), one in zip(used.items(), sets, strict=True):
        refuse_findings(f"{part.source} ({split})", one.findings)
    return sets


def _summary(root: Path, data: FolderData, sets: Sequence[CheckedSet], train: Checked, test: Checked) -> list[str]:
    """Five lines: images, boxes, classes, sizes of boxes, and what the check found."""
    height, width = np.median(train.table.sizes, axis=0)
    low, middle, high = np.percentile(_sides(train), (5, 50, 95))
    counts = sorted(sets[0].objects, key=lambda pair: -pair[1])
    warned = [f"{one.what.name}: {finding.headline()}" for one in sets for finding in one.findings if finding.warns]
    return [
        f"images: {len(train.used_images):,} to train on, {len(test.used_images):,} to evaluate ({data.evaluated}), "
        f"mostly {width:.0f} x {height:.0f} pixels; {root} holds {data.layout}",
        f"boxes: {train.used.sum():,} to train on, {test.used.sum():,} to evaluate; "
        f"{train.used.sum() / train.used_images.sum():.1f} an image",
        f"classes: {len(counts)}: {', '.join(f'{name} {count:,}' for name, count in counts[:8])}"
        f"{', ...' if len(counts) > 8 else ''}",
        f"sizes of boxes: {middle:.0f} pixels the median, {low:.0f} to {high:.0f} nine in ten (roots of their areas)",
        f"check: {'; '.join([DatasetReport(sets).verdict(), *warned[:4]])}",
    ]


def _sides(checked: Checked) -> np.ndarray:
    """The square roots of the areas of the boxes that are used, in pixels."""
    corners = checked.corners[checked.used]
    return np.sqrt(np.prod(corners[:, 2:] - corners[:, :2], axis=1))


def _detectors(engine: str, *, best: bool) -> dict[str, DetectorEntry]:
    """Published Faster R-CNNs with a pyramid on ResNet-50 that the engine reads, the best or the plainest first."""
    if engine == "torchvision":
        found = {name: entry for name, entry in torchvision_detectors().items() if "fasterrcnn" in name}
    else:
        entries = (entry for entry in published_detectors() if entry.config == "faster/r50_fpn.yaml")
        found = {entry.detectron2_name: entry for entry in entries}
    return dict(sorted(found.items(), key=lambda item: item[1].box_ap, reverse=best))


def _at_hand(entries: Mapping[str, _Entry]) -> tuple[str, _Entry, str] | None:
    """The first that is on this disk, or else the first of all if it can be downloaded, and which of both."""
    for name, entry in entries.items():
        if cached_weights_path(entry).is_file():
            return name, entry, "on this disk"
    name, entry = next(iter(entries.items()))
    return (name, entry, "that is downloaded") if is_offered(entry.url) else None


@dataclass
class _Planner:
    """Chooses key by key; a key that is ``given`` is not chosen, and what follows from it uses the given value."""

    train: Checked
    engine: str
    processes: int
    given: Mapping[str, str]
    choices: list[tuple[str, Any, str]] = field(default_factory=list)  # key, value, reason
    warnings: list[str] = field(default_factory=list)

    def plan(self) -> str:
        """Make all choices, and return the config that they are over."""
        device = self.given.get("MODEL.DEVICE") or default_device()
        self.on_gpu = device != "cpu"
        base, start = self._start()
        batch = self._batch(self._size())
        self._schedule(start, batch)
        return base

    def _choose(self, key: str, value: Any, reason: str) -> Any:
        if key not in self.given:
            self.choices.append((key, value, reason))
            return value
        meant = literal(self.given[key])
        if isinstance(value, list):
            fits = isinstance(meant, (list, tuple)) and all(isinstance(one, int) for one in meant)
        else:
            fits = type(meant) is type(value)
        return meant if fits and meant else value  # a wrong one is load_config's to refuse

    def _start(self) -> tuple[str, str]:
        """Choose weights, and what they need; return the config, and what is started from."""
        base = _ON_GPU if self.on_gpu else _ON_CPU
        archs = ("resnet50", "resnet34", "resnet18") if self.on_gpu else ("resnet18", "resnet34", "resnet50")
        weights = self.given.get("MODEL.WEIGHTS")
        if weights or (weights is None and "MODEL.RESNET_BACKBONE.ARCH" in self.given):
            return base, "classifier"
        if weights is None:
            if found := _at_hand(_detectors(self.engine, best=self.on_gpu)):
                name, detector, where = found
                self._choose("MODEL.WEIGHTS", name, f"a detector {where}, box AP {detector.box_ap} on COCO")
                self._input(detector)
                return detector.config, "detector"
            entries = (get_entry(*name.split("/")) for arch in archs for name in list_weights(arch))
            classifiers = {entry.uri: entry for entry in entries if entry.name.startswith("IMAGENET1K")}
            if usual := _at_hand(classifiers):
                name, entry, where = usual
                self._choose("MODEL.WEIGHTS", name, f"a classifier {where}; a trained detector is not")
                self._choose("MODEL.RESNET_BACKBONE.ARCH", entry.arch, "that classifier's")
                self._choose("MODEL.RESNET_BACKBONE.NORM", "FrozenBN", "its norms, as batches are small")
                self._choose("MODEL.BACKBONE.FREEZE_AT", 2, "its first layers fit all photographs")
                self._input(entry)
                return base, "classifier"
            self._choose("MODEL.WEIGHTS", "", "no trained network is on this disk, and none can be downloaded")
            self.warnings.append("warning: from random weights, which takes longer and ends lower")
        self._choose("MODEL.RESNET_BACKBONE.ARCH", archs[0], "usual on a " + ("GPU" if self.on_gpu else "CPU"))
        self._choose("MODEL.RESNET_BACKBONE.NORM", "BN", "random weights need norms that learn")
        self._choose("MODEL.BACKBONE.FREEZE_AT", 0, "random layers must all learn")
        return base, "scratch"

    def _input(self, entry: DetectorEntry | WeightsEntry) -> None:
        for key, value in required_input(entry.arch, entry.input_format, entry.stride_in_1x1).items():
            self._choose(key, value, "as these weights were trained")

    def _size(self) -> int:
        """Choose the size of images; return the most pixels of one."""
        sizes = self.train.table.sizes
        relative = _sides(self.train) / sizes.min(axis=1)[self.train.image_rows[self.train.used]]
        smallest, median = np.percentile(relative, (5, 50))
        target, least, most = (100, 400, 800) if self.on_gpu else (50, 192, 480)
        wanted = max(target / median, target / 3 / smallest)
        short = int(16 * math.ceil(np.clip(wanted, least, most) / 16))
        reason = f"the median box gets {median * short:.0f} pixels, one in twenty fewer than {smallest * short:.0f}"
        lengths = [int(short * factor) for factor in (0.8, 0.9, 1.0)] if self.on_gpu else [short]
        short = max(self._choose("INPUT.MIN_SIZE_TRAIN", lengths, reason))
        ratio = min(2.0, float(np.percentile(sizes.max(axis=1) / sizes.min(axis=1), 95)))
        reason = f"nearly all images are up to {ratio:.2f} times as long as wide, or 2 is the limit"
        long = self._choose("INPUT.MAX_SIZE_TRAIN", math.ceil(short * ratio), reason)
        test = self._choose("INPUT.MIN_SIZE_TEST", short, "as in training")
        self._choose("INPUT.MAX_SIZE_TEST", max(long, test), "as in training")
        return short * long

    def _batch(self, pixels: int) -> int:
        """Choose the images of a step, on all processes."""
        on_gpu = self.on_gpu and torch.cuda.is_available()
        free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
        room = free / 2 / (pixels * BYTES_PER_PIXEL)
        size = next((size for size in ((16, 8, 4, 2) if self.on_gpu else (4, 2)) if size <= room), 1)
        reason = f"{free / 1e9:.1f} GB are free, and an image may take {pixels * BYTES_PER_PIXEL / 1e9:.2f}"
        return self._choose("SOLVER.IMS_PER_BATCH", size * self.processes, reason)

    def _schedule(self, start: str, batch: int) -> None:
        """Choose optimizer and iterations."""
        images = len(self.train.used_images)
        passes, least, most = _LENGTHS[start] if self.on_gpu else _LENGTH_ON_CPU
        count = int(np.clip(100 * round(passes * images / batch / 100), least, most))
        reason = f"{count * batch / images:.1f} passes over {images:,} images ({passes} meant, {least} to {most} steps)"
        count = self._choose("SOLVER.MAX_ITER", count, reason)
        self._choose("SOLVER.WARMUP_ITERS", max(1, min(1000, count // 10)), "a tenth of them")
        self._choose("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "needs no steps to be chosen")
        self._choose("SOLVER.OPTIMIZER", "AdamW", "5 AP more than SGD on BCCD from random weights, see MODEL_ZOO.md")
        rate = 0.001 if start == "scratch" else 0.0001
        self._choose("SOLVER.BASE_LR", rate, f"of {'random' if start == 'scratch' else 'trained'} weights")
        self._choose("SOLVER.WEIGHT_DECAY", 0.05, "AdamW's usual")
        if self.on_gpu:  # on a CPU an evaluation takes minutes
            self._choose("TEST.EVAL_PERIOD", max(1, count // 10), "ten evaluations; the best is kept")
        self._choose("DATALOADER.NUM_WORKERS", min(4, os.cpu_count() or 1), "processes that read images")
        self._choose("SEED", 0, "the same run again")
