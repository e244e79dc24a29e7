"""A few images of coco_mini in the layouts and formats in which the projects of Detectron2 look for their data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

PERSON = 1
STUFF = (187, 193)  # categories of COCO panoptic: sky-other-merged and grass-merged, for left and right of all images
SIZE = (640, 480)
NUM_IMAGES = {"train": 4, "val": 2}


def write_datasets(coco_mini: Path, root: Path) -> None:
    """Write ``root/coco`` (boxes, masks, panoptic, stuff) and the files of DensePose, out of images with people."""
    for split, count in NUM_IMAGES.items():
        coco = COCO(str(coco_mini / "annotations" / f"instances_{split}2017.json"))
        image_ids = sorted(
            image["id"]
            for image in coco.loadImgs(coco.getImgIds(catIds=[PERSON]))
            if (image["width"], image["height"]) == SIZE
        )[:count]
        notes = coco.loadAnns(coco.getAnnIds(imgIds=image_ids))
        images = coco.loadImgs(image_ids)
        for image in images:
            for year in ("2017", "2014"):  # DensePose has COCO's of 2014
                folder = root / "coco" / f"{split}{year}"
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(coco_mini / f"{split}2017" / image["file_name"], folder)
        categories = coco.loadCats(coco.getCatIds())
        _write_json(root / f"coco/annotations/instances_{split}2017.json", images, notes, categories)
        _write_panoptic(root / "coco", split, coco, images, notes)
        if split == "train":
            people = [
                _with_surface(note, coco.annToMask(note))
                for note in notes
                if note["category_id"] == PERSON and not note["iscrowd"]
            ]
            person = coco.loadCats([PERSON])
            _write_json(root / "coco/annotations/densepose_train2014.json", images, people, person)


def write_uv_symmetries(path: Path) -> None:
    """Write DensePose's table for flipped images, with each point of a part mapped onto itself."""
    from scipy.io import savemat  # a requirement of DensePose and not of this project

    path.parent.mkdir(parents=True)
    v, u = np.meshgrid(np.linspace(0, 1, 256), np.linspace(0, 1, 256), indexing="ij")
    cells = {"U_transforms": np.empty((1, 24), object), "V_transforms": np.empty((1, 24), object)}
    for part in range(24):
        cells["U_transforms"][0, part], cells["V_transforms"][0, part] = u, v
    savemat(path, cells)


def _write_panoptic(
    folder: Path, split: str, coco: COCO, images: Sequence[dict[str, Any]], notes: Sequence[dict[str, Any]]
) -> None:
    """Write panoptic segments (stuff, and the instances on top) and the same for stuff only, where things are 0."""
    panoptic, stuff_only = (folder / f"{name}_{split}2017" for name in ("panoptic", "panoptic_stuff"))
    entries = []
    for image in images:
        height, width = image["height"], image["width"]
        segment = np.ones((height, width), np.int64)
        segment[:, width // 2 :] = 2
        categories = {1: (STUFF[0], 0), 2: (STUFF[1], 0)}
        for note in notes:
            if note["image_id"] == image["id"]:
                number = len(categories) + 1
                categories[number] = (note["category_id"], note["iscrowd"])
                segment[coco.annToMask(note) > 0] = number
        infos = [
            {"id": number, "category_id": category, "iscrowd": crowd, **_extent(segment == number)}
            for number, (category, crowd) in categories.items()
            if (segment == number).any()
        ]
        name = image["file_name"].replace(".jpg", ".png")
        entries.append({"image_id": image["id"], "file_name": name, "segments_info": infos})
        _save(panoptic / name, np.stack([segment % 256, segment // 256, np.zeros_like(segment)], axis=-1))
        _save(stuff_only / name, np.where(segment > 2, 0, segment))
    all_categories = [{"id": number, "name": str(number), "isthing": int(number < 91)} for number in range(1, 201)]
    _write_json(folder / "annotations" / f"panoptic_{split}2017.json", images, entries, all_categories)


def _with_surface(note: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Return a person with DensePose's annotation: the box's upper half is the torso, its lower the right hand."""
    x, y, width, height = note["bbox"]
    rows = np.clip(y + (np.arange(256) + 0.5) * height / 256, 0, len(mask) - 1).astype(int)
    columns = np.clip(x + (np.arange(256) + 0.5) * width / 256, 0, mask.shape[1] - 1).astype(int)
    inside = mask[np.ix_(rows, columns)]
    halves = [inside.copy(), inside.copy()]
    halves[0][128:], halves[1][:128] = 0, 0
    encoded = []
    for half in halves:
        code = mask_utils.encode(np.asfortranarray(half))
        encoded.append({"size": code["size"], "counts": code["counts"].decode()})
    points_y, points_x = np.nonzero(inside)
    chosen = np.linspace(0, len(points_x) - 1, 20).astype(int)
    points_y, points_x = points_y[chosen], points_x[chosen]
    return {
        **note,
        "dp_masks": encoded + [[]] * 12,
        "dp_x": points_x.astype(float).tolist(),
        "dp_y": points_y.astype(float).tolist(),
        "dp_I": np.where(points_y < 128, 1.0, 3.0).tolist(),
        "dp_U": (points_x / 255).tolist(),
        "dp_V": (points_y / 255).tolist(),
    }


def _extent(mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.nonzero(mask)
    x, y = int(columns.min()), int(rows.min())
    return {"area": len(rows), "bbox": [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]}


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _write_json(path: Path, images: Any, annotations: Any, categories: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
