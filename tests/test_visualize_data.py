"""tools/visualize_data.py shows what the trainers of both engines really feed the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.common.config import CfgNode
from PIL import Image

from resnet_backbone.data.transforms import InputImage
from tests.helpers import mini_sets, own_sets

TINY = [
    *("MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SEED", "7", "DATASETS.TEST", "[]"),
    *("INPUT.MIN_SIZE_TRAIN", "(64, 81)", "INPUT.MAX_SIZE_TRAIN", "128"),
    *("SOLVER.IMS_PER_BATCH", "3", "SOLVER.MAX_ITER", "1", "SOLVER.CHECKPOINT_PERIOD", "5"),
]
COLORS = ("INPUT.COLOR_JITTER", "[0.4, 0.4, 0.4, 0.1]")
CROP = ("INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[0.3, 0.3]")
JITTER = ("INPUT.LARGE_SCALE_JITTER.ENABLED", "True", "INPUT.LARGE_SCALE_JITTER.SIZE", "96")
ENGINES = ("torchvision", "detectron2")
MASKS = ("MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of an engine: ``engine.config``, ``engine.run`` and ``engine.network_input``; ``engine.name``."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    if request.param == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
        from resnet_backbone.detectron2_plugin import config, network_input, run
    else:
        from resnet_backbone.torchvision_plugin import config, network_input, run
    return SimpleNamespace(name=request.param, config=config, run=run, network_input=network_input)


class Fed(Exception):
    """What the network was called with."""


def fed_to_the_network(engine: Any, cfg: CfgNode) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Start a training; return what its first step brings to the backbone, and the boxes and labels from 0."""
    run = engine.run.Run(cfg)
    model = run.model
    truth: list[Any] = []

    def remember(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        truth.extend(inputs)

    def stop(module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        raise Fed(inputs[0])

    model.register_forward_pre_hook(remember)
    model.backbone.register_forward_pre_hook(stop)
    with pytest.raises(Fed) as fed:
        run.start()
    if engine.name == "torchvision":
        targets = truth[1]
        return fed.value.args[0], [t["boxes"] for t in targets], [t["labels"] for t in targets]
    instances = [image["instances"] for image in truth[0]]
    return fed.value.args[0], [i.gt_boxes.tensor for i in instances], [i.gt_classes for i in instances]


@pytest.mark.parametrize(
    ("channel_order", "augmentation"),
    [("RGB", ()), ("BGR", ()), ("RGB", (*CROP, *COLORS)), ("BGR", (*JITTER, *COLORS))],
)
def test_the_first_pictures_are_the_first_batch_of_the_training(engine, tmp_path, channel_order, augmentation):
    """With its padding, to the pixel; and the boxes."""
    keys = [*TINY, "INPUT.FORMAT", channel_order, "OUTPUT_DIR", str(tmp_path / "run"), *augmentation]
    cfg = engine.config.load_config("quickstart.yaml", keys)
    batch, boxes, labels = fed_to_the_network(engine, cfg)
    seen = list(islice(engine.network_input.open_network_input(cfg, training=True).images, 3))
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    for image, row, own_boxes, own_labels in zip(seen, batch, boxes, labels, strict=True):
        pixels = image.pixels if channel_order == "RGB" else image.pixels.flip(0)
        normalised = (pixels - mean) / std
        inside = (..., slice(image.size[0]), slice(image.size[1]))
        torch.testing.assert_close(normalised[inside], row[inside], rtol=0, atol=1e-4)
        torch.testing.assert_close(normalised, row, rtol=0, atol=0.51 / float(std.min()))  # the mean is no whole number
        assert torch.equal(image.boxes, own_boxes) and torch.equal(image.labels, own_labels)
        assert image.masks is None
        assert image.annotated >= len(own_boxes) if augmentation else image.annotated == len(own_boxes)
        assert image.size == (96, 96) or augmentation[:4] != JITTER
    assert len({image.image_id for image in seen}) == 3


def test_the_seed_decides_and_a_second_look_is_the_same(engine):
    def look(seed: str) -> list[Any]:
        cfg = engine.config.load_config("quickstart.yaml", [*TINY, "SEED", seed])
        return list(islice(engine.network_input.open_network_input(cfg, training=True).images, 7))

    first, again, other = look("7"), look("7"), look("8")
    for one, two in zip(first, again, strict=True):
        assert one.image_id == two.image_id and torch.equal(one.pixels, two.pixels)
    assert [image.image_id for image in first] != [image.image_id for image in other]


@pytest.mark.parametrize("augmentation", [(), CROP, JITTER])
def test_masks_lie_in_their_boxes(engine, augmentation):
    cfg = engine.config.load_config("quickstart.yaml", [*TINY, *MASKS, *augmentation])
    for image in islice(engine.network_input.open_network_input(cfg, training=True).images, 6):
        assert image.masks.dtype == torch.bool and image.masks.shape == (len(image.boxes), *image.pixels.shape[1:])
        check_masks(image)


def check_masks(image: Any) -> None:
    for mask, box in zip(image.masks, image.boxes.tolist(), strict=True):
        ys, xs = torch.where(mask)
        assert len(xs), "an object covers something"
        around = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert (around - torch.tensor(box)).abs().max() < 3


def test_polygons_of_real_images_lie_in_their_boxes(engine, coco_mini):
    keys = [*TINY, *mini_sets(coco_mini), "MODEL.MASK_ON", "True", "INPUT.MIN_SIZE_TRAIN", "(240,)"]
    cfg = engine.config.load_config("quickstart.yaml", [*keys, "INPUT.MAX_SIZE_TRAIN", "400"])
    for image in islice(engine.network_input.open_network_input(cfg, training=True).images, 6):
        check_masks(image)


def test_the_test_set_comes_in_its_order_with_scaled_boxes_and_without_crowds(engine, coco_mini):
    keys = [*TINY, *mini_sets(coco_mini), "INPUT.MIN_SIZE_TEST", "100", "INPUT.MAX_SIZE_TEST", "140"]
    cfg = engine.config.load_config("quickstart.yaml", keys)
    document = json.loads((coco_mini / "annotations/instances_val2017.json").read_text())
    records = sorted(document["images"], key=lambda record: record["id"])
    seen = list(engine.network_input.open_network_input(cfg, training=False).images)
    assert [image.image_id for image in seen] == [record["id"] for record in records]
    for image, record in zip(seen, records, strict=True):
        notes = [n for n in document["annotations"] if n["image_id"] == record["id"] and not n["iscrowd"]]
        assert image.annotated == len(image.boxes) == len(notes)
        assert image.original_size == (record["height"], record["width"])
        scale = np.array([image.size[1] / record["width"], image.size[0] / record["height"]] * 2)
        x, y, w, h = np.array([note["bbox"] for note in notes]).reshape(-1, 4).T
        expected = np.stack([x, y, x + w, y + h], axis=1) * scale
        np.testing.assert_allclose(image.boxes.numpy(), expected, atol=0.05)


@pytest.fixture
def visualize(load_script, capfd) -> Callable[..., tuple[int, str, str]]:
    """Runs the script: status, standard output and standard error."""
    main = load_script("tools/visualize_data.py").main

    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        return main([str(word) for word in words]), *capfd.readouterr()

    return run


def test_pictures_lines_and_warnings(engine, visualize, tmp_path):
    """Of a set with a speck, and an image without a box."""
    boxes = {1: [[10, 10, 60, 50], [80, 20, 3, 3]], 2: [[30, 30, 90, 80]], 3: []}
    images = [{"id": i, "file_name": f"{i}.png", "height": 128, "width": 160} for i in boxes]
    numbered = enumerate(((i, box) for i in boxes for box in boxes[i]), 1)
    notes = [
        {"id": n, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for n, (i, box) in numbered
    ]
    document = {"images": images, "annotations": notes, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "train.json").write_text(json.dumps(document))
    for image in images:
        Image.new("RGB", (160, 128), (10, 60 * image["id"], 200)).save(tmp_path / image["file_name"])
    own = own_sets(own=(tmp_path / "train.json", tmp_path))
    keys = [*TINY, *own, "DATASETS.TRAIN", "['own']", "SOLVER.IMS_PER_BATCH", "1"]
    words = ("--config-file", "quickstart.yaml", "--engine", engine.name)
    status, out, err = visualize(*words, "--output", tmp_path / "o", "--num", "2", *keys)
    assert status == 0, err
    assert "2 images; boxes: 3 cell" in out
    assert "warning: tiny boxes, less than 8 pixels a side" in out and ": 1, on the images 1\n" in out
    assert "vanish" not in out and "without a box" not in out
    assert (tmp_path / "o" / "grid.png").is_file()
    for number in (1, 2):
        (path,) = (tmp_path / "o").glob(f"00?_{number}.png")
        with Image.open(path) as picture:
            colors = [color for _, color in picture.convert("RGB").getcolors(2**24)]
        assert (10, 60 * number, 200) in colors, "the image is shown as it is, channels in their order"

    keys = [*TINY, *own, "DATASETS.TEST", "['own']", "OUTPUT_DIR", str(tmp_path / "run")]
    status, out, _ = visualize(*words, "--split", "test", *keys)
    assert status == 0
    assert "id 3, 3.png: 128 x 160 -> 192 x 240, padded to 192 x 256; 0 boxes" in out
    assert "warning: images without a box: 1, on the images 3\n" in out
    assert len(list((tmp_path / "run" / "data_test").iterdir())) == 3 + 1


def test_boxes_that_vanished_are_told(load_script):
    tool = load_script("tools/visualize_data.py")
    image = InputImage(
        image_id=5,
        name="x.png",
        pixels=torch.zeros(3, 64, 96, dtype=torch.uint8),
        size=(50, 96),
        original_size=(500, 960),
        boxes=torch.tensor([[0.0, 0, 40, 40]]),
        labels=torch.tensor([0]),
        masks=None,
        annotated=3,
    )
    assert tool.describe(image, 8.0) == "id 5, x.png: 500 x 960 -> 50 x 96, padded to 64 x 96; 1 box, 2 vanished"
    assert tool.summarise([image], ["cell"], 8.0)[1:] == [
        "warning: boxes that the transforms have made vanish: 2, on the images 5"
    ]


def test_an_image_that_cannot_be_read(engine, visualize, shapes, tmp_path):
    """Named in a line, also where another process has read it."""
    images = tmp_path / "images"
    shutil.copytree(shapes / "shapes/val", images)
    for path in images.iterdir():
        path.write_bytes(b"no image")
    own = own_sets(own=(shapes / "shapes/annotations/val.json", images))
    words = [*own, "DATASETS.TEST", "('own',)", "DATALOADER.NUM_WORKERS", "1"]
    options = ("--config-file", "quickstart.yaml", "--split", "test", "--engine", engine.name)
    status, _, err = visualize(*options, "--output", tmp_path / "o", *words)
    assert status == 1 and "cannot be read as an image" in err and "Traceback" not in err


def test_mistakes(engine, visualize, tmp_path):
    words = ("--engine", engine.name, "--output", tmp_path / "o")
    status, out, err = visualize("--config-file", "quickstart.yaml", *words, "DATASETS.TRAIN", "['nowhere']")
    assert (status, out) == (1, "") and "unknown data set 'nowhere'" in err
    status, _, err = visualize("--config-file", "quickstart.yaml", "--split", "test", *words, "DATASETS.TEST", "[]")
    assert status == 1 and "DATASETS.TEST is empty" in err
    status, _, err = visualize("--config-file", "bccd_r18.yaml", *words)
    assert status == 1 and "prepare bccd" in err
    assert not (tmp_path / "o").exists()
