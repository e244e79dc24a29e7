"""The harness times what it is given, one after another, and tells what could not be timed."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import report
from benchmarks.harness import Contender, Measurement, measure, save, table


def sleeper(seconds: float, log: Path, mebibytes: int = 0) -> Callable[[], tuple[int, int]]:
    def call() -> tuple[int, int]:
        with log.open("a") as file:
            file.write(f"{seconds} ")
        ballast = torch.ones(mebibytes * 2**18)
        time.sleep(seconds)
        return os.getpid(), len(ballast) and torch.get_num_threads()

    return call


def absent() -> Callable[[], None]:
    raise ImportError("No module named 'nobody'")


def broken() -> Callable[[], None]:
    raise RuntimeError("out of order")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Measurement], str]:
    log = tmp_path_factory.mktemp("harness") / "calls"
    contenders = [
        Contender("slow", partial(sleeper, 0.2, log, 256)),
        Contender("absent", absent),
        Contender("broken", broken),
        Contender("quick", partial(sleeper, 0.05, log)),
    ]
    return measure(contenders, rounds=3, warmup=2, threads=1), log.read_text()


def test_contenders_are_called_in_turn_in_processes_of_their_own(measured):
    (slow, _, _, quick), calls = measured
    assert calls.split() == [*["0.2"] * 2, *["0.05"] * 2, *["0.2", "0.05"] * 3]
    assert len(slow.seconds) == len(quick.seconds) == 3
    assert min(slow.seconds) >= 0.2 and min(quick.seconds) >= 0.05
    assert len({slow.outcome[0], quick.outcome[0], os.getpid()}) == 3
    assert slow.outcome[1] == 1, "threads"


def test_the_peak_is_of_the_call(measured):
    slow, quick = measured[0][0], measured[0][3]
    assert 240 < slow.peak_mib - slow.resident_mib < 320
    assert quick.peak_mib - quick.resident_mib < 30


def test_what_could_not_be_timed_is_told(measured):
    _, missing, failed, _ = measured[0]
    assert missing.problem == "not installed: No module named 'nobody'" and not missing.seconds
    assert "RuntimeError: out of order" in failed.problem


def test_table_and_page(measured, tmp_path):
    measurements = measured[0]
    text = table(measurements, "slow", per_call=10, unit="images")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines()}
    ratio = measurements[0].median / measurements[3].median
    assert f"| {ratio:.2f} |" in rows["quick"] and "| 1.00 |" in rows["slow"] and "not installed" in rows["absent"]
    assert f"{10 / measurements[3].median:.4g}" in rows["quick"] and "images/s" in text

    results = tmp_path / "results"
    save(results / "sleeping.json", "How long?", {"a nap": ("slow", measurements, {"difference": 1e-7})}, threads=1)
    versions = json.loads((results / "sleeping.json").read_text())["environment"]["versions"]
    assert torch.__version__.startswith(versions["torch"])
    page = tmp_path / "RESULTS.md"
    assert report.main(["--results", str(results), "--output", str(page)]) == 0
    text = page.read_text()
    assert "## How long?" in text and "### a nap" in text and "- difference: 1e-07" in text
    assert "![a nap](plots/sleeping-0.svg)" in text and (tmp_path / "plots/sleeping-0.svg").stat().st_size > 1000


def test_a_page_of_nothing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path)])
    assert "write them with: make benchmark" in capsys.readouterr().err
