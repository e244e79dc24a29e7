"""Small classifiers and small class folders."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fvcore.common.config import CfgNode
from PIL import Image

from resnet_backbone.classification.config import load_config
from tests.processes import run_script

COLORS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (200, 50, 40)}


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train/`` with 8 and ``test/`` with 5 noisy images of each of three colours, 32 x 32 pixels."""
    root = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 5)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = np.clip(rng.normal(color, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture
def tiny(colors: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    """Load a config on ``colors``, shrunk to seconds: ``tiny("cifar10_resnet20.yaml", "KEY", "VALUE", ...)``."""
    shrunk = [
        *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7"),
        *("DATASETS.TRAIN", str([str(colors / "train")]), "DATASETS.TEST", str([str(colors / "test")])),
        *("SOLVER.IMS_PER_BATCH", "6", "SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(4,)", "SOLVER.CHECKPOINT_PERIOD", "3"),
        *("SOLVER.BASE_LR", "0.02", "SOLVER.WARMUP_ITERS", "2", "TEST.EVAL_PERIOD", "0", "TEST.BATCH_SIZE", "4"),
    ]

    def load(config: str, *overrides: str) -> CfgNode:
        words = [*shrunk, "OUTPUT_DIR", str(tmp_path / "output"), *overrides]
        return load_config(f"classification/{config}", words)

    return load


@pytest.fixture
def command_line() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs tools/train_classifier.py on a dumped config, as a user would: ``command_line(cfg, "--resume")``."""

    def run(cfg: CfgNode, *words: str) -> subprocess.CompletedProcess[str]:
        path = Path(cfg.OUTPUT_DIR).with_suffix(".yaml")
        path.write_text(cfg.dump())
        return run_script("tools/train_classifier.py", "--config-file", path, *words)

    return run
