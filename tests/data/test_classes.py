"""Class folders and torchvision's data sets: order, labels, names, and errors that say what to do."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torchvision
from PIL import Image

from resnet_backbone.data.coco.dataset import CocoDataset
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.data.images.read import read_image
from resnet_backbone.data.prepare.cifar10 import CLASSES, IMAGES_PER_CLASS, prepare_cifar10
from resnet_backbone.data.prepare.shapes import write_crops
from resnet_backbone.files.atomic import write_text
from resnet_backbone.metrics.run_facts import hash_labels


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("n02", "n01", "n10"):
        (tmp_path / "set" / name / "deeper").mkdir(parents=True)
        for path in (f"{name}/b.JPEG", f"{name}/a.png", f"{name}/deeper/c.jpg"):
            Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).save(tmp_path / "set" / path)
        (tmp_path / "set" / name / "notes.txt").write_text("no image")
    return tmp_path / "set"


def test_class_folders_are_those_of_torchvision(folders):
    ours, theirs = open_classes(str(folders)), torchvision.datasets.ImageFolder(str(folders))
    assert ours.class_names == ("n01", "n02", "n10") == tuple(theirs.classes)
    assert len(ours) == len(theirs) == 9
    for index in range(9):
        image, label = ours[index]
        expected, expected_label = theirs[index]
        assert (np.asarray(image) == np.asarray(expected)).all() and label == expected_label == ours.labels[index]
    assert ours.image_name(0) == "n01/a.png"


def test_hidden_folders_and_images_are_no_classes_and_no_images(folders, caplog):
    expected = open_classes(str(folders))
    assert not caplog.records
    image = folders / "n01/a.png"
    for name in (".ipynb_checkpoints/a.png", "@eaDir/a.png", "n01/._a.png", "n02/.ipynb_checkpoints/a.png"):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).write_bytes(image.read_bytes())
    (folders / "n01/.DS_Store").write_bytes(b"")
    found = open_classes(str(folders))
    assert found.class_names == expected.class_names and (found.labels == expected.labels).all()
    assert [found.image_name(i) for i in range(len(found))] == [expected.image_name(i) for i in range(len(found))]
    assert "left out 4 hidden folders and images, such as .ipynb_checkpoints" in caplog.text


def test_a_set_of_hidden_folders_alone_is_refused(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    with pytest.raises(ValueError, match="must hold a folder for each class"):
        open_classes(str(tmp_path))


def test_every_format_that_is_read_counts(folders):
    for ending in ("gif", "AVIF", "jfif"):
        (folders / f"n01/z.{ending}").write_bytes((folders / "n01/a.png").read_bytes())
    assert [name for name in map(open_classes(str(folders)).image_name, range(6)) if "z." in name] == [
        "n01/z.AVIF",
        "n01/z.gif",
        "n01/z.jfif",
    ]


def test_names_that_are_not_utf8(folders):
    (folders / "n01/a.png").rename(folders / os.fsdecode(b"n01/\xff.png"))
    dataset = open_classes(str(folders))
    names = [dataset.image_name(index) for index in range(len(dataset))]
    assert os.fsencode(names[1]) == b"n01/\xff.png" and dataset[1][0].size == (7, 6)
    assert hash_labels(names, dataset.labels.tolist()) != hash_labels(sorted(names), dataset.labels.tolist()[::-1])
    write_text(folders / "table.csv", "\n".join(names))
    assert r"n01/\udcff.png" in (folders / "table.csv").read_text(encoding="utf-8")


def test_it_can_be_sent_to_a_worker_that_is_started_anew(folders):
    again = pickle.loads(pickle.dumps(open_classes(str(folders))))  # noqa: S301
    assert again[3][0].size == (7, 6) and again.image_name(3) == open_classes(str(folders)).image_name(3)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_colour_mode_becomes_rgb(folders, mode):
    image = Image.new("RGB", (5, 4), (200, 100, 50)).convert(mode)
    image.save(folders / "n01" / ("a.tiff" if mode == "CMYK" else "a.png"))
    assert {open_classes(str(folders))[index][0].mode for index in range(2)} == {"RGB"}


def test_sixteen_bits_keep_their_high_byte(folders):
    """As the detectors read them; Pillow alone cuts off at 255, which leaves a white image."""
    levels = np.arange(20, dtype=np.uint16).reshape(4, 5) * 3000
    Image.fromarray(levels).save(folders / "n01" / "a.png")
    image, _ = open_classes(str(folders))[0]
    assert np.array_equal(np.asarray(image), np.repeat((levels >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert np.array_equal(np.asarray(image), read_image(folders / "n01" / "a.png").permute(1, 2, 0).numpy())


def test_pixels_of_no_known_range_are_refused(folders):
    (folders / "n01" / "a.png").unlink()
    Image.fromarray(np.full((4, 5), 0.5, dtype=np.float32)).save(folders / "n01" / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif: 32-bit pixels \(mode F, 0\.5 to 0\.5\) have no agreed range"):
        open_classes(str(folders))[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among its files")
def test_a_pipe_is_not_waited_for(folders):
    (folders / "n01" / "a.png").unlink()
    os.mkfifo(folders / "n01" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is not an image that can be read \(no regular file"):
        open_classes(str(folders))[0]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n broken"])
def test_a_broken_image_is_named(folders, content):
    (folders / "n01" / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is not an image that can be read"):
        open_classes(str(folders))[0]


def test_a_cut_off_jpeg_is_named(folders):
    path = folders / "n01" / "b.JPEG"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(ValueError, match=r"b\.JPEG is not an image that can be read"):
        open_classes(str(folders))[1]


def test_a_rotation_in_exif_is_not_applied(folders):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folders / "n01" / "b.JPEG", exif=exif)
    assert open_classes(str(folders))[1][0].size == (6, 4)


def test_folders_that_are_none_are_refused(tmp_path, folders):
    with pytest.raises(
        FileNotFoundError, match=r"neither a folder .* nor a data set by name; did you mean imagenet_val"
    ):
        open_classes("imagenet_vall")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"a folder for each class.*it holds files such as ILSVRC2012_val_00000001.JPEG"
    ):
        open_classes(str(tmp_path / "flat"))
    (folders / "n11").mkdir()
    with pytest.raises(ValueError, match="n11"):
        open_classes(str(folders))


def test_a_data_set_by_name_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"(?s)cifar10_jpeg.train.*Get it with: resnet-backbone prepare cifar10"
    ):
        open_classes("cifar10_jpeg_train")


def write_cifar(root, monkeypatch):
    """Files of torchvision's CIFAR-10 in their own format, with hashes of their own."""
    folder = root / "torchvision" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    hashes = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        hashes[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    labels = {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        labels[name] = rng.integers(0, 10, 4).tolist()
        write(name, {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": labels[name]})
    write("batches.meta", {"label_names": list(CLASSES)})
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[n, hashes[n]] for n in hashes if n.startswith("data")])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", hashes["test_batch"]]])
    monkeypatch.setattr(
        cifar, "meta", {"filename": "batches.meta", "key": "label_names", "md5": hashes["batches.meta"]}
    )
    return labels


def test_torchvisions_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"torchvision.datasets.CIFAR10\(.*train=True, download=True"):
        open_classes("torchvision://CIFAR10/train")
    labels = write_cifar(tmp_path, monkeypatch)
    train, test = open_classes("torchvision://CIFAR10/train"), open_classes("torchvision://CIFAR10/test")
    assert (len(train), len(test)) == (20, 4) and train.class_names == CLASSES
    assert test.labels.tolist() == labels["test_batch"]
    theirs = torchvision.datasets.CIFAR10(str(tmp_path / "torchvision"), train=False)
    assert (np.asarray(test[2][0]) == np.asarray(theirs[2][0])).all()


@pytest.mark.parametrize("source", ["torchvision://CIFAR10", "torchvision://COCO/train", "torchvision://CIFAR10/valid"])
def test_other_names_are_refused(source):
    with pytest.raises(ValueError, match="torchvision://NAME/SPLIT|splits train and test"):
        open_classes(source)


def test_crops_show_the_objects(shapes, tmp_path):
    annotations, images = shapes / "shapes/annotations/train.json", shapes / "shapes/train"
    number = write_crops(annotations, images, tmp_path / "crops", margin=0)
    data = CocoDataset(annotations, images)
    crops = open_classes(str(tmp_path / "crops"))
    assert len(crops) == number == sum(len(data[index][1]["boxes"]) for index in range(len(data)))
    assert set(crops.class_names) == set(data.class_names)
    image, target = data[0]
    for index, (box, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
        path = tmp_path / "crops" / data.class_names[label] / f"{data.image_path(0).stem}_{index}.png"
        pixels = np.asarray(Image.open(path))
        side = round(float(max(box[2] - box[0], box[3] - box[1])))
        assert pixels.shape == (min(side, *image.shape[1:]),) * 2 + (3,)
        x, y = (int(value) for value in (box[:2] + box[2:]) / 2)  # the middle of the box is in its crop
        assert (pixels == image[:, y, x].numpy()).all(2).any()


def test_writing_crops_again_replaces_them(shapes, tmp_path):
    annotations, images = shapes / "shapes/annotations/val.json", shapes / "shapes/val"
    (tmp_path / "crops" / "old").mkdir(parents=True)
    write_crops(annotations, images, tmp_path / "crops")
    assert not (tmp_path / "crops" / "old").exists()
    with pytest.raises(ValueError, match="margin"):
        write_crops(annotations, images, tmp_path / "crops", margin=-1)


@pytest.fixture
def cifar_archive(tmp_path, monkeypatch):
    """As GitHub packs it, each image one byte, and a hundredth of them."""
    assert IMAGES_PER_CLASS == {"train": 5000, "test": 1000}
    for split, number in IMAGES_PER_CLASS.items():
        monkeypatch.setitem(IMAGES_PER_CLASS, split, number // 100)
    path = tmp_path / "cifar.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for split, number in IMAGES_PER_CLASS.items():
            for name in CLASSES:
                for index in range(number):
                    archive.writestr(f"CIFAR-10-images-master/{split}/{name}/{index:04}.jpg", b"x")
        archive.writestr("CIFAR-10-images-master/README.md", b"x")
    return path


def test_cifar_is_unpacked_and_counted(cifar_archive, tmp_path):
    counts = prepare_cifar10(tmp_path / "cifar", cifar_archive)
    assert counts == {split: dict.fromkeys(CLASSES, number) for split, number in IMAGES_PER_CLASS.items()}
    assert not (tmp_path / "cifar" / "README.md").exists()
    (tmp_path / "cifar" / "test" / "cat" / "extra.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'cat': 11.*expected 10 "):
        prepare_cifar10(tmp_path / "cifar", cifar_archive)


def test_another_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "cifar.zip", "w"):
        pass
    with pytest.raises(ValueError, match="not a zip file"):
        prepare_cifar10(tmp_path / "out", tmp_path / "cifar.zip")
    with pytest.raises(FileNotFoundError):
        prepare_cifar10(tmp_path / "out", tmp_path / "none.zip")
