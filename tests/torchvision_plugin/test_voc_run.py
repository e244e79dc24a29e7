"""A run that is tested on VOC's sets: its mAP beside COCO's figures, and files for the evaluation server."""

from __future__ import annotations

from pathlib import Path

from resnet_backbone.torchvision_plugin.run import Run


def test_voc_sets(tiny, shapes_as_voc, assert_voc_run, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes_as_voc))
    test_sets = ("DATASETS.TEST", "('voc07_test', 'voc12_test')")
    cfg = tiny("quickstart.yaml", *test_sets, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0")
    stale = Path(cfg.OUTPUT_DIR) / "inference" / "voc12_test" / "metrics.json"  # when it still had annotations
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    figures = Run(cfg).start()
    assert_voc_run(Path(cfg.OUTPUT_DIR), set(figures))
