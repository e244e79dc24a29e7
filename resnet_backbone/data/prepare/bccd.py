"""BCCD (364 photographs of blood cells, Pascal VOC format) as a COCO-format data set."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from resnet_backbone.data.prepare.archives import extract_zip
from resnet_backbone.data.prepare.voc_xml import VocReport, voc_to_coco
from resnet_backbone.weights.download import download

BCCD_URL = "https://github.com/Shenggan/BCCD_Dataset/archive/refs/heads/master.zip"
_SPLITS = ("trainval", "test", "train", "val")
_PREFIX = "BCCD_Dataset-master/BCCD/"
_MAX_BYTES = 100_000_000


def download_bccd(folder: str | Path, url: str = BCCD_URL) -> Path:
    """Download the data set and unpack its VOC folder into ``folder``, which is returned.

    GitHub makes this archive on demand, so it has no stable hash: it is checked by its CRCs, and by converting it.

    Raises:
        DownloadError: the archive cannot be fetched.
        ValueError: the archive is damaged, or holds no VOC folder.
    """
    folder = Path(folder)

    def select(member: str) -> str | None:
        return member.removeprefix(_PREFIX) if member.startswith(_PREFIX) else None

    archive = download(url, folder / "bccd.zip")
    if extract_zip(archive, folder, select=select, max_bytes=_MAX_BYTES) == 0:
        raise ValueError(f"{archive} from {url}: holds nothing below {_PREFIX}; has the data set moved?")
    archive.unlink()
    return folder


def prepare_bccd(output: str | Path, source: str | Path | None = None, url: str = BCCD_URL) -> dict[str, VocReport]:
    """Write ``annotations/{trainval,test,train,val}.json`` and ``images/`` below ``output``.

    Args:
        output: created where needed; files of the same name are replaced.
        source: a folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``; None downloads it.
        url: what is downloaded then.

    Returns:
        The conversion report of each split.

    Raises:
        FileNotFoundError: a file of ``source`` is missing.
        ValueError: the archive or an annotation is malformed.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    if source is not None:
        return _convert(Path(source), output)
    with tempfile.TemporaryDirectory(dir=output, prefix="download-") as folder:
        return _convert(download_bccd(folder, url), output)


def _convert(source: Path, output: Path) -> dict[str, VocReport]:
    converted = {split: voc_to_coco(source, split) for split in _SPLITS}
    for name in ("annotations", "images"):
        (output / name).mkdir(exist_ok=True)
    for split, (document, report) in converted.items():
        for image in document["images"]:
            shutil.copyfile(report.image_folder / image["file_name"], output / "images" / image["file_name"])
        (output / "annotations" / f"{split}.json").write_text(json.dumps(document), encoding="utf-8")
    return {split: report for split, (_, report) in converted.items()}
