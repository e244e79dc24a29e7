"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path, doing: str) -> Iterator[Path]:
    """Give a file to write beside ``path``, which it becomes in the end; after an error ``path`` is as it was before.

    Raises:
        OSError: the disk is full, or does not take it; the message starts with ``doing``, and says what is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        remedy = "Make room" if error.errno in _NO_ROOM else "Put that right"
        raise OSError(
            f"{doing} failed at {path}: {error.strerror or error}; {free / 1e6:.1f} MB are free there. "
            f"{remedy} and start again"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, UTF-8, folders included; see :func:`replacing`."""
    with replacing(path, "writing") as part:
        part.write_text(text, encoding="utf-8")
