"""A private table of two detectors that train in seconds, and tools/reproduce.py run on it as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_backbone.reproduce.tables import Row, Table, Training
from resnet_backbone.torchvision_plugin.config import load_config

ROOT = Path(__file__).resolve().parents[2]

TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "15"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.MAX_SIZE_TEST", "96", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "2"),
    *("SOLVER.BASE_LR", "0.0025"),
]

DRIVER = """
import importlib.util, sys
from resnet_backbone.reproduce.tables import *
spec = importlib.util.spec_from_file_location("reproduce", {script!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(module.main(sys.argv[1:], {{"tiny": {table!r}}}))
"""


@pytest.fixture
def tiny_table(tmp_path: Path) -> Callable[..., Table]:
    """Makes a table of ResNet-18, ResNet-34 and box refinement: ``tiny_table("SOLVER.MAX_ITER", "6")``."""

    def make(*overrides: str) -> Table:
        trainings = []
        for arch in ("resnet18", "resnet34"):
            cfg = load_config("quickstart.yaml", [*TINY, "MODEL.RESNET_BACKBONE.ARCH", arch, *overrides])
            path = tmp_path / f"{arch}.yaml"
            path.write_text(cfg.dump())
            trainings.append(Training(f"shapes_{arch}", str(path), reference_gpus=1))
        rows = (
            Row("r18", "ResNet-18", trainings[0]),
            Row("r34", "ResNet-34", trainings[1]),
            Row("refinement", "+ box refinement", trainings[0], ("TEST.BOX_REFINEMENT.ENABLED", "True")),
        )
        return Table("tiny", "shapes", rows, (("r18", "r34"), ("r18", "refinement")), on_cpu=True)

    return make


@pytest.fixture
def reproduce(tmp_path: Path, shapes: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts tools/reproduce.py with a private table: ``reproduce(table, "--run")``; data as ``datasets`` says."""

    def start(table: Table, *words: str, datasets: Path = shapes, engine: str = "torchvision") -> subprocess.Popen[str]:
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER.format(script=str(ROOT / "tools" / "reproduce.py"), table=table))
        words = ("--table", "tiny", "--engine", engine, "--output", str(tmp_path / "output"), *words)
        return subprocess.Popen(
            [sys.executable, driver, *words],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "DETECTRON2_DATASETS": str(datasets),
            },
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Where these tests were started in the background of a shell, Ctrl-C is ignored, by their children, too.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start
