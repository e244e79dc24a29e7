"""What the README shows exists: every file it names, and every config it has the reader run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from resnet_backbone.torchvision_plugin.config import load_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\b(?:tools|datasets|configs|benchmarks)/[\w./-]+\.\w+", README)))
)
def test_files_exist(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", README))))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_example_config_loads(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    values = yaml.safe_load(example)
    values["_BASE_"] = str(ROOT / "configs" / values["_BASE_"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    cfg = load_config(tmp_path / "mine.yaml")
    assert cfg.DATASETS.TRAIN == ["my_train"] and cfg.MODEL.WEIGHTS.startswith("imagenet://")
