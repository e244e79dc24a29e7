"""Every command on consoles as people have them: of another encoding, closed in the middle, full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOLS = sorted(
    str(path.relative_to(ROOT)) for pattern in ("tools/*.py", "datasets/*.py") for path in ROOT.glob(pattern)
)
TRAINING = ("tools/train_net.py", "tools/train_classifier.py", "tools/reproduce.py")
CLASS = "细胞"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp1252"}

# Runs many command lines, each in a process of its own, forked from one that has imported all that they import.
DRIVER = """
import gc, json, os, runpy, sys, tempfile
found, commands = [], json.loads(sys.argv[1])
for words, _ in commands:
    runpy.run_path(words[0], run_name="imported")
gc.freeze()
for words, closed in commands:
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    reader, writer = os.pipe()
    os.close(reader)
    child = os.fork()
    if child == 0:
        os.dup2(writer if closed else out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
        sys.exit("came back")
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for file in (out, err):
        file.seek(0)
    found.append([status, out.read().decode("cp1252"), err.read().decode("cp1252")])
print(json.dumps(found))
"""


def run_all(commands: list[tuple[list[str], bool]]) -> list[list]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_closed_pipe_ends_every_command_silently():
    results = run_all([([tool, "--help"], True) for tool in TOOLS])
    expected = [[0 if tool in TRAINING else 141, "", ""] for tool in TOOLS]  # 128 + SIGPIPE
    assert dict(zip(TOOLS, results, strict=True)) == dict(zip(TOOLS, expected, strict=True))


def test_texts_that_the_console_lacks(tmp_path):
    """A class, and a file name that is not UTF-8."""
    voc = tmp_path / "voc"
    voc.mkdir()
    Image.new("RGB", (50, 40)).save(voc / "a.png")
    corners = "<xmin>2</xmin><ymin>2</ymin><xmax>30</xmax><ymax>30</ymax>"
    xml = f"<annotation><object><name>{CLASS}</name><bndbox>{corners}</bndbox></object></annotation>"
    (voc / "a.xml").write_text(xml, encoding="utf-8")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / os.fsdecode(b"\xff.xml")).write_text(xml, encoding="utf-8")
    truth, results = str(tmp_path / "a.json"), tmp_path / "results.json"
    found = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 29, 29], "score": 0.9}
    results.write_text(json.dumps([found]))
    escaped = CLASS.encode("unicode_escape").decode()
    expected = {
        ("tools/convert_voc.py", "--voc", str(voc), "--output", truth): (0, f"classes: {escaped}"),
        ("tools/check_dataset.py", "--json", truth, "--images", str(voc)): (0, f"'{escaped}' 1"),
        ("tools/evaluate_coco.py", "--annotations", truth, "--results", str(results)): (0, escaped),
        ("tools/evaluate_voc.py", "--annotations", truth, "--results", str(results)): (0, escaped),
        ("tools/convert_voc.py", "--voc", str(broken), "--output", truth): (1, r"'\udcff' has more than"),
    }
    printed = run_all([(list(words), False) for words in expected])
    for (status, out, err), (expected_status, text) in zip(printed, expected.values(), strict=True):
        assert status == expected_status, err
        assert text in out + err and "Traceback" not in err


LOSES_ITS_CONSOLE = """
import logging, os, sys
from pathlib import Path
from resnet_backbone.engine.command_line import run_command_line
from resnet_backbone.engine.records import set_up_logging

def main():
    set_up_logging(Path(sys.argv[1]))
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    log = logging.getLogger("resnet_backbone.test")
    for number in range(3):
        log.info("step %d, \\udcff, 细胞", number)
        print("x" * 10000, file=sys.stderr)
    print("figures")
    return 7

sys.exit(run_command_line(main, keeps_running=True))
"""


def test_what_trains_goes_on_without_its_console(tmp_path):
    command = [sys.executable, "-c", LOSES_ITS_CONSOLE, str(tmp_path)]
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 7
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.count("nothing is printed any more ([Errno 32] Broken pipe): the run continues") == 2  # of both streams
    assert [f"step {number}, \\udcff, 细胞" in log for number in range(3)] == [True] * 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which always is a full disk")
def test_a_full_disk_under_the_output_is_told():
    command = [sys.executable, str(ROOT / "tools/package_weights.py"), "--list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: printing failed: [Errno 28] No space left on device\n"
