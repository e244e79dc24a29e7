"""The predictor finds what the evaluation of the same run finds, and what Detectron2's own predictor finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fvcore.common.config import CfgNode

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.engine import DefaultPredictor  # noqa: E402

from resnet_backbone.data.coco.dataset import CocoDataset  # noqa: E402
from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.improvements import Predictor  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run  # noqa: E402
from resnet_backbone.metrics.results import ImageResults  # noqa: E402
from tests.helpers import TINY  # noqa: E402

SMALL = [
    *(*TINY, "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "1"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
]
MASKS = ("MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8")
AUGMENTED = ("TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 80)")
REFINED = (
    *("TEST.BOX_REFINEMENT.ENABLED", "True", "TEST.MULTI_SCALE.ENABLED", "True", "TEST.MULTI_SCALE.SIZES", "[48, 64]"),
)
SHAPES = ("DATASETS.TRAIN", "['shapes_train']", "DATASETS.TEST", "['shapes_val']")


@pytest.fixture
def tiny(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CfgNode]:
    """Load a config, shrunk to seconds: ``tiny("quickstart.yaml", "KEY", "VALUE", ...)``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))

    def load(config: str, *overrides: str) -> CfgNode:
        return load_config(config, [*SMALL, "OUTPUT_DIR", str(tmp_path / "output"), *overrides])

    return load


def predicted(predictor: Predictor, dataset: CocoDataset) -> list[dict]:
    """What coco_instances_results.json must hold."""
    records = []
    for index, image_id in enumerate(dataset.image_ids.tolist()):
        found = predictor(dataset[index][0])
        results = ImageResults.hold(
            image_id, found.boxes, found.scores, found.labels, len(dataset.category_ids), found.masks
        )
        records += results.records(dataset.category_ids)
    return records


@pytest.mark.parametrize(
    ("config", "overrides", "folder"),
    [
        ("quickstart.yaml", (), "inference"),
        ("quickstart.yaml", ("INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", "0"), "inference"),
        ("quickstart.yaml", MASKS, "inference"),
        ("quickstart.yaml", AUGMENTED, "inference_TTA"),
        ("quickstart.yaml", REFINED, "inference"),
        ("retinanet/r18_fpn.yaml", SHAPES, "inference"),
    ],
    ids=["plain", "BGR", "masks", "augmented", "improved", "retinanet"],
)
def test_it_finds_what_the_evaluation_finds(tiny, shapes, config, overrides, folder):
    run = Run(tiny(config, *overrides))
    run.start()
    output = Path(run.cfg.OUTPUT_DIR)
    written = json.loads((output / folder / "coco_instances_results.json").read_text())
    assert len(written) > 20
    weights = ("MODEL.WEIGHTS", str(output / "model_final.pth"))
    predictor = Predictor(tiny(str(output / "config.yaml"), *weights, *overrides))
    assert list(predictor.class_names) == run.class_names
    originals = CocoDataset(shapes / "shapes/annotations/val.json", shapes / "shapes/val", training=False)
    assert predicted(predictor, originals) == written


@pytest.fixture
def weights(tiny: Callable[..., CfgNode], tmp_path: Path) -> tuple[str, str]:
    """Of a tiny training."""
    Run(tiny("quickstart.yaml", "DATASETS.TEST", "[]")).start()
    return "MODEL.WEIGHTS", str(tmp_path / "output" / "model_final.pth")


def test_it_is_detectron2s_predictor(tiny, weights, shapes):
    """Which takes BGR arrays, and knows neither classes nor input of the checkpoint."""
    exact = ("MODEL.RESNET_BACKBONE.FOLD_NORMS", "False")  # or it sums in another order
    predictor = Predictor(tiny("quickstart.yaml", *weights, *exact))
    theirs = DefaultPredictor(predictor.cfg)
    image = torch.randint(0, 256, (3, 71, 93), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = theirs(image.flip(0).permute(1, 2, 0).numpy())["instances"]
    found = predictor(image)
    assert len(found) == len(expected) > 5
    assert torch.equal(found.boxes, expected.pred_boxes.tensor) and torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.pred_classes) and found.masks is None


def test_classes_and_input_are_the_checkpoints(tiny, weights):
    cfg = tiny("quickstart.yaml", *weights, "INPUT.FORMAT", "BGR", "MODEL.ROI_HEADS.NUM_CLASSES", "5")
    predictor = Predictor(cfg)
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5, "the caller's config stays as it is"
    assert predictor.cfg.INPUT.FORMAT == "RGB"
    assert predictor.cfg.MODEL.ROI_HEADS.NUM_CLASSES == len(predictor.class_names)
    with pytest.raises(ValueError, match="of another detector|ARCH"):
        Predictor(tiny("quickstart.yaml", *weights, "MODEL.RESNET_BACKBONE.ARCH", "resnet34"))


def test_a_checkpoint_without_names_has_those_of_the_test_set(tiny, weights, tmp_path):
    """As those of Detectron2's model zoo, which do not say their input either."""
    tensors = torch.load(weights[1], weights_only=True)["model"]
    torch.save({"model": tensors}, tmp_path / "bare.pth")
    bare = ("MODEL.WEIGHTS", str(tmp_path / "bare.pth"))
    with pytest.raises(ValueError, match="does not name its classes"):
        Predictor(tiny("quickstart.yaml", *bare, "DATASETS.TEST", "[]"))
    coco = ("DATASETS.TEST", "['coco_2017_val']")
    with pytest.raises(ValueError, match="does not say which input it was trained on"):
        Predictor(tiny("quickstart.yaml", *bare, *coco))
    with pytest.raises(ValueError, match="of another detector"):  # 80 classes, and it has 3
        Predictor(tiny("quickstart.yaml", *bare, *coco, "MODEL.RESNET_BACKBONE.INPUT_FROM_WEIGHTS", "False"))


def test_what_is_no_detector_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        Predictor(tiny("quickstart.yaml"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        Predictor(tiny("quickstart.yaml", "MODEL.WEIGHTS", str(tmp_path / "nowhere.pth")))
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match="is a classifier"):
        Predictor(tiny("quickstart.yaml", "MODEL.WEIGHTS", str(tmp_path / "classifier.pth")))
