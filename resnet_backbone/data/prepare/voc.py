"""Fetching, converting and checking the files of Pascal VOC 2007 and 2012."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from resnet_backbone.data.prepare.archives import Archive, check_md5, extract_tar, fetch_archive
from resnet_backbone.data.prepare.voc_xml import VocReport, read_split, voc_images_to_coco, voc_to_coco
from resnet_backbone.files.atomic import write_text
from resnet_backbone.files.text import read_json

logger = logging.getLogger(__name__)

# The official server by the name that its TLS certificate covers; torchvision downloads from there, too.
VOC_URL = "https://thor.robots.ox.ac.uk/pascal/VOC"
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class VocSplit:
    """One split, in the folders that Detectron2 has, too: ``VOC<year>/{Annotations,ImageSets,JPEGImages}``."""

    name: str  # in DATASETS of a config
    year: int
    split: str  # a file of ImageSets/Main
    num_images: int
    num_objects: int | None  # those that are not difficult; None where the annotations are kept secret
    archive: Archive
    published: bool = True  # whether the archive can be downloaded without registering

    @property
    def folder(self) -> str:
        return f"VOC{self.year}"


_GB = 10**9
# Counts: the development kits' documents. MD5: torchvision 0.29.1, datasets/voc.py; that of VOC2012test.tar, which is
# for registered users, from several public loaders that agree.
VOC_SPLITS = {
    split.name: split
    for split in (
        VocSplit(
            name="voc07_trainval",
            year=2007,
            split="trainval",
            num_images=5_011,
            num_objects=12_608,
            archive=Archive("voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", _GB),
        ),
        VocSplit(
            name="voc07_test",
            year=2007,
            split="test",
            num_images=4_952,
            num_objects=12_032,
            archive=Archive("voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", _GB),
        ),
        VocSplit(
            name="voc12_trainval",
            year=2012,
            split="trainval",
            num_images=11_540,
            num_objects=27_450,
            archive=Archive("voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 4 * _GB),
        ),
        VocSplit(
            name="voc12_test",
            year=2012,
            split="test",
            num_images=10_991,
            num_objects=None,
            archive=Archive("VOC2012test.tar", "9065beb292b6c291fad82b2725749fda", 4 * _GB),
            published=False,
        ),
    )
}


def prepare_voc(
    root: str | Path, split: VocSplit, *, base_url: str = VOC_URL, archive: Path | None = None
) -> VocReport | None:
    """Make one split complete: fetch and unpack its archive where files are missing, and write its COCO-format JSON.

    An interrupted run goes on where it stopped. A downloaded archive is deleted when it has been unpacked.

    Args:
        root: where ``VOC2007/``, ``VOC2012/`` and ``voc/annotations/<name>.json`` lie, $DETECTRON2_DATASETS.
        split: from ``VOC_SPLITS``.
        base_url: another one for a mirror with the same paths.
        archive: the split's archive where that is there already; it stays.

    Returns:
        What the conversion kept and changed; None where everything was there, or there are no annotations.

    Raises:
        DownloadError: the archive cannot be fetched, or its MD5 is not the official one.
        FileNotFoundError: files are missing, and cannot be downloaded without registering.
        ValueError: the archive or an annotation is malformed, or there are not as many as published.
        OSError: the disk is full; the message says how much is needed.
    """
    root = Path(root)
    if file_problems(root, split):
        _unpack(root, split, base_url, archive)
    if problems := file_problems(root, split):
        raise ValueError(f"{root / split.folder}: {split.split} is incomplete after unpacking: {'; '.join(problems)}")
    if not _json_problems(root, split):
        logger.info("%s is complete", split.name)
        return None
    return _convert(root, split)


def prepare_voc_from(root: str | Path, split: VocSplit, source: str | Path) -> VocReport | None:
    """Use a ``VOCdevkit`` folder that is there already: link its year into ``root``, and write the JSON.

    Raises:
        FileNotFoundError: ``source`` does not hold the year, or some of its files.
        ValueError: ``root`` has another folder of that year, or see :func:`prepare_voc`.
    """
    root, theirs = Path(root), (Path(source) / split.folder).absolute()
    if not theirs.is_dir():
        raise FileNotFoundError(f"{theirs}: no such folder; expected VOCdevkit with {split.folder} in it")
    if problems := file_problems(Path(source), split):
        raise FileNotFoundError(f"{theirs}: {split.split} is incomplete: {'; '.join(problems)}")
    ours = root / split.folder
    if ours.is_symlink() and not ours.exists():
        raise ValueError(f"{ours} is a link to {ours.readlink()}, which is no longer there; delete the link")
    if ours.exists() and not ours.samefile(theirs):
        raise ValueError(f"{ours} is there already, and is not {theirs}; remove one, or leave --source out")
    if not ours.exists():
        root.mkdir(parents=True, exist_ok=True)
        ours.symlink_to(theirs, target_is_directory=True)
        logger.info("%s is a link to %s", ours, theirs)
    return prepare_voc(root, split)


def split_problems(root: str | Path, split: VocSplit) -> list[str]:
    """What is wrong with a split: nothing when all files are there and its JSON holds what was published."""
    return file_problems(root, split) or _json_problems(Path(root), split)


def file_problems(root: str | Path, split: VocSplit) -> list[str]:
    """What is missing of the original files: the list of images, images, annotations; empty files count as missing."""
    folder = Path(root) / split.folder
    if not folder.is_dir():
        return [f"missing (no folder {folder})"]
    try:
        stems = read_split(folder, split.split)
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    problems = []
    if len(stems) != split.num_images:
        problems.append(f"{split.split}.txt lists {len(stems)} images, expected {split.num_images}; delete it")
    wanted = {"JPEGImages": ".jpg"} | ({} if split.num_objects is None else {"Annotations": ".xml"})
    for name, suffix in wanted.items():
        there = {file.name for file in (folder / name).glob(f"*{suffix}") if file.stat().st_size}
        if missing := [stem + suffix for stem in stems if stem + suffix not in there]:
            problems.append(
                f"{len(missing)} of {len(stems)} files are missing or empty in {folder / name}, such as {missing[0]}"
            )
    return problems


def _unpack(root: Path, split: VocSplit, base_url: str, archive: Path | None) -> None:
    def select(member: str) -> str | None:
        path = member.removeprefix("VOCdevkit/")
        of_it = [f"{split.folder}/ImageSets/Main/", f"{split.folder}/JPEGImages/"]
        if split.num_objects is not None:  # VOC2012test.tar has annotations of other tasks
            of_it.append(f"{split.folder}/Annotations/")
        return path if path.startswith(tuple(of_it)) else None

    if archive is not None:
        check_md5(archive, split.archive.md5)
        logger.info("unpacking %s", archive)
        extract_tar(archive, root, select=select, max_bytes=split.archive.max_bytes)
    elif split.published or (root / split.archive.name).is_file():
        fetch_archive(split.archive, base_url, root, select=select)
    else:
        raise FileNotFoundError(
            f"{split.name}: {split.archive.name} is given to those who register at VOC's evaluation server, "
            f"http://host.robots.ox.ac.uk:8080/; then: --sets {split.name} --archive {split.archive.name}"
        )


def _json_path(root: Path, split: VocSplit) -> Path:
    return root / "voc" / "annotations" / f"{split.name}.json"


def _json_problems(root: Path, split: VocSplit) -> list[str]:
    path = _json_path(root, split)
    if not path.is_file():
        return [f"no annotation file {path}"]
    try:
        document = read_json(path)
        found = (len(document["images"]), sum(not note["iscrowd"] for note in document["annotations"]))
    except (ValueError, KeyError, TypeError) as error:
        return [f"{path} is not a COCO file ({error!r}); delete it"]
    expected = (split.num_images, split.num_objects or 0)
    if found == expected:
        return []
    return [f"{path} has (images, objects that are not difficult) {found}, expected {expected}; delete it"]


def _convert(root: Path, split: VocSplit) -> VocReport | None:
    folder, report = root / split.folder, None
    if split.num_objects is None:
        document = voc_images_to_coco(folder, split.split, VOC_CLASSES)
    else:
        document, report = voc_to_coco(folder, split.split, VOC_CLASSES)
    write_text(_json_path(root, split), json.dumps(document))
    if problems := _json_problems(root, split):
        raise ValueError(f"{folder}: other contents than published: {'; '.join(problems)}")
    return report
