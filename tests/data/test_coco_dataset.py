"""CocoDataset against pycocotools on real annotations, and on documents spoiled one entry at a time."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import json
import logging
import pickle

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.images.files import PackedBytes
from resnet_backbone.data.transforms import train_transforms

SQUARE = [[2, 2, 9, 2, 9, 9, 2, 9]]


def document() -> dict:
    return {
        "images": [
            {"id": 7, "file_name": "seven.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "three.png", "height": 16, "width": 12},
            {"id": 5, "file_name": "empty.png", "height": 8, "width": 8},
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 4, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [2, 2, 7, 7], "iscrowd": 0, "segmentation": SQUARE},
            {"id": 2, "image_id": 3, "category_id": 4, "bbox": [1, 1, 4, 5], "iscrowd": 0, "segmentation": SQUARE},
            {"id": 3, "image_id": 7, "category_id": 4, "bbox": [5, 5, 9.5, 9.25], "iscrowd": 0, "segmentation": SQUARE},
        ],
    }


def oracle(path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("training", [True, False])
def test_every_image_agrees_with_pycocotools(coco_mini, split, training):
    json_path = coco_mini / "annotations" / f"instances_{split}.json"
    dataset = CocoDataset(json_path, coco_mini / split, with_masks=True, training=training)
    coco = oracle(json_path)
    assert list(dataset.category_ids) == sorted(coco.getCatIds())
    assert list(dataset.class_names) == [coco.cats[i]["name"] for i in sorted(coco.cats)]
    usable = {i for i in coco.getImgIds() if coco.getAnnIds([i], iscrowd=False)}
    assert dataset.image_ids.tolist() == sorted(usable if training else coco.getImgIds())
    seen = crowds = 0
    for index in range(len(dataset)):
        image, target = dataset[index]
        info = coco.imgs[target["image_id"]]
        expected = coco.imgToAnns[info["id"]]
        if training:
            expected = [annotation for annotation in expected if not annotation["iscrowd"]]
        else:
            assert target["iscrowd"].tolist() == [bool(annotation["iscrowd"]) for annotation in expected]
            crowds += int(target["iscrowd"].sum())
        assert isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8
        assert image.shape == (3, info["height"], info["width"])
        assert target["size"] == tuple(dataset.sizes[index]) == (info["height"], info["width"])
        assert target["boxes"].canvas_size == target["size"]
        assert target["boxes"].format == tv_tensors.BoundingBoxFormat.XYXY and target["boxes"].dtype == torch.float32
        boxes = np.array([annotation["bbox"] for annotation in expected]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(target["boxes"].numpy(), boxes, atol=0.01)
        assert [dataset.category_ids[label] for label in target["labels"]] == [a["category_id"] for a in expected]
        masks = [coco.annToMask(annotation) for annotation in expected]
        assert target["masks"].shape == (len(masks), info["height"], info["width"])
        assert all((ours.numpy() == theirs).all() for ours, theirs in zip(target["masks"], masks, strict=True))
        seen += len(expected)
    assert seen > 500
    assert training or crowds > 0


def test_images_are_the_files(coco_mini):
    dataset = CocoDataset(coco_mini / "annotations/instances_val2017.json", coco_mini / "val2017")
    coco = oracle(dataset.json_path)
    for index in range(0, len(dataset), 10):
        assert dataset.image_path(index).name == coco.imgs[dataset.image_ids[index]]["file_name"]


def test_small_document(write_coco):
    dataset = CocoDataset(*write_coco(document()))
    assert (len(dataset), dataset.num_classes) == (2, 2)
    assert dataset.category_ids == (4, 90) and dataset.class_names == ("ant", "zebra")
    assert dataset.image_ids.tolist() == [3, 7] and dataset.sizes.tolist() == [[16, 12], [20, 30]]
    _, target = dataset[1]
    assert target["boxes"].tolist() == [[2, 2, 9, 9], [5, 5, 14.5, 14.25]]
    assert target["labels"].tolist() == [1, 0] and target["labels"].dtype == torch.int64
    assert set(target) == {"boxes", "labels", "image_id", "size"}


def test_evaluation_keeps_every_image(write_coco):
    dataset = CocoDataset(*write_coco(document()), with_masks=True, training=False)
    assert dataset.image_ids.tolist() == [3, 5, 7]
    _, target = dataset[1]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["masks"].shape == (0, 8, 8)


def test_evaluation_without_any_annotation(write_coco):
    data = document()
    data["annotations"] = []
    assert len(CocoDataset(*write_coco(data), training=False)) == 3
    with pytest.raises(ValueError, match="nothing to train on"):
        CocoDataset(*write_coco(data))


def test_dropped_images_and_boxes_are_counted(write_coco, caplog):
    data = document()
    for box in ([5, 5, 0, 4], [5, 5, 4, -1], [40, 2, 5, 5], [-9, 2, 9, 5], [0, 0, 1e-9, 5], [10, 0, 1e-7, 5]):
        data["annotations"].append({"image_id": 7, "category_id": 4, "bbox": box, "iscrowd": 0})
    data["annotations"].append({"image_id": 5, "category_id": 4, "bbox": [1, 1, 5, 5], "iscrowd": 1})
    with caplog.at_level(logging.INFO):
        dataset = CocoDataset(*write_coco(data))
    for text in (
        "2 of 9 boxes without area: left out",
        "1 of 9 boxes of negative width or height: left out",
        "2 of 9 boxes wholly outside their image: left out",
        "1 of 3 images without a usable box: not trained on",
    ):
        assert text in caplog.text
    boxes = dataset[1][1]["boxes"]
    assert len(boxes) == 3 and bool(((boxes[:, 2:] - boxes[:, :2]) > 0).all())


def test_boxes_are_clipped(write_coco):
    data = document()
    data["annotations"] = [{"image_id": 7, "category_id": 4, "bbox": [-3, -4, 100, 200]}]  # iscrowd may be missing
    assert CocoDataset(*write_coco(data))[0][1]["boxes"].tolist() == [[0, 0, 30, 20]]


def test_instances_without_polygon_are_dropped_with_masks_only(write_coco, caplog):
    data = document()
    data["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]
    files = write_coco(data)
    assert len(CocoDataset(*files)[1][1]["boxes"]) == 2
    assert len(CocoDataset(*files, with_masks=True)[1][1]["boxes"]) == 1
    assert "1 of 3 masks without a polygon of three points: left out" in caplog.text


def test_polygons_are_those_of_the_file(write_coco):
    data = document()
    data["annotations"][0]["segmentation"] = [[2, 2, 9, 2, 9, 9], [3, 3, 4.5, 3, 4, 5, 3, 5], [1, 1, 2, 2]]
    _, target = CocoDataset(*write_coco(data), with_masks=True, mask_format="polygon")[1]
    assert "masks" not in target and len(target["polygons"]) == len(target["boxes"]) == 2
    assert [points[:, :2].reshape(-1).tolist() for points in target["polygons"][0]] == [
        [2, 2, 9, 2, 9, 9],
        [3, 3, 4.5, 3, 4, 5, 3, 5],
    ]
    for points in target["polygons"][0]:
        assert points.dtype == torch.float64 and points.canvas_size == (20, 30)
        assert torch.equal(points[:, :2], points[:, 2:])


def test_run_lengths_are_no_polygons(write_coco):
    data = document()
    data["annotations"][1]["segmentation"] = {"size": [16, 12], "counts": [16 * 12]}
    files = write_coco(data)
    with pytest.raises(ValueError, match=r"(?s)image 3, .* write INPUT.MASK_FORMAT: bitmask"):
        CocoDataset(*files, with_masks=True, mask_format="polygon")
    assert len(CocoDataset(*files, mask_format="polygon")) == 2  # without masks nothing is asked of them


def test_exif_frame_of_the_annotation_file(write_coco, tmp_path):
    from PIL import Image

    path, folder = write_coco(document())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(folder / "seven.png", exif=exif)
    assert CocoDataset(path, folder)[1][0].shape == (3, 20, 30)


@pytest.mark.parametrize("index", [-1, 2, 100])
def test_index_out_of_range(write_coco, index):
    with pytest.raises(IndexError):
        CocoDataset(*write_coco(document()))[index]


def test_iteration_ends(write_coco):
    assert len(list(CocoDataset(*write_coco(document())))) == 2


def test_transforms_are_called(write_coco):
    dataset = CocoDataset(*write_coco(document()), transforms=lambda image, target: (image + 1, sorted(target)))
    image, keys = dataset[0]
    assert keys == ["boxes", "image_id", "labels", "size"]


def spoil(*path_and_value):
    *path, value = path_and_value

    def change(data):
        place = data
        for key in path[:-1]:
            place = place[key]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return data

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: [data], "expected a JSON object, found list"),
        (spoil("images", KeyError), 'needs a list "images", found keys'),
        (spoil("annotations", KeyError), 'needs a list "annotations"'),
        (spoil("categories", KeyError), 'needs a list "categories"'),
        (spoil("annotations", {}), 'needs a list "annotations", found dict'),
        (spoil("images", []), '"images" is empty'),
        (spoil("categories", []), '"categories" is empty'),
        (spoil("categories", 1, "id", 90), r"categories\[1\] repeats id 90"),
        (spoil("categories", 0, "name", KeyError), r'categories\[0\] has no "name"'),
        (spoil("categories", 0, "id", "1"), r"categories\[0\].*'1' \(str\); expected int"),
        (spoil("images", 1, "id", 7), r"images\[1\] \(three.png\) repeats id 7 of seven.png"),
        (spoil("images", 0, "id", KeyError), r'images\[0\] has no "id"'),
        (spoil("images", 0, "file_name", KeyError), r'images\[0\] has no "file_name"'),
        (spoil("images", 0, "file_name", 5), r"images\[0\].*expected str"),
        (spoil("images", 0, "height", KeyError), r'images\[0\] has no "height"'),
        (spoil("images", 0, "height", 0), r"seven.png\) has height 0"),
        (spoil("images", 0, "width", -5), r"seven.png\) has height 20 and width -5"),
        (spoil("images", 0, "width", True), r"expected int"),
        (spoil("images", 0, None), r"images\[0\] is NoneType"),
        (spoil("annotations", 1, "image_id", 99), r"annotations\[1\] is of image_id 99, which is not in images"),
        (spoil("annotations", 1, "category_id", 0), r"annotations\[1\] has category_id 0.*\[4, 90\]"),
        (spoil("annotations", 1, "image_id", KeyError), r'annotations\[1\] has no "image_id"'),
        (spoil("annotations", 1, "category_id", KeyError), r'annotations\[1\] has no "category_id"'),
        (spoil("annotations", 1, "bbox", KeyError), r'annotations\[1\] has no "bbox"'),
        (spoil("annotations", 1, "bbox", [1, 2, 3]), r"annotations\[1\] has bbox \[1, 2, 3\]"),
        (spoil("annotations", 1, "bbox", [1, 2, 3, "4"]), r"annotations\[1\] has bbox"),
        (spoil("annotations", 1, "bbox", [1, 2, 3, None]), r"annotations\[1\] has bbox"),
        (spoil("annotations", 1, "bbox", [1, 2, 3, float("nan")]), r"annotations\[1\] has bbox"),
        (spoil("annotations", 1, "bbox", [1, 2, 3, float("inf")]), r"annotations\[1\] has bbox"),
        (spoil("annotations", 1, "iscrowd", 2), r"annotations\[1\] has iscrowd 2"),
        (spoil("annotations", 1, 5), r"annotations\[1\] is int"),
        (spoil("annotations", 1, "segmentation", KeyError), r'annotations\[1\] has no "segmentation"'),
        (spoil("annotations", 1, "segmentation", {"size": [16, 12], "counts": [3]}), r"annotations\[1\].*add up to 3"),
    ],
)
def test_malformed_documents(tmp_path, change, message):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(change(copy.deepcopy(document()))))
    with pytest.raises(ValueError, match=message) as error:
        CocoDataset(path, tmp_path, with_masks=True)
    assert "instances.json" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"null", b"[]"])
def test_files_that_are_no_document(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json"):
        CocoDataset(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_encodings(write_coco, encoding):
    path, folder = write_coco(document())
    expected = CocoDataset(path, folder)
    path.write_text(path.read_text().replace('"name": "', '"name": "\u00e9'), encoding=encoding)
    dataset = CocoDataset(path, folder)
    assert dataset.class_names == tuple(f"\u00e9{name}" for name in expected.class_names)
    assert all(torch.equal(dataset[i][1]["boxes"], expected[i][1]["boxes"]) for i in range(len(expected)))


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_is_as_it_was(write_coco, tmp_path, is_on):
    path, folder = write_coco(document())
    (tmp_path / "a.json").write_text("{")
    was_on = gc.isenabled()
    (gc.enable if is_on else gc.disable)()
    try:
        CocoDataset(path, folder)
        assert gc.isenabled() == is_on
        with pytest.raises(ValueError, match="is not JSON"):
            CocoDataset(tmp_path / "a.json", folder)
        assert gc.isenabled() == is_on
    finally:
        (gc.enable if was_on else gc.disable)()


def test_missing_files(tmp_path, write_coco):
    path, folder = write_coco(document())
    with pytest.raises(FileNotFoundError, match=r"gone\.json"):
        CocoDataset(tmp_path / "gone.json", folder)
    with pytest.raises(FileNotFoundError, match="gone"):
        CocoDataset(path, tmp_path / "gone")
    (folder / "three.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"three\.png"):
        CocoDataset(path, folder)[0]


def test_image_of_another_size(write_coco):
    from PIL import Image

    path, folder = write_coco(document())
    Image.new("RGB", (31, 20)).save(folder / "seven.png")
    with pytest.raises(ValueError, match=r"seven\.png.*20 x 31.*20 x 30"):
        CocoDataset(path, folder)[1]


def test_memory_stays_small(tmp_path):
    """24 bytes of arrays and the file name for one box an image: no Python object a box."""
    n = 20_000
    data = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640} for i in range(n)],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": [1, 2, 30, 40]} for i in range(n)],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    dataset = CocoDataset(tmp_path / "a.json", tmp_path)
    assert len(pickle.dumps(dataset)) < 110 * n
    arrays = vars(dataset.annotations).values()
    assert all(isinstance(value, np.ndarray | PackedBytes | tuple | None) for value in arrays)
    clone = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert clone.image_path(n - 1).name == f"{n - 1:012d}.jpg"


def test_packed_bytes():
    items = [b"", b"a", "é/日本.jpg".encode(), bytes(range(256)), b""]
    packed = PackedBytes(iter(items))
    assert [packed[index] for index in range(len(packed))] == items
    assert len(PackedBytes([])) == 0
    with pytest.raises(IndexError):
        packed[5]


def test_data_loader_workers_agree_with_the_main_process(coco_mini):
    dataset = CocoDataset(
        coco_mini / "annotations/instances_val2017.json",
        coco_mini / "val2017",
        transforms=train_transforms((100,), 150, flip="none"),
    )
    dataset_of_six = torch.utils.data.Subset(dataset, range(6))
    loader = DataLoader(dataset_of_six, batch_size=2, num_workers=2, collate_fn=list)
    loaded = [sample for batch in loader for sample in batch]
    for (image, target), (image_here, target_here) in zip(loaded, dataset_of_six, strict=True):
        assert torch.equal(image, image_here) and torch.equal(target["boxes"], target_here["boxes"])
        assert target["image_id"] == target_here["image_id"]
