"""Small detectors and small data for the torchvision engine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode

from resnet_backbone.torchvision_plugin.config import load_config
from tests.helpers import TINY
from tests.processes import ROOT, run_script

SCHEDULE = [
    *("SOLVER.MAX_ITER", "6", "SOLVER.WARMUP_ITERS", "2", "SOLVER.STEPS", "(4,)", "SOLVER.CHECKPOINT_PERIOD", "3"),
]


@pytest.fixture
def tiny(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    """Load a config, shrunk to seconds: ``tiny("quickstart.yaml", "KEY", "VALUE", ...)``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))

    def load(config: str, *overrides: str) -> CfgNode:
        return load_config(config, [*TINY, *SCHEDULE, "OUTPUT_DIR", str(tmp_path / "output"), *overrides])

    return load


@pytest.fixture
def command_line() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs tools/train_net.py on a dumped config, as a user would: ``command_line(cfg, "--resume", nproc=2)``."""

    def run(cfg: CfgNode, *words: str, nproc: int = 0) -> subprocess.CompletedProcess[str]:
        path = Path(cfg.OUTPUT_DIR).with_suffix(".yaml")
        path.write_text(cfg.dump())
        words = ("--engine", "torchvision", "--config-file", str(path), *words)
        if not nproc:
            return run_script("tools/train_net.py", *words)
        torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={nproc}", "--standalone"]
        return subprocess.run(
            [sys.executable, *torchrun, ROOT / "tools/train_net.py", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )

    return run
