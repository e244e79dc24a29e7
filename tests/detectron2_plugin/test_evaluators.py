"""Data sets that are scored otherwise than by COCO's boxes: Pascal VOC, masks, stuff, panoptic segmentation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import nn

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.datasets import register_coco_panoptic_separated, register_pascal_voc  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402

from resnet_backbone.data.coco import table  # noqa: E402
from resnet_backbone.data.prepare.shapes import generate_shapes  # noqa: E402
from resnet_backbone.detectron2_plugin.config import load_config  # noqa: E402
from resnet_backbone.detectron2_plugin.datasets import register_datasets  # noqa: E402
from resnet_backbone.detectron2_plugin.evaluation import evaluate  # noqa: E402
from resnet_backbone.detectron2_plugin.run import Run  # noqa: E402
from resnet_backbone.files.text import read_json  # noqa: E402
from resnet_backbone.metrics.drawing import PictureSample, draw_pair  # noqa: E402

TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7", "MODEL.WEIGHTS", ""),
    *("MODEL.RESNET_BACKBONE.ARCH", "resnet18", "MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.BACKBONE.FREEZE_AT", "0"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8", "MODEL.RPN.POST_NMS_TOPK_TEST", "10", "SOLVER.STEPS", "()"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96", "INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.MAX_SIZE_TEST", "96", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.001"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
]


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The "shapes" set with masks, registered as panoptic (things and stuff: background and sky) and stuff alone."""
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root / "shapes", num_train=6, num_val=4, seed=0)
    for split in ("train", "val"):
        annotations = root / "shapes" / "annotations" / f"{split}.json"
        data = json.loads(annotations.read_text())
        segments = {image["id"]: np.zeros((image["height"], image["width"]), np.uint8) for image in data["images"]}
        for note in data["annotations"]:
            x, y, width, height = note["bbox"]
            note["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            picture = Image.fromarray(segments[note["image_id"]])
            ImageDraw.Draw(picture).rectangle([x, y, x + width, y + height], fill=1)
            segments[note["image_id"]] = np.array(picture)
        annotations.write_text(json.dumps(data))
        folder = root / "stuff" / split
        folder.mkdir(parents=True)
        for image in data["images"]:
            Image.fromarray(segments[image["id"]]).save(folder / f"{Path(image['file_name']).stem}.png")
        panoptic = [
            {"image_id": image["id"], "file_name": image["file_name"], "segments_info": []} for image in data["images"]
        ]
        (root / f"panoptic_{split}.json").write_text(json.dumps({"annotations": panoptic}))
        names = [category["name"] for category in data["categories"]]
        ids = [category["id"] for category in data["categories"]]
        register_coco_panoptic_separated(
            f"shapes_{split}_panoptic",
            {
                "thing_classes": names,
                "thing_dataset_id_to_contiguous_id": {category_id: index for index, category_id in enumerate(ids)},
                "stuff_classes": ["things", "background"],
                "stuff_dataset_id_to_contiguous_id": {0: 0, 1: 1},
            },
            str(root / "shapes" / split),
            str(folder),
            str(root / f"panoptic_{split}.json"),
            str(folder),
            str(annotations),
        )
    return root


def test_stuff_is_scored_as_semantic_segmentation(registered, tmp_path):
    cfg = load_config(
        "semantic/r50_fpn.yaml", [*TINY, "OUTPUT_DIR", str(tmp_path), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train_panoptic_stuffonly",), ("shapes_val_panoptic_stuffonly",)
    figures = Run(cfg).start()["shapes_val_panoptic_stuffonly"]["sem_seg"]
    assert 0 <= figures["mIoU"] <= 100 and 0 < figures["pACC"] <= 100
    assert json.loads((tmp_path / "inference" / "metrics.json").read_text())["sem_seg"] == figures


def test_panoptic_fpn_trains_and_needs_panopticapi_for_its_score(registered, tmp_path):
    words = [*TINY, "OUTPUT_DIR", str(tmp_path / "output"), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]
    cfg = load_config("panoptic/r50_fpn.yaml", words)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("shapes_train_panoptic_separated",), ("shapes_val_panoptic_separated",)
    if importlib.util.find_spec("panopticapi") is None:
        with pytest.raises(ValueError, match=r"panopticapi, which is not installed; pip install git\+https"):
            Run(cfg)
        assert not (tmp_path / "output").exists()
        cfg.DATASETS.TEST = ()
    Run(cfg).start()
    record = json.loads((tmp_path / "output" / "metrics.json").read_text().splitlines()[0])
    assert record["loss_sem_seg"] > 0 and record["loss_mask"] > 0


@pytest.mark.parametrize("config", ["mask/r50_fpn.yaml", "mask/r50_c4.yaml", "cascade/r50_fpn_mask.yaml"])
def test_masks_are_scored_beside_boxes(registered, tmp_path, config):
    cfg = load_config(config, [*TINY, "OUTPUT_DIR", str(tmp_path)])
    root = registered / "shapes"
    cfg.DATASETS.OWN = [
        {"NAME": f"masks_{split}", "JSON": str(root / "annotations" / f"{split}.json"), "IMAGES": str(root / split)}
        for split in ("train", "val")
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("masks_train",), ("masks_val",)
    figures = Run(cfg).start()["masks_val"]
    assert figures.keys() == {"bbox", "segm"}
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert results and all({"bbox", "segmentation", "score"} <= record.keys() for record in results)


@pytest.fixture
def three_forms(registered, tmp_path) -> COCO:
    """The "shapes", masks in turn a polygon, run lengths and compressed run lengths; the first object a crowd."""
    path = registered / "shapes" / "annotations" / "val.json"
    data = json.loads(path.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    for number, note in enumerate(data["annotations"]):
        x, y, width, height = note["bbox"] = [round(value) for value in note["bbox"]]
        note["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
        if number % 3:
            note["segmentation"] = coco_mask.frPyObjects(note["segmentation"], *sizes[note["image_id"]])[0]
            mask = coco_mask.decode(note["segmentation"]).flatten(order="F")
            runs = np.diff(np.flatnonzero(np.diff(mask, prepend=2, append=2))).tolist()
            counts = [0, *runs] if mask[0] else runs
            note["segmentation"]["counts"] = (
                counts if number % 3 == 1 else note["segmentation"]["counts"].decode("ascii")
            )
        note["iscrowd"] = int(number == 1)
    (tmp_path / "val.json").write_text(json.dumps(data))
    return COCO(tmp_path / "val.json")


class KnowsTheTruth(nn.Module):
    """A detector of all that is no crowd, whose masks are pycocotools' own; the least certain below what is drawn."""

    def __init__(self, truth: COCO) -> None:
        super().__init__()
        self.truth = truth
        self.labels = {category_id: label for label, category_id in enumerate(sorted(truth.cats))}

    def known(self, image_id: int) -> Instances:
        image, notes = self.truth.imgs[image_id], self.truth.imgToAnns[image_id]
        notes = [note for note in notes if not note["iscrowd"]]
        found = Instances((image["height"], image["width"]))
        boxes = torch.tensor([note["bbox"] for note in notes], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes)
        found.pred_classes = torch.tensor([self.labels[note["category_id"]] for note in notes])
        found.scores = torch.linspace(0.99, 0.4, len(notes)).round(decimals=2)
        masks = [torch.from_numpy(self.truth.annToMask(note)).bool() for note in notes]
        found.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *found.image_size, dtype=torch.bool)
        return found

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self.known(image["image_id"])} for image in batch]


@pytest.mark.parametrize("with_masks", [True, False])
def test_pictures_show_the_masks_of_truth_and_detections(registered, three_forms, tmp_path, with_masks, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(table, "read_json", lambda path, *rest: (read.append(path), read_json(path, *rest))[1])
    images = registered / "shapes" / "val"
    cfg = load_config("mask/r18_fpn.yaml", [*TINY, "MODEL.MASK_ON", str(with_masks)])
    cfg.DATASETS.OWN = [{"NAME": "forms", "JSON": str(tmp_path / "val.json"), "IMAGES": str(images)}]
    cfg.DATASETS.TEST = ("forms",)
    register_datasets(cfg, training=False)
    model = KnowsTheTruth(three_forms)

    figures = evaluate(cfg, model, tmp_path / "none", pictures=False)["forms"]
    assert figures["bbox"]["AP"] == pytest.approx(100)
    if with_masks:
        assert figures["segm"]["AP"] == pytest.approx(100)
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == [
        "coco_instances_results.json",
        "facts.json",
        "metrics.json",
    ]

    assert evaluate(cfg, model, tmp_path / "some", pictures=True)["forms"] == figures
    assert [path.name for path in read] == ["val.json"]  # once for both evaluations
    assert len(three_forms.imgs) == 4
    for index, (image_id, image) in enumerate(sorted(three_forms.imgs.items())):
        known = model.known(image_id)
        boxes, labels = known.pred_boxes.tensor, known.pred_classes
        masks = known.pred_masks if with_masks else None
        pixels = torch.from_numpy(np.array(Image.open(images / image["file_name"]).convert("RGB"))).permute(2, 0, 1)
        names = [three_forms.cats[category_id]["name"] for category_id in sorted(three_forms.cats)]
        drawn = draw_pair(PictureSample("", pixels, boxes, labels, boxes, labels, known.scores, masks, masks), names)
        stem = Path(image["file_name"]).stem
        written = np.array(Image.open(tmp_path / "some" / "pictures" / f"{index:03d}_{stem}.png"))
        assert np.array_equal(written, drawn.permute(1, 2, 0).numpy())


def test_pascal_voc_is_scored_by_its_own_rules(bccd, tmp_path):
    images = (bccd / "ImageSets" / "Main" / "test.txt").read_text().split()[:4]
    (tmp_path / "voc").mkdir()
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / "voc" / folder).symlink_to(bccd / folder)
    sets = tmp_path / "voc" / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "few.txt").write_text("\n".join(images))
    register_pascal_voc("few_of_bccd", str(tmp_path / "voc"), "few", 2007, ["RBC", "WBC", "Platelets"])
    MetadataCatalog.get("few_of_bccd").evaluator_type = "pascal_voc"
    cfg = load_config("faster/r18_fpn.yaml", [*TINY, "OUTPUT_DIR", str(tmp_path / "output")])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("few_of_bccd",)
    try:
        run = Run(cfg)
        assert run.class_names == ["RBC", "WBC", "Platelets"] and cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3
        figures = run.start()["few_of_bccd"]["bbox"]
    finally:
        DatasetCatalog.remove("few_of_bccd")
    assert figures.keys() == {"AP", "AP50", "AP75"} and 0 <= figures["AP"] <= figures["AP50"] <= 100


def test_a_data_set_that_nothing_scores_is_refused_before_the_training(registered, tmp_path):
    DatasetCatalog.register("unscored", lambda: [])
    MetadataCatalog.get("unscored").set(thing_classes=["circle"], evaluator_type="lvis")
    cfg = load_config("faster/r18_fpn.yaml", [*TINY, "OUTPUT_DIR", str(tmp_path / "output")])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("unscored",), ("unscored",)
    with pytest.raises(ValueError, match="no evaluator for data set 'unscored' of the kind 'lvis'"):
        Run(cfg)


def test_records_without_coco_s_file_are_refused_before_the_training(registered, tmp_path):
    DatasetCatalog.register("records", lambda: [])
    MetadataCatalog.get("records").set(thing_classes=["circle"], evaluator_type="coco", image_root=str(registered))
    cfg = load_config("faster/r18_fpn.yaml", [*TINY, "OUTPUT_DIR", str(tmp_path / "output")])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("records",), ("records",)
    with pytest.raises(ValueError, match="'records' .* lack json_file, thing_dataset_id.*convert_to_coco_json"):
        Run(cfg)
