"""Mistakes end at once: exit status 1, a message without a traceback, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fvcore.common.config import CfgNode

from resnet_backbone.torchvision_plugin.run import Run


@pytest.fixture
def failed(command_line) -> Callable[..., str]:
    """Runs the command line and returns its message."""

    def run(cfg: CfgNode, *words: str) -> str:
        done = command_line(cfg, *words)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "Traceback" not in done.stderr and done.stderr.startswith("error: ")
        assert not Path(cfg.OUTPUT_DIR).exists()
        return done.stderr

    return run


@pytest.mark.parametrize("words", [(), ("--num-gpus", "2")], ids=["one process", "two"])
def test_missing_coco(tiny, failed, tmp_path, monkeypatch, words):
    """Said once, by one process."""
    cfg = tiny("frcnn_r101.yaml")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = failed(cfg, *words)
    assert message.count("error: ") == 1
    assert "instances_train2017.json" in message and "resnet-backbone prepare coco --year 2017" in message


def test_weights_that_cannot_be_downloaded(tiny, failed, tmp_path, monkeypatch):
    """A proxy that nobody listens on stands for a machine without network."""
    cfg = tiny("quickstart.yaml", "MODEL.WEIGHTS", "imagenet://resnet18/IMAGENET1K_V1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    message = failed(cfg)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert "resnet18-f37072fd.pth" in message and str(tmp_path / "cache") in message


def test_an_output_folder_that_is_a_file(tiny, failed, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "is a file" in failed(tiny("quickstart.yaml"), "OUTPUT_DIR", str(tmp_path / "taken"))


def test_an_output_folder_whose_name_is_not_utf8(tiny, failed, tmp_path):
    assert r"udcff' is not text in UTF-8" in failed(tiny("quickstart.yaml"), "OUTPUT_DIR", f"{tmp_path}/\udcff")


def test_missing_images(tiny, failed, shapes, tmp_path, monkeypatch):
    shutil.copytree(shapes, tmp_path / "datasets")
    next((tmp_path / "datasets/shapes/train").glob("*.jpg")).unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    cfg = tiny("quickstart.yaml")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    assert "1 of the 12 images" in failed(cfg)


def test_ground_truth_that_cannot_be_evaluated(tiny, failed, shapes, tmp_path, monkeypatch):
    shutil.copytree(shapes, tmp_path / "datasets")
    path = tmp_path / "datasets/shapes/annotations/val.json"
    truth = json.loads(path.read_text())
    truth["annotations"][0]["bbox"][2] = -5
    path.write_text(json.dumps(truth))
    cfg = tiny("quickstart.yaml")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    assert "The corners were taken in the wrong order" in failed(cfg)


def test_eval_only_with_nothing_to_evaluate(tiny, failed, tmp_path):
    Run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path / "trained"))).start()
    cfg = tiny("quickstart.yaml", "MODEL.WEIGHTS", str(tmp_path / "trained/model_final.pth"), "DATASETS.TEST", "[]")
    assert "nothing to do" in failed(cfg, "--eval-only")


def test_a_typo(tiny, failed):
    assert "nearest that it obeys is SOLVER.MAX_ITER" in failed(tiny("quickstart.yaml"), "SOLVER.MAX_ITERS", "5")


def test_no_such_weights(tiny, failed):
    assert "neither a file" in failed(tiny("quickstart.yaml"), "MODEL.WEIGHTS", "nowhere.pth")


def test_eval_only_without_a_detector(tiny, failed):
    cfg = tiny("quickstart.yaml")
    assert "MODEL.WEIGHTS is empty; add MODEL.WEIGHTS output/NAME/model_final.pth" in failed(cfg, "--eval-only")
    assert "no file output/none.pth" in failed(cfg, "--eval-only", "MODEL.WEIGHTS", "output/none.pth")
    classifier = ("MODEL.WEIGHTS", "imagenet://resnet18/IMAGENET1K_V1")
    assert "needs a trained detector in MODEL.WEIGHTS, found 'imagenet" in failed(cfg, "--eval-only", *classifier)
