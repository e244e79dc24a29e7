"""The scenes: reproducible, of photographs that training and validation images do not share, as hard as asked for."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.prepare.scenes import SceneOptions, generate_scenes

CLASSES = ("cat", "dog", "truck")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Photographs of one color each: the class is the channel, 90 to 120 those to train on, 180 to 210 the others."""
    root = tmp_path_factory.mktemp("photographs")
    for split, first in (("train", 90), ("val", 180)):
        for channel, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = np.zeros((32, 32, 3), np.uint8)
                pixels[..., channel] = first + 10 * number
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return [str(root / split) for split in ("train", "val")]


@pytest.fixture(scope="module")
def backgrounds(tmp_path_factory):
    """Ten gray images of other sizes, the fifth and the tenth, which are for validation, brighter than 150."""
    folder = tmp_path_factory.mktemp("backgrounds")
    for number in range(1, 11):
        gray = (200 if number % 5 == 0 else 20) + number
        Image.new("RGB", (30 * number, 400 // number), (gray, gray, gray)).save(folder / f"{number:02d}.png")
    return folder


def load(folder, split="train"):
    return json.loads((folder / "annotations" / f"{split}.json").read_text())


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def masks_of(document):
    by_image: dict[int, list[tuple[int, np.ndarray]]] = {}
    for one in document["annotations"]:
        mask = coco_mask.decode(one["segmentation"]).astype(bool)
        by_image.setdefault(one["image_id"], []).append((one["category_id"] - 1, mask))
    return by_image


def test_same_seed_same_bytes(photographs, backgrounds, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert generate_scenes(tmp_path / name, 5, 3, seed, photographs=photographs, backgrounds=backgrounds)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b and len(a) == 5 + 3 + 2
    assert a.keys() == c.keys() and not set(a.values()) & set(c.values())
    assert not generate_scenes(tmp_path / "a", 5, 3, 3, photographs=photographs, backgrounds=backgrounds)
    with pytest.raises(FileExistsError, match="delete .* or choose another"):
        generate_scenes(tmp_path / "a", 5, 3, 3, photographs=photographs)


def test_photographs_and_backgrounds_of_the_splits_never_mix(photographs, backgrounds, tmp_path):
    generate_scenes(tmp_path, 12, 12, photographs=photographs, backgrounds=backgrounds)
    seen: dict[str, set[int]] = {}
    for split, low, high in (("train", 80, 130), ("val", 170, 220)):
        document = load(tmp_path, split)
        for image in document["images"]:
            pixels = cv2.imread(str(tmp_path / split / image["file_name"]))[..., ::-1].astype(int)
            objects = masks_of(document)[image["id"]]
            for label, mask in objects:
                inner = cv2.erode(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
                color = pixels[inner].mean(0)
                assert color.argmax() == label and low <= color[label] <= high and np.delete(color, label).max() < 12
                seen.setdefault(split, set()).add(label)
            free = ~np.any([cv2.dilate(mask.astype(np.uint8), np.ones((17, 17))) for _, mask in objects], axis=0)
            assert bool(pixels[free].mean() > 150) is (split == "val")
    assert seen == {"train": {0, 1, 2}, "val": {0, 1, 2}}


@pytest.mark.parametrize(
    "options",
    [
        SceneOptions(),
        SceneOptions(image_size=96, objects=(1, 9), sizes=(8, 60), occlusion=0.6, clutter=5),
        SceneOptions(objects=(2, 2), sizes=(160, 160), occlusion=0.3),
    ],
)
def test_scenes_are_as_hard_as_asked_for(photographs, tmp_path, options):
    generate_scenes(tmp_path, 15, 1, options=options, photographs=photographs)
    low, high = options.sizes
    hidden = []
    for objects in masks_of(load(tmp_path)).values():
        assert 1 <= len(objects) <= options.objects[1]
        for _, mask in objects:
            assert mask.shape == (options.image_size, options.image_size)
            assert mask.sum() >= (1 - options.occlusion) * low * low and mask.sum() <= high * high
            _, _, width, height = cv2.boundingRect(mask.astype(np.uint8))
            hidden.append(mask.sum() < width * height)
        assert np.sum([mask for _, mask in objects], axis=0).max() <= 1, "a pixel shows one photograph"
    assert bool(any(hidden)) is bool(options.occlusion and low < high)


def test_the_set_is_read_as_any_other(photographs, tmp_path):
    generate_scenes(tmp_path, 2, 1, photographs=photographs)
    dataset = CocoDataset(tmp_path / "annotations/train.json", tmp_path / "train")
    assert tuple(dataset.class_names) == CLASSES
    image, target = dataset[0]
    assert tuple(image.shape) == (3, 160, 160) and len(target["boxes"]) >= 3


@pytest.mark.parametrize(
    ("problem", "match"),
    [
        ({"sizes": (40, 30)}, "sizes 40 to 30: expected the smaller number first"),
        ({"objects": (0, 3)}, "objects 0 to 3"),
        ({"sizes": (20, 200)}, "200 pixels do not fit into images of 160"),
        ({"occlusion": 1.0}, "a part from 0 to below 1"),
        ({"clutter": -1}, "a number from 0 up"),
    ],
)
def test_options_that_make_no_sense_are_refused(problem, match):
    with pytest.raises(ValueError, match=match):
        SceneOptions(**problem)


def test_sources_that_do_not_fit_are_refused_before_anything_is_written(photographs, backgrounds, tmp_path):
    (tmp_path / "other" / "bird").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "bird" / "1.png")
    (tmp_path / "few").mkdir()
    for wrong, match in (
        ({"photographs": [photographs[0], str(tmp_path / "other")]}, "both need the same"),
        ({"photographs": photographs, "backgrounds": tmp_path / "few"}, "has 0 images; backgrounds need 5"),
        ({"photographs": photographs, "num_train": 0}, "at least one image"),
    ):
        with pytest.raises(ValueError, match=match):
            generate_scenes(tmp_path / "scenes", **wrong)
    assert not (tmp_path / "scenes").exists()
