"""tools/compare.py as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def tool(load_script):
    return load_script("tools/compare.py")


def test_two_runs_become_three_files(tool, pair, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--output", str(output), "--samples", "20", "--names", "VGG", "ResNet", "--pictures", "1"]
    assert tool.main([*map(str, pair), *words]) == 0
    printed = capsys.readouterr().out
    paths = json.loads(printed.splitlines()[-1])
    assert {Path(path).name for path in paths.values()} == {"index.html", "comparison.json"}
    assert all(Path(path).is_file() for path in paths.values())
    assert "ResNet is better than VGG by " in printed and "warning: 1 setting" in printed and "AP50" in printed
    found = json.loads(Path(paths["json"]).read_text())
    assert [run["name"] for run in found["runs"]] == ["VGG", "ResNet"]
    assert found["measured"]["bbox"]["bootstrap"]["samples"] == 20 and len(found["pictures"]) == 1


def test_a_mistake_is_a_message_and_status_1(tool, pair, tmp_path, capsys):
    output = tmp_path / "out"
    assert tool.main([str(pair[0]), str(tmp_path / "nowhere"), "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no folder") and "Traceback" not in error and not output.exists()
    assert tool.main([*map(str, pair), "--pictures", "-1"]) == 1
    assert "must be 0 or more" in capsys.readouterr().err
