"""Trainings that are killed, or asked to end, at random moments, and go on with ``--resume``: nothing is lost.

The weights in the end are those of a run that nobody disturbed, to the bit.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from resnet_backbone.engine.command_line import RESUME_ME
from tests.faults.runs import TinyRun, equal

KEYS = ["SOLVER.MAX_ITER", "36", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "9"]
FEW = ["SOLVER.MAX_ITER", "12", "TEST.EVAL_PERIOD", "6"]


def undisturbed(folder: Path, *keys: str) -> TinyRun:
    run = TinyRun(folder, *KEYS, *keys)
    status, text = run.finish()
    assert status == 0, text
    return run


def kill_once(run: TinyRun, number: signal.Signals, dice: random.Random, in_a_write: bool) -> int | None:
    """Resume the run and send it a signal; return its exit status, None where it had ended before."""
    process = run.start("--resume")
    if in_a_write:
        run.wait_for(".model_*.part", process)
    else:
        time.sleep(dice.uniform(0, 4))
    process.send(number)
    return process.finish()[0] or None


def check_killed(expected: TinyRun, folder: Path, number: signal.Signals, kills: int) -> None:
    dice = random.Random(int(number))
    seen: list[int] = []
    while len(seen) < kills:
        run = TinyRun(folder, *expected.keys)
        left = kills - len(seen)
        for k in range(left):
            status = kill_once(run, number, dice, in_a_write=k % 3 == 1)
            if status is None:
                break
            seen.append(status)
        status, text = run.finish("--resume")
        assert status == 0, text
        final, wanted = run.final(), expected.final()
        for key in ("model", "optimizer", "iteration", "seed", "best"):
            assert equal(final[key], wanted[key]), key
        assert figures(run) == figures(expected)
        assert not list(run.output.glob(".*.part"))
        shutil.rmtree(run.folder)
    print(f"{len(seen)} x {number.name}, exit statuses {sorted(set(seen))}")
    ends = {-number} if number == signal.SIGKILL else {RESUME_ME, -number}  # the latter before Python's code runs
    assert set(seen) <= ends


def figures(run: TinyRun) -> tuple[list[tuple[int, float]], dict]:
    """What was recorded of the evaluations: each once, as if nothing had happened; and of the last one."""
    lines = [json.loads(line) for line in (run.output / "metrics.json").read_text().splitlines()]
    name = "shapes_val/bbox/AP"
    recorded = [(line["iteration"], line[name]) for line in lines if name in line]
    return recorded, json.loads((run.output / "inference/metrics.json").read_text())


def test_twice(tmp_path: Path):
    check_killed(undisturbed(tmp_path / "undisturbed", *FEW), tmp_path / "run", signal.SIGKILL, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_fifty_times(tmp_path: Path, number: signal.Signals):
    check_killed(undisturbed(tmp_path / "undisturbed"), tmp_path / "run", number, kills=50)
