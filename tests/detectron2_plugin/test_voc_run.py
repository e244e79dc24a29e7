"""Our VOC sets on Detectron2: VOC's mAP beside COCO's figures, and files for the evaluation server."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run  # noqa: E402
from tests.helpers import TINY  # noqa: E402

KEYS = ["SOLVER.STEPS", "()", "SOLVER.MAX_ITER", "2", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]


def test_voc_sets(shapes_as_voc, assert_voc_run, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_as_voc))
    output = tmp_path / "output"
    test_sets = ("DATASETS.TEST", "('voc07_test', 'voc12_test')", "OUTPUT_DIR", str(output))
    figures = Run(load_config("quickstart.yaml", [*TINY, *KEYS, *test_sets])).start()
    assert_voc_run(output, set(figures))
