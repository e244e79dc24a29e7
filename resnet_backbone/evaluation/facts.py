"""What an evaluation was made of: ``facts.json`` beside its figures, so that runs can be compared and quoted."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torchvision

from resnet_backbone.evaluation.cost import CostMeter, peak_memory_mib
from resnet_backbone.files.json_file import brief, read_json
from resnet_backbone.files.whole import write_text
from resnet_backbone.version import __version__

FACTS_NAME = "facts.json"
_NUMBER = (int, float)
# Of what is no text in facts.json.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "commit": (str, type(None)),
    "processes": int,
    "num_images": int,
    "class_names": list,
    "parameters": int,
    "multiply_adds": (*_NUMBER, type(None)),
    "images_per_s": (*_NUMBER, type(None)),
    "peak_memory_mib": _NUMBER,
}


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
    class_names: list[str]
    parameters: int
    multiply_adds: float | None  # of a mean image, convolutions and matrix products
    images_per_s: float | None  # of the detector alone, one process; the median of its calls
    peak_memory_mib: (
        float  # so far, in a training's own evaluation that of the training; tensors on a GPU, the process on a CPU
    )


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
        engine=engine,
        resnet_backbone=__version__,
        commit=git_commit(),
        command=shlex.join(["python", *sys.argv]),
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        device=device_name(device),
        processes=processes,
        dataset=dataset,
        annotations=str(annotations.absolute()),
        annotations_sha256=annotations_sha256 or hash_file(annotations),
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


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the bytes of a file, 64 hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
        raise FileNotFoundError(f"no {path}; evaluate again with tools/train_net.py --eval-only, which writes it")
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise TypeError(f"it holds a {type(values).__name__}")
        facts = RunFacts(**values)
        for key, value in values.items():
            if not isinstance(value, _TYPES.get(key, str)) or isinstance(value, bool):
                raise TypeError(f"{key} is {brief(value)}")
        if not all(isinstance(name, str) for name in facts.class_names):
            raise TypeError(f"class_names are {brief(facts.class_names)}")
        return facts
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not what tools/train_net.py writes ({error}); evaluate again") from error


def device_name(device: torch.device) -> str:
    """``NVIDIA H200``, or of a CPU its name and the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


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
