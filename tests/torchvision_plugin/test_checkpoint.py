"""Checkpoints appear whole, and reading one runs no code."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from resnet_backbone.files.checkpoints import last_checkpoint, write_checkpoint
from resnet_backbone.torchvision_plugin.checkpoint import is_own_checkpoint, load_checkpoint, read_initial_weights

STATE = {
    "model": {"roi_heads.x": torch.arange(3.0)},
    "input": {"INPUT.FORMAT": "RGB"},
    "class_names": ["a"],
    "iteration": 3,
}


def test_round_trip(tmp_path):
    assert last_checkpoint(tmp_path) is None
    path = write_checkpoint(tmp_path, "model_0000002.pth", STATE)
    assert last_checkpoint(tmp_path) == path and is_own_checkpoint(path)
    read = load_checkpoint(path)
    assert read["iteration"] == 3 and torch.equal(read["model"]["roi_heads.x"], torch.arange(3.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_history", "last_checkpoint", "model_0000002.pth"]


def test_both_kinds_of_detectors_are_known(tmp_path):
    for name in ("roi_heads.box_predictor.cls_score.weight", "head.classification_head.cls_logits.weight"):
        path = write_checkpoint(tmp_path, "model.pth", {**STATE, "model": {name: torch.zeros(1)}})
        assert is_own_checkpoint(path) and name in load_checkpoint(path)["model"]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rest(tmp_path):
    write_checkpoint(tmp_path, "model.pth", STATE)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        write_checkpoint(tmp_path, "model.pth", {"model": lambda: None})
    assert load_checkpoint(last_checkpoint(tmp_path))["iteration"] == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    path = write_checkpoint(tmp_path, "model.pth", STATE).rename(tmp_path / "model.ckpt")
    assert is_own_checkpoint(path) and load_checkpoint(path)["iteration"] == 3


def test_model_weights_may_name_one_network_of_a_file(tmp_path, tiny):
    state = {"conv1.weight": torch.ones(2)}
    torch.save({"model": state, "model_ema": {"module.conv1.weight": torch.zeros(2)}}, tmp_path / "w.th")
    for part, value in (("", 1), ("#model_ema", 0)):
        weights = read_initial_weights(tiny("quickstart.yaml", "MODEL.WEIGHTS", f"{tmp_path / 'w.th'}{part}"))
        assert torch.equal(weights.state_dict["stem.conv1.weight"], torch.full((2,), float(value)))
    for address in ("http://example.org/w.pth", "s3://bucket/w.pth"):
        with pytest.raises(ValueError, match="is not fetched: only https:// is"):
            read_initial_weights(tiny("quickstart.yaml", "MODEL.WEIGHTS", address))


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_file_runs_nothing(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({**STATE, "extra": Hostile(tmp_path / "owned")}, path)
    assert not is_own_checkpoint(path)
    with pytest.raises(ValueError, match="read safely"):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04"])
def test_what_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert not is_own_checkpoint(path)
    with pytest.raises(ValueError, match=r"model\.pth: not a checkpoint"):
        load_checkpoint(path)


def test_a_classifier_is_no_detector(tmp_path):
    path = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    assert not is_own_checkpoint(path)
    with pytest.raises(ValueError, match="no detector"):
        load_checkpoint(path)


def test_a_marker_that_points_nowhere(tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    with pytest.raises(FileNotFoundError, match="Write the name of another one"):
        last_checkpoint(tmp_path)
