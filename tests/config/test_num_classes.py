"""The number of classes follows from the data; a config that says another is told."""

from __future__ import annotations

import logging

import pytest

from resnet_backbone.config.weights_input import fit_num_classes
from resnet_backbone.torchvision_plugin.config import load_config


@pytest.mark.parametrize(("said", "levels"), [(80, ["INFO"]), (5, ["WARNING"]), (3, [])])
def test_it_follows_from_the_data(said, levels, caplog):
    cfg = load_config("quickstart.yaml", ["MODEL.ROI_HEADS.NUM_CLASSES", str(said)])
    with caplog.at_level(logging.INFO):
        fit_num_classes(cfg, "ROI_HEADS", 3)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
    assert [record.levelname for record in caplog.records] == levels
    assert not levels or f"the config says {said}" in caplog.text
