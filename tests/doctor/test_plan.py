"""A training planned for a folder: what is chosen, what may be overridden, and the config that does it again."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.prepare.shapes import generate_shapes
from resnet_backbone.doctor import plan as planning
from resnet_backbone.doctor.plan import plan_training
from resnet_backbone.torchvision_plugin.config import load_config
from tests.helpers import TINY

ROOT = Path(__file__).resolve().parents[2]
CPU = ["MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def as_yolo(tmp_path_factory):
    """Generated shapes as YOLO's text files, without a split."""
    root = tmp_path_factory.mktemp("yolo")
    generate_shapes(root / "own", num_train=12, num_val=1, seed=0)
    document = json.loads((root / "own/annotations/train.json").read_text())
    (root / "shapes/labels").mkdir(parents=True)
    (root / "own/train").rename(root / "shapes/images")
    for image in document["images"]:
        lines = []
        for one in document["annotations"]:
            x, y, w, h = one["bbox"]
            if one["image_id"] == image["id"]:
                shares = ((x + w / 2) / image["width"], (y + h / 2) / image["height"])
                shares += (w / image["width"], h / image["height"])
                lines.append(" ".join(map(str, (one["category_id"] - 1, *shares))))
        (root / "shapes/labels" / Path(image["file_name"]).with_suffix(".txt").name).write_text("\n".join(lines))
    names = [one["name"] for one in document["categories"]]
    (root / "shapes/data.yaml").write_text(yaml.safe_dump({"train": "images", "names": names}))
    return root / "shapes"


@pytest.fixture(autouse=True)
def _no_weights_on_this_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_BACKBONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(planning, "is_offered", lambda url: False)  # with or without a connection
    monkeypatch.chdir(tmp_path)


def planned(folder, *overrides, **options):
    return plan_training(folder, [*CPU, *overrides], load_config, engine="torchvision", **options)


def test_bccd_on_a_cpu_is_the_recipe_that_was_measured(bccd):
    """configs/bccd_r18.yaml."""
    plan = planned(bccd)
    recipe = load_config("bccd_r18.yaml", CPU)
    for section in ("MODEL", "INPUT", "SOLVER"):
        assert plan.cfg[section] == recipe[section]
    starts = [line.partition(":")[0] for line in plan.lines[:5]]
    assert starts == ["images", "boxes", "classes", "sizes of boxes", "check"]
    assert plan.lines[0].startswith("images: 292 to train on, 72 to evaluate (test), mostly 640 x 480 pixels")
    assert "RBC 3,348, WBC 301, Platelets 292" in plan.lines[2]
    assert any(line.startswith("warning: from random weights") for line in plan.lines)


def test_nothing_is_written_before_write(as_yolo, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    plan = planned(as_yolo)
    assert sorted(tmp_path.rglob("*")) == before
    path = plan.write()
    assert path == Path("output/shapes/plan.yaml")
    assert load_config(path) == plan.cfg
    for split, count in (("train", 9), ("val", 3)):
        (entry,) = (own for own in plan.cfg.DATASETS.OWN if own["NAME"] == f"my_{split}")
        assert len(CocoDataset(entry["JSON"], entry["IMAGES"])) == count


def test_what_is_given_is_not_chosen_and_what_follows_from_it_does(as_yolo):
    text = "\n".join(planned(as_yolo).lines)
    given = [
        "SOLVER.IMS_PER_BATCH",
        "2",
        "SOLVER.MAX_ITER",
        "70",
        "INPUT.MIN_SIZE_TRAIN",
        "[160]",
        "OUTPUT_DIR",
        "here",
    ]
    plan = planned(as_yolo, *given)
    solver = plan.cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.WARMUP_ITERS) == (2, 70, 7)
    assert (plan.cfg.INPUT.MIN_SIZE_TRAIN, plan.cfg.INPUT.MIN_SIZE_TEST, plan.cfg.OUTPUT_DIR) == ([160], 160, "here")
    assert "  SOLVER.MAX_ITER 500: " in text and "  SOLVER.MAX_ITER" not in "\n".join(plan.lines)
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER wants a whole number"):
        planned(as_yolo, "SOLVER.MAX_ITER", "many")


@pytest.mark.parametrize(
    ("file", "weights", "base"),
    [
        ("fasterrcnn_resnet50_fpn_coco-258fb6c6.pth", "torchvision://fasterrcnn_resnet50_fpn/COCO_V1", "torchvision/"),
        ("resnet34-b627a593.pth", "imagenet://resnet34/IMAGENET1K_V1", "quickstart.yaml"),
    ],
)
def test_weights_on_the_disk_are_started_from(as_yolo, tmp_path, file, weights, base):
    """Where they lie counts; they are read when the run starts."""
    (tmp_path / "cache/weights").mkdir(parents=True)
    (tmp_path / "cache/weights" / file).touch()
    plan = planned(as_yolo)
    assert plan.cfg.MODEL.WEIGHTS == weights and plan.cfg.SOLVER.BASE_LR == 0.0001
    assert any(f"plan, over configs/{base}" in line for line in plan.lines)
    assert not any(line.startswith("warning") for line in plan.lines)


@pytest.mark.parametrize(
    ("engine", "weights"),
    [
        ("torchvision", "torchvision://fasterrcnn_resnet50_fpn/COCO_V1"),
        ("detectron2", "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_1x/137257794/model_final_b275ba.pkl"),
    ],
)
def test_a_detector_that_can_be_downloaded_is_started_from(as_yolo, monkeypatch, engine, weights):
    monkeypatch.setattr(planning, "is_offered", lambda url: "resnet50_fpn" in url or "faster_rcnn" in url)
    load = load_config if engine == "torchvision" else pytest.importorskip("detectron2") and load_on_detectron2()
    plan = plan_training(as_yolo, CPU, load, engine=engine)
    assert plan.cfg.MODEL.WEIGHTS == weights
    assert any("a detector that is downloaded, box AP 37" in line for line in plan.lines)


def load_on_detectron2():
    from resnet_backbone.detectron2_plugin.config import load_config

    return load_config


def test_a_classifier_where_no_detector_is_offered(as_yolo, monkeypatch):
    monkeypatch.setattr(planning, "is_offered", lambda url: "resnet18" in url)
    plan = planned(as_yolo)
    assert plan.cfg.MODEL.WEIGHTS == "imagenet://resnet18/IMAGENET1K_V1"
    assert (plan.cfg.MODEL.RESNET_BACKBONE.ARCH, plan.cfg.MODEL.RESNET_BACKBONE.NORM) == ("resnet18", "FrozenBN")


def test_random_weights_can_be_asked_for(as_yolo, monkeypatch):
    monkeypatch.setattr(planning, "is_offered", lambda url: pytest.fail("asked a server"))
    plan = planned(as_yolo, "MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.ARCH", "resnet34")
    model = plan.cfg.MODEL
    assert (model.WEIGHTS, model.RESNET_BACKBONE.ARCH, model.BACKBONE.FREEZE_AT) == ("", "resnet34", 0)
    assert plan.cfg.SOLVER.BASE_LR == 0.001 and not any(line.startswith("warning") for line in plan.lines)


def test_batches_fit_the_memory(as_yolo, monkeypatch):
    class Little:
        available = 1.1 * 2 * 2 * 192 * 192 * planning.BYTES_PER_PIXEL

    monkeypatch.setattr(planning.psutil, "virtual_memory", lambda: Little)
    given = ["INPUT.MIN_SIZE_TRAIN", "[192]", "INPUT.MAX_SIZE_TRAIN", "192"]
    assert planned(as_yolo, *given).cfg.SOLVER.IMS_PER_BATCH == 2
    assert planned(as_yolo, *given, processes=3).cfg.SOLVER.IMS_PER_BATCH == 6


def test_what_a_training_would_stop_at_is_said_with_the_files_name(tmp_path, as_yolo):
    document = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 9, "height": 9} for n in (1, 2, 3)],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "in/all.json").write_text(json.dumps(document))
    (tmp_path / "in/1.jpg").write_bytes(next((as_yolo / "images").iterdir()).read_bytes())
    with pytest.raises(ValueError, match=r"in/all\.json \((train|val)\): a mistake that training stops at\n.*missing"):
        planned(tmp_path / "in")


def test_the_command_line(load_script, as_yolo, capsys, tmp_path):
    main = load_script("tools/train_net.py").main
    words = ["--engine", "torchvision", "--data", str(as_yolo)]
    assert main([*words, "--dry-run", *CPU]) == 0
    assert "SOLVER.MAX_ITER 500: " in capsys.readouterr().out and list(tmp_path.iterdir()) == []
    assert main([*words[:3], str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/none: no such folder\n"
    for wrong in (["--config-file", "x", *words], ["--config-file", "x", "--dry-run"], []):
        with pytest.raises(SystemExit):
            main(wrong)
    assert "one of the arguments --config-file --data is required" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_from_a_folder(load_script, as_yolo, capsys, tmp_path):
    main = load_script("tools/train_net.py").main
    given = [*TINY, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", str(tmp_path / "run")]
    assert main(["--engine", "torchvision", "--data", str(as_yolo), *given]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(first) == {"my_val"}
    again = ["--config-file", str(tmp_path / "run/plan.yaml"), "OUTPUT_DIR", str(tmp_path / "again")]
    assert main(["--engine", "torchvision", *again]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
    assert main(["--engine", "torchvision", "--data", str(as_yolo), "--resume", *given]) == 0
    assert "continuing with" in capsys.readouterr().out
