"""The datasets/prepare_*.py scripts from end to end, with a local server in place of the public ones."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from resnet_backbone.data.catalog import check_dataset_files, get_dataset
from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.prepare.coco import COCO_RELEASES, CocoRelease, fetch_coco, split_problems
from resnet_backbone.weights.download import DownloadError
from tests.processes import ROOT, Forked, script


@pytest.fixture
def data_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data"


def test_shapes(data_root, load_script, capsys):
    main = load_script("datasets/prepare_shapes.py").main.__wrapped__  # its errors, not their text
    assert main(["--train", "4", "--val", "2", "--image-size", "96"]) == 0
    assert "generated 4 training and 2 validation images" in capsys.readouterr().out
    for name, number in (("shapes_train", 4), ("shapes_val", 2)):
        spec = get_dataset(name)
        check_dataset_files(spec)
        assert len(CocoDataset(spec.json_path, spec.image_folder, with_masks=True)) == number
    assert main(["--train", "4", "--val", "2", "--image-size", "96"]) == 0
    assert "already there" in capsys.readouterr().out
    with pytest.raises(FileExistsError):
        main(["--train", "4", "--val", "2", "--image-size", "96", "--seed", "1"])


def test_shapes_as_a_process(tmp_path):
    """The command of the error message, as a user types it."""
    assert get_dataset("shapes_train").fetch_command == "resnet-backbone prepare shapes"
    words = ["datasets/prepare_shapes.py", "--train", "2", "--val", "1"]
    status, output = Forked(script(*words), environment={"DETECTRON2_DATASETS": str(tmp_path)}).finish()
    assert status == 0, output
    assert (tmp_path / "shapes/annotations/train.json").is_file()


def check_bccd(folder: Path) -> None:
    numbers = {"trainval": 292, "test": 72, "train": 205, "val": 87}
    for split, number in numbers.items():
        document = json.loads((folder / "annotations" / f"{split}.json").read_text())
        assert len(document["images"]) == number
    assert len(list((folder / "images").iterdir())) == 364
    for name in ("bccd_trainval", "bccd_test"):
        spec = get_dataset(name)
        check_dataset_files(spec)
        assert CocoDataset(spec.json_path, spec.image_folder)[0][0].shape == (3, 480, 640)


def test_bccd_from_a_folder(data_root, bccd, load_script, capsys):
    main = load_script("datasets/prepare_bccd.py").main
    for _ in range(2):
        assert main(["--source", str(bccd)]) == 0
    check_bccd(data_root / "bccd")
    printed = capsys.readouterr().out
    assert "BloodImage_00338.xml" in printed and "trainval: 292 images" in printed


def zip_folder(archive: Path, folder: Path, prefix: str) -> None:
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(folder.rglob("*")):
            target.write(path, f"{prefix}{path.relative_to(folder).as_posix()}")


def test_bccd_from_the_network(data_root, bccd, load_script, serve, tmp_path):
    web = tmp_path / "web"
    web.mkdir()
    zip_folder(web / "master.zip", bccd, "BCCD_Dataset-master/BCCD/")
    assert load_script("datasets/prepare_bccd.py").main(["--url", f"{serve(web)}/master.zip"]) == 0
    check_bccd(data_root / "bccd")
    assert {path.name for path in (data_root / "bccd").iterdir()} == {"annotations", "images"}


def test_bccd_from_another_archive(data_root, load_script, serve, tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("other/readme.txt", "hello")
    with pytest.raises(ValueError, match="holds nothing below"):
        load_script("datasets/prepare_bccd.py").main.__wrapped__(["--url", f"{serve(tmp_path)}/other.zip"])


def tiny_release(web: Path) -> CocoRelease:
    """The official archives' layout with 3 and 2 images, and their true hashes."""
    release = COCO_RELEASES[2017]
    files = {}
    with zipfile.ZipFile(web / "annotations.zip", "w") as archive:
        for split, number in (("train2017", 3), ("val2017", 2)):
            names = [f"{index:012d}.jpg" for index in range(number)]
            images = [{"id": i, "file_name": name, "height": 8, "width": 9} for i, name in enumerate(names)]
            annotations = [{"image_id": i, "category_id": 1, "bbox": [1, 1, 4, 4], "iscrowd": 0} for i in range(number)]
            document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
            archive.writestr(f"annotations/instances_{split}.json", json.dumps(document))
            archive.writestr(f"annotations/captions_{split}.json", "{}")
            with zipfile.ZipFile(web / f"{split}.zip", "w") as images_archive:
                images_archive.writestr(f"{split}/", "")
                for name in names:
                    Image.new("RGB", (9, 8)).save(web / "image.jpg")
                    images_archive.write(web / "image.jpg", f"{split}/{name}")
            files[split] = number
    archives = {
        name: replace(old, path=f"{name}.zip", md5=hashlib.md5((web / f"{name}.zip").read_bytes()).hexdigest())
        for name, old in (
            ("annotations", release.annotations),
            ("train2017", release.train.archive),
            ("val2017", release.val.archive),
        )
    }
    return CocoRelease(
        annotations=archives["annotations"],
        train=replace(release.train, num_images=3, archive=archives["train2017"]),
        val=replace(release.val, num_images=2, archive=archives["val2017"]),
    )


@pytest.fixture
def web(tmp_path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    return folder


def coco_script(load_script, monkeypatch, release):
    script = load_script("datasets/prepare_coco.py")
    monkeypatch.setitem(script.COCO_RELEASES, 2017, release)
    return script.main


def test_coco(data_root, load_script, serve, web, monkeypatch, capsys):
    main = coco_script(load_script, monkeypatch, tiny_release(web))
    url = serve(web)
    assert main(["--year", "2017", "--check"]) == 1
    assert "train2017: no annotation file" in capsys.readouterr().out
    assert main(["--check"]) == 1
    printed = capsys.readouterr().out
    assert "train2014: no annotation file" in printed and "train2017: no annotation file" in printed
    with pytest.raises(SystemExit):
        main([])
    assert "--year is needed" in capsys.readouterr().err
    assert main(["--year", "2017", "--url", url]) == 0
    assert "train2017: complete, 3 images\nval2017: complete, 2 images" in capsys.readouterr().out
    for name, number in (("coco_2017_train", 3), ("coco_2017_val", 2)):
        spec = get_dataset(name)
        check_dataset_files(spec)
        dataset = CocoDataset(spec.json_path, spec.image_folder)
        assert len(dataset) == number and dataset[0][0].shape == (3, 8, 9)
    names = {path.name for path in (data_root / "coco/annotations").iterdir()}
    assert names == {"instances_train2017.json", "instances_val2017.json"}
    assert not list((data_root / "coco").glob("*.zip"))
    assert main(["--year", "2017", "--check"]) == 0
    for archive in web.glob("*.zip"):
        archive.unlink()
    assert main(["--year", "2017", "--url", url]) == 0  # nothing is asked for again


def test_coco_without_train(data_root, load_script, serve, web, monkeypatch):
    main = coco_script(load_script, monkeypatch, tiny_release(web))
    (web / "train2017.zip").unlink()
    assert main(["--year", "2017", "--no-train", "--url", serve(web)]) == 0
    assert main(["--year", "2017", "--no-train", "--check"]) == 0
    assert main(["--year", "2017", "--check"]) == 1


def test_coco_images_that_got_lost_are_fetched_again(serve, web, tmp_path):
    release, folder = tiny_release(web), tmp_path / "coco"
    fetch_coco(folder, release, base_url=serve(web))
    (folder / "val2017" / "000000000001.jpg").unlink()
    (folder / "train2017" / "000000000002.jpg").write_bytes(b"")
    assert "1 of 2 files are missing or empty" in split_problems(folder, release.val)[0]
    assert "000000000002.jpg" in split_problems(folder, release.train)[0]
    fetch_coco(folder, release, base_url=serve(web))
    assert not split_problems(folder, release.val) and not split_problems(folder, release.train)


def test_coco_of_another_hash(serve, web, tmp_path):
    release = tiny_release(web)
    release = replace(release, annotations=replace(release.annotations, md5="0" * 32))
    with pytest.raises(DownloadError, match="md5"):
        fetch_coco(tmp_path / "coco", release, base_url=serve(web))
    assert not (tmp_path / "coco/annotations").exists()


def test_coco_of_another_count(serve, web, tmp_path):
    release = tiny_release(web)
    release = replace(release, val=replace(release.val, num_images=5000))
    with pytest.raises(ValueError, match="lists 2 images, expected 5000"):
        fetch_coco(tmp_path / "coco", release, train=False, base_url=serve(web))


def test_annotation_file_that_is_damaged(web, tmp_path):
    (tmp_path / "annotations").mkdir()
    for content in ("{", "[]", "{}"):
        (tmp_path / "annotations/instances_val2017.json").write_text(content)
        assert "is not a COCO file" in split_problems(tmp_path, tiny_release(web).val)[0]


def test_published_counts_and_hashes():
    counts = {year: (release.train.num_images, release.val.num_images) for year, release in COCO_RELEASES.items()}
    assert counts == {2017: (118287, 5000), 2014: (82783, 40504)}
    archives = [a for r in COCO_RELEASES.values() for a in (r.annotations, r.train.archive, r.val.archive)]
    assert len({archive.md5 for archive in archives}) == 6 and all(len(archive.md5) == 32 for archive in archives)


def test_real_annotations_can_be_checked(coco_mini):
    split = replace(COCO_RELEASES[2017].val, num_images=79)
    assert split_problems(coco_mini, split) == []


def test_data_is_never_committed():
    ignored = (ROOT / "datasets/.gitignore").read_text().splitlines()
    assert ignored[0] == "*" and set(ignored[1:]) == {"!.gitignore", "!README.md", "!prepare_*.py"}
