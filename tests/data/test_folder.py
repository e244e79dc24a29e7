"""Folders as annotation tools export them: the same boxes from each layout, splits, and clear errors of all others."""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from resnet_backbone.data.prepare.folder import COCO, LABELME, VOC, YOLO, read_folder
from resnet_backbone.data.prepare.voc_xml import voc_to_coco

NAMES = ["cat", "dog"]


def boxes(part):
    """Sorted (class, x, y, w, h) by the name of the image, without its folder."""
    document = part.document
    names = {category["id"]: category["name"] for category in document["categories"]}
    found = {image["id"]: [] for image in document["images"]}
    for one in document["annotations"]:
        found[one["image_id"]].append((names[one["category_id"]], *one["bbox"]))

    def rounded(one):
        return one[0], *map(round, one[1:])

    return {Path(image["file_name"]).name: sorted(found[image["id"]], key=rounded) for image in document["images"]}


def assert_same(found, expected, within=1e-9):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert [one[0] for one in found[name]] == [one[0] for one in wanted], name
        assert [one[1:] for one in found[name]] == [pytest.approx(one[1:], abs=within) for one in wanted], name


def coco(images, annotations=(), names=NAMES, first=1):
    """A COCO document of (name, width, height) and (image, class, box)."""
    return {
        "images": [{"id": n, "file_name": i[0], "width": i[1], "height": i[2]} for n, i in enumerate(images, 1)],
        "annotations": [
            {
                "id": n,
                "image_id": image,
                "category_id": label + first,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for n, (image, label, box) in enumerate(annotations, 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names, first)],
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def photo(path, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 30)).save(path, **options)
    return path


def voc_xml(name, objects=(("cat", 1, 1, 10, 20),), size=(40, 30)):
    parts = "".join(
        f"<object><name>{o[0]}</name><bndbox><xmin>{o[1]}</xmin><ymin>{o[2]}</ymin><xmax>{o[3]}</xmax><ymax>{o[4]}</ymax>"
        "</bndbox></object>"
        for o in objects
    )
    shown = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{name}</filename>{shown}{parts}</annotation>"


@pytest.fixture(scope="module")
def cells(bccd):
    """BCCD's documents by split, as the converter of VOC has them."""
    return {split: voc_to_coco(bccd, list_)[0] for split, list_ in (("train", "trainval"), ("test", "test"))}


@pytest.fixture(scope="module")
def expected(cells, bccd):
    from resnet_backbone.data.prepare.folder import Part

    return {split: boxes(Part(document, bccd, bccd)) for split, document in cells.items()}


def linked(folder, document, bccd):
    folder.mkdir(parents=True, exist_ok=True)
    for image in document["images"]:
        (folder / image["file_name"]).symlink_to(bccd / "JPEGImages" / image["file_name"])


def to_yolo(document, folder):
    """Label files by the definition: class from 0, centre and size as shares of the image."""
    lines = defaultdict(list)
    images = {image["id"]: image for image in document["images"]}
    for one in document["annotations"]:
        image = images[one["image_id"]]
        x, y, w, h = one["bbox"]
        shares = ((x + w / 2) / image["width"], (y + h / 2) / image["height"], w / image["width"], h / image["height"])
        lines[image["file_name"]].append(f"{one['category_id'] - 1} " + " ".join(f"{share:.6f}" for share in shares))
    for name, found in lines.items():
        write(folder / Path(name).with_suffix(".txt").name, "\n".join(found) + "\n")


class TestBccd:
    def test_as_voc(self, bccd, expected):
        data = read_folder(bccd)
        assert (data.layout, list(data.parts), data.evaluated) == (VOC, ["train", "test"], "test")
        for split, part in data.parts.items():
            assert_same(boxes(part), expected[split])
            assert part.image_folder == bccd / "JPEGImages"

    def test_as_roboflow_writes_coco(self, bccd, cells, expected, tmp_path):
        """Each JSON beside its images; category 0 groups the others."""
        for split, folder in (("train", "train"), ("test", "valid")):
            document = json.loads(json.dumps(cells[split]))
            for category in document["categories"]:
                category["supercategory"] = "cells"
            document["categories"].insert(0, {"id": 0, "name": "cells", "supercategory": "none"})
            write(tmp_path / folder / "_annotations.coco.json", document)
            linked(tmp_path / folder, document, bccd)
        data = read_folder(tmp_path)
        assert (data.layout, list(data.parts), data.evaluated) == (COCO, ["train", "val"], "val")
        assert_same(boxes(data.parts["train"]), expected["train"])
        assert_same(boxes(data.parts["val"]), expected["test"])
        assert [one["name"] for one in data.parts["val"].document["categories"]] == ["Platelets", "RBC", "WBC"]
        assert any("'cells' groups the others" in note for note in data.notes)

    def test_as_cvat_writes_coco(self, bccd, cells, expected, tmp_path):
        for split in cells:
            write(tmp_path / f"annotations/instances_{split.title()}.json", cells[split])
            write(tmp_path / f"annotations/person_keypoints_{split.title()}.json", cells[split])
            linked(tmp_path / "images" / split.title(), cells[split], bccd)
        data = read_folder(tmp_path)
        assert list(data.parts) == ["test", "train"]
        for split, part in data.parts.items():
            assert_same(boxes(part), expected[split])
            assert part.image_folder == tmp_path / "images" / split.title()

    @pytest.mark.parametrize(("images", "labels"), [("{}/images", "{}/labels"), ("images/{}", "labels/{}")])
    def test_as_yolo(self, bccd, cells, expected, tmp_path, images, labels):
        for split in cells:
            linked(tmp_path / images.format(split), cells[split], bccd)
            to_yolo(cells[split], tmp_path / labels.format(split))
        places = "".join(f"{split}: ../{images.format(split)}\n" for split in cells)  # as Roboflow has it
        write(tmp_path / "data.yaml", f"{places}nc: 3\nnames: [Platelets, RBC, WBC]\n")
        data = read_folder(tmp_path)
        assert (data.layout, list(data.parts)) == (YOLO, ["train", "test"])
        for split, part in data.parts.items():
            assert_same(boxes(part), expected[split], within=2e-3)  # six digits of 640 pixels

    def test_as_labelme(self, bccd, cells, expected, tmp_path):
        for split, document in cells.items():
            linked(tmp_path / split, document, bccd)
            to_labelme(document, tmp_path / split)
        data = read_folder(tmp_path)
        assert (data.layout, list(data.parts), data.notes) == (LABELME, ["test", "train"], [])
        for split, part in data.parts.items():
            assert_same(boxes(part), expected[split])


def to_labelme(document, folder):
    """A file for each image, each box by its two corners."""
    names = {category["id"]: category["name"] for category in document["categories"]}
    for image in document["images"]:
        own = [one for one in document["annotations"] if one["image_id"] == image["id"]]
        shapes = [labelme_shape(names[one["category_id"]], corners(one["bbox"])) for one in own]
        write(folder / Path(image["file_name"]).with_suffix(".json").name, labelme(image["file_name"], shapes))


def corners(box):
    x, y, w, h = box
    return [[x, y], [x + w, y + h]]


def labelme_shape(label, points, kind="rectangle", group=None):
    return {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}


def labelme(image, shapes, **more):
    return {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None, **more}


def test_shapes_of_labelme(tmp_path):
    """Images in a folder of their own, named as on Windows; shapes of a group are one object; boxes are drawn."""
    for number in range(3):
        photo(tmp_path / f"images/{number}.jpg")
    triangle = [[5, 5], [15, 5], [5, 25]]
    shapes = [
        labelme_shape("dog", triangle, "polygon", group=1),
        labelme_shape("dog", [[20, 5], [30, 5], [30, 9]], "polygon", group=1),
        labelme_shape("dog", triangle, "polygon"),
        labelme_shape("cat", [[10, 10], [13, 14]], "circle"),
        labelme_shape("cat", [[30, 20], [10, 5]]),  # from any corner to the opposite one
    ]
    write(tmp_path / "labels/0.json", labelme("..\\images\\0.jpg", shapes, imageHeight=30, imageWidth=40))
    write(tmp_path / "labels/1.json", labelme("../images/1.jpg", []))
    data = read_folder(tmp_path)
    documents = [part.document for part in data.parts.values()]
    assert any("1 of 3 images have no file of labelme: left out" in note for note in data.notes)
    assert [category["name"] for category in documents[0]["categories"]] == ["cat", "dog"]
    found = [one for document in documents for one in document["annotations"]]
    assert [one["category_id"] for one in found] == [2, 2, 1, 1]
    assert [one["bbox"] for one in found] == [[5, 5, 25, 20], [5, 5, 10, 20], [5, 5, 10, 10], [10, 5, 20, 15]]
    assert [one["area"] for one in found] == [100 + 20, 100, 100, 300]
    assert [len(one.get("segmentation", [])) for one in found] == [2, 1, 0, 0]
    assert found[1]["segmentation"] == [[5, 5, 15, 5, 5, 25]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (labelme("b.jpg", []), "imagePath is 'b.jpg', and there is no image .*b.jpg"),
        (labelme("a.jpg", [], imageHeight=40, imageWidth=30), "says 30 x 40 pixels, and .*a.jpg has 40 x 30"),
        (labelme("a.jpg", {}), "shapes is {}; expected a list"),
        (labelme("a.jpg", [{"points": []}]), "a shape has the label None; expected label, points"),
        (
            labelme("a.jpg", [labelme_shape("cat", [[1, 2]], "point")]),
            "'cat' is a 'point' with the points .*shape_type",
        ),
        (labelme("a.jpg", [labelme_shape("cat", [[1, 2]])]), "'cat' is a 'rectangle' with the points"),
        (labelme("a.jpg", [labelme_shape("cat", [[1, "x"], [3, 4]])]), "'cat' is a 'rectangle' with the points"),
        (labelme("a.jpg", [labelme_shape("cat", [[1, float("nan")], [3, 4]])]), "'cat' is a 'rectangle'|NaN"),
    ],
)
def test_malformed_labelme(tmp_path, content, message):
    photo(tmp_path / "a.jpg")
    write(tmp_path / "a.json", content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_folder(tmp_path)


def yolo(root, labels="0 0.5 0.5 0.25 0.2\n", yaml="train: images\nnames: {0: cat, 1: dog}\n", count=5, size=(40, 30)):
    for number in range(count):
        photo(root / f"images/{number}.jpg", size)
        write(root / f"labels/{number}.txt", labels)
    write(root / "data.yaml", yaml)
    return root


def test_polygons_of_yolo(tmp_path):
    """A triangle of half of its box, beside a box; an image without a label file has no object."""
    yolo(tmp_path, "1 0.25 0.2 0.75 0.2 0.25 0.6\n0 0.5 0.5 0.5 0.2\n", size=(80, 40))
    (tmp_path / "labels/3.txt").unlink()
    parts = read_folder(tmp_path).parts
    every = [one for part in parts.values() for one in part.document["annotations"]]
    assert len(every) == 8 and sum(len(part.document["images"]) for part in parts.values()) == 5
    triangle, box = every[:2]
    assert triangle["bbox"] == pytest.approx([20, 8, 40, 16]) and triangle["area"] == pytest.approx(320)
    assert triangle["segmentation"][0] == pytest.approx([20, 8, 60, 8, 20, 24])
    assert box["bbox"] == pytest.approx([20, 16, 40, 8]) and "segmentation" not in box


def test_yolo_counts_in_the_upright_image(tmp_path):
    yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    photo(tmp_path / "images/0.jpg", (40, 30), exif=exif)
    sizes = {
        image["file_name"]: (image["width"], image["height"])
        for part in read_folder(tmp_path).parts.values()
        for image in part.document["images"]
    }
    assert sizes["0.jpg"] == (30, 40) and sizes["1.jpg"] == (40, 30)


@pytest.mark.parametrize("name", ["images/{}.jpg", "images\\{}.jpg", "/label-studio/data/upload/1/{}.jpg"])
def test_label_studio(tmp_path, name):
    for number in range(4):
        photo(tmp_path / f"images/{number}.jpg")
    images = [(name.format(number), 40, 30) for number in range(4)]
    write(tmp_path / "result.json", coco(images, [(n, 0, [1, 2, 10, 10]) for n in range(1, 5)], first=0))
    for part in read_folder(tmp_path).parts.values():
        assert all((part.image_folder / image["file_name"]).is_file() for image in part.document["images"])
        assert all(found == [("cat", 1, 2, 10, 10)] for found in boxes(part).values())


def test_label_studio_as_yolo(tmp_path):
    yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    write(tmp_path / "classes.txt", "cat\ndog\n")
    assert sum(len(boxes(part)) for part in read_folder(tmp_path).parts.values()) == 5


@pytest.mark.parametrize("beside", [True, False])
def test_voc_without_lists(tmp_path, beside):
    for number in range(5):
        photo(tmp_path / f"{'' if beside else 'images/'}{number}.jpg")
        write(tmp_path / f"{'' if beside else 'annotations/'}{number}.xml", voc_xml(f"{number}.jpg"))
    parts = read_folder(tmp_path).parts
    assert {split: len(boxes(part)) for split, part in parts.items()} == {"train": 4, "val": 1}
    assert all(found == [("cat", 0, 0, 10, 20)] for part in parts.values() for found in boxes(part).values())


def test_voc_in_folders_of_splits_shares_its_classes(tmp_path):
    for split, name in (("train", "cat"), ("valid", "dog"), ("test", "cat")):
        photo(tmp_path / split / "a.jpg")
        write(tmp_path / split / "a.xml", voc_xml("a.jpg", [(name, 2, 3, 9, 9)]))
    data = read_folder(tmp_path)
    assert set(data.parts) == {"train", "val", "test"} and data.evaluated == "val"
    assert boxes(data.parts["val"]) == {"a.jpg": [("dog", 1, 2, 8, 7)]}
    assert all([one["name"] for one in part.document["categories"]] == NAMES for part in data.parts.values())


def split_of(root, **options):
    return {name: split for split, part in read_folder(root, **options).parts.items() for name in boxes(part)}


def test_the_split_is_stable(tmp_path):
    """Drawn by names: not by the order of the file, nor by where it lies."""
    images = [(f"{number:02}.jpg", 40, 30) for number in range(20)]
    for name, _, _ in images:
        photo(tmp_path / "a" / name)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "a/all.json", coco(images, [(n, 1, [1, 1, 9, 9]) for n in range(1, 21)]))
    write(tmp_path / "b/all.json", coco(images[::-1], [(n, 1, [1, 1, 9, 9]) for n in range(1, 21)]))
    first, second = split_of(tmp_path / "a"), split_of(tmp_path / "b")
    assert first == second and list(first.values()).count("val") == 4
    part = read_folder(tmp_path / "a").parts["val"].document
    assert {one["image_id"] for one in part["annotations"]} == {image["id"] for image in part["images"]}
    assert "4 of 20 images were drawn for val (seed 0)" in part["info"]["description"]


def test_groups_stay_together(tmp_path):
    names = [f"{group}_{number}.jpg" for group in "abcdef" for number in range(4)]
    for name in names:
        photo(tmp_path / name)
    write(tmp_path / "all.json", coco([(n, 40, 30) for n in names], [(i, 0, [1, 1, 9, 9]) for i in range(1, 25)]))
    found = split_of(tmp_path, group_by="^([a-z])_")
    by_group = {group: {found[name] for name in names if name[0] == group} for group in "abcdef"}
    assert all(len(splits) == 1 for splits in by_group.values())
    assert list(found.values()).count("val") == 8  # two groups: with one it would be less than a fifth
    assert len({split_of(tmp_path)[name] for name in names if name[0] == "a"}) >= 1
    for pattern, message in (
        ("^[a-z]_", "no regular expression with a group"),
        ("(", "no regular expression"),
        ("^(z)", "finds no group in"),
        (r"(\.jpg)$", "1 group by --group-by"),
    ):
        with pytest.raises(ValueError, match=message):
            read_folder(tmp_path, group_by=pattern)


def two_formats(root):
    yolo(root)
    write(root / "all.json", coco([("0.jpg", 40, 30)], [(1, 0, [1, 1, 9, 9])]))


def two_of_a_split(root):
    photo(root / "0.jpg")
    for name in ("train.json", "train_old.json"):
        write(root / name, coco([("0.jpg", 40, 30)], [(1, 0, [1, 1, 9, 9])]))


def two_without_a_split(root):
    photo(root / "0.jpg")
    for name in ("cats.json", "val.json"):
        write(root / name, coco([("0.jpg", 40, 30)], [(1, 0, [1, 1, 9, 9])]))


def no_images(root):
    write(root / "all.json", coco([("0.jpg", 40, 30), ("1.jpg", 40, 30)], [(1, 0, [1, 1, 9, 9])]))


def a_bad_box(root):
    photo(root / "0.jpg")
    write(root / "all.json", coco([("0.jpg", 40, 30)], [(1, 0, [1, 1, 9, "9"])]))


def only_images(root):
    photo(root / "photos/0.jpg")


def broken_json(root):
    photo(root / "0.jpg")
    write(root / "all.json", '{"images": [')


def one_too_deep(root):
    yolo(root / "inner")


def no_data_yaml(root):
    yolo(root)
    (root / "data.yaml").unlink()


def two_data_yamls(root):
    yolo(root)
    shutil.copy(root / "data.yaml", root / "old.yaml")


def labels_without_images(root):
    yolo(root)
    (root / "images/2.jpg").unlink()


def images_without_labels(root):
    yolo(root)
    shutil.rmtree(root / "labels")


def no_train_folder(root):
    yolo(root, yaml="train: pictures\nnames: [cat, dog]\n")


def voc_in_strange_folders(root):
    for folder in ("day", "night"):
        photo(root / folder / "a.jpg")
        write(root / folder / "a.xml", voc_xml("a.jpg"))


def voc_without_image(root):
    photo(root / "JPEGImages/a.jpg")
    for name in "ab":
        write(root / f"Annotations/{name}.xml", voc_xml(f"{name}.jpg"))


def no_training_split(root):
    for split in ("valid", "test"):
        photo(root / split / "a.jpg")
        write(root / split / "_annotations.coco.json", coco([("a.jpg", 40, 30)], [(1, 0, [1, 1, 9, 9])]))


def one_image(root):
    photo(root / "0.jpg")
    write(root / "all.json", coco([("0.jpg", 40, 30)], [(1, 0, [1, 1, 9, 9])]))


MALFORMED = {
    two_formats: "annotations of 2 formats; move those away that are not meant\n  COCO JSON: all.json\n  YOLO",
    two_of_a_split: "several files are the annotations of 'train': .*train.json, .*train_old.json; keep",
    two_without_a_split: "which split is cats.json\\? There are cats.json, val.json; put train",
    no_images: "all.json: names 2 images, such as '0.jpg', and none is in ",
    a_bad_box: r"all.json: a mistake that training stops at(.|\n)*has bbox \[1, 1, 9, '9'\]; expected \[x, y",
    only_images: "no annotations that are known, but photos; expected one of\n  COCO JSON: train/_annotations",
    broken_json: "all.json is not JSON: ",
    one_too_deep: "/inner holds some: is that the folder",
    no_data_yaml: "labels/ of YOLO is there, and no data.yaml: write one",
    two_data_yamls: "several files are the data.yaml: .*data.yaml, .*old.yaml; keep",
    labels_without_images: "1 label files have no image, such as .*2.txt; put the images into",
    images_without_labels: "none of the 5 images such as .*0.jpg has labels: no file .*labels/0.txt",
    no_train_folder: "data.yaml: train: 'pictures' is not there; looked for ",
    voc_in_strange_folders: "holds Pascal VOC XML in day/, night/; expected one of",
    voc_without_image: "b: no image of that name",
    no_training_split: "has the splits .*, and none to train on",
    one_image: "has 1 image; to train and to evaluate it takes two or more",
}


@pytest.mark.parametrize("make", MALFORMED, ids=lambda make: make.__name__)
def test_malformed_folders(tmp_path, make):
    make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=MALFORMED[make]):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0 0.5 0.5 0.2\n", r"0.txt, line 1: '0 0.5 0.5 0.2' has 4 numbers; expected CLASS X Y WIDTH HEIGHT, or"),
        ("\n0 0.5 0.5 0.2 0.2 0.9\n", "line 1: .* has 6 numbers"),
        ("0 20 15 10 8\n", "has coordinates outside of 0 to 1"),
        ("0 nan 0.5 0.5 0.5\n", "has coordinates outside of 0 to 1"),
        ("cat 0.5 0.5 0.2 0.2\n", "holds what is no number"),
        ("2 0.5 0.5 0.2 0.2\n", "class 2 is not one of names, {0: 'cat', 1: 'dog'}"),
        ("0.5 0.5 0.5 0.2 0.2\n", "class 0.5 is not one of names"),
    ],
)
def test_malformed_labels(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        read_folder(yolo(tmp_path, labels))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images\nnames: !!python/object/apply:os.system ['touch ran']\n", "not YAML that can be read safely"),
        ("train: images\nnames: cat\n", r"names is 'cat'; expected names: \[cat, dog\], or"),
        ("train: images\nnames: {cat: 0}\n", "names is {'cat': 0}; expected"),
        ("train: images\nnames: [yes, no]\n", "class name True is no text; write it in quotation marks"),
        ("train: images\nnames: [cat, dog]\nnc: 3\n", "nc is 3, and names has 2"),
        ("names: [cat, dog]\n", r"has \['names'\]; expected train and val"),
        ("train: [images, more]\nnames: [cat, dog]\n", "train: 'more' is not there"),
    ],
)
def test_malformed_data_yaml(tmp_path, yaml, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_folder(yolo(tmp_path, yaml=yaml))
    assert not (tmp_path / "ran").exists()
