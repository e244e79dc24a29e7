"""datasets/prepare_voc.py from end to end, with a local server in place of the official one."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torchvision.datasets import voc as torchvision_voc

from resnet_backbone.data.catalog import check_dataset_files, get_dataset
from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.prepare.voc import (
    VOC_CLASSES,
    VOC_SPLITS,
    file_problems,
    prepare_voc,
    prepare_voc_from,
    split_problems,
)

STEMS = {
    "voc07_trainval": ["000005", "000007", "000009"],
    "voc07_test": ["000001", "000002"],
    "voc12_trainval": ["2008_000002", "2008_000003", "2008_000007", "2008_000008"],
    "voc12_test": ["2008_000001", "2008_000004"],
}


@pytest.fixture
def voc(faulty_site, write_devkit, monkeypatch, tmp_path) -> Path:
    """Serves the four archives with a few images each; VOC_SPLITS knows their hashes and counts. Returns the web."""
    for name, stems in STEMS.items():
        split = VOC_SPLITS[name]
        devkit = tmp_path / f"{name}-devkit"
        write_devkit(devkit, split.folder, split.split, stems, annotations=split.num_objects is not None)
        path = faulty_site.folder / split.archive.path
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            archive.add(devkit, "VOCdevkit")
        small = replace(split.archive, md5=hashlib.md5(path.read_bytes()).hexdigest())
        objects = None if split.num_objects is None else len(stems) - 1  # the second one is difficult
        monkeypatch.setitem(VOC_SPLITS, name, replace(split, num_images=len(stems), num_objects=objects, archive=small))
    return faulty_site.folder


@pytest.fixture
def data_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def main(data_root, load_script) -> Callable[[list[str]], int]:
    return load_script("datasets/prepare_voc.py").main.__wrapped__  # its errors, not their text


def check(name: str) -> None:
    spec = get_dataset(name)
    check_dataset_files(spec)
    dataset = CocoDataset(spec.json_path, spec.image_folder, training=False)
    dataset.check_images()
    assert (len(dataset), dataset.class_names) == (len(STEMS[name]), VOC_CLASSES)
    assert dataset[0][0].shape == (3, 60, 70)


def test_download(main, data_root, voc, faulty_site, capsys):
    assert main(["--check"]) == 1
    missing = f"voc07_trainval: missing (no folder {data_root / 'VOC2007'}). Get it with: python "
    assert f"{missing}datasets/prepare_voc.py --sets voc07_trainval\n" in capsys.readouterr().out
    assert main(["--url", faulty_site.url]) == 0
    printed = capsys.readouterr().out
    assert "voc07_trainval: complete, 3 images\n3 images, 3 boxes, 1 of them difficult" in printed
    for name in ("voc07_trainval", "voc07_test", "voc12_trainval"):
        check(name)
    document = json.loads(get_dataset("voc07_test").json_path.read_text())
    assert document["annotations"][0]["bbox"] == [0, 1, 20, 29]
    assert [note["iscrowd"] for note in document["annotations"]] == [0, 1]
    assert document["annotations"][0]["category_id"] == VOC_CLASSES.index("cat") + 1
    unpacked = {path.relative_to(data_root).as_posix() for path in data_root.rglob("*") if path.is_file()}
    assert not [path for path in unpacked if "Layout" in path or "Segmentation" in path or path.endswith(".tar")]
    assert main(["--check"]) == 0
    asked = len(faulty_site.asked)
    assert main(["--url", faulty_site.url]) == 0 and len(faulty_site.asked) == asked  # nothing is asked for again


def test_detectron2_finds_the_same_images(main, voc, faulty_site, data_root):
    module = pytest.importorskip("detectron2.data.datasets.pascal_voc", reason="Detectron2 is not installed")
    assert main(["--url", faulty_site.url, "--sets", "voc07_test"]) == 0
    theirs = module.load_voc_instances(str(data_root / "VOC2007"), "test", VOC_CLASSES)
    assert tuple(module.CLASS_NAMES) == VOC_CLASSES
    ours = json.loads(get_dataset("voc07_test").json_path.read_text())
    for record, image, note in zip(theirs, ours["images"], ours["annotations"], strict=True):
        assert Path(record["file_name"]) == get_dataset("voc07_test").image_folder / image["file_name"]
        x, y, width, height = note["bbox"]
        assert record["annotations"][0]["bbox"] == [x, y, x + width, y + height]
        assert record["annotations"][0]["category_id"] == note["category_id"] - 1


def test_what_got_lost_is_fetched_again(main, voc, faulty_site, data_root, capsys):
    arguments = ["--url", faulty_site.url, "--sets", "voc07_trainval"]
    assert main(arguments) == 0
    (data_root / "VOC2007/JPEGImages/000007.jpg").unlink()
    (data_root / "VOC2007/Annotations/000009.xml").write_bytes(b"")
    assert main(["--check", "--sets", "voc07_trainval"]) == 1
    printed = capsys.readouterr().out
    assert "1 of 3 files are missing" in printed and "000007.jpg" in printed and "000009.xml" in printed
    assert main(arguments) == 0
    check("voc07_trainval")
    get_dataset("voc07_trainval").json_path.write_text('{"images": []}')
    assert main(["--check", "--sets", "voc07_trainval"]) == 1
    assert "is not a COCO file" in capsys.readouterr().out
    assert main(arguments) == 0 and main(["--check", "--sets", "voc07_trainval"]) == 0


def test_a_devkit_that_is_there(main, voc, data_root, tmp_path, faulty_site, capsys):
    devkit = tmp_path / "voc07_trainval-devkit"
    assert main(["--source", str(devkit), "--sets", "voc07_trainval"]) == 0
    check("voc07_trainval")
    assert (data_root / "VOC2007").is_symlink() and (data_root / "VOC2007").samefile(devkit / "VOC2007")
    assert not list(devkit.rglob("*.json")) and not faulty_site.asked
    assert main(["--source", str(devkit), "--sets", "voc07_trainval"]) == 0
    with pytest.raises(FileNotFoundError, match="test is incomplete"):
        main(["--source", str(devkit), "--sets", "voc07_test"])
    with pytest.raises(FileNotFoundError, match="expected VOCdevkit with VOC2012 in it"):
        main(["--source", str(devkit), "--sets", "voc12_trainval"])
    with pytest.raises(ValueError, match="is there already, and is not"):
        main(["--source", str(tmp_path / "voc07_test-devkit"), "--sets", "voc07_test"])
    devkit.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="is a link to .*, which is no longer there; delete the link"):
        main(["--source", str(tmp_path / "moved"), "--sets", "voc07_trainval"])


def test_files_in_place_are_converted_without_a_download(voc, data_root, tmp_path, faulty_site):
    (tmp_path / "voc07_test-devkit/VOC2007").rename(tmp_path / "VOC2007")
    report = prepare_voc(tmp_path, VOC_SPLITS["voc07_test"], base_url="https://example.invalid")
    assert report.num_boxes == 2 and not split_problems(tmp_path, VOC_SPLITS["voc07_test"])
    assert prepare_voc(tmp_path, VOC_SPLITS["voc07_test"], base_url="https://example.invalid") is None


def test_the_secret_test_set(main, voc, data_root, capsys):
    with pytest.raises(FileNotFoundError, match=r"those who register.*--sets voc12_test --archive VOC2012test\.tar"):
        main(["--sets", "voc12_test"])
    assert get_dataset("voc12_test").fetch_command.startswith("resnet-backbone prepare voc --sets voc12_test")
    archive = voc / "VOC2012test.tar"
    assert main(["--sets", "voc12_test", "--archive", str(archive)]) == 0
    assert "voc12_test: complete, 2 images" in capsys.readouterr().out
    check("voc12_test")
    assert json.loads(get_dataset("voc12_test").json_path.read_text())["annotations"] == []
    assert archive.is_file()  # it is the user's
    other = voc / "voc2012/VOCtrainval_11-May-2012.tar"
    with pytest.raises(ValueError, match=r"VOCtrainval_11-May-2012\.tar: its md5 is"):
        main(["--sets", "voc12_test", "--archive", str(other), "--output", str(data_root / "other")])


@pytest.mark.parametrize("arguments", [["--archive", "x"], ["--archive", "x", "--source", "y", "--sets", "voc07_test"]])
def test_an_archive_is_of_one_set(main, arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--archive goes with one name" in capsys.readouterr().err


def test_other_counts_than_published(voc, data_root, faulty_site):
    split = VOC_SPLITS["voc07_test"]
    with pytest.raises(ValueError, match="lists 2 images, expected 4952"):
        prepare_voc(data_root, replace(split, num_images=4952), base_url=faulty_site.url)
    with pytest.raises(ValueError, match=r"\(2, 1\), expected \(2, 12032\)"):
        prepare_voc(data_root, replace(split, num_objects=12032), base_url=faulty_site.url)


def test_real_folder(bccd, tmp_path):
    """BCCD in VOC's place: its counts are wrong for VOC, and its classes are not VOC's."""
    (tmp_path / "VOC2007").symlink_to(bccd)
    split = replace(VOC_SPLITS["voc07_test"], num_images=72)
    assert file_problems(tmp_path, split) == []
    with pytest.raises(ValueError, match="is not one of"):
        prepare_voc_from(tmp_path, split, tmp_path)
    assert not (tmp_path / "voc").exists()


def test_published_counts_and_hashes():
    """The counts of the VOC 2007 and 2012 documents; the hashes that torchvision checks."""
    counts = {name: (split.num_images, split.num_objects) for name, split in VOC_SPLITS.items()}
    assert counts == {
        "voc07_trainval": (5011, 12608),
        "voc07_test": (4952, 12032),
        "voc12_trainval": (11540, 27450),
        "voc12_test": (10991, None),
    }
    for name, key in (("voc07_trainval", "2007"), ("voc07_test", "2007-test"), ("voc12_trainval", "2012")):
        theirs, ours = torchvision_voc.DATASET_YEAR_DICT[key], VOC_SPLITS[name].archive
        assert (ours.md5, ours.name) == (theirs["md5"], theirs["filename"]), name
