"""The predictor finds what the evaluation of the same run finds."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.metrics.results import ImageResults
from resnet_backbone.torchvision_plugin.inference import Predictor
from resnet_backbone.torchvision_plugin.run import Run

ALL_SCORES = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0")
MASKS = ("MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8")
REFINED = (
    "TEST.BOX_REFINEMENT.ENABLED",
    "True",
    "TEST.MULTI_SCALE.ENABLED",
    "True",
    "TEST.MULTI_SCALE.SIZES",
    "[48, 64]",
)


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
    ("config", "overrides"),
    [
        ("quickstart.yaml", ()),
        ("quickstart.yaml", ("INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", "0")),
        ("quickstart.yaml", ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")),
        ("quickstart.yaml", MASKS),
        ("retinanet/r18_fpn.yaml", ("DATASETS.TRAIN", "['shapes_train']", "DATASETS.TEST", "['shapes_val']")),
        ("quickstart.yaml", REFINED),
    ],
    ids=["plain", "BGR", "bfloat16", "masks", "retinanet", "improved"],
)
def test_it_finds_what_the_evaluation_finds(tiny, shapes, config, overrides):
    run = Run(tiny(config, *ALL_SCORES, "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "1", *overrides))
    run.start()
    output = Path(run.cfg.OUTPUT_DIR)
    written = json.loads((output / "inference" / "coco_instances_results.json").read_text())
    assert len(written) > 20
    # The config of the run, as it is on the disk, with its checkpoint.
    predictor = Predictor(
        tiny(str(output / "config.yaml"), "MODEL.WEIGHTS", str(output / "model_final.pth"), *overrides)
    )
    assert predictor.class_names == run.class_names
    originals = CocoDataset(shapes / "shapes/annotations/val.json", shapes / "shapes/val", training=False)
    assert predicted(predictor, originals) == written


def test_classes_and_input_are_the_checkpoints(tiny, tmp_path):
    Run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]")).start()
    weights = ("MODEL.WEIGHTS", str(tmp_path / "output" / "model_final.pth"))
    cfg = tiny("quickstart.yaml", *weights, "INPUT.FORMAT", "BGR", "MODEL.ROI_HEADS.NUM_CLASSES", "5")
    image = torch.randint(0, 256, (3, 51, 67), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    one, other = Predictor(cfg), Predictor(tiny("quickstart.yaml", *weights))
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 5, "the caller's config stays as it is"
    assert one.cfg.INPUT.FORMAT == "RGB" and torch.equal(one(image).boxes, other(image).boxes)
    with pytest.raises(ValueError, match="of another detector"):
        Predictor(tiny("quickstart.yaml", *weights, "MODEL.RESNET_BACKBONE.ARCH", "resnet34"))


def test_many_images_leave_nothing_behind(tiny, tmp_path):
    Run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]")).start()
    predictor = Predictor(tiny("quickstart.yaml", "MODEL.WEIGHTS", str(tmp_path / "output" / "model_final.pth")))

    def tensors_after(calls: int) -> int:
        for size in range(calls):
            predictor(torch.zeros(3, 40 + size % 5, 60, dtype=torch.uint8))
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    assert tensors_after(3) == tensors_after(10)


@pytest.mark.parametrize(
    "image", [torch.zeros(3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.uint8)], ids=["float", "gray"]
)
def test_other_images_are_refused(tiny, tmp_path, image):
    Run(tiny("quickstart.yaml", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]")).start()
    predictor = Predictor(tiny("quickstart.yaml", "MODEL.WEIGHTS", str(tmp_path / "output" / "model_final.pth")))
    with pytest.raises(ValueError, match=r"expected an image of uint8 and shape \(3, H, W\)"):
        predictor(image)


@pytest.mark.parametrize("weights", ["", "nowhere.pth"])
def test_a_checkpoint_is_needed(tiny, weights):
    with pytest.raises(FileNotFoundError, match="name the checkpoint of a training"):
        Predictor(tiny("quickstart.yaml", "MODEL.WEIGHTS", weights))
