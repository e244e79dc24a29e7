"""The examples train: in a loop of Detectron2's trainer, and with its own, unchanged script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

detectron2 = pytest.importorskip("detectron2", reason="Detectron2 is not installed: it comes from its own repository")
pytest.importorskip("omegaconf", reason="omegaconf, which Detectron2's LazyConfig needs, is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import LazyConfig, instantiate  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.datasets import register_coco_instances  # noqa: E402
from detectron2.engine import SimpleTrainer, hooks  # noqa: E402
from detectron2.evaluation import inference_on_dataset  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402

from resnet_backbone.detectron2_plugin.lazy import use_weights  # noqa: E402
from resnet_backbone.models.registry import create_model  # noqa: E402
from resnet_backbone.weights import InputFormat, package_weights  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
RGB = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
SMALL = [
    *("train.device=cpu", "train.max_iter=2", "train.checkpointer.period=2", "train.eval_period=0"),
    *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
    *("optimizer.lr=0.0001",),
]


@pytest.fixture
def few_images(coco_mini, tmp_path):
    """A root for $DETECTRON2_DATASETS: eight images of train2017 and six of val2017, in COCO's layout."""
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    for split, count in (("train2017", 8), ("val2017", 6)):
        name = f"instances_{split}.json"
        content = json.loads((coco_mini / "annotations" / name).read_text(encoding="utf-8"))
        content["images"] = content["images"][:count]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
        (tmp_path / "coco" / "annotations" / name).write_text(json.dumps(content), encoding="utf-8")
        (tmp_path / "coco" / split).symlink_to(coco_mini / split)
    return tmp_path


@pytest.fixture
def registered(few_images):
    """The same under names of Detectron2's catalog."""
    names = {}
    for split in ("train", "val"):
        names[split] = f"few_{split}"
        folder = few_images / "coco"
        annotations = folder / "annotations" / f"instances_{split}2017.json"
        register_coco_instances(names[split], {}, str(annotations), str(folder / f"{split}2017"))
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def small(name, tmp_path):
    """An example, shrunk to seconds, that starts from a packaged file of random weights; and the trunk with these."""
    cfg = LazyConfig.load(str(ROOT / "examples" / "lazy" / f"{name}.py"))
    LazyConfig.apply_overrides(cfg, [*SMALL, f"train.output_dir='{tmp_path / 'output'}'"])
    for loader in (cfg.dataloader.train, cfg.dataloader.test):
        resize = loader.mapper.augmentations[0]
        resize.short_edge_length, resize.max_size = 96, 128
    if "sample_style" in cfg.dataloader.train.mapper.augmentations[0]:
        cfg.dataloader.train.mapper.augmentations[0].short_edge_length = [96]
    if "roi_heads" in cfg.model:
        cfg.model.roi_heads.batch_size_per_image = 16
        cfg.model.proposal_generator.post_nms_topk = [50, 20]
        # Random weights find nothing with confidence, and a few detections are enough.
        cfg.model.roi_heads.box_predictor.update(test_score_thresh=0.0, test_topk_per_image=5)
    else:
        cfg.model.update(test_score_thresh=0.0, max_detections_per_image=5)
    arch = cfg.model.backbone.get("bottom_up", cfg.model.backbone).arch
    trunk = create_model(arch, num_classes=0)
    torch.save(trunk.state_dict(), tmp_path / "raw.pth")
    package_weights(tmp_path / "raw.pth", tmp_path / "weights.pth", input_format=RGB, stride_in_1x1=False)
    use_weights(str(tmp_path / "weights.pth"), model=cfg.model, train=cfg.train, dataloader=cfg.dataloader)
    return cfg, trunk.state_dict()


@pytest.mark.parametrize("name", ["mask_rcnn_R_34_FPN_1x", "mask_rcnn_R_18_C4_1x", "retinanet_VGG_16_FPN_1x"])
def test_two_iterations_and_evaluation(name, registered, tmp_path):
    """The logic of Detectron2's tools/lazyconfig_train_net.py."""
    cfg, start = small(name, tmp_path)
    cfg.dataloader.train.dataset.names = registered["train"]
    cfg.dataloader.test.dataset.names = registered["val"]
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    trainer.register_hooks(
        [
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
        ]
    )
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=False)
    trunk = getattr(model.backbone, "bottom_up", model.backbone)
    for key, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, start[key]), key
    trainer.train(0, cfg.train.max_iter)

    without_gradient = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without_gradient == []
    frozen = {key for key, p in trunk.named_parameters() if not p.requires_grad}
    assert {key.split(".")[0] for key in frozen} in ({"stem", "res2"}, {"conv1_1", "conv1_2", "conv2_1", "conv2_2"})
    for key, p in trunk.named_parameters():
        assert torch.equal(p, start[key]) is (key in frozen), key
    if "roi_heads" in cfg.model and hasattr(model.roi_heads, "res5"):
        assert not torch.equal(model.roi_heads.res5[0].conv1.weight, start["res5.0.conv1.weight"])
        torch.testing.assert_close(
            model.roi_heads.res5[0].conv1.weight, start["res5.0.conv1.weight"], rtol=0.1, atol=0.01
        )

    again = instantiate(cfg.model)
    DetectionCheckpointer(again).load(str(tmp_path / "model_final.pth"))
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    results = inference_on_dataset(again, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    assert all(0 <= figures["AP50"] <= 100 for figures in results.values())
    assert list(results) == (["bbox"] if name.startswith("retinanet") else ["bbox", "segm"])


def test_a_step_of_the_new_baseline(registered, few_images):
    """Large scale jitter, from random weights; in float32, as there is no GPU, and on RLE: polygons need shapely."""
    path = few_images / "coco/annotations/instances_train2017.json"
    coco = COCO(str(path))
    for row in coco.dataset["annotations"]:
        rle = coco.annToRLE(row)
        row["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    path.write_text(json.dumps(coco.dataset), encoding="utf-8")
    cfg = LazyConfig.load(str(ROOT / "examples/lazy/mask_rcnn_R_50_FPN_100ep_LSJ.py"))
    LazyConfig.apply_overrides(cfg, [*SMALL, "dataloader.train.mapper.instance_mask_format=bitmask"])
    jitter, crop, _ = cfg.dataloader.train.mapper.augmentations
    jitter.target_height = jitter.target_width = 96
    crop.crop_size = (96, 96)
    cfg.model.roi_heads.batch_size_per_image = 16
    cfg.dataloader.train.dataset.names = registered["train"]
    model = instantiate(cfg.model).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    cfg.optimizer.params.model = model
    trainer = SimpleTrainer(model, instantiate(cfg.dataloader.train), instantiate(cfg.optimizer))
    trainer.train(0, 1)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    # Scales of norms are 1, to which so small a step may add nothing.
    assert not [name for name in still if name.endswith("weight") and ".norm." not in name]


def test_detectron2s_own_script(few_images, tmp_path):
    script = Path(detectron2.__file__).parents[1] / "tools" / "lazyconfig_train_net.py"
    if not script.is_file():
        pytest.skip(f"this Detectron2 came without its tools: looked for {script}")
    cfg, _ = small("mask_rcnn_R_34_FPN_1x", tmp_path)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    subprocess.run(
        [sys.executable, script, "--config-file", tmp_path / "config.yaml", "train.seed=3"],
        env={
            **os.environ,
            "DETECTRON2_DATASETS": str(few_images),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    lines = (tmp_path / "output" / "metrics.json").read_text(encoding="utf-8").splitlines()
    metrics = {key: value for line in lines for key, value in json.loads(line).items()}
    assert metrics["iteration"] == 2 and 0 < metrics["total_loss"] < 100
    assert 0 <= metrics["bbox/AP50"] <= 100 and 0 <= metrics["segm/AP50"] <= 100
