"""VOC conversion on real annotations, and on XML as people and attackers write it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from resnet_backbone.data.coco import CocoDataset
from resnet_backbone.data.voc import find_class_names, voc_to_coco

WIDTH, HEIGHT = 50, 40
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def item(xmin, ymin, xmax, ymax, name="cat", extra=""):
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def voc(root: Path, *contents: str, suffix: str = ".jpg") -> Path:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    stems = [f"image_{index}" for index in range(len(contents))]
    for stem, content in zip(stems, contents, strict=True):
        (root / "Annotations" / f"{stem}.xml").write_text(content, encoding="utf-8")
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / f"{stem}{suffix}")
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems) + "\n\n")
    return root


def one(root: Path, *objects: str, size: str = SIZE, **options):
    return voc_to_coco(voc(root, f"<annotation>{size}{''.join(objects)}</annotation>"), "train", **options)


def boxes(document):
    return [annotation["bbox"] for annotation in document["annotations"]]


@pytest.mark.parametrize("split", ["trainval", "test", "train", "val"])
def test_real_annotations(bccd, split, tmp_path):
    """Counts and coordinates against the text of the XML files."""
    document, report = voc_to_coco(bccd, split)
    stems = (bccd / "ImageSets/Main" / f"{split}.txt").read_text().split()
    texts = [(bccd / "Annotations" / f"{stem}.xml").read_text() for stem in stems]
    pattern = r"<xmin>(\d+)</xmin>\s*<ymin>(\d+)</ymin>\s*<xmax>(\d+)</xmax>\s*<ymax>(\d+)</ymax>"
    raw = [np.array(corners, dtype=float) for text in texts for corners in re.findall(pattern, text)]
    expected = [[b[0] - 1, b[1] - 1, b[2] - b[0] + 1, b[3] - b[1] + 1] for b in raw if b[2] > b[0] and b[3] > b[1]]
    assert boxes(document) == expected
    assert len(raw) == report.num_boxes + len(report.dropped)
    assert not report.clipped and not report.sizes_from_image and report.num_difficult == 0
    assert [image["file_name"] for image in document["images"]] == [f"{stem}.jpg" for stem in stems]
    assert [category["name"] for category in document["categories"]] == ["Platelets", "RBC", "WBC"]
    (tmp_path / "a.json").write_text(json.dumps(document))
    with contextlib.redirect_stdout(io.StringIO()):
        assert len(COCO(str(tmp_path / "a.json")).anns) == report.num_boxes
    dataset = CocoDataset(tmp_path / "a.json", bccd / "JPEGImages", training=False)
    assert dataset[0][0].shape == (3, 480, 640)


def test_the_real_set_has_two_empty_boxes(bccd):
    reports = [voc_to_coco(bccd, split)[1] for split in ("trainval", "test")]
    assert sum(report.num_boxes for report in reports) == 4886
    dropped = [entry for report in reports for entry in report.dropped]
    assert len(dropped) == 2
    assert {entry.split(",")[0] for entry in dropped} == {"BloodImage_00338.xml", "BloodImage_00343.xml"}
    assert all(entry in "\n".join(str(report) for report in reports) for entry in dropped)


def test_inclusive_corners(tmp_path):
    document, report = one(tmp_path, item(1, 1, WIDTH, HEIGHT), item(10, 20, 12, 24), item("3.5", "4.5", "8.5", "9.0"))
    assert boxes(document) == [[0, 0, WIDTH, HEIGHT], [9, 19, 3, 5], [2.5, 3.5, 6, 5.5]]
    assert [annotation["area"] for annotation in document["annotations"]] == [WIDTH * HEIGHT, 15, 33]
    assert [annotation["id"] for annotation in document["annotations"]] == [1, 2, 3]
    assert report.num_boxes == 3 and not report.dropped and not report.clipped


@pytest.mark.parametrize(
    "corners",
    [
        (5, 5, 5, 9),
        (5, 5, 9, 5),
        (9, 5, 5, 9),
        (5, 9, 9, 5),
        (0, 0, 0, 0),
        (60, 5, 70, 9),
        (-9, 5, 0, 9),
        (5, 41, 9, 45),
    ],
)
def test_boxes_without_area_are_dropped(tmp_path, corners):
    document, report = one(tmp_path, item(*corners), item(1, 1, 5, 5))
    assert boxes(document) == [[0, 0, 5, 5]] and document["annotations"][0]["id"] == 1
    assert len(report.dropped) == 1 and "image_0.xml, object 1 (cat)" in report.dropped[0]


@pytest.mark.parametrize(
    ("corners", "expected"),
    [((0, 0, 5, 5), [0, 0, 5, 5]), ((40, 30, 51, 44), [39, 29, 11, 11]), ((-5, -5, 500, 500), [0, 0, WIDTH, HEIGHT])],
)
def test_boxes_are_clipped(tmp_path, corners, expected):
    document, report = one(tmp_path, item(*corners))
    assert boxes(document) == [expected] and len(report.clipped) == 1 and "clipped to the image: 1" in str(report)


@pytest.mark.parametrize(("mark", "crowd"), [("<difficult>1</difficult>", 1), ("<difficult>0</difficult>", 0), ("", 0)])
def test_difficult_is_crowd(tmp_path, mark, crowd):
    document, report = one(tmp_path, item(1, 1, 5, 5, extra=mark))
    assert document["annotations"][0]["iscrowd"] == crowd == report.num_difficult


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size/>",
        "<size><width>0</width><height>0</height></size>",
        "<size><width></width><height> </height></size>",
        f"<size><width>{WIDTH}</width></size>",
    ],
)
def test_size_is_read_from_the_image(tmp_path, size):
    document, report = one(tmp_path, item(1, 1, 5, 5), size=size)
    assert (document["images"][0]["height"], document["images"][0]["width"]) == (HEIGHT, WIDTH)
    assert report.sizes_from_image == ("image_0.xml",)


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    document, _ = one(tmp_path, item(1, 1, 9, 9, extra=part))
    assert boxes(document) == [[0, 0, 9, 9]]
    assert [category["name"] for category in document["categories"]] == ["cat"]


def test_found_classes_are_those_of_all_splits(tmp_path):
    root = voc(tmp_path, *(f"<annotation>{SIZE}{item(1, 1, 5, 5, name)}</annotation>" for name in ("dog", "cat")))
    (root / "ImageSets/Main/val.txt").write_text("image_0\n")
    document, _ = voc_to_coco(root, "val")
    assert document["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert document["annotations"][0]["category_id"] == 2
    assert find_class_names(root) == ["cat", "dog"]


def test_given_classes_keep_their_order(tmp_path):
    document, _ = one(tmp_path, item(1, 1, 5, 5, "cat"), class_names=["dog", "cat"])
    assert document["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    with pytest.raises(ValueError, match=r"image_0\.xml: class 'cat' of object 1.*\['dog'\]"):
        one(tmp_path, item(1, 1, 5, 5, "cat"), class_names=["dog"])
    for names in ([], ["dog", "dog"]):
        with pytest.raises(ValueError, match="each once"):
            one(tmp_path, item(1, 1, 5, 5), class_names=names)


def test_class_specific_split_files(tmp_path):
    root = voc(tmp_path, *[f"<annotation>{SIZE}{item(1, 1, 5, 5)}</annotation>"] * 2)
    (root / "ImageSets/Main/cat_val.txt").write_text("image_1  1\nimage_0 -1\n")
    document, _ = voc_to_coco(root, "cat_val")
    assert [(image["id"], image["file_name"]) for image in document["images"]] == [
        (1, "image_1.jpg"),
        (2, "image_0.jpg"),
    ]


@pytest.mark.parametrize("suffix", [".jpeg", ".png", ".bmp", ".JPG"])
def test_other_image_suffixes(tmp_path, suffix):
    document, _ = voc_to_coco(voc(tmp_path, f"<annotation>{item(1, 1, 5, 5)}</annotation>", suffix=suffix), "train")
    assert document["images"][0]["file_name"] == f"image_0{suffix}"


def test_text_beyond_ascii(tmp_path):
    document, _ = one(tmp_path, item(1, 1, 5, 5, "\n  Äpfel &amp; 猫 "))
    assert document["categories"][0]["name"] == "Äpfel & 猫"


BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY cat SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    "prologue", [BOMB, OUTSIDE, "<!DOCTYPE annotation>", '<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd">']
)
def test_document_types_are_refused(tmp_path, prologue):
    root = voc(tmp_path, f"{prologue}<annotation>{SIZE}{item(1, 1, 5, 5, '&cat;')}</annotation>")
    with pytest.raises(ValueError, match=r"image_0\.xml: declares a document type"):
        voc_to_coco(root, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a well-formed"),
        ("<annotation>", "not a well-formed"),
        ("<annotation></anotation>", "not a well-formed"),
        ("<annotation>&unknown;</annotation>", "not a well-formed"),
        ("<html/>", "root is <html>"),
        ("<annotation><object/></annotation>", "<object> without <name>"),
        ("<annotation><object><name> </name></object></annotation>", "<object> without <name>"),
        ("<annotation><object><name>a</name></object></annotation>", "<object> without <bndbox><xmin>"),
        (f"<annotation>{item(1, 1, '', 5)}</annotation>", "without <bndbox><xmax>"),
        (f"<annotation>{item(1, 'two', 5, 5)}</annotation>", "<bndbox><ymin> is 'two'"),
        (f"<annotation>{item(1, 1, 'nan', 5)}</annotation>", "<bndbox><xmax> is 'nan'"),
        (f"<annotation>{item(1, 1, 5, '1e999')}</annotation>", "<bndbox><ymax> is '1e999'"),
        ("<annotation><size><width>a</width><height>5</height></size></annotation>", "<size><width> is 'a'"),
    ],
)
def test_malformed_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        voc_to_coco(voc(tmp_path, content), "train", ["cat", "a"])
    assert "image_0.xml" in str(error.value)


def test_missing_files(tmp_path):
    root = voc(tmp_path, f"<annotation>{SIZE}</annotation>")
    with pytest.raises(FileNotFoundError, match=r"tset\.txt: no such split file; there are \['train'\]"):
        voc_to_coco(root, "tset", ["cat"])
    (root / "JPEGImages/image_0.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="image_0: no image"):
        voc_to_coco(root, "train", ["cat"])
    (root / "Annotations/image_0.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"image_0\.xml: no such"):
        voc_to_coco(root, "train", ["cat"])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "lists no image"),
        ("a\nb\na\n", r"\['a'\] more than once"),
        ("../../x\n", "points out"),
        ("/etc/x\n", "points out"),
    ],
)
def test_split_files_that_are_refused(tmp_path, lines, message):
    root = voc(tmp_path, f"<annotation>{SIZE}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        voc_to_coco(root, "train", ["cat"])


def test_long_reports_are_cut(tmp_path):
    _, report = one(tmp_path, *[item(5, 5, 5, 5)] * 25, item(1, 1, 5, 5))
    assert len(report.dropped) == 25 and "and 5 more" in str(report)


def test_command_line(bccd, tmp_path, load_script, capsys):
    main = load_script("tools/convert_voc.py").main
    output = tmp_path / "new" / "trainval.json"
    assert (
        main(["--voc", str(bccd), "--split", "trainval", "--output", str(output), "--classes", "WBC,RBC,Platelets"])
        == 0
    )
    document = json.loads(output.read_text())
    assert document == voc_to_coco(bccd, "trainval", ["WBC", "RBC", "Platelets"])[0]
    printed = capsys.readouterr().out
    assert f"292 images, {len(document['annotations'])} boxes" in printed and "dropped: " in printed
    assert "classes: WBC, RBC, Platelets" in printed
