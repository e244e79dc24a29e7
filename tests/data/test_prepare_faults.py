"""What happens to the downloads of COCO and VOC when the line drops, files are damaged, and disks are full."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from resnet_backbone.data.prepare.coco import COCO_RELEASES, CocoRelease, fetch_coco
from resnet_backbone.data.prepare.coco import split_problems as coco_problems
from resnet_backbone.data.prepare.voc import VOC_SPLITS, VocSplit, prepare_voc
from resnet_backbone.data.prepare.voc import split_problems as voc_problems
from resnet_backbone.files.atomic import write_text
from resnet_backbone.weights.download import DownloadError

SIDE = 150  # pixels of noise, about 20 KB a file
NUM_IMAGES = 12


@dataclass(frozen=True)
class Source:
    """A data set on the web: its large archive, and how it is fetched and checked."""

    archive: Path  # on the server
    prepare: Callable[[Path], object]
    problems: Callable[[Path], list[str]]
    image_folder: str


@pytest.fixture(params=["coco", "voc"])
def source(request, faulty_site, write_devkit, tmp_path) -> Source:
    write_devkit(tmp_path / "devkit", "VOC2007", "test", [f"{i:06d}" for i in range(NUM_IMAGES)], side=SIDE)
    make = coco_source if request.param == "coco" else voc_source
    return make(tmp_path / "devkit" / "VOC2007", faulty_site.folder, faulty_site.url)


def voc_source(devkit: Path, web: Path, url: str) -> Source:
    split = VOC_SPLITS["voc07_test"]
    path = web / split.archive.path
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        archive.add(devkit.parent, "VOCdevkit")
    small = replace(split.archive, md5=md5_of(path))
    split: VocSplit = replace(split, num_images=NUM_IMAGES, num_objects=NUM_IMAGES - 1, archive=small)
    return Source(
        path,
        lambda root: prepare_voc(root, split, base_url=url),
        lambda root: voc_problems(root, split),
        "VOC2007/JPEGImages",
    )


def coco_source(devkit: Path, web: Path, url: str) -> Source:
    release = COCO_RELEASES[2017]
    images = [
        {"id": number, "file_name": path.name, "height": SIDE, "width": SIDE + 10}
        for number, path in enumerate(sorted((devkit / "JPEGImages").iterdir()))
    ]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for folder in ("annotations", "zips"):
        (web / folder).mkdir()
    with zipfile.ZipFile(web / release.annotations.path, "w") as archive:
        archive.writestr("annotations/instances_val2017.json", json.dumps(document))
    with zipfile.ZipFile(web / release.val.archive.path, "w") as archive:
        for image in images:
            archive.write(devkit / "JPEGImages" / image["file_name"], f"val2017/{image['file_name']}")

    def hashed(archive):
        return replace(archive, md5=md5_of(web / archive.path))

    val = replace(release.val, num_images=NUM_IMAGES, archive=hashed(release.val.archive))
    small: CocoRelease = replace(release, annotations=hashed(release.annotations), val=val)
    return Source(
        web / val.archive.path,
        lambda root: fetch_coco(root, small, train=False, base_url=url),
        lambda root: coco_problems(root, val),
        "val2017",
    )


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def assert_complete(source: Source, root: Path) -> None:
    """Every image is there to the byte, and nothing is left over but the locks of the downloads."""
    assert source.problems(root) == []
    name = Path(source.image_folder).name
    if source.archive.suffix == ".tar":
        with tarfile.open(source.archive) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and f"/{name}/" in m.name]
            expected = {Path(m.name).name: archive.extractfile(m).read() for m in members}
    else:
        with zipfile.ZipFile(source.archive) as archive:
            expected = {Path(n).name: archive.read(n) for n in archive.namelist()}
    assert {path.name: path.read_bytes() for path in (root / source.image_folder).iterdir()} == expected
    assert not [path for path in root.rglob("*") if path.suffix in (".tar", ".zip", ".part")]


def test_a_line_that_drops_is_resumed(source, faulty_site, tmp_path):
    faulty_site.cuts[source.archive.name] = [1000, 2000]
    source.prepare(tmp_path / "data")
    ranges = [asked for name, asked in faulty_site.asked if name == source.archive.name]
    assert ranges == [None, "bytes=1000-", "bytes=3000-"]
    assert_complete(source, tmp_path / "data")


def test_the_next_start_goes_on_with_the_download(source, faulty_site, tmp_path):
    root = tmp_path / "data"
    faulty_site.cuts[source.archive.name] = [5000] + [0] * 5
    with pytest.raises(DownloadError, match=r"the connection ended after 5000 of \d+ bytes, 5 times in a row"):
        source.prepare(root)
    assert source.problems(root) and not (root / source.archive.name).exists()
    assert not (root / source.image_folder).exists()
    source.prepare(root)
    assert faulty_site.asked[-1] == (source.archive.name, "bytes=5000-")
    assert_complete(source, root)


def test_a_server_without_ranges_starts_again(source, faulty_site, tmp_path):
    faulty_site.ranges = False
    faulty_site.cuts[source.archive.name] = [1000, 2000]
    source.prepare(tmp_path / "data")
    assert_complete(source, tmp_path / "data")


@pytest.mark.parametrize("cut", [False, True], ids=["a wrong byte", "cut short"])
def test_a_damaged_archive_is_thrown_away_before_it_is_unpacked(source, tmp_path, cut):
    root, whole = tmp_path / "data", source.archive.read_bytes()
    middle = len(whole) // 2
    source.archive.write_bytes(whole[:middle] + (b"" if cut else bytes([whole[middle] ^ 1]) + whole[middle + 1 :]))
    with pytest.raises(DownloadError, match=f"md5 is .* expected {hashlib.md5(whole).hexdigest()}"):
        source.prepare(root)
    assert source.problems(root) and not (root / source.image_folder).exists()
    assert not [path for path in root.iterdir() if path.suffix in (".tar", ".zip", ".part")]
    source.archive.write_bytes(whole)
    source.prepare(root)
    assert_complete(source, root)


def test_a_damaged_archive_put_there_by_hand(source, faulty_site, tmp_path):
    """As the error of a failed download advises; half of it is not unpacked."""
    root = tmp_path / "data"
    root.mkdir()
    by_hand = root / source.archive.name
    by_hand.write_bytes(source.archive.read_bytes()[:-20_000])
    with pytest.raises(ValueError, match=rf"{source.archive.name}: its md5 is .* delete it"):
        source.prepare(root)
    assert not (root / source.image_folder).exists()
    by_hand.write_bytes(source.archive.read_bytes())
    source.prepare(root)
    assert_complete(source, root)
    assert source.archive.name not in [name for name, _ in faulty_site.asked]


def test_an_interrupted_unpacking_goes_on(source, tmp_path):
    root = tmp_path / "data"
    source.prepare(root)
    paths = sorted((root / source.image_folder).iterdir())
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    paths[4].rename(paths[4].with_name(f".{paths[4].name}.part"))
    paths[5].unlink()
    before = paths[0].stat().st_mtime_ns
    source.prepare(root)
    assert_complete(source, root)
    assert paths[0].stat().st_mtime_ns == before  # not written again


def kib(path: Path) -> int:
    return -(-path.stat().st_size // 1024)


def test_a_disk_too_small_for_the_download(source, small_disk):
    root = small_disk(kib(source.archive) // 2) / "data"
    with pytest.raises(DownloadError, match=r"it needs .* GB in .*data, .* GB are free"):
        source.prepare(root)
    assert not (root / source.image_folder).exists()
    small_disk(kib(source.archive) * 4)
    source.prepare(root)
    assert_complete(source, root)


def test_a_disk_too_small_for_unpacking(source, faulty_site, small_disk):
    root = small_disk(kib(source.archive) * 3 // 2) / "data"
    with pytest.raises(OSError, match=r"unpacking .* needs [\d.]+ GB in .*data, [\d.]+ GB are free") as caught:
        source.prepare(root)
    assert "\n" not in str(caught.value)
    assert source.problems(root) and not (root / source.image_folder).exists()
    asked = len(faulty_site.asked)
    small_disk(kib(source.archive) * 4)
    source.prepare(root)
    assert len(faulty_site.asked) == asked  # the archive was kept
    assert_complete(source, root)


def test_a_disk_that_fills_up_during_the_download(source, small_files, tmp_path):
    """The limit strikes while the file is written, as a disk does that others fill at the same time."""
    root = tmp_path / "data"
    message = small_files(source.archive.stat().st_size // 3, lambda: source.prepare(root))
    assert "File too large while writing" in message and str(root) in message
    assert source.problems(root) and not (root / source.image_folder).exists()
    source.prepare(root)
    assert_complete(source, root)


def test_what_is_no_lack_of_room_is_not_called_one(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match="Is a directory.*Put that right and start again"):
        write_text(tmp_path / "a.json", "{}")


def test_a_disk_that_fills_up_during_the_unpacking(source, small_files, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / source.archive.name).write_bytes(source.archive.read_bytes())
    message = small_files(10_000, lambda: source.prepare(root))  # images have more bytes
    assert message.startswith(f"unpacking {root / source.archive.name} failed at {root / source.image_folder}")
    assert "Make room and start again" in message
    assert source.problems(root) and list((root / source.image_folder).iterdir()) == []
    source.prepare(root)
    assert_complete(source, root)


def test_the_converted_file_is_never_half_there(small_files, faulty_site, write_devkit, tmp_path):
    root = tmp_path / "data"
    write_devkit(root, "VOC2007", "test", [f"{i:06d}" for i in range(60)])
    split = replace(VOC_SPLITS["voc07_test"], num_images=60, num_objects=59)
    message = small_files(4096, lambda: prepare_voc(root, split, base_url=faulty_site.url))
    assert message.startswith("writing failed at") and "voc07_test.json: File too large" in message
    assert list((root / "voc/annotations").iterdir()) == []
    prepare_voc(root, split, base_url=faulty_site.url)
    assert voc_problems(root, split) == []
