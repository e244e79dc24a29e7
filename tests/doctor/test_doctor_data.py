"""The data section of tools/doctor.py: it refuses what a run refuses, and compares classes with those of a detector."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_backbone.config.weights_input import input_of
from resnet_backbone.data.prepare.shapes import SHAPE_NAMES

SMALL = ["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", "32"]


def findings(report: dict[str, Any], kind: str, section: str = "data") -> str:
    return "\n".join(report["sections"][section][kind])


@pytest.fixture
def own(data_root, tmp_path) -> Callable[..., list[str]]:
    """``own(val=change)``: overrides that name the shapes, their JSON changed, for training and test."""

    def write(**changes: Callable[[dict[str, Any]], None]) -> list[str]:
        entries = []
        for split in ("train", "val"):
            content = json.loads((data_root / "shapes" / "annotations" / f"{split}.json").read_text())
            changes.get(split, lambda content: None)(content)
            path = tmp_path / f"{split}.json"
            path.write_text(json.dumps(content))
            images = str(data_root / "shapes" / split)
            entries.append({"NAME": f"own_{split}", "JSON": str(path), "IMAGES": images})
        names = ["DATASETS.TRAIN", "('own_train',)", "DATASETS.TEST", "('own_val',)"]
        return ["DATASETS.OWN", repr(entries), *names]

    return write


def forget_masks(content: dict[str, Any]) -> None:
    for note in content["annotations"]:
        del note["segmentation"]


def forget(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[key].clear()


def forget_an_image(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "elsewhere.jpg"


def rename_a_class(content: dict[str, Any]) -> None:
    content["categories"][0]["name"] = "disc"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (forget("images"), 'its list "images" is empty'),
        (forget("categories"), 'its list "categories" is empty'),
        (forget_an_image, "elsewhere.jpg"),
    ],
)
def test_a_file_that_no_run_can_use(examine, own, split, change, message):
    status, report = examine("quickstart.yaml", "", *own(**{split: change}))
    assert status == 1 and f"{split}.json" in findings(report, "wrong") and message in findings(report, "wrong")
    assert f"own_{'val' if split == 'train' else 'train'} passes" in findings(report, "ok")


def test_images_without_boxes_can_be_scored_and_not_trained_on(examine, own):
    status, report = examine("quickstart.yaml", "", *own(train=forget("annotations"), val=forget("annotations")))
    assert status == 1 and "nothing to train on" in findings(report, "wrong")
    assert "own_val passes what a run checks before it scores" in findings(report, "ok")


def test_masks_are_asked_for_where_the_detector_has_them(examine, own):
    words = ["MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNET_BACKBONE.NORM", "BN"]
    bitmask = ["INPUT.MASK_FORMAT", "bitmask"]
    status, report = examine("mask/r18_fpn.yaml", "", *words, *bitmask)
    assert status == 0 and report["sections"]["data"]["facts"]["class_names"] == list(SHAPE_NAMES)
    status, report = examine("mask/r18_fpn.yaml", "", *words)  # of polygons, and the shapes are run lengths
    assert status == 1 and "INPUT.MASK_FORMAT: bitmask" in findings(report, "wrong")
    without = own(train=forget_masks, val=forget_masks)
    status, report = examine("mask/r18_fpn.yaml", "", *words, *bitmask, *without)
    train, val = report["sections"]["data"]["wrong"]
    assert status == 1 and all("has no segmentation" in text.replace('"', "") for text in (train, val))
    assert examine("quickstart.yaml", "", *without)[0] == 0


def test_a_box_that_is_left_out_is_a_warning(examine, own):
    def flatten(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"][2] = 0.0

    status, report = examine("quickstart.yaml", "", *own(val=flatten))
    (warning,) = report["sections"]["data"]["warnings"]
    assert status == 0 and "boxes without area" in warning


def test_data_sets_of_different_classes(examine, own):
    status, report = examine("quickstart.yaml", "", *own(val=rename_a_class))
    assert status == 1 and "in one of them only: ['circle', 'disc'])" in findings(report, "wrong")
    status, report = examine("quickstart.yaml", "", *own(val=lambda content: content["categories"][0].update(id=99)))
    assert status == 1  # its annotations are of a class that is gone


def test_classes_in_another_order(examine, own):
    def turn_round(content: dict[str, Any]) -> None:
        for category, name in zip(content["categories"], reversed(SHAPE_NAMES), strict=True):
            category["name"] = name

    status, report = examine("quickstart.yaml", "", *own(val=turn_round))
    assert status == 1 and f"has the classes {', '.join(reversed(SHAPE_NAMES))}" in findings(report, "wrong")


@pytest.fixture
def trained(engine, tmp_path) -> Callable[..., Path]:
    """``trained("faster/r18_fpn.yaml", names)``: a checkpoint as the engine writes it, of classes with these names."""
    plugin = f"resnet_backbone.{engine}_plugin"
    load_config = importlib.import_module(f"{plugin}.config").load_config
    module = {"detectron2": "checkpoint", "torchvision": "detector"}[engine]
    build_detector = importlib.import_module(f"{plugin}.{module}").build_detector

    def write(config: str, names: Sequence[str]) -> Path:
        classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(len(names)), "MODEL.RETINANET.NUM_CLASSES", str(len(names))]
        cfg = load_config(config, [*SMALL, *classes])
        tensors = build_detector(cfg).state_dict()
        facts = {"input": input_of(cfg), "class_names": list(names), "arch": "resnet18", "version": "0"}
        torch.save({"model": tensors, **facts}, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return write


@pytest.mark.parametrize("config", ["faster/r18_fpn.yaml", "retinanet/r18_fpn.yaml"])
def test_a_detector_of_these_classes(examine, trained, config):
    """It fits whatever NUM_CLASSES says: a run takes that from the data."""
    words = [*SMALL, "MODEL.ROI_HEADS.NUM_CLASSES", "11", "MODEL.RETINANET.NUM_CLASSES", "11"]
    status, report = examine(config, trained(config, SHAPE_NAMES), *words)
    assert status == 0 and "detects the classes of the data" in findings(report, "ok")
    assert report["sections"]["data"]["warnings"] == report["sections"]["weights"]["warnings"] == []
    told = report["sections"]["config"]["warnings"]
    assert told and all("NUM_CLASSES: 5, from the data; the config says 11" in text for text in told)


@pytest.mark.parametrize("config", ["faster/r18_fpn.yaml", "retinanet/r18_fpn.yaml"])
@pytest.mark.parametrize("names", [("disc", *SHAPE_NAMES[1:]), ("cat", "dog")])
def test_a_detector_of_other_classes(examine, trained, engine, config, names):
    status, report = examine(config, trained(config, names), *SMALL)
    assert status == 0 and f"detects the classes {list(names)}, the data has" in findings(report, "warnings")
    anew = findings(report, "warnings", "weights" if engine == "detectron2" else "config")
    if engine == "torchvision" or len(names) != len(SHAPE_NAMES):  # Detectron2 keeps what has the same shape
        assert ("from scratch" in anew or "re-initialised" in anew) and ("cls_score" in anew or "cls_logits" in anew)
    else:
        assert anew == ""


def test_without_data_the_classes_are_those_of_the_detector(examine, trained):
    weights = trained("faster/r18_fpn.yaml", ("cat", "dog"))
    nowhere = ["DATASETS.TRAIN", "('bccd_trainval',)", "DATASETS.TEST", "('bccd_test',)"]
    status, report = examine("faster/r18_fpn.yaml", weights, *SMALL, *nowhere)
    assert status == 1 and "prepare bccd" in findings(report, "wrong")
    assert report["sections"]["weights"]["status"] == "ok" and report["sections"]["config"]["status"] == "ok"


@pytest.mark.parametrize(
    ("config", "num_classes", "said"),
    [
        ("faster/r18_fpn.yaml", 5, "detects the classes of the data"),
        ("faster/r18_fpn.yaml", 4, "detects 4 classes without names, the data has the classes"),
        ("retinanet/r18_fpn.yaml", 5, "does not say which classes it detects"),
    ],
)
def test_a_detector_without_names(doctor, tmp_path, config, num_classes, said):
    """As those of Detectron2's zoo are, which both engines take."""
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin.checkpoint import build_detector
    from resnet_backbone.detectron2_plugin.config import load_config

    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", str(num_classes), "MODEL.RETINANET.NUM_CLASSES", str(num_classes)]
    torch.save({"model": build_detector(load_config(config, [*SMALL, *classes])).state_dict()}, tmp_path / "model.pth")
    data = ["DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)"]
    untold = ["MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False"]
    words = ["MODEL.WEIGHTS", tmp_path / "model.pth", *SMALL, *data, *untold]
    for engine in ("detectron2", "torchvision"):
        status, report = doctor("--config-file", config, "--engine", engine, *words)
        assert status == 0 and said in findings(report, "ok") + findings(report, "warnings"), engine


def test_a_data_set_that_nothing_scores(doctor, tmp_path):
    """A run on Detectron2 refuses it before the training."""
    data = pytest.importorskip("detectron2.data", reason="Detectron2 is not installed")
    data.DatasetCatalog.register("doctors_unscored", lambda: [])
    data.MetadataCatalog.get("doctors_unscored").set(thing_classes=list(SHAPE_NAMES), evaluator_type="lvis")
    words = ["DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('doctors_unscored',)", "MODEL.DEVICE", "cpu"]
    try:
        status, report = doctor("--config-file", "quickstart.yaml", "--engine", "detectron2", *words)
    finally:
        data.DatasetCatalog.remove("doctors_unscored")
        data.MetadataCatalog.remove("doctors_unscored")
    assert status == 1 and "no evaluator for data set 'doctors_unscored'" in findings(report, "wrong")
