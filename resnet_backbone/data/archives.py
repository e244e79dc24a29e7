"""Unpacking a downloaded zip file without trusting it."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath


def extract_zip(archive: str | Path, folder: str | Path, *, select: Callable[[str], str | None], max_bytes: int) -> int:
    """Unpack the selected members, each checked by its CRC and appearing only when it is whole.

    A member whose file is there with the right size is skipped, so an interrupted run goes on where it stopped.

    Args:
        archive: a zip file.
        folder: created where needed; nothing is written outside it.
        select: from a member's name to its path below ``folder``, or None to leave it out.
        max_bytes: limit of what the selected members unpack to, all together.

    Returns:
        How many members were selected.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: it is not a zip file or damaged, a path leads out of ``folder``, a member is a link or encrypted,
            two have the same path, or they unpack to more than ``max_bytes``.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such archive")
    try:
        with zipfile.ZipFile(archive) as source:
            members = _selected(source, archive, select)
            total = sum(member.file_size for member in members.values())
            if total > max_bytes:
                raise ValueError(f"{archive}: unpacks to {total:,} bytes; at most {max_bytes:,} were expected")
            for path, member in members.items():
                _extract(source, member, folder / path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{archive}: damaged, or not a zip file ({error}); delete it and download it again") from error
    return len(members)


def _selected(
    source: zipfile.ZipFile, archive: Path, select: Callable[[str], str | None]
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    members: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for member in source.infolist():
        target = None if member.is_dir() else select(member.filename)
        if target is None:
            continue
        path = PurePosixPath(target)
        if path.is_absolute() or not path.parts or ".." in path.parts or any(c in target for c in "\\:\0"):
            raise ValueError(
                f"{archive}: member {member.filename!r} would be written outside the folder; nothing was unpacked"
            )
        if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1:
            raise ValueError(f"{archive}: member {member.filename!r} is a link or encrypted; expected a plain file")
        if path in members:
            raise ValueError(f"{archive}: two members are written to {path}")
        members[path] = member
    return members


def _extract(source: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    if path.is_file() and path.stat().st_size == member.file_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with source.open(member) as compressed, part.open("wb") as plain:
        shutil.copyfileobj(compressed, plain, 1 << 20)
    part.replace(path)
