"""Trainings that are killed, or asked to end, at random moments, and go on with ``--resume``: nothing is lost.

Weights, losses and scores in the end are those of a run that nobody disturbed, to the bit.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from resnet_backbone.engine import records
from resnet_backbone.engine.command_line import RESUME_ME
from tests.faults.runs import TinyRun, equal
from tests.helpers import json_lines

KEYS = ["SOLVER.MAX_ITER", "36", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "9"]
FEW = ["SOLVER.MAX_ITER", "12", "TEST.EVAL_PERIOD", "6"]
# On a small network, as a checkpoint has four copies of it. Its patience is out before the last iteration.
AVERAGED = [
    *("MODEL.RESNET_BACKBONE.ARCH", "timm/test_resnet", "MODEL.RESNET_BACKBONE.NORM", ""),
    *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.LAYER_DECAY", "0.8", "SOLVER.EMA.ENABLED", "True"),
    *("TEST.EVAL_PERIOD", "2", "TEST.PATIENCE", "3", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
]


@pytest.fixture(autouse=True)
def every_loss_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the processes that are forked; else medians are recorded, of fewer iterations after a checkpoint."""
    monkeypatch.setattr(records, "PERIOD", 1)


def undisturbed(folder: Path, *keys: str) -> TinyRun:
    run = TinyRun(folder, *KEYS, *keys)
    status, text = run.finish()
    assert status == 0, text
    return run


def kill_once(run: TinyRun, number: signal.Signals, behind: str, seconds: float) -> int | None:
    """Resume the run, and send it a signal so long after a file is there; return its exit status, None if it ended."""
    process = run.start("--resume")
    run.wait_for(behind, process)
    time.sleep(seconds)
    process.send(number)
    return process.finish()[0] or None


def check_killed(expected: TinyRun, folder: Path, number: signal.Signals, kills: int) -> None:
    """Kill after a checkpoint, the last of all first; in a write; and at any moment, that of the start included."""
    dice = random.Random(int(number))
    seen: list[int] = []
    checkpoints = sorted(path.name for path in expected.output.glob("model_0*.pth"))
    while len(seen) < kills:
        run = TinyRun(folder, *expected.keys)
        left = kills - len(seen)
        for k in range(left):
            saved = checkpoints[-1 - len(seen) // 3 % len(checkpoints)]
            behind, longest = ((saved, 0.5), (".model_*.part", 0), ("*", 4))[k % 3]
            status = kill_once(run, number, behind, dice.uniform(0, longest))
            if status is None:
                break
            seen.append(status)
        status, text = run.finish("--resume")
        assert status == 0, text
        for name, keys in (("model_final", ("optimizer", "seed")), ("model_best", ())):
            found, wanted = (torch.load(one.output / f"{name}.pth", weights_only=True) for one in (run, expected))
            for key in ("model", "unaveraged", "iteration", "best", *keys):
                assert equal(found.get(key), wanted.get(key)), (name, key)
        assert figures(run) == figures(expected)
        assert not list(run.output.glob(".*.part"))
        shutil.rmtree(run.folder)
    print(f"{len(seen)} x {number.name}, exit statuses {sorted(set(seen))}")
    ends = {-number} if number == signal.SIGKILL else {RESUME_ME, -number}  # the latter before Python's code runs
    assert set(seen) <= ends


def figures(run: TinyRun) -> tuple[list[dict[str, float]], dict]:
    """Losses and scores as recorded: each once, as if nothing had happened; and those of the last evaluation.

    A training that was killed before its first checkpoint begins anew, behind the records of the one before.
    """
    measured = ("time", "data_time", "eta_seconds", "peak_memory_mib")
    lines = json_lines(run.output / "metrics.json")
    lines = lines[max(number for number, line in enumerate(lines) if line["iteration"] == 0) :]
    recorded = [{name: value for name, value in line.items() if name not in measured} for line in lines]
    return recorded, json.loads((run.output / "inference/metrics.json").read_text())


def test_twice(tmp_path: Path):
    check_killed(undisturbed(tmp_path / "undisturbed", *FEW), tmp_path / "run", signal.SIGKILL, kills=2)


def averaged(folder: Path) -> TinyRun:
    pytest.importorskip("timm", reason="timm is not installed")
    expected = undisturbed(folder, *AVERAGED)
    assert expected.final()["iteration"] < 36, "its patience is out before the end"
    return expected


def test_twice_with_means_and_patience(tmp_path: Path):
    check_killed(averaged(tmp_path / "undisturbed"), tmp_path / "run", signal.SIGKILL, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("begin", [undisturbed, averaged])
def test_fifty_times(tmp_path: Path, begin: Callable[[Path], TinyRun], number: signal.Signals):
    check_killed(begin(tmp_path / "undisturbed"), tmp_path / "run", number, kills=50)
