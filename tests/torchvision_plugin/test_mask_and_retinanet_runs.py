"""Whole runs of Mask R-CNN and RetinaNet, tiny but real: train, resume, evaluate, other classes."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.torchvision_plugin.checkpoint import load_checkpoint
from resnet_backbone.torchvision_plugin.inference import evaluate
from resnet_backbone.torchvision_plugin.mask_heads import crop_masks
from resnet_backbone.torchvision_plugin.run import Run
from tests.helpers import FIGURES, assert_same_tensors, json_lines, mini_sets, own_sets, pycocotools_figures, results_of
from tests.processes import ROOT, Forked, script

SHAPES = ["DATASETS.TRAIN", "['shapes_train']", "DATASETS.TEST", "['shapes_val']"]
SCRATCH = [
    *("MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
]
MASK = ["mask/r18_fpn.yaml", *SCRATCH, "MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"]
BITMASK = [*MASK, *SHAPES, "INPUT.MASK_FORMAT", "bitmask"]  # the generated set has run lengths
RETINANET = ["retinanet/r18_fpn.yaml", *SCRATCH]
KINDS = pytest.mark.parametrize("keys", [BITMASK, [*RETINANET, *SHAPES]], ids=["mask", "retinanet"])


def run(cfg: CfgNode, **options) -> dict:
    return Run(cfg, **options).start()


def mini(coco_mini: Path) -> list[str]:
    """80 photographs of COCO to train on, 79 to evaluate on, at 128 pixels."""
    return [
        *mini_sets(coco_mini),
        *("INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MAX_SIZE_TRAIN", "213", "INPUT.MIN_SIZE_TEST", "128"),
        *("INPUT.MAX_SIZE_TEST", "213", "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "4"),
        *("SOLVER.BASE_LR", "0.002", "MODEL.RPN.POST_NMS_TOPK_TEST", "50", "TEST.DETECTIONS_PER_IMAGE", "20"),
    ]


def assert_figures_are_pycocotools(cfg: CfgNode, truth: Path, metrics) -> None:
    expected = pycocotools_figures(truth, results_of(cfg.OUTPUT_DIR), metrics.iou_type)
    assert [getattr(metrics, name) / 100 for name in FIGURES] == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_masks_of_real_images(tiny, coco_mini):
    """With crowds in the ground truth, and boxes and masks at the scale of the original images."""
    cfg = tiny(*MASK, *mini(coco_mini), "DATALOADER.NUM_WORKERS", "1")
    figures = run(cfg)["mini_val"]
    truth = coco_mini / "annotations/instances_val2017.json"
    assert set(figures.by_type()) == {"bbox", "segm"}
    for metrics in figures.by_type().values():
        assert_figures_are_pycocotools(cfg, truth, metrics)
    sizes = {image["id"]: [image["height"], image["width"]] for image in json.loads(truth.read_text())["images"]}
    results = results_of(cfg.OUTPUT_DIR)
    assert len(results) > 500
    for result in results:
        assert result["segmentation"]["size"] == sizes[result["image_id"]]
        x, y, width, height = result["bbox"]
        mx, my, mwidth, mheight = coco_mask.toBbox(result["segmentation"])
        if mwidth:  # a pixel counts where its centre lies in the box
            assert x - 1 <= mx and y - 1 <= my and mx + mwidth <= x + width + 1 and my + mheight <= y + height + 1


@pytest.mark.slow
def test_retinanet_on_real_images(tiny, coco_mini):
    cfg = tiny(*RETINANET, *mini(coco_mini))
    figures = run(cfg)["mini_val"]
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 80 and set(figures.by_type()) == {"bbox"}
    assert_figures_are_pycocotools(cfg, coco_mini / "annotations/instances_val2017.json", figures)
    assert all("segmentation" not in result for result in results_of(cfg.OUTPUT_DIR))


class Oracle(torch.nn.Module):
    """A detector that knows the ground truth, image after image, at the resolution of a mask head."""

    def __init__(self, dataset: CocoDataset) -> None:
        super().__init__()
        whole = CocoDataset(
            dataset.json_path, dataset.image_folder, dataset.transforms, with_masks=True, training=False
        )
        self.targets = iter([whole[index][1] for index in range(len(whole))])

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        target = next(self.targets)
        boxes, masks = target["boxes"].as_subclass(torch.Tensor), target["masks"].as_subclass(torch.Tensor)
        crops = crop_masks(masks, boxes, torch.arange(len(boxes)), 112)
        return [{"boxes": boxes, "labels": target["labels"], "scores": torch.ones(len(boxes)), "masks": crops}]


def test_perfect_masks_score_100(tiny):
    """The whole way back: the ground truth, cropped to the boxes, is pasted, written and evaluated."""
    ready = Run(tiny(*BITMASK))
    ((name, dataset),) = ready.test_sets.items()
    folder = Path(ready.cfg.OUTPUT_DIR)
    metrics = evaluate(ready.cfg, Oracle(dataset), name, dataset, ready.accelerator, folder, pictures=True)
    assert metrics.AP == pytest.approx(100) and metrics.masks.AP50 == pytest.approx(100)
    assert metrics.masks.AP > 65  # the images were shrunk to a quarter


@KINDS
def test_a_run_leaves_all_figures(tiny, keys):
    cfg = tiny(*keys, "TEST.EVAL_PERIOD", "2")
    figures = run(cfg)["shapes_val"]
    output = Path(cfg.OUTPUT_DIR)
    written = json.loads((output / "inference/metrics.json").read_text())
    assert written == figures.to_dict()
    kinds = {"bbox", "segm"} if cfg.MODEL.MASK_ON else {"bbox"}
    assert set(written) == kinds
    records = json_lines(output / "metrics.json")
    for kind in kinds:
        assert set(FIGURES) <= set(written[kind]) and "AP-star" in written[kind]
        assert [r["iteration"] for r in records if f"shapes_val/{kind}/AP50" in r] == [1, 3]
    losses = {key for record in records for key in record if key.startswith("loss_")}
    assert ("loss_mask" in losses) == cfg.MODEL.MASK_ON
    assert len(list((output / "inference/pictures").glob("*.png"))) == 5 + 1


@KINDS
def test_resuming_gives_the_same_weights_to_the_bit(tiny, tmp_path, keys):
    """The normaliser of RetinaNet's losses, too."""
    folders = {name: ["OUTPUT_DIR", str(tmp_path / name), "DATASETS.TEST", "[]"] for name in ("whole", "parted")}
    run(tiny(*keys, *folders["whole"]))
    run(tiny(*keys, *folders["parted"]))
    (tmp_path / "parted/last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "parted/model_final.pth").unlink()
    run(tiny(*keys, *folders["parted"]), resume=True)
    a, b = (load_checkpoint(tmp_path / name / "model_final.pth")["model"] for name in folders)
    assert_same_tensors(a, b)


@pytest.mark.slow
def test_retinanet_in_two_processes_resumes_to_the_bit(tiny, command_line, tmp_path):
    """Each process sees other images, and so other numbers of positive anchors.

    The second half is done on two machines, of which only the one of rank 0 has the checkpoint.
    """
    cfg = tiny(*RETINANET, *SHAPES, "DATASETS.TEST", "[]", "OUTPUT_DIR", str(tmp_path / "whole"))
    done = command_line(cfg, nproc=2)
    assert done.returncode == 0, done.stderr
    shutil.copytree(tmp_path / "whole", tmp_path / "parted")
    (tmp_path / "parted/last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "parted/model_final.pth").unlink()
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"

    def machine(rank: int) -> Forked:
        words = ["--engine", "torchvision", "--config-file", str(tmp_path / "whole.yaml"), "--resume"]
        words += ["--num-machines=2", f"--machine-rank={rank}", f"--dist-url={url}"]
        own = ["OUTPUT_DIR", str(tmp_path / ("parted", "other_machine")[rank])]
        return Forked(script("tools/train_net.py", *words, *own), environment={"PYTHONPATH": str(ROOT)})

    machines = [machine(rank) for rank in range(2)]
    ends = [one.finish() for one in machines]
    assert [status for status, _ in ends] == [0, 0], ends
    assert not (tmp_path / "other_machine").exists()
    a, b = (load_checkpoint(tmp_path / name / "model_final.pth") for name in ("whole", "parted"))
    assert a["model"]["loss_normalizer"] != 100
    assert_same_tensors(a["model"], b["model"])


@KINDS
def test_the_command_line_prints_the_figures_and_eval_only_repeats_them(tiny, command_line, keys, tmp_path):
    cfg = tiny(*keys, "SOLVER.MAX_ITER", "1")
    first = command_line(cfg)
    assert first.returncode == 0, first.stderr
    figures = json.loads(first.stdout.splitlines()[-1])["shapes_val"]
    assert set(figures) == ({"bbox", "segm"} if cfg.MODEL.MASK_ON else {"bbox"})
    again = tiny(*keys, "MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth"), "OUTPUT_DIR", str(tmp_path / "two"))
    assert run(again, eval_only=True)["shapes_val"].to_dict() == figures
    assert results_of(again.OUTPUT_DIR) == results_of(cfg.OUTPUT_DIR)


@pytest.mark.parametrize(
    ("keys", "anew"),
    [
        (MASK, ["roi_heads.box_predictor.", "roi_heads.mask_head.predictor."]),
        (RETINANET, ["head.classification_head.cls_logits."]),
    ],
    ids=["mask", "retinanet"],
)
def test_other_classes_start_from_the_rest_of_a_detector(tiny, tmp_path, coco_mini, keys, anew):
    run(tiny(*keys, *SHAPES, "INPUT.MASK_FORMAT", "bitmask", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))
    weights = tmp_path / "output/model_final.pth"
    tuned = Run(tiny(*keys, *mini(coco_mini), "MODEL.WEIGHTS", str(weights), "DATASETS.TEST", "[]"))
    before, now = load_checkpoint(weights)["model"], tuned.model.state_dict()
    for key, value in before.items():
        if key.startswith(tuple(anew)):
            assert now[key].shape != value.shape, key
        else:
            assert torch.equal(now[key], value), key


def test_a_detector_without_masks_is_no_mask_rcnn(tiny, tmp_path):
    run(tiny(*BITMASK, "MODEL.MASK_ON", "False", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "[]"))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output/model_final.pth")]
    with pytest.raises(ValueError, match=r"not in the file: roi_heads\.mask_head"):
        Run(tiny(*BITMASK, *weights))


def test_bfloat16_trains(tiny):
    for keys in (BITMASK, [*RETINANET, *SHAPES]):
        amp = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.MAX_ITER", "1"]
        figures = run(tiny(*keys, *amp))["shapes_val"]
        assert np.isfinite(figures.AP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "(?s)RLE, not as polygons.*write INPUT.MASK_FORMAT: bitmask"),
        ({"segmentation": None}, r'has no "segmentation".* write MODEL.MASK_ON: False'),
    ],
)
def test_training_data_without_fitting_masks_is_refused_before_the_run(tiny, tmp_path, shapes, change, message):
    document = json.loads((shapes / "shapes/annotations/train.json").read_text())
    for key in change:
        del document["annotations"][3][key]
    (tmp_path / "train.json").write_text(json.dumps(document))
    own = own_sets(own=(tmp_path / "train.json", shapes / "shapes/train"))
    cfg = tiny(*MASK, *own, "DATASETS.TRAIN", "['own']", "DATASETS.TEST", "[]")
    with pytest.raises(ValueError, match=message):
        Run(cfg)
    assert not Path(cfg.OUTPUT_DIR).exists()


def test_test_data_without_masks_is_refused_before_the_run(tiny, tmp_path, shapes):
    document = json.loads((shapes / "shapes/annotations/val.json").read_text())
    del document["annotations"][3]["segmentation"]
    (tmp_path / "val.json").write_text(json.dumps(document))
    own = own_sets(own=(tmp_path / "val.json", shapes / "shapes/val"))
    cfg = tiny(*BITMASK, *own, "DATASETS.TEST", "['own']")
    with pytest.raises(ValueError, match="annotations without a segmentation: the evaluation refuses the file"):
        Run(cfg)
