"""On a GPU: a training step of every config, in float32 and in mixed precision."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
if not torch.cuda.is_available():
    pytest.skip("torch finds no GPU", allow_module_level=True)

from resnet_backbone.config import config_folder  # noqa: E402
from resnet_backbone.data.prepare.shapes import generate_shapes  # noqa: E402
from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run  # noqa: E402

STUFF = (
    "classification/",
    "panoptic/",
    "semantic/",
    "strong/own_data",
    "strong/torchvision_v2",
    "torchvision/",
)  # no detectors, need more than boxes and masks (test_evaluators.py), or the other engine
CONFIGS = sorted(
    name
    for path in config_folder().rglob("*.yaml")
    if not (name := path.relative_to(config_folder()).as_posix()).startswith(STUFF)
)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """DATASETS.OWN: the "shapes" set, every box with its mask."""
    root = tmp_path_factory.mktemp("datasets") / "shapes"
    generate_shapes(root, num_train=4, num_val=2, seed=0)
    path = root / "annotations" / "train.json"
    data = json.loads(path.read_text())
    for note in data["annotations"]:
        x, y, width, height = note["bbox"]
        note["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    path.write_text(json.dumps(data))
    return [{"NAME": "shapes_with_masks", "JSON": str(path), "IMAGES": str(root / "train")}]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_step(config: str, precision: str, shapes: list[dict[str, str]], tmp_path: Path) -> None:
    words = ["MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", "1", "SOLVER.STEPS", "()", "SOLVER.IMS_PER_BATCH", "2"]
    words += ["SOLVER.BASE_LR", "1e-5", "INPUT.MAX_SIZE_TRAIN", "400", "OUTPUT_DIR", str(tmp_path), "SEED", "0"]
    if precision != "float32":
        words += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", precision]
    cfg = load_config(config, words)
    if cfg.MODEL.RESNET_BACKBONE.NORM == "FrozenBN":  # which normalises nothing as long as it is new
        cfg.MODEL.RESNET_BACKBONE.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    cfg.DATASETS.OWN, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = shapes, ("shapes_with_masks",), ()
    Run(cfg).start()
    record = json.loads((tmp_path / "metrics.json").read_text().splitlines()[0])
    assert math.isfinite(record["total_loss"])
