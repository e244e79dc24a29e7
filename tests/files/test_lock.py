"""Two runs do not write to one folder."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from resnet_backbone.files.atomic import wait_for_other_runs, writing_alone


def hold(folder, seconds, ready):
    with writing_alone(folder):
        ready.set()
        time.sleep(seconds)


@pytest.fixture
def other_run(tmp_path):
    """Another process that writes to the folder for so many seconds."""
    context = multiprocessing.get_context("fork")
    started = []

    def start(seconds):
        ready = context.Event()
        process = context.Process(target=hold, args=(tmp_path / "output", seconds, ready))
        process.start()
        started.append(process)
        assert ready.wait(30)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_one_after_the_other(tmp_path):
    for _ in range(2):
        with writing_alone(tmp_path / "output", patience_s=0):
            pass


def test_a_second_one_waits(tmp_path, other_run, caplog):
    other_run(1.0)
    with writing_alone(tmp_path / "output"):
        assert "another run writes to" in caplog.text


def test_reading_waits(tmp_path, other_run):
    wait_for_other_runs(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    process = other_run(1.0)
    wait_for_other_runs(tmp_path / "output")
    process.join(5)
    assert process.exitcode == 0


def test_and_gives_up(tmp_path, other_run):
    other_run(60)
    with (
        pytest.raises(OSError, match="another run writes to .*, still after 0 s"),
        writing_alone(tmp_path / "output", 0),
    ):
        raise AssertionError("it must not get in")


def test_a_killed_run_leaves_no_lock(tmp_path, other_run):
    process = other_run(60)
    process.kill()
    process.join()
    with writing_alone(tmp_path / "output", patience_s=0):
        pass


def forked_and_idle(folder, ready):
    with writing_alone(folder):
        context = multiprocessing.get_context("fork")
        context.Process(target=time.sleep, args=(30,), daemon=False).start()
        ready.set()
        time.sleep(30)


def test_children_do_not_inherit_the_lock(tmp_path):
    """As the processes that load data, which may outlive a killed run."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=forked_and_idle, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.join()
    try:
        with writing_alone(tmp_path, patience_s=1):
            assert all(Path(f"/proc/{child}").exists() for child in children) and children
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)


def test_a_disk_without_locks_is_used_without(tmp_path, monkeypatch, caplog):
    def none_here(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none_here)
    with writing_alone(tmp_path / "output"):
        assert "cannot be locked ([Errno" in caplog.text and "see to it that no other process writes" in caplog.text


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OSError, match="directory"), writing_alone(tmp_path):
        pass
