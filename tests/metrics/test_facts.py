"""The conditions of an evaluation: written whole, read back, and refused where they are not ours."""

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_backbone.metrics.run_facts import CostMeter, device_name, git_commit, read_facts, write_facts

CPU = torch.device("cpu")


@pytest.fixture
def written(tmp_path):
    annotations = tmp_path / "val.json"
    annotations.write_text("{}")
    model = nn.Linear(2, 3)
    with CostMeter(model, CPU) as meter:
        model(torch.zeros(4, 2))
    return write_facts(
        tmp_path,
        meter,
        engine="torchvision",
        device=CPU,
        processes=2,
        dataset="mine",
        annotations=annotations,
        image_folder=tmp_path,
        num_images=4,
        class_names=("a", "b"),
    )


def test_what_is_written_is_read(written, tmp_path):
    assert read_facts(tmp_path) == written
    assert written.annotations_sha256 == hashlib.sha256(b"{}").hexdigest()
    assert (written.parameters, written.multiply_adds) == (9, 6)
    assert Path(written.annotations).is_absolute() and written.class_names == ["a", "b"]
    assert f"{torch.get_num_threads()} threads" in written.device == device_name(CPU)


def test_the_commit_is_gits():
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert head.startswith(git_commit().removesuffix("-dirty"))


def test_a_run_without_facts_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"facts\.json; evaluate again with tools/train_net\.py --eval-only"):
        read_facts(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", json.dumps({"engine": "torchvision"})])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "facts.json").write_text(content)
    with pytest.raises(ValueError, match="is not what tools/train_net.py writes"):
        read_facts(tmp_path)
