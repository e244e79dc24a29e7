"""ILSVRC's sets with boxes on generated files in the layout of its archives."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from resnet_backbone.data.catalog import check_dataset_files, get_dataset
from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.prepare.ilsvrc import ILSVRC_SETS, balanced_halves, prepare_ilsvrc, read_class_names

WIDTH, HEIGHT = 50, 40
DOG, CAT, ANT = "n02084071", "n02121808", "n02219486"
Object = tuple[str, int, int, int, int]


def write_image(base: Path, task: str, part: str, stem: str, objects: list[Object] | None) -> None:
    """One image, and its XML as ILSVRC writes it: no ending in <filename>; None writes no XML."""
    image = base / f"Data/{task}/{part}/{stem}.JPEG"
    image.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(image)
    if objects is None:
        return
    text = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><xmax>{x2}</xmax><ymin>{y1}</ymin><ymax>{y2}</ymax>"
        f"</bndbox></object>"
        for name, x1, y1, x2, y2 in objects
    )
    path = base / f"Annotations/{task}/{part}/{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><folder>{path.parent.name}</folder><filename>{path.stem}</filename>"
        f"<source><database>ILSVRC_2013</database></source><size><width>{WIDTH}</width><height>{HEIGHT}</height>"
        f"<depth>3</depth></size>{text}</annotation>"
    )


def write_list(base: Path, task: str, name: str, stems: list[str]) -> None:
    path = base / f"ImageSets/{task}/{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{stem} {number}\n" for number, stem in enumerate(stems, start=1)))


TRAIN = {
    f"ILSVRC2013_train/{DOG}/{DOG}_1": [(DOG, 0, 0, 9, 4)],
    "ILSVRC2014_train_0000/ILSVRC2014_train_00000001": [(CAT, 5, 5, 20, 20), (ANT, 1, 1, 3, 3)],
    "ILSVRC2013_train_extra0/ILSVRC2013_train_00000001": None,
}
VAL = {
    "ILSVRC2012_val_00000001": [(CAT, 0, 0, WIDTH - 1, HEIGHT - 1)],
    "ILSVRC2012_val_00000002": [],
    "ILSVRC2013_val_00000003": [(DOG, 10, 20, 12, 24), (ANT, 40, 30, WIDTH + 5, 35)],
    "ILSVRC2013_val_00000004": [(DOG, 7, 7, 7, 9)],
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    base = tmp_path / "ILSVRC"
    for part, images in (("train", TRAIN), ("val", VAL)):
        for stem, objects in images.items():
            write_image(base, "DET", part, stem, objects)
        write_list(base, "DET", part, list(images))
    for number, stems in enumerate((list(VAL)[2::-1], list(VAL)[3:]), start=1):
        write_list(base, "DET", f"val{number}", stems)
    (base / "devkit/data").mkdir(parents=True)
    (base / "devkit/data/map_det.txt").write_text(f"{ANT} 3 ant\n{DOG} 58 dog\n{CAT} 59 domestic cat\n")
    return tmp_path


@pytest.fixture
def main(root: Path, load_script: Callable) -> Callable[[list[str]], int]:
    return load_script("datasets/prepare_ilsvrc.py").main


def document_of(name: str) -> dict:
    return json.loads(get_dataset(name).json_path.read_text())


def boxes(name: str) -> list[tuple[str, list[float]]]:
    document = document_of(name)
    names = {category["id"]: category["name"] for category in document["categories"]}
    return [(names[note["category_id"]], note["bbox"]) for note in document["annotations"]]


def test_a_set_of_each_kind(main, root, capsys):
    assert main(["--names", str(root / "ILSVRC/devkit/data/map_det.txt")]) == 0
    printed = capsys.readouterr().out
    assert "ilsvrc_det_train: 2 images, 3 boxes" in printed and "ilsvrc_det_val1: 3 images, 3 boxes" in printed
    for name in ("ilsvrc_det_train", "ilsvrc_det_val1", "ilsvrc_det_val2"):
        spec = get_dataset(name)
        check_dataset_files(spec)
        dataset = CocoDataset(spec.json_path, spec.image_folder, training=False)
        dataset.check_images()
        assert dataset.class_names == ("dog", "domestic cat", "ant")  # in the order of the WordNet ids
        assert dataset[0][0].shape == (3, HEIGHT, WIDTH)
    assert [category["synset"] for category in document_of("ilsvrc_det_train")["categories"]] == [DOG, CAT, ANT]
    # Corners from 0 with the last pixel included: the whole image is WIDTH x HEIGHT.
    assert boxes("ilsvrc_det_train") == [
        ("dog", [0, 0, 10, 5]),
        ("domestic cat", [5, 5, 16, 16]),
        ("ant", [1, 1, 3, 3]),
    ]
    assert boxes("ilsvrc_det_val1") == [
        ("dog", [10, 20, 3, 5]),
        ("ant", [40, 30, WIDTH - 40, 6]),
        ("domestic cat", [0, 0, WIDTH, HEIGHT]),
    ]
    # Without an annotation file an image of train is left out; without an object one of val stays.
    assert [image["file_name"] for image in document_of("ilsvrc_det_train")["images"]] == [
        f"{stem}.JPEG" for stem in list(TRAIN)[:2]
    ]
    assert [image["file_name"] for image in document_of("ilsvrc_det_val1")["images"]] == [
        f"{stem}.JPEG" for stem in list(VAL)[2::-1]
    ]
    assert "clipped to the image: 1" in printed and f"object 1 ({DOG}) [7.0, 7.0, 7.0, 9.0]" in printed


def test_the_balanced_halves_are_the_whole(main):
    assert main(["--sets", "ilsvrc_det_balanced1", "ilsvrc_det_balanced2"]) == 0
    halves = [document_of(f"ilsvrc_det_balanced{number}") for number in (1, 2)]
    names = [[image["file_name"] for image in half["images"]] for half in halves]
    assert sorted(sum(names, [])) == sorted(f"{stem}.JPEG" for stem in VAL) and min(map(len, names)) == 2
    assert sum(len(half["annotations"]) for half in halves) == 3
    assert {category["name"] for category in halves[0]["categories"]} == {DOG, CAT, ANT}


def test_localisation(root, main):
    for number in (1, 2):
        stem = f"ILSVRC2012_val_0000000{number}"
        write_image(root / "ILSVRC", "CLS-LOC", "val", stem, [("n01440764", number, 3, 12, 9)])
    write_list(root / "ILSVRC", "CLS-LOC", "val", [f"ILSVRC2012_val_0000000{number}" for number in (1, 2)])
    assert main(["--sets", "ilsvrc_loc_val"]) == 0
    assert boxes("ilsvrc_loc_val") == [("n01440764", [1, 3, 12, 7]), ("n01440764", [2, 3, 11, 7])]
    check_dataset_files(get_dataset("ilsvrc_loc_val"))


def random_document(seed: int, images: int = 400, classes: int = 20) -> dict:
    """Objects of classes that differ a hundredfold in frequency."""
    draw = random.Random(seed)
    documents: dict = {"images": [{"id": i, "file_name": f"{i:06}.JPEG"} for i in range(1, images + 1)]}
    notes = [
        {"image_id": i, "category_id": c}
        for i in range(1, images + 1)
        for c in range(1, classes + 1)
        for _ in range(draw.randint(1, 4) if draw.random() < 0.5 / c else 0)
    ]
    return documents | {"annotations": notes}


@pytest.mark.parametrize("seed", range(5))
def test_halves_are_balanced(seed):
    document = random_document(seed)
    first, second = balanced_halves(document)
    assert sorted(first + second) == list(range(1, 401)) and abs(len(first) - len(second)) <= 20
    counts = [
        Counter(note["category_id"] for note in document["annotations"] if note["image_id"] in half)
        for half in (set(first), set(second))
    ]
    for category in counts[0] | counts[1]:
        one, other = (count[category] for count in counts)
        assert abs(one - other) <= max(2, 0.1 * (one + other)), category


def test_halves_depend_on_the_names_alone():
    document = random_document(0)
    names = {image["id"]: image["file_name"] for image in document["images"]}
    expected = [{names[i] for i in half} for half in balanced_halves(document)]
    random.Random(1).shuffle(document["images"])
    random.Random(2).shuffle(document["annotations"])
    assert [{names[i] for i in half} for half in balanced_halves(document)] == expected


def test_what_is_missing_is_said(root, main, capsys):
    lists = root / "ILSVRC/ImageSets/DET"
    (lists / "val2.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"val2\.txt: no such list.*curl -L https://github\.com/rbgirshick/rcnn"
    ):
        prepare_ilsvrc(root, "ilsvrc_det_val2")
    (lists / "train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.txt: no such list of images$"):
        prepare_ilsvrc(root, "ilsvrc_det_train")
    with pytest.raises(FileNotFoundError, match=r"no folder Annotations/CLS-LOC/val and no Data/CLS-LOC/val.*ln -s"):
        prepare_ilsvrc(root, "ilsvrc_loc_val")
    (root / "ILSVRC/Annotations/DET/val" / f"{list(VAL)[0]}.xml").unlink()
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        prepare_ilsvrc(root, "ilsvrc_det_val1")
    assert main(["--sets", "ilsvrc_loc_val"]) == 1 and capsys.readouterr().err.startswith("error: ")
    assert not (root / "ilsvrc").exists()


def test_train_without_any_annotation(root):
    for path in (root / "ILSVRC/Annotations/DET/train").rglob("*.xml"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no annotation file of the images"):
        prepare_ilsvrc(root, "ilsvrc_det_train")


def test_a_class_of_train_alone_is_refused(root):
    stem = next(iter(TRAIN))
    write_image(root / "ILSVRC", "DET", "train", stem, [("n00007846", 0, 0, 9, 9)])
    with pytest.raises(ValueError, match="class 'n00007846' of object 1"):
        prepare_ilsvrc(root, "ilsvrc_det_train")


def test_names_of_classes(root, tmp_path):
    path = tmp_path / "map.txt"
    path.write_text("n02012849 135 crane\nn02119789 1 kit fox\nn03126707 518 crane\n")
    assert read_class_names(path) == {
        "n02012849": "crane (n02012849)",
        "n02119789": "kit fox",
        "n03126707": "crane (n03126707)",
    }
    with pytest.raises(ValueError, match=f"has no line for {DOG}, {CAT}, {ANT}"):
        prepare_ilsvrc(root, "ilsvrc_det_val1", path)
    for line in ("dog", "n1 1 dog", f"{DOG} dog", f"{DOG} 1 dog\n{DOG} 2 cat", "\x00\xff"):
        path.write_text(line, encoding="latin-1")
        with pytest.raises(ValueError, match=r"map\.txt, line \d: .*expected a WordNet id"):
            read_class_names(path)


def test_the_sets_are_those_of_the_catalog():
    for name, chosen in ILSVRC_SETS.items():
        spec = get_dataset(name)
        assert spec.image_folder.parts[-4:] == ("ILSVRC", "Data", chosen.task, chosen.part)
        assert spec.json_path.parts[-3:] == ("ilsvrc", "annotations", f"{name}.json")
        assert name in spec.fetch_command
