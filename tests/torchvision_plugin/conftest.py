"""Small detectors and small data for the torchvision engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from fvcore.common.config import CfgNode

from resnet_backbone.torchvision_plugin.config import load_config

ROOT = Path(__file__).resolve().parents[2]
TRAIN_NET = ROOT / "tools" / "train_net.py"

TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "15"),
    *("INPUT.MIN_SIZE_TRAIN", "(64, 80)", "INPUT.MAX_SIZE_TRAIN", "128"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "6", "SOLVER.WARMUP_ITERS", "2", "SOLVER.STEPS", "(4,)"),
    *("SOLVER.CHECKPOINT_PERIOD", "3"),
]


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> Iterator[None]:
    """accelerate keeps one state a process, and refuses another precision after the first."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def tiny(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    """Load a config, shrunk to seconds: ``tiny("quickstart.yaml", "KEY", "VALUE", ...)``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))

    def load(config: str, *overrides: str) -> CfgNode:
        return load_config(config, [*TINY, "OUTPUT_DIR", str(tmp_path / "output"), *overrides])

    return load


@pytest.fixture
def command_line() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs tools/train_net.py on a dumped config, as a user would: ``command_line(cfg, "--resume", nproc=2)``."""

    def run(cfg: CfgNode, *words: str, nproc: int = 0) -> subprocess.CompletedProcess[str]:
        path = Path(cfg.OUTPUT_DIR).with_suffix(".yaml")
        path.write_text(cfg.dump())
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={nproc}", "--standalone"] if nproc else []
        return subprocess.run(
            [sys.executable, *torchrun, TRAIN_NET, "--engine", "torchvision", "--config-file", path, *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
