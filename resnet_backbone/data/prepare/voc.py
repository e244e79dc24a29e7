"""Data sets in Pascal VOC's format, downloaded, converted and checked: VOC 2007 and 2012, and BCCD."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from resnet_backbone.data.prepare.archives import (
    Archive,
    check_md5,
    extract_tar,
    extract_zip,
    fetch_archive,
    missing_files,
)
from resnet_backbone.data.prepare.voc_folder import VocFolder
from resnet_backbone.data.prepare.voc_xml import VocReport, voc_images_to_coco, voc_to_coco
from resnet_backbone.files.atomic import write_text
from resnet_backbone.files.text import read_json
from resnet_backbone.weights.download import download

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

    name: str  # in DATASETS of a config: "voc", two digits of the year, "_", a file of ImageSets/Main
    num_images: int
    num_objects: int | None  # those that are not difficult; None where the annotations are kept secret
    archive: Archive
    published: bool = True  # whether the archive can be downloaded without registering

    @property
    def split(self) -> str:
        """The file of ``ImageSets/Main``, without its ending."""
        return self.name.partition("_")[2]

    @property
    def folder(self) -> str:
        """``VOC2007`` or ``VOC2012``."""
        return f"VOC20{self.name[3:5]}"


_GB = 10**9
# MD5: torchvision 0.29.1, datasets/voc.py; that of VOC2012test.tar from several public loaders that agree.
_TRAINVAL07 = Archive("voc2007/VOCtrainval_06-Nov-2007.tar", "c52e279531787c972589f7e41ab4ae64", _GB)
_TEST07 = Archive("voc2007/VOCtest_06-Nov-2007.tar", "b6e924de25625d8de591ea690078ad9f", _GB)
_TRAINVAL12 = Archive("voc2012/VOCtrainval_11-May-2012.tar", "6cd6e144f989b92b3379bac3b3de84fd", 4 * _GB)
_TEST12 = Archive("VOC2012test.tar", "9065beb292b6c291fad82b2725749fda", 4 * _GB)
# Images and objects: the development kits' documents.
_SPLITS = (
    VocSplit("voc07_trainval", 5_011, 12_608, _TRAINVAL07),
    VocSplit("voc07_test", 4_952, 12_032, _TEST07),
    VocSplit("voc12_trainval", 11_540, 27_450, _TRAINVAL12),
    VocSplit("voc12_test", 10_991, None, _TEST12, published=False),
)
VOC_SPLITS = {split.name: split for split in _SPLITS}


def prepare_voc(
    root: str | Path, split: VocSplit, *, base_url: str = VOC_URL, archive: Path | None = None
) -> VocReport | None:
    """Make one split complete: fetch and unpack its archive where files are missing, and write its COCO-format JSON.

    An interrupted run resumes where it stopped. A downloaded archive is deleted when it has been unpacked.

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
        stems = VocFolder(folder, annotated=False).stems(split.split)
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    problems = []
    if len(stems) != split.num_images:
        problems.append(f"{split.split}.txt lists {len(stems)} images, expected {split.num_images}; delete it")
    problems += missing_files(folder / "JPEGImages", [f"{stem}.jpg" for stem in stems])
    if split.num_objects is not None:
        problems += missing_files(folder / "Annotations", [f"{stem}.xml" for stem in stems])
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


def _json_path(root: Path, split: VocSplit) -> Path:
    return root / "voc" / "annotations" / f"{split.name}.json"


BCCD_URL = "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip"
_BCCD_SPLITS = ("trainval", "test", "train", "val")
_BCCD_PREFIX = "BCCD_Dataset-master/BCCD/"
_BCCD_MAX_BYTES = 100_000_000


def prepare_bccd(output: str | Path, source: str | Path | None = None, url: str = BCCD_URL) -> dict[str, VocReport]:
    """Write BCCD, 364 photographs of blood cells, as ``annotations/{trainval,test,train,val}.json`` and ``images/``.

    GitHub makes its archive on demand, so it has no stable hash: it is checked by its CRCs, and by converting it.

    Args:
        output: created where needed; files of the same name are replaced.
        source: a folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``; None downloads it.
        url: what is downloaded then.

    Returns:
        The conversion report of each split.

    Raises:
        DownloadError: the archive cannot be fetched.
        FileNotFoundError: a file of ``source`` is missing.
        ValueError: the archive or an annotation is malformed.
    """

    def select(member: str) -> str | None:
        return member.removeprefix(_BCCD_PREFIX) if member.startswith(_BCCD_PREFIX) else None

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    if source is not None:
        return _convert_bccd(Path(source), output)
    with tempfile.TemporaryDirectory(dir=output, prefix="download-") as name:
        folder = Path(name)
        archive = download(url, folder / "bccd.zip")
        if extract_zip(archive, folder, select=select, max_bytes=_BCCD_MAX_BYTES) == 0:
            raise ValueError(f"{archive} from {url}: holds nothing below {_BCCD_PREFIX}; has the data set moved?")
        return _convert_bccd(folder, output)


def _convert_bccd(source: Path, output: Path) -> dict[str, VocReport]:
    converted = {split: voc_to_coco(source, split) for split in _BCCD_SPLITS}
    (output / "images").mkdir(exist_ok=True)
    for split, (document, report) in converted.items():
        for image in document["images"]:
            shutil.copyfile(report.image_folder / image["file_name"], output / "images" / image["file_name"])
        write_text(output / "annotations" / f"{split}.json", json.dumps(document))
    return {split: report for split, (_, report) in converted.items()}
