"""The generated set: reproducible, and what the JSON says is what the pictures show."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.prepare.shapes import SHAPE_NAMES, SHAPES, draw_image, generate_shapes


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    assert generate_shapes(folder, num_train=80, num_val=20)
    return folder


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(folder, split="train"):
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        generate_shapes(tmp_path / name, 6, 3, seed=seed)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b and len(a) == 6 + 3 + 2
    assert a.keys() == c.keys() and not set(a.values()) & set(c.values())


def test_images_do_not_depend_on_their_number(tmp_path, shapes):
    generate_shapes(tmp_path, 4, 2)
    few, many = digests(tmp_path), digests(shapes)
    assert all(many[name] == digest for name, digest in few.items() if name.endswith(".jpg"))


def test_train_and_val_share_no_image(shapes):
    found = digests(shapes)
    train = {digest for name, digest in found.items() if name.startswith("train")}
    assert len(train) == 80 and not train & {digest for name, digest in found.items() if name.startswith("val")}


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_areas_are_those_of_the_masks(shapes, split):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(shapes / "annotations" / f"{split}.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(SHAPE_NAMES)
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation)
        assert mask.shape == (image["height"], image["width"])
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        expected = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert annotation["bbox"] == [float(value) for value in expected]
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0


def test_masks_of_one_image_do_not_overlap(shapes):
    dataset = CocoDataset(shapes / "annotations/train.json", shapes / "train", with_masks=True, training=False)
    assert len(dataset) == 80
    for image, target in dataset:
        assert image.shape[1:] == target["size"] and int(target["masks"].sum(dim=0).max()) == 1


def test_variety(shapes):
    annotations = load(shapes)["annotations"]
    areas = np.array([annotation["area"] for annotation in annotations])
    small, large = (areas < 32**2).mean(), (areas > 96**2).mean()
    assert small > 0.1 and large > 0.05 and 1 - small - large > 0.3
    labels = np.bincount([annotation["category_id"] for annotation in annotations], minlength=6)[1:]
    assert labels.min() > 0.1 * labels.sum()
    per_image = np.bincount([annotation["image_id"] for annotation in annotations], minlength=81)[1:]
    assert per_image.min() >= 1 and per_image.max() >= 5
    sizes = np.array([(image["height"], image["width"]) for image in load(shapes)["images"]])
    assert sizes.min() >= 192 and sizes.max() <= 320 and len(np.unique(sizes, axis=0)) > 40


def test_shapes_are_seen(shapes):
    """Just inside and just outside the outline, colors differ: what is annotated can be seen."""
    dataset = CocoDataset(shapes / "annotations/train.json", shapes / "train", with_masks=True, training=False)
    kernel = np.ones((5, 5), np.uint8)
    contrasts = []
    for image, target in dataset:
        pixels = image.permute(1, 2, 0).numpy().astype(float)
        for mask in target["masks"].numpy():
            inside, outside = mask & cv2.erode(mask, kernel) == 1, (cv2.dilate(mask, kernel) == 1) & (mask == 0)
            if inside.any() and outside.any():
                contrasts.append(np.linalg.norm(pixels[inside].mean(axis=0) - pixels[outside].mean(axis=0)))
    assert len(contrasts) > 200 and np.mean(np.array(contrasts) > 20) > 0.95


@pytest.mark.parametrize("seed", range(20))
def test_every_shape_is_visible_enough(seed):
    pixels, objects = draw_image(np.random.default_rng(seed), 256)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and objects
    for label, mask in objects:
        assert 0 <= label < len(SHAPE_NAMES) and mask.dtype == bool
        assert np.count_nonzero(mask) >= 0.3 * 16**2


def test_some_shapes_hide_others(shapes):
    hidden = 0
    for annotation in load(shapes)["annotations"]:
        if annotation["category_id"] == 1:
            x, y, width, height = annotation["bbox"]
            hidden += annotation["area"] < 0.9 * np.pi * width * height / 4
    assert hidden >= 3


@pytest.mark.parametrize("name", SHAPE_NAMES)
def test_outlines(name):
    corners = 10.0 * SHAPES[name]
    assert np.isclose(np.linalg.norm(corners, axis=1).max(), 10)
    assert cv2.contourArea(corners.astype(np.float32)) > 100
    expected = {"circle": 96, "square": 4, "triangle": 3, "star": 10, "cross": 12}
    assert len(corners) == expected[name]


def test_small_images_work(tmp_path):
    generate_shapes(tmp_path, 3, 1, image_size=64)
    assert all(image["height"] <= 80 for image in load(tmp_path)["images"])


def test_rle_is_json_text(shapes):
    annotation = load(shapes)["annotations"][0]
    assert isinstance(annotation["segmentation"]["counts"], str)
    assert coco_mask.area(annotation["segmentation"]) == annotation["area"]


def test_existing_set_is_kept_and_other_settings_are_refused(tmp_path):
    assert generate_shapes(tmp_path, 3, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not generate_shapes(tmp_path, 3, 2)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for other in ({"seed": 1}, {"image_size": 128}):
        with pytest.raises(FileExistsError, match="was made with"):
            generate_shapes(tmp_path, 3, 2, **other)
    with pytest.raises(FileExistsError, match="was made with"):
        generate_shapes(tmp_path, 4, 2)


def test_a_lost_image_is_written_again(tmp_path):
    generate_shapes(tmp_path, 3, 2)
    whole = digests(tmp_path)
    (tmp_path / "val" / "000002.jpg").unlink()
    assert generate_shapes(tmp_path, 3, 2)
    assert digests(tmp_path) == whole


@pytest.mark.parametrize("wrong", [{"num_train": 0}, {"num_val": -1}, {"image_size": 10}, {"seed": -1}])
def test_numbers_out_of_range(tmp_path, wrong):
    with pytest.raises(ValueError, match="expected at least one"):
        generate_shapes(tmp_path, **wrong)
