"""Zip and tar files as they come, and as an attacker makes them."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from resnet_backbone.data.prepare import archives
from resnet_backbone.data.prepare.archives import extract_tar, extract_zip

GENEROUS = 10**9


def make_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_selected_members_are_unpacked(tmp_path, compression):
    members = {"a/": b"", "a/one.txt": b"1" * 5000, "a/b/two.bin": os.urandom(3000), "c.txt": b"", "skip.txt": b"no"}
    archive = make_zip(tmp_path / "x.zip", members, compression)
    select = {"a/one.txt": "one.txt", "a/b/two.bin": "deep/er/two.bin", "c.txt": "c.txt"}.get
    assert extract_zip(archive, tmp_path / "out", select=select, max_bytes=GENEROUS) == 3
    expected = {"one.txt": members["a/one.txt"], "deep/er/two.bin": members["a/b/two.bin"], "c.txt": b""}
    assert files_in(tmp_path / "out") == expected


def test_hidden_members_stay_in_the_archive(tmp_path):
    members = {"a/b.jpg": b"1", "__MACOSX/a/._b.jpg": b"2", "a/.DS_Store": b"3", "a/.ipynb_checkpoints/b.jpg": b"4"}
    archive = make_zip(tmp_path / "x.zip", members)
    assert extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=GENEROUS) == 1
    assert files_in(tmp_path / "out") == {"a/b.jpg": b"1"}


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/evil",
        "//evil",
        "a/..",
        "..",
        "C:/evil",
        "C:evil",
        "..\\evil",
        "a\\evil",
        "\\\\host\\evil",
    ],
)
def test_nothing_is_written_outside(tmp_path, name):
    archive = make_zip(tmp_path / "x.zip", {"good.txt": b"good", name: b"evil"})
    with pytest.raises(ValueError, match=r"x\.zip.*outside"):
        extract_zip(archive, tmp_path / "in" / "out", select=lambda member: member, max_bytes=GENEROUS)
    assert files_in(tmp_path).keys() == {"x.zip"}


def test_links_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        link = zipfile.ZipInfo("folder")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, str(tmp_path / "elsewhere"))
        archive.writestr("folder/evil.txt", b"evil")
    with pytest.raises(ValueError, match="'folder' is a link"):
        extract_zip(tmp_path / "x.zip", tmp_path / "out", select=lambda member: member, max_bytes=GENEROUS)
    assert not (tmp_path / "out").exists()


def test_bombs_are_refused_before_anything_is_written(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {f"{index}": bytes(1_000_000) for index in range(10)})
    assert archive.stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"10,000,000 bytes; at most 9,999,999"):
        extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=9_999_999)
    assert not (tmp_path / "out").exists()
    assert extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=10_000_000) == 10


def test_more_members_than_a_data_set_has(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    for number, refused in ((3, False), (4, True)):
        archive = make_zip(tmp_path / f"{number}.zip", {f"{index}": b"" for index in range(number)})
        with pytest.raises(ValueError, match="has more than 3 members") if refused else nullcontext():
            assert extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=GENEROUS) == 3


def test_a_bomb_that_lies_about_its_size(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": bytes(1_000_000)})
    raw = archive.read_bytes().replace((1_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match=r"x\.zip: damaged"):
        extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=100)
    assert sum(len(content) for content in files_in(tmp_path / "out").values()) <= 100


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_noticed_and_not_kept(tmp_path, compression):
    archive = make_zip(tmp_path / "x.zip", {"a": os.urandom(5000)}, compression)
    raw = bytearray(archive.read_bytes())
    raw[2000] ^= 0xFF
    archive.write_bytes(raw)
    with pytest.raises(ValueError, match="download it again"):
        extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=GENEROUS)
    assert not (tmp_path / "out" / "a").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_files_that_are_no_zip(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(ValueError, match="not a zip file"):
        extract_zip(tmp_path / "x.zip", tmp_path, select=lambda member: member, max_bytes=GENEROUS)


def test_truncated_archive(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": os.urandom(5000)})
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(ValueError, match="not a zip file"):
        extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=GENEROUS)


def test_missing_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.zip"):
        extract_zip(tmp_path / "gone.zip", tmp_path, select=lambda member: member, max_bytes=GENEROUS)


def test_two_members_for_one_path(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": b"1", "./a": b"2"})
    with pytest.raises(ValueError, match="two members"):
        extract_zip(archive, tmp_path / "out", select=lambda member: member, max_bytes=GENEROUS)


def test_an_interrupted_run_goes_on(tmp_path):
    archive = make_zip(tmp_path / "x.zip", {"a": b"aaaa", "b": b"bbbb", "c": b"cccc"})
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_bytes(b"KEPT")  # whole already, by its size
    (out / "b").write_bytes(b"cut")
    (out / ".c.part").write_bytes(b"cc")
    extract_zip(archive, out, select=lambda member: member, max_bytes=GENEROUS)
    assert files_in(out) == {"a": b"KEPT", "b": b"bbbb", "c": b"cccc"}


def make_tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if isinstance(content, bytes) else info.size
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def unpack_tar(archive: Path, folder: Path, max_bytes: int = GENEROUS) -> int:
    return extract_tar(archive, folder, select=lambda member: member, max_bytes=max_bytes)


def test_selected_members_of_a_tar_file(tmp_path):
    members = {"a/one.txt": b"1" * 5000, "a/b/two.bin": os.urandom(3000), "c.txt": b"", "skip.txt": b"no"}
    archive = make_tar(tmp_path / "x.tar", {"a": special("a", tarfile.DIRTYPE), **members})
    select = {"a/one.txt": "one.txt", "a/b/two.bin": "deep/er/two.bin", "c.txt": "c.txt"}.get
    assert extract_tar(archive, tmp_path / "out", select=select, max_bytes=GENEROUS) == 3
    expected = {"one.txt": members["a/one.txt"], "deep/er/two.bin": members["a/b/two.bin"], "c.txt": b""}
    assert files_in(tmp_path / "out") == expected


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..", "C:evil", "..\\evil"])
def test_a_tar_file_writes_nothing_outside(tmp_path, name):
    archive = make_tar(tmp_path / "x.tar", {"good.txt": b"good", name: b"evil"})
    with pytest.raises(ValueError, match=r"x\.tar.*outside"):
        unpack_tar(archive, tmp_path / "in" / "out")
    assert files_in(tmp_path).keys() == {"x.tar"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_file_are_refused(tmp_path, kind):
    archive = make_tar(tmp_path / "x.tar", {"good.txt": b"good", "odd": special("odd", kind, "good.txt")})
    with pytest.raises(ValueError, match="'odd' is a link, a device"):
        unpack_tar(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_large_a_tar_file_is_refused_before_anything_is_written(tmp_path):
    archive = make_tar(tmp_path / "x.tar", {str(index): bytes(1000) for index in range(10)})
    with pytest.raises(ValueError, match="10,000 bytes; at most 9,999"):
        unpack_tar(archive, tmp_path / "out", 9_999)
    assert not (tmp_path / "out").exists()
    assert unpack_tar(archive, tmp_path / "out", 10_000) == 10


def test_a_sparse_member_cannot_fill_the_disk(tmp_path):
    """Few bytes in the archive, a terabyte unpacked."""
    huge = 10**12
    sparse = special("huge", tarfile.GNUTYPE_SPARSE)
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410] = b"00000000000\0", b"00000000000\0"
    header[483:495] = b"\x80" + huge.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match="sparse"):
        unpack_tar(tmp_path / "x.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [100, 700, 3000])
def test_a_tar_file_cut_short(tmp_path, cut):
    archive = make_tar(tmp_path / "x.tar", {"a": b"whole", "b": os.urandom(5000)})
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"x\.tar: damaged"):
        unpack_tar(archive, tmp_path / "out")
    assert files_in(tmp_path / "out") == {}


def test_compressed_tar_files_are_not_what_is_expected(tmp_path):
    archive = make_tar(tmp_path / "x.tar", {"a": bytes(10**6)}, "w:gz")
    with pytest.raises(ValueError, match="not a plain tar file"):
        unpack_tar(archive, tmp_path / "out")


def test_two_members_of_a_tar_file_for_one_path(tmp_path):
    with pytest.raises(ValueError, match="two members"):
        unpack_tar(make_tar(tmp_path / "x.tar", {"a": b"1", "./a": b"2"}), tmp_path / "out")
