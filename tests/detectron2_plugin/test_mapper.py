"""Our mapper against Detectron2's under the same random draws, on the records that projects have."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.data import DatasetMapper, build_detection_test_loader, build_detection_train_loader  # noqa: E402
from detectron2.data import transforms as T  # noqa: E402
from detectron2.data.datasets import load_coco_json  # noqa: E402
from detectron2.data.detection_utils import read_image as detectron2_read_image  # noqa: E402
from detectron2.structures import BoxMode  # noqa: E402

from resnet_backbone.detectron2_plugin.mapper import TensorMapper, read_image  # noqa: E402
from resnet_backbone.detectron2_plugin.trainer import Trainer  # noqa: E402

HEIGHT, WIDTH = 60, 91
BOXES = [[3.25, 4.0, 20.5, 25.75], [0.0, 0.0, 91.0, 60.0], [70.1, 40.3, 30.0, 30.0], [10.0, 10.0, 0.0, 5.0]]
SETTINGS = {
    "usual": [],
    "vertical flip": ["INPUT.RANDOM_FLIP", "vertical"],
    "no flip": ["INPUT.RANDOM_FLIP", "none"],
    "range": ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(20, 150)"],
    "long side": ["INPUT.MAX_SIZE_TRAIN", "70"],
    "crop": ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[0.7, 0.6]"],
    "RGB": ["INPUT.FORMAT", "RGB"],
}


def config(*overrides: str) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", "(47, 60, 80)", "INPUT.MIN_SIZE_TEST", "77", *overrides])
    return cfg


def photograph(height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """One image with four boxes, one of them empty, and a crowd."""
    photograph().save(tmp_path / "a.jpg", quality=95)
    notes = [
        {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": number, "iscrowd": 0}
        for number, box in enumerate(BOXES)
    ]
    notes.append({"bbox": [1.0, 2.0, 3.0, 4.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 5, "iscrowd": 1})
    return {
        "file_name": str(tmp_path / "a.jpg"),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 7,
        "annotations": notes,
    }


def polygons(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a triangle in each box, and another one."""
    record = copy.deepcopy(record)
    for note in record["annotations"]:
        x, y, w, h = note["bbox"]
        note["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x + 1, y + 1.5, x + 9, y + 1, x + 5, y + 8.25]]
    return record


def run_lengths(record: dict[str, Any]) -> dict[str, Any]:
    record = polygons(record)
    for note in record["annotations"][::2]:
        note["segmentation"] = coco_mask.merge(coco_mask.frPyObjects(note["segmentation"], HEIGHT, WIDTH))
    return record


def assert_same(ours: dict[str, Any], theirs: dict[str, Any], levels: int = 1) -> None:
    """Everything is equal, but the pixels of a resized image."""
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"image", "instances", "proposals"}:
        assert torch.equal(ours[key], theirs[key]) if key == "sem_seg" else ours[key] == theirs[key], key
    image, expected = ours["image"], theirs["image"]
    assert (image.dtype, image.shape) == (expected.dtype, expected.shape)
    assert image.permute(1, 2, 0).is_contiguous()
    assert (image.float() - expected.float()).abs().max() <= levels
    for key in ("instances", "proposals"):
        if key in ours:
            assert ours[key].image_size == theirs[key].image_size
            fields, expected_fields = ours[key].get_fields(), theirs[key].get_fields()
            assert fields.keys() == expected_fields.keys()
            for name, value in fields.items():
                assert_same_field(value, expected_fields[name])


def assert_same_field(value: Any, expected: Any) -> None:
    assert type(value) is type(expected)
    if hasattr(expected, "polygons"):
        pairs = zip(value.polygons, expected.polygons, strict=True)
        assert all(np.array_equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))
        return
    a, b = (item if isinstance(item, torch.Tensor) else item.tensor for item in (value, expected))
    assert a.dtype == b.dtype and torch.equal(a, b)


def in_fractions(record: dict[str, Any]) -> dict[str, Any]:
    """Boxes and polygons without whole numbers, which Detectron2 would move to whole numbers."""
    record = copy.deepcopy(record)
    for note in record.get("annotations", []):
        note["bbox"] = type(note["bbox"])(map(float, note["bbox"]))
        if isinstance(note.get("segmentation"), list):
            note["segmentation"] = [list(map(float, polygon)) for polygon in note["segmentation"]]
    return record


def compare(cfg: CfgNode, record: dict[str, Any], *, is_train: bool = True, levels: int = 1, draws: int = 12) -> None:
    mappers = [mapper(cfg, is_train) for mapper in (TensorMapper, DatasetMapper)]
    before = copy.deepcopy(record)
    for seed in range(draws):
        outputs = []
        for mapper, given in zip(mappers, (record, in_fractions(record)), strict=True):
            np.random.seed(seed)
            random.seed(seed)
            outputs.append(mapper(given))
        assert_same(*outputs, levels=levels)
    assert repr(record) == repr(before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_boxes(setting, record):
    compare(config(*SETTINGS[setting]), record)


@pytest.mark.parametrize("setting", ["usual", "vertical flip", "crop"])
@pytest.mark.parametrize(
    ("with_masks", "mask_format"), [(polygons, "polygon"), (polygons, "bitmask"), (run_lengths, "bitmask")]
)
def test_masks(setting, with_masks, mask_format, record):
    if setting == "crop":
        pytest.importorskip("shapely")
    masks = ["MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", mask_format]
    compare(config(*SETTINGS[setting], *masks), with_masks(record), draws=6)
    compare(config(*SETTINGS[setting]), with_masks(record), draws=2)


@pytest.mark.parametrize(
    "change",
    [
        lambda note: note.update(bbox=[round(value) for value in note["bbox"]]),
        lambda note: note.update(bbox=tuple(note["bbox"])),
        lambda note: note.update(bbox=[1, 2, 3.5, 4]),
        lambda note: note.update(bbox=[-5.5, -3.0, 200.0, 300.25]),
        lambda note: note.update(bbox_mode=BoxMode.XYXY_ABS, bbox=[0.1, 0.7, 33.3, 59.9]),
        lambda note: note.update(
            bbox_mode=BoxMode.XYXY_ABS if note["category_id"] % 2 else BoxMode.XYWH_ABS, bbox=[1.5, 2, 33.3, 44]
        ),
        lambda note: note.update(bbox_mode=int(note["bbox_mode"])),
        lambda note: note.update(bbox_mode=BoxMode.XYWHA_ABS, bbox=[30.0, 30.0, 20.0, 10.0, 30.0]),
        lambda note: note.pop("iscrowd"),
    ],
    ids=["integers", "tuples", "mixed", "outside", "corners", "two modes", "number", "rotated", "no iscrowd"],
)
def test_boxes_as_data_sets_write_them(change, record):
    for note in record["annotations"]:
        change(note)
    compare(config(), record)


def test_whole_numbers_move_to_fractions_of_a_pixel(record):
    """Where Detectron2's mapper rounds them down, which moves boxes and masks by half a pixel."""
    note = {"bbox": [3, 5, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    record["annotations"] = [{**note, "segmentation": [[3, 5, 13, 5, 13, 25]]}]
    words = ("INPUT.MIN_SIZE_TRAIN", "(77,)", "INPUT.RANDOM_FLIP", "none", "MODEL.MASK_ON", "True")
    instances = TensorMapper(config(*words), True)(record)["instances"]
    wide, high = 117 / 91, 77 / 60
    expected = np.array([3 * wide, 5 * high, 13 * wide, 25 * high])
    np.testing.assert_allclose(instances.gt_boxes.tensor[0].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(instances.gt_masks.polygons[0][0], expected[[0, 1, 2, 1, 2, 3]], rtol=1e-12)
    assert record["annotations"][0]["segmentation"] == [[3, 5, 13, 5, 13, 25]]


@pytest.mark.parametrize(
    ("box", "mode"),
    [
        ([50, 40, -20, -15], BoxMode.XYWH_ABS),
        ([50.5, 40, 20, -0.5], BoxMode.XYWH_ABS),
        ([50, 40, 30, 55], BoxMode.XYXY_ABS),
    ],
)
def test_boxes_of_negative_width_or_height_are_left_out(box, mode, record, caplog):
    usual = len(TensorMapper(config(), True)(record)["instances"])
    record["annotations"].insert(1, {"bbox": box, "bbox_mode": mode, "category_id": 0})
    with caplog.at_level("WARNING"):
        assert len(TensorMapper(config(), True)(record)["instances"]) == usual
    assert "a.jpg: left out a box of negative width or height" in caplog.text


@pytest.mark.parametrize("annotations", [None, [], "crowds"])
def test_records_without_an_object(annotations, record):
    if annotations is None:
        del record["annotations"]
    else:
        record["annotations"] = record["annotations"][-1:] if annotations == "crowds" else []
    compare(config(), record)


def test_keypoints(record):
    rng = np.random.default_rng(0)
    for note in record["annotations"]:
        note["keypoints"] = np.stack(
            [rng.uniform(0, 91, 17), rng.uniform(0, 60, 17), rng.integers(0, 3, 17)], 1
        ).ravel()
    compare(config("MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN", "('keypoints_coco_2017_train',)"), record)
    compare(config(), record, draws=2)


def test_semantic_segmentation(record, tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    record["sem_seg_file_name"] = str(tmp_path / "a.png")
    for setting in ("usual", "crop", "vertical flip"):
        compare(config(*SETTINGS[setting]), record, draws=6)
    compare(config(), record, is_train=False, draws=1)


def test_labels_are_the_numbers_of_the_file(record, tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (HEIGHT, WIDTH), dtype=np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 70, 80, 90])
    record["sem_seg_file_name"] = str(tmp_path / "a.png")
    mapper = TensorMapper(config("INPUT.MIN_SIZE_TEST", "0"), is_train=False)
    for image in (Image.fromarray(labels), palette, Image.fromarray(labels.astype(np.uint16))):
        image.save(record["sem_seg_file_name"])
        assert np.array_equal(mapper(record)["sem_seg"].numpy(), labels)
    for image, message in [
        (Image.fromarray(labels).convert("RGB"), "3 channels; expected labels from 0 to 255, one a pixel"),
        (Image.fromarray(labels.astype(np.uint16) + 254), "values from 254 to 258; expected"),
        (Image.fromarray(labels[1:]), r"labels of \(59, 91\) pixels .* for an image of \(60, 91\)"),
    ]:
        image.save(record["sem_seg_file_name"])
        with pytest.raises(ValueError, match=f"a.png: {message}"):
            mapper(record)
    Path(record["sem_seg_file_name"]).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 91 60\n")
    with pytest.raises(OSError, match="a.png: cannot be read as an image"):
        mapper(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_proposals(is_train, record):
    record["proposal_boxes"] = np.array(BOXES[:3])
    record["proposal_objectness_logits"] = np.array([0.5, 0.25, 0.125])
    record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    compare(config("MODEL.LOAD_PROPOSALS", "True"), record, is_train=is_train, draws=4)


def test_for_evaluation(record):
    compare(config(), record, is_train=False, draws=1)


@pytest.mark.parametrize("setting", ["usual", "vertical flip", "RGB"])
def test_pixels_of_an_image_that_keeps_its_size_are_equal(setting, record):
    compare(config(*SETTINGS[setting], "INPUT.MIN_SIZE_TRAIN", "(0,)"), record, levels=0)


def test_other_augmentations_see_what_they_would_see(record):
    """Colors before and after a resize, in BGR, and a transform that is given as it is."""
    augmentations = [
        T.RandomSaturation(0.5, 1.5),
        T.RandomContrast(0.8, 1.2),
        T.RandomFlip(),
        T.HFlipTransform(WIDTH),
        T.Resize((50, 70)),
        T.RandomFlip(horizontal=False, vertical=True),
        T.RandomLighting(0.1),
    ]
    mappers = [
        mapper(True, augmentations=augmentations, image_format="BGR") for mapper in (TensorMapper, DatasetMapper)
    ]
    for seed in range(6):
        outputs = []
        for mapper in mappers:
            np.random.seed(seed)
            outputs.append(mapper(record))
        assert_same(*outputs, levels=2)  # colors are rounded after the resize once more


@pytest.mark.parametrize("interp", [Image.Resampling.NEAREST, Image.Resampling.BICUBIC])
def test_other_filters_are_left_to_detectron2(interp, record):
    resize = T.Resize((50, 70), interp=interp)
    ours, theirs = (
        mapper(True, augmentations=[resize], image_format="BGR")(record) for mapper in (TensorMapper, DatasetMapper)
    )
    assert_same(ours, theirs, levels=0)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L", "YUV-BT.601"])
@pytest.mark.parametrize("kind", ["jpg", "png", "gray", "CMYK", "turned", "palette"])
def test_files(image_format, kind, tmp_path):
    path = str(tmp_path / ("a.jpg" if kind in ("jpg", "gray", "CMYK", "turned") else "a.png"))
    exif = Image.Exif()
    if kind == "turned":
        exif[0x0112] = 6
    image = photograph()
    if kind in ("gray", "CMYK", "palette"):
        image = image.convert({"gray": "L", "palette": "P"}.get(kind, kind))
    image.save(path, exif=exif)
    try:
        expected = detectron2_read_image(path, image_format)
    except (OSError, ValueError) as error:
        with pytest.raises(type(error)):
            read_image(path, image_format)
        return
    assert np.array_equal(read_image(path, image_format), expected)
    record = {"file_name": path, "height": expected.shape[0], "width": expected.shape[1], "annotations": []}
    compare(config("INPUT.FORMAT", image_format), record, draws=2)


@pytest.mark.parametrize("is_train", [True, False])
def test_pixels_are_those_of_our_reader(is_train, record, tmp_path):
    """Of 16 bits the high byte; turned by EXIF only where the record has the size of the turned image."""
    gradient = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 12
    Image.fromarray(gradient).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph().save(tmp_path / "turned.png", exif=exif)
    stored = np.asarray(photograph())
    mapper = TensorMapper(config("INPUT.FORMAT", "RGB", *("INPUT.MIN_SIZE_TEST", "0")), is_train)
    mapper.augmentations = T.AugmentationList([])
    for name, size, expected in [
        ("deep.png", (HEIGHT, WIDTH), np.repeat((gradient >> 8).astype(np.uint8)[..., None], 3, axis=2)),
        ("turned.png", (HEIGHT, WIDTH), stored),
        ("turned.png", (WIDTH, HEIGHT), np.rot90(stored, -1)),
    ]:
        sample = mapper({**record, "file_name": str(tmp_path / name), "height": size[0], "width": size[1]})
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), expected)
    unsized = mapper({"file_name": str(tmp_path / "turned.png")})
    assert (unsized["height"], unsized["width"]) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("is_train", [True, False])
def test_bad_files_are_refused(is_train, record, tmp_path):
    mapper = TensorMapper(config(), is_train)
    with pytest.raises(ValueError, match="the image is 60 x 91, but the annotation file says 60 x 90"):
        mapper({**record, "width": 90})
    data = Path(record["file_name"]).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="truncated"):
        mapper({**record, "file_name": str(tmp_path / "cut.jpg")})
    with pytest.raises(FileNotFoundError):
        mapper({**record, "file_name": str(tmp_path / "gone.jpg")})
    for content in (b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 91 60\n"):  # a program
        (tmp_path / "text.jpg").write_bytes(content)
        with pytest.raises(OSError, match="cannot identify"):
            mapper({**record, "file_name": str(tmp_path / "text.jpg")})


def test_photographs(coco_mini):
    records = load_coco_json(str(coco_mini / "annotations/instances_val2017.json"), str(coco_mini / "val2017"))
    for size in ("(640, 800)", "(240,)"):
        for record in records[:6]:
            compare(config("INPUT.MIN_SIZE_TRAIN", size), record, draws=2)


def test_it_serves_detectron2s_loaders(record):
    cfg = config("DATALOADER.NUM_WORKERS", "1", "SOLVER.IMS_PER_BATCH", "2")
    loader = build_detection_train_loader(cfg, dataset=[record, record], mapper=TensorMapper(cfg, is_train=True))
    batch = next(iter(loader))
    assert [sample["image_id"] for sample in batch] == [7, 7] and len(batch[0]["instances"]) == 3
    test_loader = build_detection_test_loader([record], mapper=TensorMapper(cfg, is_train=False))
    assert min(next(iter(test_loader))[0]["image"].shape[1:]) == 77


def test_the_trainer_uses_it(shapes, monkeypatch, caplog):
    from resnet_backbone.detectron2_plugin.config import load_config
    from resnet_backbone.detectron2_plugin.datasets import register_datasets

    monkeypatch.setenv("DETECTRON2_DATASETS", str(shapes))
    cfg = load_config("quickstart.yaml", ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"])
    register_datasets(cfg, training=True)
    with caplog.at_level("INFO", logger="resnet_backbone"):
        loader = Trainer.build_train_loader(cfg)
    assert "TensorMapper" in caplog.text
    assert len(next(iter(loader))) == cfg.SOLVER.IMS_PER_BATCH
