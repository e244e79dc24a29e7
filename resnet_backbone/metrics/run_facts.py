"""The records of a run: cost and conditions of its evaluation, its figures, and the curves of its training."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_backbone.files.atomic import file_hash, write_text
from resnet_backbone.files.text import brief, read_json
from resnet_backbone.version import __version__

_COUNTED = 4  # calls whose multiply-adds are counted; they warm the detector up and are not timed


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: of tensors on a GPU, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class CostMeter:
    """Measures ``model`` while others call it inside ``with CostMeter(model, device) as meter``; outputs stay the same.

    Args:
        model: called with a list of images first.
        device: where it runs.

    Attributes:
        parameters: how many numbers the model learns or keeps frozen; buffers not counted.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self._model = model
        self._device = device
        self._counter = FlopCounterMode(display=False)
        self._calls = self._counted_images = self._flops = 0
        self._seconds_an_image: list[float] = []  # of each timed call
        self._start = 0.0
        self._counting = False

    def __enter__(self) -> CostMeter:
        self._handles = [
            self._model.register_forward_pre_hook(self._before),
            self._model.register_forward_hook(self._after),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._stop_counting()

    @property
    def multiply_adds(self) -> float | None:
        """Of convolutions and matrix products, a mean image; None before the first call."""
        return self._flops / 2 / self._counted_images if self._counted_images else None

    @property
    def images_per_s(self) -> float | None:
        """Of the detector alone, in this process: one over the median of seconds an image of its calls.

        The median, as a mean would be spoilt by whatever else the machine does for a while. None where there were too
        few images to warm the detector up.
        """
        return 1 / statistics.median(self._seconds_an_image) if self._seconds_an_image else None

    def _before(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._stop_counting()
        if self._calls < _COUNTED:
            self._counter.__enter__()
            self._counting = True
        else:
            self._start = self._now()

    def _after(self, model: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if self._calls < _COUNTED:
            self._stop_counting()
            self._flops += self._counter.get_total_flops()
            self._counted_images += len(inputs[0])
        else:
            self._seconds_an_image.append((self._now() - self._start) / len(inputs[0]))
        self._calls += 1

    def _stop_counting(self) -> None:
        """Take the counter off torch's stack of modes, where it still is after a call that an error has ended."""
        if self._counting:
            self._counter.__exit__(None, None, None)
            self._counting = False

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


FACTS_NAME, METRICS_NAME = "facts.json", "metrics.json"


@dataclass(frozen=True)
class RunFacts:
    """The conditions of one evaluation of one test set."""

    engine: str  # "torchvision", "detectron2" or "classification"
    resnet_backbone: str  # its version
    commit: str | None  # of the checkout, "-dirty" where files were changed; None for an installed package
    command: str
    torch: str
    torchvision: str
    device: str  # name of the GPU, or of the CPU and the number of threads
    processes: int
    dataset: str  # as in DATASETS.TEST
    annotations: str  # absolute path of the COCO-format file; of a classifier the folder of class folders, or its name
    annotations_sha256: str  # of the file; of class folders see hash_labels
    image_folder: str  # absolute path
    num_images: int
    class_names: list  # of texts
    parameters: int
    multiply_adds: float | None  # of a mean image, convolutions and matrix products
    images_per_s: float | None  # of the detector alone, one process; the median of its calls
    # So far, in a training's own evaluation that of the training; of tensors on a GPU, of the process on a CPU.
    peak_memory_mib: float


def write_facts(
    folder: Path,
    meter: CostMeter,
    *,
    engine: str,
    device: torch.device,
    processes: int,
    dataset: str,
    annotations: Path,
    image_folder: Path,
    num_images: int,
    class_names: Sequence[str],
    annotations_sha256: str | None = None,
) -> RunFacts:
    """Write ``folder/facts.json`` about the evaluation that has just ended; arguments as in :class:`RunFacts`.

    ``annotations_sha256`` is computed where ``annotations`` is a file and it is None.
    """
    facts = RunFacts(
        **environment(device),
        engine=engine,
        processes=processes,
        dataset=dataset,
        annotations=str(annotations.absolute()),
        annotations_sha256=annotations_sha256 or file_hash(annotations, "sha256"),
        image_folder=str(image_folder.absolute()),
        num_images=num_images,
        class_names=list(class_names),
        parameters=meter.parameters,
        multiply_adds=meter.multiply_adds,
        images_per_s=meter.images_per_s,
        peak_memory_mib=peak_memory_mib(device),
    )
    write_text(folder / FACTS_NAME, json.dumps(asdict(facts), indent=2) + "\n")
    return facts


def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, commit, command and device of this process, by the names of :class:`RunFacts`."""
    program, *words = sys.argv
    program = program if program.startswith("resnet-backbone ") else shlex.join(["python", program])
    return {
        "resnet_backbone": __version__,
        "commit": git_commit(),
        "command": f"{program} {shlex.join(words)}",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": device_name(device),
    }


def hash_labels(names: Sequence[str], labels: Sequence[int]) -> str:
    """Return the SHA-256 of which image of a classification data set has which label, 64 hexadecimal digits."""
    lines = (f"{name}\t{label}\n" for name, label in zip(names, labels, strict=True))
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def read_facts(folder: Path) -> RunFacts:
    """Read ``folder/facts.json``.

    Raises:
        FileNotFoundError: there is none: the evaluation is older than this version, or did not end.
        ValueError: the file is not what :func:`write_facts` writes.
    """
    path = folder / FACTS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; evaluate again with resnet-backbone train --eval-only, which writes it")
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}")
        facts = RunFacts(**values)
        for key, kind in get_type_hints(RunFacts).items():
            fits = isinstance(values[key], kind) or (isinstance(values[key], int) and isinstance(1.0, kind))
            if not fits or isinstance(values[key], bool):
                raise TypeError(f"{key} is {brief(values[key])}")
        if not all(isinstance(name, str) for name in facts.class_names):
            raise TypeError(f"class_names are {brief(facts.class_names)}")
        return facts
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not what resnet-backbone train writes ({error}); evaluate again") from error


def read_figures(path: Path) -> dict[str, dict[str, float | None]]:
    """Read ``inference/metrics.json``: ``{"bbox": {"AP": 37.1, ...}, ...}``, percent.

    Raises:
        ValueError: the file is not what an evaluation writes.
    """
    try:
        values = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; evaluate again with resnet-backbone train --eval-only") from error
    if not isinstance(values, dict) or not all(isinstance(part, dict) for part in values.values()):
        raise ValueError(f"{path} is not what resnet-backbone train writes; evaluate again with --eval-only")
    return values


def device_name(device: torch.device) -> str:
    """``NVIDIA H200``, ``arm, GPU``, or of a CPU its name and the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, " + ("GPU" if device.type == "mps" else f"{torch.get_num_threads()} threads")


def git_commit() -> str | None:
    """Return the commit of the checkout that this package runs from, or None where it is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or a checkout of somebody else


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


Series = tuple[tuple[int, float], ...]  # iteration (from 1) and value


@dataclass(frozen=True)
class TrainingCurves:
    """The course of one training."""

    iterations: int  # done
    loss: Series  # total_loss
    lr: Series
    ap: Mapping[str, Series]  # test set -> AP of the boxes in percent
    seconds: float  # spent in the iterations, evaluation and saving not counted; 0 where it was not recorded
    train_error: Series  # of a classifier: percent of the images since the record before
    test_error: Mapping[str, Series]  # of a classifier: test set -> top-1 error in percent


def read_training(path: Path) -> TrainingCurves | None:
    """Read a run's ``metrics.json``, one JSON object a line; None where there is no such file, or an empty one.

    Where a training resumed from a checkpoint, or was started again in the same folder, iterations occur twice: the
    later ones count, and the earlier ones that they replace are left out. An evaluation's record says nothing of that:
    Detectron2 writes it with the next one of the training, and after it.

    Raises:
        ValueError: a line is no JSON object with an iteration. (A last line that a crash cut off is left out.)
    """
    if not path.is_file():
        return None
    records: list[dict[str, Any]] = []
    newest = -1
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: no JSON: {error}; delete that line") from error
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            raise ValueError(
                f"{path}, line {number}: expected an object with an iteration, found {line[:80]}; delete it"
            )
        if "total_loss" in record:
            if record["iteration"] <= newest:
                records = [earlier for earlier in records if not _replaces(record, earlier)]
            newest = record["iteration"]
        records.append(record)
    if not records:
        return None
    # An evaluation's record may carry the number of iterations, one more than the last of them.
    steps = [record for record in records if "total_loss" in record]
    return TrainingCurves(
        iterations=steps[-1]["iteration"] + 1 if steps else 0,
        loss=_series(steps, "total_loss"),
        lr=_series(steps, "lr"),
        ap=_by_test_set(records, "/bbox/AP"),
        seconds=_seconds(steps),
        train_error=_series(steps, "train_error"),
        test_error=_by_test_set(records, "/classification/top1_error"),
    )


def _replaces(record: Mapping[str, Any], earlier: Mapping[str, Any]) -> bool:
    """Whether a training that has gone back to ``record`` has made ``earlier`` void."""
    same = earlier["iteration"] == record["iteration"] and "total_loss" in earlier
    return same or earlier["iteration"] > record["iteration"]


def _by_test_set(records: Sequence[Mapping[str, Any]], figure: str) -> dict[str, Series]:
    keys = dict.fromkeys(key for record in records for key in record if key.endswith(figure))
    return {key.removesuffix(figure): _series(records, key) for key in keys}


def _series(records: Sequence[Mapping[str, Any]], key: str) -> Series:
    by_iteration = {record["iteration"] + 1: float(record[key]) for record in records if record.get(key) is not None}
    return tuple((iteration, value) for iteration, value in sorted(by_iteration.items()) if math.isfinite(value))


def _seconds(steps: Sequence[Mapping[str, Any]]) -> float:
    """Each record has the median time of an iteration since the record before; 0 where one has none."""
    times = [record.get("time") for record in steps]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in times):
        return 0.0
    done = [0, *(record["iteration"] + 1 for record in steps)]
    return sum((value * (after - before) for value, before, after in zip(times, done, done[1:], strict=False)), 0.0)
