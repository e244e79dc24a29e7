"""Scripts in processes of their own, forked from the tests': what they import is there already, which takes seconds.

Only Linux forks safely once torch is loaded: elsewhere scripts start anew, and tests that need more are skipped.
"""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORKS = sys.platform == "linux"


class Forked:
    """A process that calls a function, as if it were a program of its own; to be started by the main thread.

    Args:
        main: returns the exit status, or raises SystemExit, as scripts do.
        folder: to work in; by default that of the tests.
        environment: added to that of the tests.
        together: whether ``errors`` go into ``output``, in the order in which they are printed.
    """

    def __init__(
        self,
        main: Callable[[], object],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        together: bool = True,
    ) -> None:
        if not FORKS:
            pytest.skip("forks a process that has loaded torch, for Linux only")
        self._out = tempfile.TemporaryFile()  # noqa: SIM115
        self._err = self._out if together else tempfile.TemporaryFile()  # noqa: SIM115

        def child() -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
            for name, file, number in (("stdout", self._out, 1), ("stderr", self._err, 2)):
                os.dup2(file.fileno(), number)
                raw = open(number, "wb", closefd=False, buffering=0)  # noqa: SIM115
                text = io.TextIOWrapper(raw, encoding="utf-8", write_through=True)
                setattr(sys, name, text)
                setattr(sys, f"__{name}__", text)
            _forget_earlier_runs()
            os.environ.update(environment or {})
            os.chdir(folder or Path.cwd())
            sys.exit(main())

        self._process = multiprocessing.get_context("fork").Process(target=child)
        self._process.start()
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        """All that was printed so far."""
        return _content(self._out)

    @property
    def errors(self) -> str:
        """What went to standard error."""
        return _content(self._err)

    @property
    def status(self) -> int | None:
        """The exit status, that of a signal below 0; None while the process is running."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.status is None:
            os.kill(self.pid, number)

    def wait_for(self, there: Callable[[], bool], timeout: float = 300) -> bool:
        """Wait until something is there, or the process has ended; return whether it is there."""
        end = time.monotonic() + timeout
        while self.status is None and time.monotonic() < end:
            if there():
                return True
            time.sleep(0.002)
        return there()

    def finish(self, timeout: float = 300) -> tuple[int, str]:
        """Wait for the end; return the exit status and ``output``. Without an end it is killed, and says so."""
        self._process.join(timeout)
        if self.status is None:
            self._process.kill()
            self._process.join()
            return -signal.SIGALRM, f"{self.output}\nno end after {timeout:.0f} s"
        return self.status, self.output


def _forget_earlier_runs() -> None:
    """What tests before this one have set for their log, and what accelerate has set up for them."""
    forget_log(None, *logging.root.manager.loggerDict)
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


def forget_log(*names: str | None) -> None:
    """Give loggers (None: the root) the state of a new process: no handler, no level of their own, propagation."""
    for logger in map(logging.getLogger, names):
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET if logger.parent else logging.WARNING)
        logger.propagate = True


def _content(file: io.BufferedRandom) -> str:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")


def script(path: str | Path, *words: str | Path) -> Callable[[], object]:
    """Return what runs a script of the project with words of a command line."""

    def main() -> None:
        sys.argv = [str(ROOT / path), *map(str, words)]
        runpy.run_path(sys.argv[0], run_name="__main__")

    return main


def run_script(path: str | Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the project to its end."""
    if not FORKS:
        command = [sys.executable, str(ROOT / path), *map(str, words)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", errors="replace")
    process = Forked(script(path, *words), environment={"PYTHONPATH": str(ROOT)}, together=False)
    status, output = process.finish()
    return subprocess.CompletedProcess([str(path), *map(str, words)], status, output, process.errors)
