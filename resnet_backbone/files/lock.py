"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

LOCK = ".lock"
PATIENCE_S = 60.0  # a run that was asked to end still writes its checkpoint


@contextmanager
def writing_alone(folder: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Keep other runs out of ``folder`` meanwhile; the lock ends with the process and those that load data for it.

    A disk that knows no locks is used without, with a warning.

    Args:
        folder: OUTPUT_DIR; it is made.
        patience_s: how long to wait for the end of a run that writes there.

    Raises:
        OSError: another run still writes there after that time, or the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        _lock(file, folder, patience_s)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # loading processes, which share it, may still be there


def wait_for_other_runs(folder: Path) -> None:
    """Wait until nobody writes to ``folder``, so that what is read there next is the last that was written.

    Raises:
        OSError: see :func:`writing_alone`.
    """
    if (folder / LOCK).exists():
        with writing_alone(folder):
            pass


def _lock(file: IO[str], folder: Path, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    waiting = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise OSError(
                    f"another run writes to {folder}, still after {patience_s:.0f} s: wait for its end, or name "
                    f"another OUTPUT_DIR"
                ) from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that no other run writes there", folder, error)
            return
        if not waiting:
            logger.warning("another run writes to %s: waiting for its end", folder)
        waiting = True
        time.sleep(0.5)
