"""Our VOC sets on Detectron2: VOC's mAP beside COCO's figures, and files for the evaluation server."""

from __future__ import annotations

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run  # noqa: E402

TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7", "MODEL.WEIGHTS", ""),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.POST_NMS_TOPK_TEST", "10", "SOLVER.STEPS", "()"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.MAX_SIZE_TEST", "96", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
]


def test_voc_sets(shapes_as_voc, assert_voc_run, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_as_voc))
    output = tmp_path / "output"
    test_sets = ("DATASETS.TEST", "('voc07_test', 'voc12_test')", "OUTPUT_DIR", str(output))
    figures = Run(load_config("quickstart.yaml", [*TINY, *test_sets])).start()
    assert_voc_run(output, set(figures))
