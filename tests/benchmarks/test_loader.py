"""Every contender of the loader benchmark reads the same images with the same augmentation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import loader
from benchmarks.photographs import BOXES, write_photographs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"), 3)


@pytest.mark.parametrize(
    "name", [loader.OURS, loader.OURS_ON_DETECTRON2, loader.DETECTRON2, loader.TORCHVISION], ids=lambda name: name[:12]
)
def test_contenders(name, photographs):
    if "etectron2" in name:
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    contender = next(c for c in loader.contenders(*photographs, 2) if c.name == name)
    call = contender.prepare()
    samples = call.args[0]
    assert len(samples) == 3 and call() == 2
    torch.manual_seed(0)
    np.random.seed(0)
    shapes = set()
    for _ in range(8):
        sample = samples[0]
        image, boxes = (
            (sample["image"], sample["instances"]) if isinstance(sample, dict) else (sample[0], sample[1]["boxes"])
        )
        assert isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.shape[0] == 3
        assert image.shape[1] in loader.MIN_SIZE_TRAIN and abs(image.shape[1] * 4 / 3 - image.shape[2]) < 1
        assert len(boxes) == BOXES
        shapes.add(tuple(image.shape))
    assert len(shapes) > 1


def test_a_run(photographs, tmp_path, capsys, monkeypatch):
    ours = loader.contenders(*photographs, 2)[:1]
    monkeypatch.setattr(loader, "contenders", lambda *args: ours)
    monkeypatch.setattr(loader, "DETECTRON2", loader.OURS)
    json_path, image_folder = map(str, photographs)
    output = tmp_path / "result.json"
    options = ["--json", json_path, "--images", image_folder, "--num-images", "2", "--rounds", "1"]
    assert loader.main([*options, "--output", str(output)]) == 0
    assert "images/s" in capsys.readouterr().out
    case = json.loads(output.read_text())["cases"][0]
    assert case["further"] == {"images a round": 2} and case["measurements"][0]["seconds"]


def test_a_json_without_images_is_refused(capsys):
    with pytest.raises(SystemExit):
        loader.main(["--json", "a.json"])
    assert "belong together" in capsys.readouterr().err
