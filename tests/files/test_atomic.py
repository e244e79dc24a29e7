"""Files appear under their name when they are complete, and on the disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from resnet_backbone.files.atomic import replacing, write_text


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def flushed(monkeypatch):
    """What ``os.fsync`` is called with, in order: the names in the folder of each file or folder at that moment."""
    calls = []
    fsync = os.fsync

    def recording(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append((path, names_in(path if path.is_dir() else path.parent)))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    return calls


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_call_returns(tmp_path, flushed):
    """Without the first a power cut leaves an empty file, without the second the old one, after the call succeeded."""
    write_text(tmp_path / "new" / "a.txt", "content")
    folder = tmp_path / "new"
    assert flushed == [(folder / ".a.txt.part", [".a.txt.part"]), (folder, ["a.txt"])]
    assert (tmp_path / "new" / "a.txt").read_text() == "content"


def test_what_need_not_outlive_a_power_cut_is_not_waited_for(tmp_path, flushed):
    with replacing(tmp_path / "a.txt", durable=False) as part:
        part.write_text("content")
    assert flushed == [] and names_in(tmp_path) == ["a.txt"]


def test_after_an_error_the_file_is_as_it_was(tmp_path, flushed):
    write_text(tmp_path / "a.txt", "before")
    flushed.clear()
    message = r"writing failed at .*a\.txt: no disk; .* MB are free there"
    with pytest.raises(OSError, match=message), replacing(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise OSError("no disk")
    assert (tmp_path / "a.txt").read_text() == "before"
    assert names_in(tmp_path) == ["a.txt"] and flushed == []


def test_a_file_system_that_cannot_flush_folders_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def no_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_text(tmp_path / "a.txt", "content")
    assert (tmp_path / "a.txt").read_text() == "content"
