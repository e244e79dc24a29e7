"""OUTPUT_DIR, before a run writes to it."""

from __future__ import annotations

import os
from pathlib import Path

from resnet_backbone.files.whole import existing_folder


def check_output_dir(output_dir: Path) -> None:
    """Look whether a run can write to OUTPUT_DIR, and write nothing.

    Raises:
        ValueError: it is a file, or its name is not UTF-8, which TensorBoard's records need.
        PermissionError: it is there, or where it would be made, and cannot be written to.
    """
    try:
        str(output_dir).encode()
    except UnicodeEncodeError:
        raise ValueError(f"OUTPUT_DIR {ascii(str(output_dir))} is not text in UTF-8; name another folder") from None
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"OUTPUT_DIR {output_dir} is a file; name a folder")
    place = existing_folder(output_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
        why = "the disk is mounted read-only" if read_only else "this user may not write there"
        raise PermissionError(f"OUTPUT_DIR {output_dir} cannot be written to: {place}: {why}; name another OUTPUT_DIR")
