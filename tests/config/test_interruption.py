"""Signals are obeyed where the process is, or noted until it is convenient."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from resnet_backbone.engine.command_line import RESUME_ME, Interrupted, failed
from resnet_backbone.engine.signals import (
    catching_signals,
    deferring_signals,
    outlive_signal,
    raising_signals,
    was_asked_to_stop,
)
from tests.processes import Forked


@pytest.fixture(autouse=True)
def _not_under_nohup() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_raised_at_once(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"ended by {number.name}"), catching_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before and not was_asked_to_stop()


@pytest.mark.parametrize("number", SIGNALS)
def test_noted(number):
    with catching_signals():
        with deferring_signals():
            assert not was_asked_to_stop()
            signal.raise_signal(number)
            signal.raise_signal(number)  # torchrun sends what the terminal has sent already
            assert was_asked_to_stop()
            with pytest.raises(Interrupted), raising_signals():
                raise AssertionError("what was noted must be obeyed before anything else")
        assert was_asked_to_stop()
    assert not was_asked_to_stop()


def test_nohup_is_obeyed():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with catching_signals():
        signal.raise_signal(signal.SIGHUP)
        assert not was_asked_to_stop()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_obeyed_inside_what_is_deferred():
    with catching_signals(), deferring_signals(), pytest.raises(Interrupted), raising_signals():
        signal.raise_signal(signal.SIGTERM)


def test_a_second_ctrl_c_after_a_while_ends_at_once(monkeypatch):
    monkeypatch.setattr("resnet_backbone.engine.signals._ONE_SIGNAL_S", 0.0)
    with pytest.raises(KeyboardInterrupt), catching_signals(), deferring_signals():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)


def test_other_threads_are_left_alone():
    done = []

    def work():
        with catching_signals():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Interrupted("ended by SIGTERM. All is kept"), RESUME_ME, "interrupted: ended by SIGTERM. All is kept"),
        (KeyboardInterrupt(), 130, "interrupted; --resume continues from the last checkpoint"),
        (ValueError("no"), 1, "error: no"),
        (OSError("Caught OSError in DataLoader worker 0.\nTraceback\nOSError: gone.jpg: no"), 1, "error: gone.jpg: no"),
    ],
)
def test_what_a_command_says(error, status, text, capsys):
    assert failed(error) == status and capsys.readouterr().err == f"{text}\n"


def test_a_loading_process_stays_for_a_while_and_then_ends(monkeypatch):
    def work() -> None:
        outlive_signal(0)
        sys.stdout.write("ready")
        while True:
            time.sleep(0.05)

    monkeypatch.setattr("resnet_backbone.engine.signals._WORKER_STAYS_S", 0.5)
    process = Forked(work)
    assert process.wait_for(lambda: process.output == "ready")
    process.send(signal.SIGINT)
    start = time.monotonic()
    process.send(signal.SIGTERM)
    assert process.finish()[0] == -signal.SIGALRM
    assert time.monotonic() - start >= 0.4
