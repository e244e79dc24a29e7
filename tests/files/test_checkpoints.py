"""The last checkpoint is whole, whatever happened to the newest one and to the disk."""

from __future__ import annotations

import logging
import zipfile

import pytest
import torch

from resnet_backbone.files.checkpoints import (
    HISTORY,
    LAST,
    CheckpointError,
    check_disk_space,
    describe_damage,
    last_checkpoint,
    remove_unfinished,
    retire_checkpoints,
    write_checkpoint,
)

NAMES = [f"model_{number:07d}.pth" for number in (2, 5, 8)]


def state(number: int = 0) -> dict[str, object]:
    return {"model": {"w": torch.full((1000,), float(number))}, "iteration": number}


@pytest.fixture
def three(tmp_path):
    for number, name in enumerate(NAMES):
        write_checkpoint(tmp_path, name, state(number))
    return tmp_path


def test_each_is_remembered_and_the_newest_is_the_last(three):
    assert last_checkpoint(three) == three / NAMES[-1]
    assert (three / LAST).read_text() == NAMES[-1]  # Detectron2 reads the whole file as one name
    assert (three / HISTORY).read_text().split() == NAMES


def test_writing_one_anew_makes_it_the_newest(three):
    write_checkpoint(three, NAMES[0], state(9))
    assert (three / HISTORY).read_text().split() == [NAMES[1], NAMES[2], NAMES[0]]
    assert last_checkpoint(three) == three / NAMES[0]


def test_one_that_is_not_to_go_on_from_is_not_named(three):
    write_checkpoint(three, "model_best.pth", state(9), resumable=False)
    assert last_checkpoint(three) == three / NAMES[-1]
    assert torch.load(three / "model_best.pth", weights_only=True)["iteration"] == 9


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[content.find(torch.full((9,), 2.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def make_a_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))


@pytest.mark.parametrize("spoil", [truncate, flip_a_bit, empty, make_a_bomb, lambda path: path.unlink()])
def test_a_broken_one_is_passed_over_with_a_warning(three, spoil, caplog):
    spoil(three / NAMES[2])
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(three) == three / NAMES[1]
    assert f"going back to {three / NAMES[1]}" in caplog.text and NAMES[2] in caplog.text
    spoil(three / NAMES[1])
    assert last_checkpoint(three) == three / NAMES[0]
    spoil(three / NAMES[0])
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        last_checkpoint(three)


def test_a_name_written_by_hand_counts(three):
    (three / LAST).write_text(f"{NAMES[1]}\n")
    assert last_checkpoint(three) == three / NAMES[1]
    truncate(three / NAMES[1])
    assert last_checkpoint(three) == three / NAMES[0]  # and never a later one


def test_names_lead_nowhere_else(three, tmp_path_factory):
    elsewhere = write_checkpoint(tmp_path_factory.mktemp("elsewhere"), "model.pth", state())
    (three / LAST).write_text(str(elsewhere))
    (three / HISTORY).write_text(f"../{elsewhere.parent.name}/model.pth\n{NAMES[0]}\n")
    assert last_checkpoint(three) == three / NAMES[0]


def test_killed_between_the_checkpoint_and_its_name(three):
    """The file is there; nothing names it yet: the one before is the last."""
    (three / LAST).write_text(NAMES[1])
    assert last_checkpoint(three) == three / NAMES[1]


def test_a_new_run_forgets_names_and_keeps_files(three, caplog):
    retire_checkpoints(three)
    assert "a new run in the folder of an earlier one" in caplog.text
    assert last_checkpoint(three) is None
    assert {path.name for path in three.iterdir()} == set(NAMES)


def test_what_a_killed_process_left_is_removed(three):
    (three / ".model_0000011.pth.part").write_bytes(b"half")
    remove_unfinished(three)
    assert not list(three.glob(".*"))


@pytest.mark.parametrize("bytes_allowed", [0, 1000, 4000])
def test_a_disk_that_fills_up(three, small_files, bytes_allowed):
    message = small_files(bytes_allowed, lambda: write_checkpoint(three, "model_0000011.pth", state(3)))
    assert "writing the checkpoint failed at" in message and "File too large" in message
    assert message.endswith(f"The last good checkpoint is {three / NAMES[-1]}")
    assert last_checkpoint(three) == three / NAMES[-1]
    assert not list(three.glob(".*"))


def test_what_was_written_is_read_back(tmp_path, monkeypatch):
    """A disk that loses bits without an error, as cheap ones do: the save is spoiled between writing and reading."""
    save = torch.save

    def spoiling(content, file):
        save(content, file)
        file.seek(-2000, 1)
        file.write(b"\x55" * 8)
        file.seek(0, 2)

    write_checkpoint(tmp_path, "first.pth", state())
    monkeypatch.setattr(torch, "save", spoiling)
    with pytest.raises(CheckpointError, match="reads back damaged.*last good checkpoint is .*first.pth"):
        write_checkpoint(tmp_path, "second.pth", state())
    assert not (tmp_path / "second.pth").exists()


def test_room_for_none_is_refused_and_for_few_is_told(tmp_path, monkeypatch, caplog):
    content = {"model": {"w": torch.zeros(250_000)}, "momentum": [torch.zeros(250_000)]}  # 2 MB
    monkeypatch.setattr("resnet_backbone.files.checkpoints.free_bytes", lambda folder: 5_000_000)
    check_disk_space(tmp_path, content, 2, "SOLVER.CHECKPOINT_PERIOD")
    assert not caplog.text
    check_disk_space(tmp_path, content, 3, "SOLVER.CHECKPOINT_PERIOD")
    assert "3 checkpoints of 2 MB are to come, and 5 MB are free" in caplog.text
    monkeypatch.setattr("resnet_backbone.files.checkpoints.free_bytes", lambda folder: 1_000_000)
    with pytest.raises(OSError, match="a checkpoint takes 2 MB, and 1 MB are free"):
        check_disk_space(tmp_path, content, 1, "SOLVER.CHECKPOINT_PERIOD")


def test_old_torch_files_have_no_checksums_and_count_as_whole(tmp_path):
    torch.save(state(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert describe_damage(tmp_path / "old.pth") == ""
