"""Small trainings in processes of their own, to be killed and spoiled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

import resnet_backbone.torchvision_plugin.run  # noqa: F401  # once, and not in every process that is forked
from resnet_backbone.data.prepare.shapes import generate_shapes
from tests.helpers import TINY
from tests.processes import ROOT, Forked, script

torch.set_num_threads(1)
SMALL = [*TINY, "SOLVER.WARMUP_ITERS", "2", "SOLVER.BASE_LR", "0.002"]


class TinyRun:
    """One output folder, and the command that trains into it.

    Args:
        folder: gets the data set and ``output``.
        keys: ``KEY VALUE`` words over those of :data:`SMALL`.
    """

    def __init__(self, folder: Path, *keys: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.data = folder / "data"
        self.keys = list(keys)
        if not self.data.is_dir():
            generate_shapes(self.data / "shapes", num_train=12, num_val=4, seed=0)

    def start(self, *options: str, keys: Sequence[str] = (), engine: str = "torchvision") -> Forked:
        """Begin to train; ``options`` such as ``--resume`` come before the keys."""
        words = [
            *("--engine", engine, "--config-file", "quickstart.yaml", *options),
            *(*SMALL, *self.keys, *keys, "OUTPUT_DIR", str(self.output)),
        ]
        paths = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        there = {"PYTHONPATH": paths, "DETECTRON2_DATASETS": str(self.data), "OMP_NUM_THREADS": "1"}
        return Forked(script("tools/train_net.py", *words), environment=there)

    def finish(self, *options: str, **start: Sequence[str]) -> tuple[int, str]:
        """Train to the end; return the exit status and all that was printed."""
        return self.start(*options, **start).finish()

    def wait_for(self, name: str, process: Forked) -> bool:
        """Wait until a file that matches ``name`` is in the output folder, or the process has ended; say which."""
        return process.wait_for(lambda: any(self.output.glob(name)))

    def final(self) -> dict[str, object]:
        """Return the content of ``model_final.pth``."""
        return torch.load(self.output / "model_final.pth", weights_only=True)


def equal(a: object, b: object) -> bool:
    """Whether two contents of checkpoints are the same, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a == b
