"""What several processes end with, and which of them is to blame: torchrun ends the others, and counts them, too."""

from __future__ import annotations

import sys

import pytest

from resnet_backbone.engine.command_line import Interrupted
from resnet_backbone.engine.processes import ProcessError, launch
from tests.processes import ROOT, Forked

PROCESS = """
import os, signal, sys, time
from pathlib import Path

def come_after(other):
    while not other.exists() or not other.read_text():
        time.sleep(0.02)
    stat = Path("/proc", other.read_text(), "stat")
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.02)

folder, *ends = sys.argv[1:]
rank = int(os.environ["RANK"])
end = ends[rank]
if end == "obeys":  # as a run in an evaluation does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
Path(folder, f"pid{rank}").write_text(str(os.getpid()))
if end == "obeys":
    time.sleep(600)
if end == "76":  # as one that has lost the other
    come_after(Path(folder, f"pid{1 - rank}"))
while not all(Path(folder, f"pid{one}").exists() for one in range(2)):
    time.sleep(0.02)
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(end))
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
    program = tmp_path / "process.py"
    program.write_text(PROCESS)

    def main() -> None:
        try:
            launch(["--standalone", "--nproc-per-node=2", str(program), str(tmp_path), *ends])
            sys.stdout.write("ended")
        except (Interrupted, ProcessError) as error:
            sys.stdout.write(f"{type(error).__name__} {error}")

    process = Forked(main, environment={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert outcome in process.finish()[1]
