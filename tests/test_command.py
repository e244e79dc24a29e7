"""The console command: every script has a verb, is found wherever it is installed, and is the script itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_backbone
from resnet_backbone.command import SCRIPTS, main

ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from resnet_backbone.command import main; sys.exit(main())"


def run(*words, cwd=ROOT, status=0):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_script_has_one_verb_and_a_main():
    scripts = [path for name in ("tools", "datasets") for path in (ROOT / name).glob("*.py")]
    assert sorted(SCRIPTS.values()) == sorted(f"{path.parent.name}.{path.stem}" for path in scripts)
    assert all("\ndef main(argv: Sequence[str] | None = None" in path.read_text() for path in scripts)


def test_help_has_a_line_of_each_script_and_imports_none():
    code = "import sys; from resnet_backbone.command import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert last == "False"
    for verb in SCRIPTS:
        (about,) = [line.removeprefix(f"  {verb} ").strip() for line in lines if line.startswith(f"  {verb} ")]
        assert len(about) > 20


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"resnet-backbone {resnet_backbone.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "knows no 'trian'; did you mean train"),
        (["prepare"], "did you mean prepare bccd or prepare cifar10 or"),
        (["prepare", "shape"], "did you mean prepare shapes"),
        (["42"], "knows no '42'; resnet-backbone --help lists them"),
    ],
)
def test_unknown_verbs(words, expected, capsys):
    assert main(words) == 2
    assert expected in capsys.readouterr().err


def test_weights(capsys):
    assert main(["weights", "resnet50"]) == 0
    assert capsys.readouterr().out.split() == resnet_backbone.list_weights("resnet50")


def test_a_verb_is_its_script_and_runs_anywhere(tmp_path):
    run("prepare", "shapes", "--output", str(tmp_path / "shapes"), "--train", "4", "--val", "2", cwd=tmp_path)
    assert (tmp_path / "shapes/annotations/train.json").is_file()
    assert run("prepare", "shapes", "--help", cwd=tmp_path).startswith("usage: resnet-backbone prepare shapes ")
    printed = run("train", "--config-file", "frcnn_r10", "--engine", "torchvision", cwd=tmp_path, status=1)
    assert "did you mean frcnn_r101.yaml" in printed


@pytest.mark.parametrize(
    ("line", "expected", "absent"),
    [
        ("", {"train", "check", "prepare", "weights", "evaluate-voc"}, {"prepare bccd"}),
        ("tr", {"train"}, {"predict"}),
        ("prepare ", {"bccd", "shapes"}, {"train"}),
        ("prepare shapes --", {"--output", "--val"}, {"--config-file"}),
        ("train --", {"--engine", "--config-file", "--resume"}, {"--views"}),
        ("train --config-file frcnn_", {"frcnn_r101", "frcnn_vgg16"}, {"quickstart", "Base-RCNN-FPN"}),
        ("predict --", {"--run", "--input"}, {"--num-gpus"}),
    ],
)
def test_a_shell_completes_verbs_options_and_configs(line, expected, absent, tmp_path):
    """By the protocol of argcomplete: https://github.com/kislyuk/argcomplete, ``argcomplete/bash_completion.d``."""
    pytest.importorskip("argcomplete")
    words, answer = f"resnet-backbone {line}", tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": words, "COMP_POINT": str(len(words)), "_ARGCOMPLETE_IFS": "\n"}
    environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}
    command = [sys.executable, "-X", "importtime", "-c", COMMAND]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE), "which takes seconds"
    found = {word.strip() for word in answer.read_text().splitlines()}
    assert expected <= found and not absent & found, found
