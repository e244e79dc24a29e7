"""Signals that ask a run to end (SIGTERM, Ctrl-C, a closed terminal): caught, noted until later, or raised."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from resnet_backbone.engine.command_line import Interrupted

_ONE_SIGNAL_S = 2.0  # between two signals that are one to the user
_WORKER_STAYS_S = 30.0  # as long as torchrun waits for the end of a process
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
_SIGNALS = (signal.SIGTERM, signal.SIGINT, *([_HANGUP] if _HANGUP else []))


class _State:
    deferring = False
    received: signal.Signals | None = None
    received_at = 0.0


@contextmanager
def catching_signals() -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into ``Interrupted``, raised where the process is at that moment.

    SIGHUP comes when the terminal is closed; under nohup, which ignores it, it stays ignored, and the run continues. A
    second Ctrl-C, seconds after the first, ends the process at once. Outside the main thread, where Python takes no
    handlers, nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _handle) for number in _SIGNALS if not _is_under_nohup(number)}
    _State.received = None
    try:
        yield
    finally:
        for process in multiprocessing.active_children():  # the interpreter would wait for them at its end
            if process.daemon:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
        _State.received = None


@contextmanager
def _deferring(value: bool) -> Iterator[None]:
    before, _State.deferring = _State.deferring, value
    try:
        yield
    finally:
        _State.deferring = before


def deferring_signals() -> AbstractContextManager[None]:
    """Inside :func:`catching_signals`, only note signals: :func:`was_asked_to_stop` tells when it is convenient."""
    return _deferring(True)


@contextmanager
def raising_signals() -> Iterator[None]:
    """Inside :func:`deferring_signals`, raise at once again, for what can be broken off anywhere; also what was noted.

    Raises:
        Interrupted: see :func:`catching_signals`.
    """
    with _deferring(False):
        if _State.received is not None:
            raise Interrupted(f"ended by {_State.received.name}")
        yield


def was_asked_to_stop() -> bool:
    """Return whether a signal has come."""
    return _State.received is not None


def outlive_signal(worker_id: int) -> None:
    """Let a process that loads data outlive, for a while, the signal that its parent gets at the same time.

    The parent needs it for the batches until it stops. For ``worker_init_fn`` of a ``DataLoader``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "SIGALRM"):  # Windows, where Ctrl-C alone reaches both
        return
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if not _is_under_nohup(number):
            signal.signal(number, lambda *_: signal.setitimer(signal.ITIMER_REAL, _WORKER_STAYS_S))


def _is_under_nohup(number: int) -> bool:
    return number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _State.received is not None:  # torchrun sends what the terminal has sent already
        if number == signal.SIGINT and now - _State.received_at > _ONE_SIGNAL_S:
            raise KeyboardInterrupt
        return
    _State.received, _State.received_at = signal.Signals(number), now
    if not _State.deferring:
        raise Interrupted(f"ended by {_State.received.name}")
