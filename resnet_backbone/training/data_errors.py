"""What goes wrong while a batch is fetched, told in a line, at a moment when nothing of the training is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

from resnet_backbone.config.command_line import plain_text

_DEAD_WORKER = "DataLoader worker"  # how torch's message begins


class DataError(OSError):
    """A batch cannot be had: an image is missing or broken, or a process that loads images has died.

    Attributes:
        is_between_steps: whether the network is as the last optimizer step left it.
    """

    is_between_steps = True


def fetch(batches: Iterator[Any], *, is_first_pass: bool) -> Any:
    """Return the next batch.

    Args:
        batches: endless.
        is_first_pass: of its optimizer step.

    Raises:
        DataError: see there.
    """
    try:
        return next(batches)
    except (OSError, ValueError, RuntimeError) as error:
        told = DataError(_explanation(error))
        told.is_between_steps = is_first_pass
        raise told from error


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
