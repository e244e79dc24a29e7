"""On real photographs, from random weights, a small detector learns: minutes on two cores."""

from __future__ import annotations

import pytest

from resnet_backbone.data.prepare.voc import prepare_bccd
from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.run import Run


@pytest.mark.slow
def test_bccd_from_scratch(bccd, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    prepare_bccd(tmp_path / "bccd", bccd)
    run = Run(load_config("bccd_r18.yaml", ["OUTPUT_DIR", str(tmp_path / "output")]))
    figures = run.start()["bccd_test"]
    assert figures.AP50 > 82 and figures.AP > 45
