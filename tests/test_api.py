"""Training from Python, loading what was trained, and handing on what it finds; on both engines, tiny but real."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_backbone
from resnet_backbone.api import Prediction, TrainedRun
from resnet_backbone.data.images.read import read_image
from resnet_backbone.engine.checkpoint import engine_of
from resnet_backbone.metrics.results import Detections, decode_masks
from tests.helpers import TINY, results_of

WORDS = [
    *TINY,
    "SOLVER.MAX_ITER",
    "2",
    "SOLVER.IMS_PER_BATCH",
    "2",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "0.0",
    "MODEL.WEIGHTS",
    "",
]
OVERRIDES = dict(zip(WORDS[::2], WORDS[1::2], strict=True))
ENGINES = [
    "torchvision",
    pytest.param(
        "detectron2",
        marks=pytest.mark.skipif(not importlib.util.find_spec("detectron2"), reason="Detectron2 is not installed"),
    ),
]


@pytest.fixture(scope="module")
def folder(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes as a folder that an annotation tool exports."""
    root = tmp_path_factory.mktemp("exported") / "my shapes"
    for split in ("train", "val"):
        shutil.copytree(shapes / "shapes" / split, root / "images" / split)
        (root / "annotations").mkdir(exist_ok=True)
        shutil.copy(shapes / f"shapes/annotations/{split}.json", root / f"annotations/instances_{split}.json")
    return root


@pytest.fixture(scope="module", params=ENGINES)
def trained(request, folder, tmp_path_factory) -> TrainedRun:
    output = tmp_path_factory.mktemp("output")
    return resnet_backbone.train(folder, engine=request.param, overrides={**OVERRIDES, "OUTPUT_DIR": output})


def same(found: Detections, expected: Detections) -> bool:
    return all(torch.equal(getattr(found, part), getattr(expected, part)) for part in ("boxes", "scores", "labels"))


def test_a_folder_is_enough(trained, folder):
    """The figures are those of the evaluation, and what is loaded finds what the evaluation found."""
    written = json.loads((trained.output_dir / "inference/metrics.json").read_text())
    assert list(trained.metrics) == ["my_val"]
    assert trained.metrics["my_val"]["bbox"]["AP"] == pytest.approx(written["bbox"]["AP"], abs=1e-9)
    assert (trained.output_dir / "plan.yaml").is_file()
    assert trained.pages == [trained.output_dir / "index.html"] and trained.pages[0].is_file()

    document = json.loads((folder / "annotations/instances_val.json").read_text())
    category_ids = [category["id"] for category in document["categories"]]
    detector = resnet_backbone.load_detector(trained)
    assert list(detector.class_names) == [category["name"] for category in document["categories"]]
    expected = results_of(trained.output_dir)
    assert len(expected) > 5
    for image in document["images"]:
        (found,) = detector.predict(folder / "images/val" / image["file_name"], score=0.0)
        assert found.size == (image["height"], image["width"])
        wanted = [record for record in expected if record["image_id"] == image["id"]]
        records = found.to_coco(image["id"], category_ids)
        assert [record["category_id"] for record in records] == [record["category_id"] for record in wanted]
        for record, other in zip(records, wanted, strict=True):
            assert record["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
            assert record["score"] == pytest.approx(other["score"], abs=1e-5)


def test_every_name_of_a_detector(trained, folder):
    """The run, its folder, its checkpoint, and a config with MODEL.WEIGHTS are one detector."""
    photo = next((folder / "images/val").iterdir())
    output = trained.output_dir
    weights = {"MODEL.WEIGHTS": output / "model_final.pth"}
    (expected,) = resnet_backbone.load_detector(trained).predict(photo, score=0.0)
    for detector in (
        resnet_backbone.load_detector(str(output)),
        resnet_backbone.load_detector(output / "model_final.pth"),
        resnet_backbone.load_detector(config_file=output / "config.yaml", overrides=weights),
    ):
        (found,) = detector.predict(photo, score=0.0)
        assert same(found, expected) and len(found) > 5


def test_resuming_a_finished_training_keeps_it(trained, folder):
    engine = engine_of(trained.output_dir / "model_final.pth")
    overrides = {**OVERRIDES, "OUTPUT_DIR": trained.output_dir}
    again = resnet_backbone.train(folder, engine=engine, overrides=overrides, resume=True)
    assert again.metrics["my_val"]["bbox"] == trained.metrics["my_val"]["bbox"]


def test_every_kind_of_picture(trained, folder):
    detector = resnet_backbone.load_detector(trained)
    photos = sorted((folder / "images/val").iterdir())
    image = read_image(photos[0])
    array = image.permute(1, 2, 0).numpy()
    kinds = [str(photos[0]), photos[0], image, array, Image.fromarray(array)]
    found = detector.predict(kinds, score=0.0)
    assert len(found) == len(kinds) and len(found[0]) > 5
    assert all(same(one, found[0]) for one in found)
    assert all(np.array_equal(one.draw(), found[0].draw()) for one in found)
    in_folder = detector.predict(folder / "images/val")
    assert [one.source for one in in_folder] == photos
    assert [one.source for one in detector.predict(str(folder / "images/val/*"))] == photos
    assert all((one.scores >= 0.5).all() for one in in_folder)


@pytest.fixture(params=[True, False], ids=["masks", "boxes"])
def prediction(request) -> Prediction:
    masks = torch.zeros(2, 30, 40, dtype=torch.bool)
    masks[0, 2:9, 3:11] = masks[1, 20:, 5:] = True
    return Prediction(
        torch.tensor([[3.0, 2.0, 11.0, 9.0], [5.0, 20.0, 40.0, 30.0]]),
        torch.tensor([0.75, 0.5]),
        torch.tensor([2, 0]),
        masks if request.param else None,
        source=torch.zeros(3, 30, 40, dtype=torch.uint8),
        size=(30, 40),
        class_names=("cat", "dog", "cow"),
    )


def test_as_other_libraries_take_it(prediction):
    supervision, pandas = pytest.importorskip("supervision"), pytest.importorskip("pandas")
    found = prediction.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 2
    assert found.xyxy.tolist() == [[3, 2, 11, 9], [5, 20, 40, 30]]
    assert found.data["class_name"].tolist() == ["cow", "cat"] == prediction.names
    assert found.class_id.tolist() == [2, 0] and found.confidence.tolist() == [0.75, 0.5]
    masks = prediction.masks
    assert (found.mask is None) if masks is None else np.array_equal(found.mask, masks.numpy())
    assert len(found[found.confidence > 0.6]) == 1

    table = prediction.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns) == ["x0", "y0", "x1", "y1", "score", "label", "name"]
    assert table.values.tolist() == [[3, 2, 11, 9, 0.75, 2, "cow"], [5, 20, 40, 30, 0.5, 0, "cat"]]


def test_as_coco_takes_it(prediction):
    records = prediction.to_coco(7)
    assert [(record["image_id"], record["category_id"]) for record in records] == [(7, 3), (7, 1)]
    assert [record["bbox"] for record in records] == [[3, 2, 8, 7], [5, 20, 35, 10]]
    if prediction.masks is not None:
        rles = [record["segmentation"] for record in records]
        assert torch.equal(decode_masks(rles, 30, 40), prediction.masks)
    with pytest.raises(ValueError, match="expected 3 category_ids, one a class, got 2"):
        prediction.to_coco(7, [1, 2])


def test_nothing_found(prediction):
    none = Prediction(**{**vars(prediction), **vars(prediction.scored(0.9))})
    assert len(none) == 0 and none.names == [] and none.to_coco(1) == []
    pytest.importorskip("supervision")
    pytest.importorskip("pandas")
    assert len(none.to_supervision()) == 0 and none.to_pandas().empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name either data, a folder of images and labels, or config_file"),
        ({"data": "a", "config_file": "b"}, "name either data"),
        ({"data": "nowhere/at all", "engine": "torchvision"}, "nowhere/at all: no such folder"),
        ({"data": ".", "engine": "tensorflow"}, "engine 'tensorflow' is none of auto, detectron2, torchvision"),
    ],
)
def test_trainings_that_cannot_start(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        resnet_backbone.train(**arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "name a run, a checkpoint or a published detector, or config_file"),
        ({"source": "nowhere"}, "nowhere is not the output folder of a run: there is no such folder"),
        ({"source": "lonely.pth"}, "lonely.pth: no config.yaml of its training beside it; name its config_file"),
        ({"source": "torchvision://retina"}, "torchvision://retina"),
        ({"source": "torchvision://x/COCO_V1", "config_file": "quickstart"}, "has a config of its own"),
        ({"config_file": "quickstart", "engine": "jax"}, "engine 'jax' is none of"),
    ],
)
def test_detectors_that_cannot_be_loaded(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lonely.pth").write_bytes(b"")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        resnet_backbone.load_detector(**arguments)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("nowhere.jpg", "no such file"),
        ("0", "0 is a video or a camera; resnet-backbone predict takes it"),
        (np.zeros((4, 4), np.uint8), r"expected arrays of uint8, \(H, W, 3\), RGB; got uint8, \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
        (torch.zeros(3, 4, 4), "expected an image of uint8"),
    ],
)
def test_what_is_no_image(trained, picture, message):
    detector = resnet_backbone.load_detector(trained)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        detector.predict(picture)


def test_scores_are_shares(trained):
    with pytest.raises(ValueError, match="score 50 must be from 0 to 1"):
        resnet_backbone.load_detector(trained).predict([], score=50)
