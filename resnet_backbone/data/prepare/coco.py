"""Fetching and checking the files of COCO 2014 and 2017."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from resnet_backbone.data.prepare.archives import Archive, fetch_archive, missing_files, select_below
from resnet_backbone.files.text import read_json

logger = logging.getLogger(__name__)

# The official bucket under a name that its TLS certificate covers (that of images.cocodataset.org fails).
COCO_URL = "https://s3.amazonaws.com/images.cocodataset.org"


@dataclass(frozen=True)
class Split:
    """One split as Detectron2 expects it: ``annotations/instances_<name>.json`` and the images in ``<name>/``."""

    name: str
    num_images: int
    archive: Archive


@dataclass(frozen=True)
class CocoRelease:
    """All that detection needs of one year's release."""

    annotations: Archive
    train: Split
    val: Split

    def splits(self, train: bool) -> tuple[Split, ...]:
        return (self.train, self.val) if train else (self.val,)


_GB = 10**9
COCO_RELEASES = {
    2017: CocoRelease(
        annotations=Archive("annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", 2 * _GB),
        train=Split("train2017", 118_287, Archive("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 30 * _GB)),
        val=Split("val2017", 5_000, Archive("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 2 * _GB)),
    ),
    2014: CocoRelease(
        annotations=Archive("annotations/annotations_trainval2014.zip", "0a379cfc70b0e71301e0f377548639bd", 2 * _GB),
        train=Split("train2014", 82_783, Archive("zips/train2014.zip", "0da8c0bd3d6becc4dcb32757491aca88", 30 * _GB)),
        val=Split("val2014", 40_504, Archive("zips/val2014.zip", "a3d79f5ed8d289b7a7554ce06a5782b3", 15 * _GB)),
    ),
}


def fetch_coco(folder: str | Path, release: CocoRelease, *, train: bool = True, base_url: str = COCO_URL) -> None:
    """Download, unpack and check a release; what is there and complete is not fetched again.

    An interrupted run resumes where it stopped. A zip file is deleted when everything in it has been unpacked.

    Args:
        folder: the ``coco`` folder; gets ``annotations/`` and one folder for each split.
        release: from ``COCO_RELEASES``.
        train: False leaves out the training images (19 GB in 2017, 13 GB in 2014).
        base_url: where the files lie; another one for a mirror.

    Raises:
        DownloadError: a file cannot be fetched, or its MD5 is not the official one.
        ValueError: an archive is damaged, or does not hold what it should.
        OSError: the disk is full; the message says how much is needed.
    """
    folder = Path(folder)
    splits = release.splits(train)
    if not all(_annotation_file(folder, split).is_file() for split in splits):
        fetch_archive(release.annotations, base_url, folder, select=select_below("annotations/instances_"))
    for split in splits:
        if not split_problems(folder, split):
            logger.info("%s is complete", folder / split.name)
            continue
        fetch_archive(split.archive, base_url, folder, select=select_below(f"{split.name}/"))
        if problems := split_problems(folder, split):
            raise ValueError(f"{folder}: {split.name} is incomplete after unpacking: {'; '.join(problems)}")


def split_problems(folder: str | Path, split: Split) -> list[str]:
    """What is wrong with a split: nothing when its JSON lists as many images as published, and all of them exist."""
    folder = Path(folder)
    path = _annotation_file(folder, split)
    if not path.is_file():
        return [f"no annotation file {path}"]
    try:
        names = {image["file_name"] for image in read_json(path)["images"]}
    except (ValueError, KeyError, TypeError) as error:
        return [f"{path} is not a COCO file ({error!r}); delete it"]
    problems = []
    if len(names) != split.num_images:
        problems.append(f"{path} lists {len(names)} images, expected {split.num_images}; delete it")
    return problems + missing_files(folder / split.name, names)


def _annotation_file(folder: Path, split: Split) -> Path:
    return folder / "annotations" / f"instances_{split.name}.json"
