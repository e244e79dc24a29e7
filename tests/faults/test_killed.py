"""Trainings that are killed, or asked to end, at random moments, and go on with ``--resume``: nothing is lost.

The weights in the end are those of a run that nobody disturbed, to the bit.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from resnet_backbone.engine.signals import RESUME_ME

KEYS = ["SOLVER.MAX_ITER", "36", "SOLVER.CHECKPOINT_PERIOD", "3", "TEST.EVAL_PERIOD", "9"]
START_UP_S = 3.0  # until the first iteration, or more


@pytest.fixture(scope="module")
def runs(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tests/faults/runs.py")


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory):
    run = runs.TinyRun(tmp_path_factory.mktemp("undisturbed"), *KEYS)
    status, text = run.finish()
    assert status == 0, text
    return run


def kill_once(run, number: signal.Signals, dice: random.Random, in_a_write: bool) -> int | None:
    """Go on with the run and send it a signal; return its exit status, None where it had ended before."""
    process = run.start("--resume")
    if in_a_write:
        run.wait_for(".model_*.part", process)
    else:
        time.sleep(dice.uniform(0, START_UP_S + 4))
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    if process.returncode == 0:  # it came to its end before the signal did
        return None
    return process.returncode


def check_killed(runs, undisturbed, tmp_path, number: signal.Signals, kills: int) -> None:
    dice = random.Random(int(number))
    seen: list[int] = []
    while len(seen) < kills:
        run = runs.TinyRun(tmp_path / "run", *KEYS)
        left = kills - len(seen)
        for k in range(left):
            status = kill_once(run, number, dice, in_a_write=k % 3 == 1)
            if status is None:
                break
            seen.append(status)
        status, text = run.finish("--resume")
        assert status == 0, text
        final, expected = run.final(), undisturbed.final()
        for key in ("model", "optimizer", "iteration", "seed", "best"):
            assert runs.equal(final[key], expected[key]), key
        assert figures(run) == figures(undisturbed)
        assert not list(run.output.glob(".*.part"))
        shutil.rmtree(run.folder)
    print(f"{len(seen)} x {number.name}, exit statuses {sorted(set(seen))}")
    wanted = {-number} if number == signal.SIGKILL else {RESUME_ME, -number}  # the latter before Python's code runs
    assert set(seen) <= wanted


def figures(run) -> tuple[list[tuple[int, float]], dict]:
    """What was recorded of the evaluations: each once, as if nothing had happened; and of the last one."""
    lines = [json.loads(line) for line in (run.output / "metrics.json").read_text().splitlines()]
    name = "shapes_val/bbox/AP"
    recorded = [(line["iteration"], line[name]) for line in lines if name in line]
    return recorded, json.loads((run.output / "inference/metrics.json").read_text())


def test_twice(runs, undisturbed, tmp_path: Path):
    check_killed(runs, undisturbed, tmp_path, signal.SIGKILL, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_fifty_times(runs, undisturbed, tmp_path: Path, number):
    check_killed(runs, undisturbed, tmp_path, number, kills=50)
