"""What several processes end with, and which of them is to blame: torchrun ends the others, and counts them, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROCESS = """
import os, signal, sys, time
end = sys.argv[1:][int(os.environ["RANK"])]
if end == "killed":
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
if end == "obeys":  # as a run in an evaluation does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(60)
time.sleep(1)
sys.exit(int(end))
"""
LAUNCH = """
import sys
from resnet_backbone.engine.signals import Interrupted
from resnet_backbone.engine.launch import ProcessError, launch
try:
    launch(sys.argv[1:])
    print("ended")
except (Interrupted, ProcessError) as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        (("0", "0"), "ended"),
        (("75", "75"), "Interrupted ended by a signal"),
        (("obeys", "1"), "ProcessError process 1 of the run"),
        (("76", "1"), "ProcessError process 1 of the run"),
        (("obeys", "killed"), "was killed by SIGKILL"),
    ],
)
def test_the_cause_counts_and_not_who_followed(tmp_path, ends, outcome):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    words = ["--standalone", "--nproc-per-node=2", str(script), *ends]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert outcome in done.stdout, done.stdout + done.stderr
