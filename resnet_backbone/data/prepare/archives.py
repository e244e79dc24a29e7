"""Published archives: downloading, unpacking without trusting them, and checking that all files are there."""

from __future__ import annotations

import logging
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from resnet_backbone.data.images.media import is_hidden
from resnet_backbone.files.atomic import check_free, file_hash, replacing
from resnet_backbone.weights.download import download

logger = logging.getLogger(__name__)

Select = Callable[[str], str | None]
_CHUNK_BYTES = 1 << 20
MAX_MEMBERS = 1_000_000  # COCO's largest archive has 123 000
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_MAX_EXTENDED_BYTES = 8192
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may ask for gigabytes to unpack a byte
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, ValueError)


@dataclass(frozen=True)
class Archive:
    """One published zip or tar file."""

    path: str  # below its publisher's address
    md5: str
    max_bytes: int  # of what is unpacked from it, and of itself

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class _Member:
    name: str
    size: int  # bytes, unpacked
    regular: bool  # a file that is stored as one, see _selected
    open: Callable[[], Any]


def fetch_archive(archive: Archive, base_url: str, folder: Path, *, select: Select) -> None:
    """Download an archive into ``folder``, unpack it there, and delete it when everything is unpacked.

    An interrupted call resumes where it stopped. An archive that is there already is taken if its MD5 is right.

    Args:
        archive: what to fetch from ``base_url``.
        base_url: ``https://``, without a slash at the end.
        folder: created where needed.
        select: see :func:`extract_zip`.

    Raises:
        DownloadError: the file cannot be fetched, or its MD5 is not the published one.
        ValueError: the archive that is there has another MD5, or see :func:`extract_zip`.
        OSError: the disk is full; the message says how much is needed.
    """
    path = folder / archive.name
    if path.is_file():
        check_md5(path, archive.md5)
    else:
        download(f"{base_url}/{archive.path}", path, md5=archive.md5, max_bytes=archive.max_bytes)
    logger.info("unpacking %s", path)
    extract = extract_tar if path.suffix == ".tar" else extract_zip
    extract(path, folder, select=select, max_bytes=archive.max_bytes)
    path.unlink()


def check_md5(path: Path, md5: str) -> None:
    """Raise ValueError where a file is not the one that was published."""
    found = file_hash(path, "md5")
    if found != md5:
        raise ValueError(f"{path}: its md5 is {found}, expected {md5}; it is damaged, or another file: delete it")


def extract_zip(archive: str | Path, folder: str | Path, *, select: Select, max_bytes: int) -> int:
    """Unpack the selected members of a zip file, each checked by its CRC and appearing only when it is whole.

    A member whose file is there with the right size is skipped, so an interrupted run resumes where it stopped.

    Args:
        archive: a zip file.
        folder: created where needed; nothing is written outside it.
        select: from a member's name to its path below ``folder``, or None to leave it out; hidden ones are in any case.
        max_bytes: limit of what the selected members unpack to, all together.

    Returns:
        How many members were selected.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: it is not a zip file or damaged, a path leads out of ``folder``, a member is a link, a device or
            encrypted, two have the same path, or they unpack to more than ``max_bytes``.
        OSError: the disk is full; the message says how much is needed.
    """
    return _unpack(Path(archive), zipfile.ZipFile, "a zip file", _zip_members, Path(folder), select, max_bytes)


def extract_tar(archive: str | Path, folder: str | Path, *, select: Select, max_bytes: int) -> int:
    """Do with a tar file, not compressed, what :func:`extract_zip` does with a zip file.

    A tar file has no checksums of its contents: check its hash before.
    """
    opener = partial(tarfile.open, mode="r:", tarinfo=_BoundedInfo)
    return _unpack(Path(archive), opener, "a plain tar file", _tar_members, Path(folder), select, max_bytes)


def select_below(*prefixes: str) -> Select:
    """Select the members whose names begin with one of these, under their own names."""
    return lambda name: name if name.startswith(prefixes) else None


def missing_files(folder: Path, names: Collection[str]) -> list[str]:
    """Say in one text, or none, how many of these files of a folder are missing or empty."""
    there = {file.name for file in folder.iterdir() if file.stat().st_size} if folder.is_dir() else set()
    missing = set(names) - there
    what = f"{len(missing)} of {len(names)} files are missing or empty in {folder}, such as"
    return [f"{what} {min(missing)}"] if missing else []


class _BoundedInfo(tarfile.TarInfo):
    """Refuses long extended headers: tarfile reads them whole, and older ones need minutes for a megabyte of digits."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and not 0 <= self.size <= _MAX_EXTENDED_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]  # what tarfile's own comments name for subclasses


def _zip_members(source: zipfile.ZipFile) -> Iterator[_Member]:
    for info in source.infolist():
        if not info.is_dir():
            kind = stat.S_IFMT(info.external_attr >> 16)
            regular = kind in (0, stat.S_IFREG) and not info.flag_bits & 1 and info.compress_type in _ZIP_METHODS
            yield _Member(info.filename, info.file_size, regular, partial(source.open, info))


def _tar_members(source: tarfile.TarFile) -> Iterator[_Member]:
    for info in source:
        if not info.isdir():
            regular = info.isfile() and not info.issparse()
            yield _Member(info.name, info.size, regular, partial(source.extractfile, info))


def _unpack(
    archive: Path,
    opener: Callable[[Path], Any],
    kind: str,
    members_of: Callable[[Any], Iterator[_Member]],
    folder: Path,
    select: Select,
    max_bytes: int,
) -> int:
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such archive")
    with ExitStack() as opened, _damage_named(archive, kind, _DAMAGE):
        with _damage_named(archive, kind, Exception):  # tarfile trusts the numbers in headers, and raises nearly all
            members = list(islice(members_of(opened.enter_context(opener(archive))), MAX_MEMBERS + 1))
        if len(members) > MAX_MEMBERS:
            raise ValueError(f"{archive}: has more than {MAX_MEMBERS:,} members; expected an archive of a data set")
        return _extract_all(members, archive, folder, select, max_bytes)


@contextmanager
def _damage_named(archive: Path, kind: str, errors: type[Exception] | tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn errors that do not name the archive into a ValueError that does."""
    try:
        yield
    except errors as error:
        if str(archive) in str(error):
            raise
        reason = str(error)[:300] or type(error).__name__
        raise ValueError(f"{archive}: damaged, or not {kind} ({reason}); delete it and download it again") from error


def _extract_all(members: Iterable[_Member], archive: Path, folder: Path, select: Select, max_bytes: int) -> int:
    selected = _selected(members, archive, select)
    total = sum(member.size for member in selected.values())
    if total > max_bytes:
        raise ValueError(f"{archive}: unpacks to {total:,} bytes; at most {max_bytes:,} were expected")
    missing = [
        (folder / path, member)
        for path, member in selected.items()
        if not (folder / path).is_file() or (folder / path).stat().st_size != member.size
    ]
    folder.mkdir(parents=True, exist_ok=True)
    check_free(folder, sum(member.size for _, member in missing), f"unpacking {archive}")
    for path, member in missing:
        _extract(member, archive, path)
    return len(selected)


def _selected(members: Iterable[_Member], archive: Path, select: Select) -> dict[PurePosixPath, _Member]:
    selected: dict[PurePosixPath, _Member] = {}
    folded: set[str] = set()
    for member in members:
        target = select(member.name)
        if target is None:
            continue
        path = PurePosixPath(target)
        if path.is_absolute() or not path.parts or ".." in path.parts or not _is_usual(path):
            raise ValueError(
                f"{archive}: member {member.name[:200]!r} would be written outside the folder; nothing was unpacked"
            )
        if any(map(is_hidden, path.parts)):  # of the machine that the archive was made on
            continue
        if not member.regular:
            raise ValueError(
                f"{archive}: member {member.name[:200]!r} is a link, a device, encrypted, sparse or compressed in an "
                "unusual way; expected a plain file"
            )
        if str(path).casefold() in folded:
            raise ValueError(f"{archive}: two members are written to {path} where case makes no difference")
        folded.add(str(path).casefold())
        selected[path] = member
    return selected


def _is_usual(path: PurePosixPath) -> bool:
    """Whether every file system can have a file of that name: Windows reads more into names than others do."""
    unusual = (len(part) > 200 or set(part) & set('\\:*?"<>|') or part.endswith((" ", ".")) for part in path.parts)
    return str(path).isprintable() and not any(unusual)


def _extract(member: _Member, archive: Path, path: Path) -> None:
    with replacing(path, f"unpacking {archive}", durable=False) as part, part.open("wb") as file:
        with member.open() as source:
            shutil.copyfileobj(source, file, _CHUNK_BYTES)
        if file.tell() != member.size:
            raise ValueError(f"{archive}: damaged, {member.name} ends early; delete it and download it again")
