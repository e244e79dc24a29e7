"""A private table of two detectors that train in seconds, and tools/reproduce.py run on it as a user would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from resnet_backbone.reproduce.tables import Row, Table, Training
from resnet_backbone.torchvision_plugin.config import load_config
from tests.helpers import TINY
from tests.processes import ROOT, Forked

SMALL = [*TINY, "SOLVER.WARMUP_ITERS", "2", "SOLVER.BASE_LR", "0.0025"]


@pytest.fixture
def tiny_table(tmp_path: Path) -> Callable[..., Table]:
    """Makes a table of ResNet-18, ResNet-34 and box refinement: ``tiny_table("SOLVER.MAX_ITER", "6")``."""

    def make(*overrides: str) -> Table:
        trainings = []
        for arch in ("resnet18", "resnet34"):
            cfg = load_config("quickstart.yaml", [*SMALL, "MODEL.RESNET_BACKBONE.ARCH", arch, *overrides])
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
def reproduce(tmp_path: Path, shapes: Path, load_script: Callable[[str], ModuleType]) -> Callable[..., Forked]:
    """Starts tools/reproduce.py with a private table: ``reproduce(table, "--run")``; data as ``datasets`` says."""

    def start(table: Table, *words: str, datasets: Path = shapes, engine: str = "torchvision") -> Forked:
        words = ("--table", "tiny", "--engine", engine, "--output", str(tmp_path / "output"), *words)

        def main() -> int:
            sys.argv[1:] = words
            return load_script("tools/reproduce.py").main(words, {"tiny": table})

        there = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(datasets)}
        return Forked(main, folder=tmp_path, environment=there)

    return start
