"""Missing, damaged, turned and repeated images, and images that are both trained on and evaluated."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from resnet_backbone.data.coco.findings import Finding
from resnet_backbone.data.images.checks import (
    NEAR_DUPLICATE_BITS,
    check_opened,
    compare_images,
    difference_hash,
    nearest_hashes,
    read_image_facts,
)
from resnet_backbone.data.images.files import ImageFiles, find_missing_images, find_shared_files
from resnet_backbone.data.images.read import read_image


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., ImageFiles]:
    """Writes pictures of 60 x 40 (width x height), of random patches each; returns them."""

    def write(name: str, count: int = 4, seed: int = 0) -> ImageFiles:
        (tmp_path / name).mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        for number in range(count):
            patches = rng.integers(0, 256, (10, 15, 3), dtype=np.uint8)
            Image.fromarray(patches).resize((60, 40), Image.Resampling.BICUBIC).save(tmp_path / name / f"{number}.png")
        names = [f"{number}.png" for number in range(count)]
        return ImageFiles(tmp_path / name, names, np.arange(count) + 100, np.tile([[40, 60]], (count, 1)))

    return write


def opened(files: ImageFiles) -> dict[str, Finding]:
    return {finding.key: finding for finding in check_opened(files, read_image_facts(files, workers=0))}


def ids(finding: Finding) -> list[int | None]:
    return [example.image_id for example in finding.examples]


def test_good_images(folder):
    files = folder("a")
    assert opened(files) == {} and find_missing_images(files) == ([], [])


def test_missing_images(folder):
    files = folder("a")
    files.path(1).unlink()
    files.path(2).rename(files.folder / "2.PNG")
    (finding,), rows = find_missing_images(files)
    assert ids(finding) == [101, 102] and rows == [1, 2] and (finding.count, finding.total) == (2, 4)
    assert finding.note == '1 of the 2 are there under other names: write "2.PNG" for "2.png"'
    assert files.without(rows).image_ids.tolist() == [100, 103]
    assert ImageFiles(files.folder / "none", files.file_names, files.image_ids, files.sizes).path(0).name == "0.png"
    elsewhere = ImageFiles(files.folder / "none", files.file_names, files.image_ids, files.sizes)
    assert find_missing_images(elsewhere)[1] == [0, 1, 2, 3]


def test_damaged_images(folder):
    files = folder("a")
    files.path(0).write_bytes(files.path(0).read_bytes()[:200])
    files.path(1).write_text("no image")
    Image.new("RGB", (61, 40)).save(files.path(2))
    found = opened(files)
    assert ids(found["unreadable_image"]) == [100, 101] and found["unreadable_image"].action == "stop"
    assert ids(found["other_size"]) == [102] and "40 x 61" in found["other_size"].examples[0].text
    assert set(found) == {"unreadable_image", "other_size"}


@pytest.mark.parametrize(("orientation", "stored_size", "frame"), [
    (6, (60, 40), "left as stored"), (6, (40, 60), "turned upright"), (3, (60, 40), "turned upright"),
    (1, (60, 40), ""), (99, (60, 40), ""),
])  # fmt: skip
def test_turned_images(folder, orientation, stored_size, frame):
    files = folder("a")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", stored_size, (9, 99, 200)).save(files.path(1), exif=exif)
    found = opened(files)
    assert set(found) == ({"turned_image"} if frame else set())
    if frame:
        assert found["turned_image"].examples[0].text == f"orientation {orientation}, {frame}"
        assert ("1 are left as stored" == found["turned_image"].note) == (frame == "left as stored")


@pytest.mark.parametrize(("mode", "unusual"), [("CMYK", True), ("RGBA", True), ("L", False), ("RGB", False)])
def test_modes(folder, mode, unusual):
    files = folder("a")
    Image.new(mode, (60, 40)).save(files.path(1).with_suffix(".tiff"))
    files = ImageFiles(files.folder, ["0.png", "1.tiff"], files.image_ids[:2], files.sizes[:2])
    assert set(opened(files)) == ({"unusual_mode"} if unusual else set())


def test_the_same_pixels_in_another_file(folder):
    files = folder("a")
    Image.open(files.path(0)).save(files.path(3), compress_level=1)
    assert files.path(0).read_bytes() != files.path(3).read_bytes()
    finding = opened(files)["repeated_content"]
    assert ids(finding) == [103] and finding.examples[0].twin == files.path(0)


def test_workers_see_the_same(folder):
    files = folder("a", 40)
    alone, helped = (read_image_facts(files, workers=workers) for workers in (0, 2))
    assert [fact.digest for fact in alone] == [fact.digest for fact in helped]
    assert all((one.looks == other.looks).all() for one, other in zip(alone, helped, strict=True))


def test_files_in_both_sets(folder, tmp_path):
    train, test = folder("train"), folder("test")
    assert find_shared_files({"t": train}, test) == ([], [])  # other folders with the same names
    (tmp_path / "link").symlink_to(train.folder)
    linked = ImageFiles(tmp_path / "link", ["3.png", "./1.png"], np.array([5, 6]), train.sizes[:2])
    (finding,), rows = find_shared_files({"t": train}, linked)
    assert rows == [0, 1] and ids(finding) == [5, 6] and "is in t, too" in finding.examples[0].text


def test_content_in_both_sets(folder):
    train, test = folder("train", 6), folder("test", 6, seed=1)
    Image.open(train.path(2)).save(test.path(0), compress_level=1)
    smaller = Image.open(train.path(4)).resize((30, 20))
    smaller.save(test.path(1))
    test.sizes[1] = 20, 30
    assert [findings for _, findings in compare_images({"t": train}, {"v": test}, deep=False)] == [[], []]
    (_, of_train), (name, of_test) = compare_images({"t": train}, {"v": test}, deep=True)
    assert of_train == [] and name == "v" and [finding.key for finding in of_test] == ["shared_content", "looks_same"]
    assert [(ids(finding), finding.examples[0].twin) for finding in of_test] == [
        ([100], train.path(2)),
        ([101], train.path(4)),
    ]


def test_shared_files_are_told_once(folder):
    files = folder("a")
    (_, _), (_, found) = compare_images({"t": files}, {"v": files}, deep=True)
    assert [(finding.key, finding.count) for finding in found] == [("shared_file", 4)]


def test_plain_images_look_like_nothing(folder):
    train, test = folder("train", 2), folder("test", 2, seed=1)
    for files, level in ((train, 100), (test, 101)):
        Image.new("RGB", (60, 40), (level, level, level)).save(files.path(0))
    assert [findings for _, findings in compare_images({"t": train}, {"v": test}, deep=True)] == [[], []]


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def test_copies_look_the_same_and_other_photographs_do_not(coco_mini):
    """Of 40 photographs: at a quality of 40, at half of the size, brighter by a fifth; and each against the others."""
    paths = sorted((coco_mini / "val2017").glob("*.jpg"))[:40]
    images = [Image.open(path).convert("RGB") for path in paths]
    hashes = np.stack([difference_hash(_pixels(image))[0] for image in images])

    def at_quality(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=40)
        return Image.open(file)

    for copy in (
        at_quality,
        lambda image: image.resize((image.width // 2, image.height // 2)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    ):
        copies = np.stack([difference_hash(_pixels(copy(image)))[0] for image in images])
        distances, places = nearest_hashes(copies, hashes)
        assert places.tolist() == list(range(40)) and np.percentile(distances, 90) <= NEAR_DUPLICATE_BITS
    others = [nearest_hashes(hashes[i : i + 1], np.delete(hashes, i, axis=0))[0][0] for i in range(40)]
    assert min(others) > NEAR_DUPLICATE_BITS


def test_nearest_looks_counts_bits():
    rng = np.random.default_rng(0)
    looks, others = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in (3, 5000))
    differing = np.unpackbits(looks[:, None] ^ others[None], axis=2).sum(axis=2)
    distances, places = nearest_hashes(looks, others)
    assert distances.tolist() == differing.min(axis=1).tolist() and places.tolist() == differing.argmin(axis=1).tolist()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes among its files")
def test_what_is_no_regular_file_is_missing(tmp_path):
    """A pipe would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "there.png").write_bytes(b"")
    names = ["pipe.png", "folder.png", "dangling.png", "there.png"]
    files = ImageFiles(tmp_path, names, np.arange(4), np.full((4, 2), 8))
    assert find_missing_images(files)[1] == [0, 1, 2]
    with pytest.raises(OSError, match="no regular file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (
            ["train/a.png", "C:\\photos\\b.png"],
            '2 of the 2 are there under other names: write "a.png" for "train/a.png"',
        ),
        (["c.png", "d.png"], "not one of them is there: is "),
    ],
)
def test_where_no_image_is_there_the_folder_is_doubted(tmp_path, names, advice):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    (found,), missing = find_missing_images(ImageFiles(tmp_path, names, np.arange(2), np.full((2, 2), 8)))
    assert missing == [0, 1] and found.note.startswith(advice)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("cam1\\a.png", "cam1/a.png"),
        ("..\\upload\\a.png", "a.png"),
        ("b%20c%C3%A9.png", "b c\u00e9.png"),
        ("data%5Ca.png", "a.png"),
        ("/data/local-files/?d=images/a.png", "a.png"),
        ("https://host/x/a.png?token=1&b=2", "a.png"),
        ("a.png ", "a.png"),
        (" cam1/ a.png", "cam1/a.png"),
        ("\u00e9.png", "e\u0301.png"),
        ("e\u0301.png", "\u00e9.png"),
        ("x/e%CC%81.PNG", "\u00e9.png"),
        ("CAM1/A.JPG", "cam1/a.jpg"),
        ("a.png", "cam1/deep/a.png"),
        ("A.png", "cam1/a.png"),
        ("a.jpg", "a.png"),
        ("a", "a.png"),
        ("a.v1", "a.v1.png"),
        ("b%2520c.png", "b c.png"),
        ("b+c.png", "b c.png"),
        ("b&amp;c.png", "b&c.png"),
        ("b c.png", "b\u202fc.png"),
        ("\ufeffa.png", "a.png"),
        ("/data/upload/1/0a1b2c3d-a.png", "a.png"),
        ("/a.png", "a.png"),
        ("C:\\Users\\me\\set\\cam2\\a.png", "cam2/a.png"),
    ],
)
def test_other_spellings_of_a_missing_file_are_named(tmp_path, name, there):
    for file in (there, "other/z.png"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "a.json").write_bytes(b"")
    for names in ([name], [name, "other/z.png"], [name, "nowhere.png"]):
        files = ImageFiles(tmp_path, names, np.arange(len(names)), np.full((len(names), 2), 8))
        ((found,), missing) = find_missing_images(files)
        assert found.note.startswith(f"1 of the {len(missing)} are there under other names: ")
        shown = found.note.encode("ascii", "backslashreplace").decode()
        assert f'write "{there.encode("ascii", "backslashreplace").decode()}" for' in shown


def test_a_locale_that_is_not_utf8_is_told(tmp_path):
    """Python then asks for other names of files than those that ``ls`` shows."""
    (tmp_path / "\u00e9.png").write_bytes(b"")
    code = (
        "import numpy as np; from pathlib import Path; from resnet_backbone.data.images.files import *;"
        "files = ImageFiles(Path('.'), ['\\xe9.png'], np.arange(1), np.full((1, 2), 8));"
        "print(*(found.note for found in find_missing_images(files)[0]))"
    )
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    for environment, said in ((plain, "PYTHONUTF8=1"), ({**plain, "PYTHONUTF8": "1"}, "")):
        command = [sys.executable, "-c", code]
        told = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        assert (said in told.stdout) if said else not told.stdout.strip()


def test_a_file_that_could_be_two_is_not_named(tmp_path):
    for folder in ("cam1", "cam2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"")
    files = ImageFiles(tmp_path, ["a.png"], np.arange(1), np.full((1, 2), 8))
    assert find_missing_images(files)[0][0].note.startswith("not one of them is there")
