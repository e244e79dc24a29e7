"""Every network under every builder that makes sense trains and evaluates on photographs of COCO."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run  # noqa: E402
from resnet_backbone.models.registry import list_models  # noqa: E402
from tests.helpers import FAMILY  # noqa: E402

TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20", "MODEL.RPN.POST_NMS_TOPK_TEST", "10", "MODEL.ROI_BOX_HEAD.FC_DIM", "64"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "32"),
    *("INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.MAX_SIZE_TRAIN", "107"),
    *("INPUT.MIN_SIZE_TEST", "70", "INPUT.MAX_SIZE_TEST", "101"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()", "SOLVER.BASE_LR", "0.001"),
]
RESNET = {"C4": "Base-RCNN-C4", "DC5": "Base-RCNN-DC5", "FPN": "Base-RCNN-FPN", "RetinaNet": "Base-RetinaNet"}
VGG = {"C5": "Base-RCNN-VGG-C5", "FPN": "frcnn_vgg16", "RetinaNet": "retinanet/vgg16_fpn"}
ARCHS = [arch for arch in list_models() if not arch.startswith("cifar_")]  # of detectors
CASES = [
    pytest.param(arch, kind, config, marks=[pytest.mark.slow] if arch in FAMILY else [], id=f"{arch}-{kind}")
    for arch in ARCHS
    for kind, config in (VGG if "vgg" in arch else RESNET).items()
]


@pytest.fixture(scope="module")
def few_of_coco(coco_mini: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """DATASETS.OWN: four images to train on, three to evaluate, all with boxes."""
    folder = tmp_path_factory.mktemp("few")
    own = []
    for split, count in (("train2017", 4), ("val2017", 3)):
        data = json.loads((coco_mini / "annotations" / f"instances_{split}.json").read_text())
        with_boxes = {note["image_id"] for note in data["annotations"] if not note["iscrowd"]}
        data["images"] = [image for image in data["images"] if image["id"] in with_boxes][:count]
        kept = {image["id"] for image in data["images"]}
        data["annotations"] = [note for note in data["annotations"] if note["image_id"] in kept]
        path = folder / f"{split}.json"
        path.write_text(json.dumps(data))
        own.append({"NAME": f"few_{split}", "JSON": str(path), "IMAGES": str(coco_mini / split)})
    return own


@pytest.mark.parametrize(("arch", "kind", "config"), CASES)
def test_it_trains_and_evaluates(arch, kind, config, few_of_coco, tmp_path):
    norm = "" if arch in ("vgg16", "vgg19") else "BN"
    words = ["MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.ARCH", arch, "MODEL.RESNET_BACKBONE.NORM", norm]
    cfg = load_config(f"{config}.yaml", [*TINY, *words, "OUTPUT_DIR", str(tmp_path)])
    cfg.DATASETS.OWN = few_of_coco
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("few_train2017",), ("few_val2017",)
    run = Run(cfg)
    before = {name: tensor.clone() for name, tensor in run.model.backbone.named_parameters()}
    figures = run.start()

    # What a step left as it was had no gradient: an unused layer, with which distributed training stops.
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    after = {name: state["model"][f"backbone.{name}"] for name in before}
    assert not [name for name in before if name.endswith(".weight") and after[name].equal(before[name])]
    optimizer = state["trainer"]["_trainer"]["optimizer"]
    assert len(optimizer["state"]) == sum(len(group["params"]) for group in optimizer["param_groups"])
    records = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert math.isfinite(records[0]["total_loss"]) and records[0]["iteration"] == 1
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} < figures["few_val2017"]["bbox"].keys()
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert isinstance(results, list)
