"""Locks between processes: one run at a time in a folder, one download at a time of a file."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

LOCK = ".lock"
PATIENCE_S = 60.0  # a run that was asked to end still writes its checkpoint
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of disks that know none


@contextmanager
def locked(
    path: Path, *, waiting: str, level: int = logging.INFO, patience_s: float = -1, too_long: str = ""
) -> Iterator[None]:
    """Hold the lock that the file ``path`` stands for; it ends with the process. The file stays, and is empty.

    A disk that knows no locks is used without, with a warning.

    Args:
        path: of the file; its folder is there.
        waiting: logged once, at ``level``, where another process holds the lock.
        level: of the module ``logging``.
        patience_s: how long to wait for it; below 0 without end.
        too_long: the message of the error after that time.

    Raises:
        TimeoutError: another process still holds it after that time.
        OSError: the file cannot be written to.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.log(level, "%s", waiting)
            lock.acquire(timeout=patience_s, poll_interval=0.2)
    except Timeout:
        raise TimeoutError(too_long) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning("%s cannot be locked (%s): see to it that no other process writes there", path.parent, error)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing_alone(folder: Path, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Keep other runs out of ``folder`` meanwhile; see :func:`locked`.

    Args:
        folder: OUTPUT_DIR; it is made.
        patience_s: how long to wait for the end of a run that writes there.

    Raises:
        OSError: another run still writes there after that time, or the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(
        folder / LOCK,
        waiting=f"another run writes to {folder}: waiting for its end",
        level=logging.WARNING,
        patience_s=patience_s,
        too_long=f"another run writes to {folder}, still after {patience_s:.0f} s: wait for its end, or name another "
        "OUTPUT_DIR",
    ):
        yield


def wait_for_other_runs(folder: Path) -> None:
    """Wait until nobody writes to ``folder``, so that what is read there next is the last that was written.

    Raises:
        OSError: see :func:`writing_alone`.
    """
    if (folder / LOCK).exists():
        with writing_alone(folder):
            pass
