"""Small trainings in processes of their own, to be killed and spoiled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from resnet_backbone.data.prepare.shapes import generate_shapes

ROOT = Path(__file__).resolve().parents[2]
TRAIN_NET = ROOT / "tools" / "train_net.py"
TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "15"),
    *("INPUT.MIN_SIZE_TRAIN", "(64, 80)", "INPUT.MAX_SIZE_TRAIN", "128"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "2", "SOLVER.BASE_LR", "0.002"),
]


class TinyRun:
    """One output folder, and the command that trains into it.

    Args:
        folder: gets the data set and ``output``.
        keys: ``KEY VALUE`` words over those of :data:`TINY`.
    """

    def __init__(self, folder: Path, *keys: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.data = folder / "data"
        self.keys = list(keys)
        if not self.data.is_dir():
            generate_shapes(self.data / "shapes", num_train=12, num_val=4, seed=0)

    def start(self, *options: str, keys: Sequence[str] = (), engine: str = "torchvision") -> subprocess.Popen[str]:
        """Begin to train; ``options`` such as ``--resume`` come before the keys."""
        words = [
            *(sys.executable, str(TRAIN_NET), "--engine", engine, "--config-file", "quickstart.yaml", *options),
            *(*TINY, *self.keys, *keys, "OUTPUT_DIR", str(self.output)),
        ]
        environment = {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
            "DETECTRON2_DATASETS": str(self.data),
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            words, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, *options: str, timeout: float = 120, **start: Sequence[str]) -> tuple[int, str]:
        """Train to the end; return the exit status and all that was printed."""
        process = self.start(*options, **start)
        try:
            text, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
            return -signal.SIGALRM, f"{text}\nno end after {timeout:.0f} s"
        return process.returncode, text

    def wait_for(self, name: str, process: subprocess.Popen[str], timeout: float = 60) -> bool:
        """Wait until a file that matches ``name`` is in the output folder, or the process has ended; say which."""
        end = time.monotonic() + timeout
        while time.monotonic() < end and process.poll() is None:
            if any(self.output.glob(name)):
                return True
            time.sleep(0.002)
        return False

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
