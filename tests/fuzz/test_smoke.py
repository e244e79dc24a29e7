"""Each fuzzer runs for a few seconds, so that none of them breaks unseen; `make fuzz` gives them their time."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: pip install -e '.[fuzz]'")
@pytest.mark.parametrize("target", ["weights", "config", "dataset"])
def test_a_few_seconds_of_fuzzing(tmp_path, target):
    command = [sys.executable, "-m", f"tests.fuzz.fuzz_{target}", "-max_total_time=3"]
    environment = {**os.environ, "FUZZ_CORPUS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
