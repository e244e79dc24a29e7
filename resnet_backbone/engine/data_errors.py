"""What goes wrong while a batch is fetched, told in a line, at a moment when nothing of the training is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from resnet_backbone.engine.command_line import plain_text

_DEAD_WORKER = "DataLoader worker"  # how torch's message begins


class DataError(OSError):
    """A batch cannot be had: an image is missing or broken, or a process that loads images has died."""


def fetch(batches: Iterator[Any]) -> Any:
    """Return the next batch.

    Raises:
        DataError: see there.
        StopIteration: there is none.
    """
    try:
        return next(batches)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(_explanation(error)) from error


class Fetched:
    """The batches of a loader, each by :func:`fetch`, and their number."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """Raises: DataError, see there."""
        batches = iter(self.loader)
        for _ in range(len(self)):
            yield fetch(batches)


def let_the_next_fetch_find_dead_workers() -> None:
    """Take back torch's handler of SIGCHLD, which raises in the middle of whatever the process does then.

    :func:`fetch` finds a dead worker within seconds, and always between two steps. To be called once loaders run.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _explanation(error: Exception) -> str:
    text = plain_text(error)
    if not text.startswith(_DEAD_WORKER):
        return text
    return (
        f"a process that loads images has died ({text}). Mostly memory has run out (the system's log says so); fewer "
        f"such processes need less: DATALOADER.NUM_WORKERS"
    )
