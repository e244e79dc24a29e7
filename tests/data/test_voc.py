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

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.prepare.voc_folder import VocFolder
from resnet_backbone.data.prepare.voc_xml import find_class_names, voc_to_coco

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
    assert not report.clipped and report.num_difficult == 0
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
    assert find_class_names(VocFolder(root)) == ["cat", "dog"]


def test_given_classes_keep_their_order(tmp_path):
    document, _ = one(tmp_path, item(1, 1, 5, 5, "cat"), class_names=["dog", "cat"])
    assert document["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    with pytest.raises(ValueError, match=r"image_0\.xml: class 'cat' of object 1.*\['dog'\]"):
        one(tmp_path, item(1, 1, 5, 5, "cat"), class_names=["dog"])
    for names in ([], ["dog", "dog"]):
        with pytest.raises(ValueError, match="each once"):
            one(tmp_path, item(1, 1, 5, 5), class_names=names)


def test_no_object_at_all(tmp_path):
    with pytest.raises(ValueError, match="no annotation file in .* has an object"):
        one(tmp_path)
    assert one(tmp_path, class_names=["cat"])[0]["annotations"] == []


def test_class_specific_split_files(tmp_path):
    root = voc(tmp_path, *[f"<annotation>{SIZE}{item(1, 1, 5, 5)}</annotation>"] * 2)
    (root / "ImageSets/Main/cat_val.txt").write_text("image_1  1\nimage_0 -1\n")
    document, _ = voc_to_coco(root, "cat_val")
    assert [(image["id"], image["file_name"]) for image in document["images"]] == [
        (1, "image_1.jpg"),
        (2, "image_0.jpg"),
    ]


@pytest.mark.parametrize("suffix", [".jpeg", ".png", ".bmp", ".JPG", ".Jpg", ".tif", ".TIFF", ".webp"])
def test_other_image_suffixes(tmp_path, suffix):
    document, _ = voc_to_coco(voc(tmp_path, f"<annotation>{item(1, 1, 5, 5)}</annotation>", suffix=suffix), "train")
    assert document["images"][0]["file_name"] == f"image_0{suffix}"


def test_text_beyond_ascii(tmp_path):
    document, _ = one(tmp_path, item(1, 1, 5, 5, "\n  Äpfel &amp; 猫 "))
    assert document["categories"][0]["name"] == "Äpfel & 猫"


FLAGS = {"0": 0, "1": 1, " 1 ": 1, "true": 1, "TRUE": 1, "Yes": 1, "false": 0, "no": 0, "1.0": 1, "0.0": 0, "": 0,
         "Unspecified": 0}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FLAGS.items())
def test_words_of_difficult(tmp_path, text, expected):
    document, report = one(tmp_path, item(1, 1, 5, 5, extra=f"<difficult>{text}</difficult>"))
    assert (document["annotations"][0]["iscrowd"], report.num_difficult) == (expected, expected)


@pytest.mark.parametrize("text", ["2", "-1", "hard", "nan", "truncated"])
def test_other_words_of_difficult_are_refused(tmp_path, text):
    with pytest.raises(ValueError, match=rf"image_0\.xml: <difficult> is '{text}'; expected 0 or 1"):
        one(tmp_path, item(1, 1, 5, 5, extra=f"<difficult>{text}</difficult>"))


@pytest.mark.parametrize(
    "twice", ["<name>dog</name>", "<difficult>0</difficult>" * 2, "<bndbox><xmin>1</xmin></bndbox>"]
)
def test_what_is_there_twice_is_refused(tmp_path, twice):
    with pytest.raises(ValueError, match="2 times; expected it once"):
        one(tmp_path, item(1, 1, 5, 5, extra=twice))


def test_tags_in_capitals_and_in_a_namespace(tmp_path):
    plain = f"<annotation>{SIZE}{item(2, 3, 5, 7, extra='<difficult>1</difficult>')}</annotation>"
    document, _ = voc_to_coco(voc(tmp_path / "a", plain), "train")
    changed = re.sub(r"<(/?)(\w)", lambda match: f"<{match[1]}{match[2].upper()}", plain)
    assert "<Annotation>" in changed and "<Xmin>" in changed
    with_namespace = plain.replace("<annotation>", '<annotation xmlns="http://example.org/voc" verified="yes">')
    for name, content in (("b", changed), ("c", with_namespace)):
        assert voc_to_coco(voc(tmp_path / name, content), "train")[0]["annotations"] == document["annotations"]


def listed(root: Path, content: bytes, *names: str) -> list[str]:
    """What is read from a list of images, in a folder that has the images ``names``."""
    voc(root)
    for name in names:
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{SIZE}{item(1, 1, 5, 5)}</annotation>")
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "ImageSets/Main/train.txt").write_bytes(content)
    return [image["file_name"].removesuffix(".jpg") for image in voc_to_coco(root, "train")[0]["images"]]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"scan (2)\n", ["scan (2)"]),
        (b"blood 7\nblood 8\n", ["blood 7", "blood 8"]),
        (b"blood 0\nblood 1\n", ["blood 0", "blood 1"]),
        (b"blood 7  1\nblood 8 -1\nx  0\n", ["blood 7", "blood 8", "x"]),
        (b"\xef\xbb\xbfa\r\n\r\n  b \r\n", ["a", "b"]),
        ("\ufeffa\r\n猫\r\n".encode("utf-16-le"), ["a", "猫"]),
        (b"a.jpg\nb.PNG\n", ["a", "b"]),
        (b"a.b\na.c\n", ["a.b", "a.c"]),
        (b"a\x85b\n", None),
        ("Bild\u202f1\u00a0x\n".encode(), ["Bild\u202f1\u00a0x"]),
        (b"a\n._a\n.ipynb_checkpoints/a\n", ["a"]),
    ],
)
def test_lists_of_images(tmp_path, content, names):
    if names is None:
        with pytest.raises(ValueError, match="is not text in UTF-8"):
            listed(tmp_path, content)
    else:
        assert listed(tmp_path, content, *names) == names


def test_a_line_of_a_list_is_not_another_image(tmp_path):
    """``scan`` is there, too."""
    assert listed(tmp_path, b"scan (2)\n", "scan", "scan (2)") == ["scan (2)"]


def with_images(root: Path, stated: str, *names: str) -> Path:
    """A folder with ``a.xml``, whose ``<filename>`` is ``stated``, and images; each is named by its width."""
    (root / "ImageSets/Main").mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir()
    filename = f"<filename>{stated}</filename>" if stated else ""
    (root / "Annotations/a.xml").write_text(f"<annotation>{filename}{item(1, 1, 5, 5)}</annotation>")
    for name in names:
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "JPEGImages" / name)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    return root


@pytest.mark.parametrize(
    ("stated", "names", "expected", "note"),
    [
        ("", ["a.jpg"], "a.jpg", ""),
        ("a.png", ["a.jpg", "a.png"], "a.png", "took a.png, which <filename> says"),
        (r"C:\data\a.png", ["a.jpg", "a.png"], "a.png", "took a.png, which <filename> says"),
        ("other.png", ["a.jpg"], "a.jpg", "took a.jpg; <filename> says 'other.png', which is not there"),
        ("a", ["a.jpg"], "a.jpg", ""),
        ("A.JPEG", ["a.jpg"], "a.jpg", ""),
        ("other.png", ["other.png"], "other.png", "took other.png, which <filename> says"),
    ],
)
def test_filename_is_read(tmp_path, caplog, stated, names, expected, note):
    document, _ = voc_to_coco(with_images(tmp_path / "x", stated, *names), "train")
    assert [image["file_name"] for image in document["images"]] == [expected]
    assert len(caplog.records) == bool(note) and note in caplog.text


@pytest.mark.parametrize(
    ("stated", "names"), [("", ["a.jpg", "a.png"]), ("a.bmp", ["a.jpg", "a.png"]), ("b.jpg", ["a.jpg", "b.jpg"])]
)
def test_an_image_that_nothing_decides_is_refused(tmp_path, stated, names):
    with pytest.raises(ValueError, match=f"{', '.join(names)} are there, and <filename> is '{stated}'"):
        voc_to_coco(with_images(tmp_path / "x", stated, *names), "train")


def test_one_image_of_two_annotation_files_is_refused(tmp_path):
    root = with_images(tmp_path / "x", "b.jpg", "b.jpg")
    (root / "Annotations/b.xml").write_text(f"<annotation>{item(1, 1, 5, 5)}</annotation>")
    with pytest.raises(ValueError, match=r"b\.jpg: a\.xml and b\.xml are both of this image"):
        voc_to_coco(root, None)


def test_hidden_files_are_no_annotations_and_no_images(tmp_path):
    root = voc(tmp_path, *[f"<annotation>{SIZE}{item(1, 1, 5, 5)}</annotation>"] * 2)
    expected = voc_to_coco(root, "train")[0]
    (root / "Annotations/._image_0.xml").write_bytes(b"\0\5\x16\7")
    (root / "JPEGImages/._image_0.png").write_bytes(b"\0\5\x16\7")
    (root / "Annotations/.ipynb_checkpoints").mkdir()
    (root / "Annotations/.ipynb_checkpoints/image_0.xml").write_text(
        f"<annotation>{item(1, 1, 5, 5, 'no')}</annotation>"
    )
    assert find_class_names(VocFolder(root)) == ["cat"] and voc_to_coco(root, "train")[0] == expected
    document, report = voc_to_coco(root, None)
    assert document["images"] == expected["images"]


def test_xml_beside_the_images(tmp_path, caplog):
    root = voc(tmp_path / "voc", *[f"<annotation>{SIZE}{item(1, 1, 5, 5)}</annotation>"] * 2)
    expected = voc_to_coco(root, "train")[0]
    flat = tmp_path / "flat"
    flat.mkdir()
    for folder in ("Annotations", "JPEGImages"):
        for path in (root / folder).iterdir():
            path.rename(flat / path.name)
    Image.new("RGB", (9, 9)).save(flat / "nothing.png")
    (flat / "image_1.xml").rename(flat / "image_1.XML")
    document, report = voc_to_coco(flat, None)
    assert [document[key] for key in ("images", "annotations", "categories")] == [
        expected[key] for key in ("images", "annotations", "categories")
    ]
    assert report.image_folder == flat and "left out 1 images without annotation, such as nothing.png" in caplog.text
    with pytest.raises(FileNotFoundError, match="Without a split, all annotated images are taken"):
        voc_to_coco(flat, "train")


def test_folders_below_annotations(tmp_path, caplog):
    """Their objects give classes, too, and without a split their images are taken."""
    root = voc(tmp_path, *[f"<annotation>{SIZE}{item(1, 1, 5, 5, name)}</annotation>" for name in ("cat", "dog")])
    for folder, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (root / folder / "cam").mkdir()
        (root / folder / f"image_1.{suffix}").rename(root / folder / f"cam/image_1.{suffix}")
    Image.new("RGB", (9, 9)).save(root / "JPEGImages/cam/other.png")
    document, report = voc_to_coco(root, None)
    assert [image["file_name"] for image in document["images"]] == ["cam/image_1.jpg", "image_0.jpg"]
    assert "left out 1 images without annotation, such as other.png" in caplog.text
    (root / "ImageSets/Main/train.txt").write_text("cam/image_1\n")
    document, _ = voc_to_coco(root, "train")
    assert [image["file_name"] for image in document["images"]] == ["cam/image_1.jpg"]
    assert [category["name"] for category in document["categories"]] == ["cat", "dog"]


@pytest.mark.parametrize("ending", ["xml", "XML", "Xml"])
@pytest.mark.parametrize("line", ["image_0", "image_0.xml", "image_0.Jpg"])
def test_endings_of_annotation_files(tmp_path, ending, line):
    root = voc(tmp_path, f"<annotation>{SIZE}{item(1, 1, 5, 5)}</annotation>", suffix=".JPG")
    (root / "Annotations/image_0.xml").rename(root / f"Annotations/image_0.{ending}")
    (root / "ImageSets/Main/train.txt").write_text(line)
    assert voc_to_coco(root, "train")[0]["annotations"] == voc_to_coco(root, None)[0]["annotations"] != []


@pytest.mark.parametrize(
    ("line", "image", "advice"),
    [
        ("IMAGE_0", "image_0.jpg", 'write "image_0.xml" for "IMAGE_0.xml"'),
        ("JPEGImages/image_0", "image_0.jpg", 'write "image_0.xml" for'),
        ("image_0", "Image_0.png", 'write "Image_0.png" for'),
        ("image_0", "cam/image_0.png", 'write "cam/image_0.png" for'),
        ("image_0", "image_0.heic", "no image of that name; images end in .apng"),
    ],
)
def test_other_spellings_of_missing_files_are_named(tmp_path, line, image, advice):
    root = voc(tmp_path, f"<annotation><filename>x.jpg</filename>{SIZE}{item(1, 1, 5, 5)}</annotation>")
    xml = root / "Annotations/image_0.xml"
    xml.write_text(xml.read_text().replace("x.jpg", f"image_0{Path(image).suffix}"))
    (root / "JPEGImages" / image).parent.mkdir(exist_ok=True)
    (root / "JPEGImages/image_0.jpg").rename(root / "JPEGImages" / image)
    (root / "ImageSets/Main/train.txt").write_text(line)
    with pytest.raises(FileNotFoundError, match=re.escape(advice)):
        voc_to_coco(root, "train")


def test_folders_that_are_not_laid_out_as_voc(tmp_path):
    root = voc(tmp_path / "kit/VOC2007", f"<annotation>{SIZE}{item(1, 1, 5, 5)}</annotation>")
    for folder in (root / "JPEGImages", root / "Annotations", tmp_path, tmp_path / "kit"):
        with pytest.raises(
            FileNotFoundError, match=rf"no folder Annotations and no JPEGImages; write {root}, which has"
        ):
            voc_to_coco(folder, "train")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        voc_to_coco(tmp_path / "nowhere", "train")
    (root / "Annotations").rename(root / "annotations")
    with pytest.raises(FileNotFoundError, match="no folder Annotations; it holds ImageSets, JPEGImages, annotations"):
        voc_to_coco(root, "train")
    (root / "JPEGImages").rename(root / "images")
    with pytest.raises(
        FileNotFoundError, match=r"no folder Annotations and no JPEGImages; it holds ImageSets, annotations, images"
    ):
        voc_to_coco(root, None)


TEXT = f"<annotation>{SIZE}{item(1, 1, 5, 5, '{}')}</annotation>"
ENCODINGS = {
    "gbk": "细胞", "gb2312": "细胞", "GB18030": "细胞𠀀", "big5": "細胞", "Shift_JIS": "猫ソ", "cp932": "①猫",
    "EUC-JP": "猫", "ISO-2022-JP": "猫", "euc-kr": "고양이", "cp949": "똠", "utf-16": "猫", "utf-32": "猫",
    "utf-16le": "猫", "windows-1251": "кот", "iso-8859-1": "Äpfel", "utf-8-sig": "猫", "utf8": "猫", "": "猫",
}  # fmt: skip


@pytest.mark.parametrize("declared", ENCODINGS)
def test_encodings(tmp_path, declared):
    name = ENCODINGS[declared]
    start = f"<?xml version='1.0' encoding='{declared.removesuffix('-sig')}'?>" if declared else ""
    root = voc(tmp_path, "")
    (root / "Annotations/image_0.xml").write_bytes((start + TEXT.format(name)).encode(declared or "utf-8"))
    assert find_class_names(VocFolder(root)) == [name]


def test_utf8_that_calls_itself_utf16(tmp_path):
    """As .NET writes it."""
    root = voc(tmp_path, '<?xml version="1.0" encoding="utf-16"?>' + TEXT.format("猫"))
    assert find_class_names(VocFolder(root)) == ["猫"]


@pytest.mark.parametrize("declared", ["gbk", "utf-7", "idna", "rot13", "base64", "evil"])
def test_encodings_that_are_not_so(tmp_path, declared):
    root = voc(tmp_path, "")
    start = f'<?xml version="1.0" encoding="{declared}"?>'.encode()
    (root / "Annotations/image_0.xml").write_bytes(start + TEXT.format("+").encode().replace(b"+", b"\xff\xff"))
    with pytest.raises(ValueError, match=r"image_0\.xml: (is not text in|not a well-formed)"):
        voc_to_coco(root, "train", ["a"])


BOMB = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY cat SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    "prologue",
    [
        f'<?xml version="1.0" encoding="gbk"?>{BOMB}',
        BOMB,
        OUTSIDE,
        "<!DOCTYPE annotation>",
        '<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd">',
    ],
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
    main = load_script("tools/convert_voc.py").main.__wrapped__  # its errors, not their text
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
