"""ImageNet's sets with boxes, ILSVRC DET and CLS-LOC as their archives unpack them, in COCO's format."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_backbone.data.prepare.voc_folder import VocFolder
from resnet_backbone.data.prepare.voc_xml import VocReport, find_class_names, stems_to_coco
from resnet_backbone.files.atomic import write_text

logger = logging.getLogger(__name__)

NUM_CLASSES = {"DET": 200, "CLS-LOC": 1000}
_MAP_LINE = re.compile(r"(n\d{8}) \d+ (\S.*)")
_RCNN = "https://github.com/rbgirshick/rcnn/raw/43b0334e96e9e910bc45c94902a093b5a6f35d0a/data/splits/ilsvrc13"


@dataclass(frozen=True)
class IlsvrcSet:
    """One set, in the folders of the archive: ``ILSVRC/{Annotations,Data}/<task>/<part>``, ``ILSVRC/ImageSets``."""

    task: str  # "DET" or "CLS-LOC"
    part: str  # "train" or "val"
    images: str  # the file of ImageSets/<task> that lists its images, without its ending
    half: int | None = None  # of these images, the first (0) or second (1) of balanced_halves; None takes all


# By their names in DATASETS of a config. val1 and val2 are R-CNN's halves of DET's val (Girshick et al., arXiv
# 1311.2524, section 4), 9,887 and 9,917 images, which the ResNet paper takes, too.
ILSVRC_SETS = {
    "ilsvrc_det_train": IlsvrcSet("DET", "train", "train"),
    "ilsvrc_det_val1": IlsvrcSet("DET", "val", "val1"),
    "ilsvrc_det_val2": IlsvrcSet("DET", "val", "val2"),
    "ilsvrc_det_balanced1": IlsvrcSet("DET", "val", "val", 0),
    "ilsvrc_det_balanced2": IlsvrcSet("DET", "val", "val", 1),
    "ilsvrc_loc_val": IlsvrcSet("CLS-LOC", "val", "val"),
}


def prepare_ilsvrc(root: str | Path, name: str, class_names: str | Path | None = None) -> VocReport:
    """Write ``ilsvrc/annotations/<name>.json`` of a set whose images and annotations are there.

    ILSVRC counts pixels from 0 and includes the last one: ``x = xmin``, ``w = xmax - xmin + 1``. That the last one is
    included is what its development kit computes with; that they start at 0 is how others read the files, among them
    msracver/Flow-Guided-Feature-Aggregation ("the imagenet expects 0-based indices"). Boxes one pixel wide or high are
    dropped as in VOC's format, though the kit counts them; the report lists them.

    Categories are the WordNet ids of all annotations of the task's validation set, sorted, so that every set of a task
    has the same. Images of ``train`` without an annotation file are ILSVRC's negatives: they are left out, as training
    leaves out images without objects. Those of ``val`` stay.

    Args:
        root: where ``ILSVRC/`` lies, or a link to it, and ``ilsvrc/`` goes, $DETECTRON2_DATASETS.
        name: one of ``ILSVRC_SETS``.
        class_names: the development kit's ``map_det.txt`` (``map_clsloc.txt``), with lines such as
            ``n02672831 1 accordion``; None names the classes by their WordNet ids.

    Returns:
        What the conversion kept and changed.

    Raises:
        FileNotFoundError: a folder, a list of images, an annotation file or an image is missing.
        ValueError: a file is malformed, or a class of ``train`` does not occur in ``val`` or has no name.
    """
    chosen = ILSVRC_SETS[name]
    folder = _folder(Path(root), chosen.task, chosen.part)
    synsets = find_class_names(_folder(Path(root), chosen.task, "val"))
    names = {synset: synset for synset in synsets} if class_names is None else read_class_names(Path(class_names))
    if unnamed := [synset for synset in synsets if synset not in names]:
        raise ValueError(f"{class_names}: has no line for {', '.join(unnamed[:8])}, which the annotations have")
    if len(synsets) != NUM_CLASSES[chosen.task]:
        logger.warning("%s has %d classes; ILSVRC's has %d", folder.root, len(synsets), NUM_CLASSES[chosen.task])
    stems = _stems(folder, chosen)
    description = f"ILSVRC {chosen.task}, {name}"
    if chosen.half is not None:
        whole, _, _ = stems_to_coco(folder, stems, synsets, description, first_pixel=0)
        stems = [stems[index - 1] for index in sorted(balanced_halves(whole)[chosen.half])]
    document, report, _ = stems_to_coco(folder, stems, synsets, description, first_pixel=0)
    for category in document["categories"]:
        category |= {"synset": category["name"], "name": names[category["name"]]}
    write_text(Path(root) / "ilsvrc" / "annotations" / f"{name}.json", json.dumps(document))
    return report


def balanced_halves(document: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Split the images of a COCO document into halves with about as many images, and objects of every class.

    Those with the largest share of a class first, then in the order of their names, each image goes where it makes the
    sum over the classes (and the images) of ``((first - second) / all) ** 2`` smaller; the same images are always split
    alike. Not R-CNN's halves, which come from a search with random starts.

    Returns:
        The ids of the images of both.
    """
    contents = {image["id"]: Counter({0: 1}) for image in sorted(document["images"], key=lambda one: one["file_name"])}
    for note in document["annotations"]:
        contents[note["image_id"]][note["category_id"]] += 1  # ids from 1; 0 counts the images
    total: Counter[int] = Counter()
    for content in contents.values():
        total.update(content)
    lead: Counter[int] = Counter()  # of the first half
    halves: tuple[list[int], list[int]] = ([], [])
    by_share = sorted(contents.items(), key=lambda item: -max(count / total[key] for key, count in item[1].items()))
    for image_id, content in by_share:
        second = sum(count * lead[key] / total[key] ** 2 for key, count in content.items()) > 0
        (lead.subtract if second else lead.update)(content)
        halves[second].append(image_id)
    return halves


def read_class_names(path: Path) -> dict[str, str]:
    """Names by WordNet id; where several classes have one name, as CLS-LOC's cranes, the id stands behind it.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not of the form of the development kit's.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        found = _MAP_LINE.fullmatch(line.strip())
        if not found or found[1] in names:
            raise ValueError(
                f"{path}, line {number}: is {line[:80]!r}; expected a WordNet id that no other line has, a number and "
                f"a name, such as 'n02672831 1 accordion'"
            )
        names[found[1]] = found[2]
    repeated = Counter(names.values())
    return {synset: name if repeated[name] == 1 else f"{name} ({synset})" for synset, name in names.items()}


def _folder(root: Path, task: str, part: str) -> VocFolder:
    base = root / "ILSVRC"
    parts = (f"Annotations/{task}/{part}", f"Data/{task}/{part}", f"ImageSets/{task}")
    if missing := [name for name in parts if not (base / name).is_dir()]:
        raise FileNotFoundError(
            f"{base}: has no folder {' and no '.join(missing)}. Unpack ILSVRC's archive of {task}, which image-net.org "
            f"gives to those who register, or link to where it is: ln -s /path/to/ILSVRC {base}"
        )
    return VocFolder(base, parts=parts)


def _stems(folder: VocFolder, chosen: IlsvrcSet) -> list[str]:
    path = folder.lists / f"{chosen.images}.txt"
    if not path.is_file():
        how = ""
        if chosen.images in ("val1", "val2"):
            how = (
                f"; get R-CNN's: curl -L {_RCNN}/{path.name}.tgz | tar -xz -C {folder.lists}, or take another split, "
                "--sets ilsvrc_det_balanced1 ilsvrc_det_balanced2, and say so beside its figures"
            )
        raise FileNotFoundError(f"{path}: no such list of images{how}")
    stems = folder.stems(chosen.images)
    if chosen.part != "train":
        return stems
    annotated = [stem for stem in stems if folder.has_annotation(stem)]
    if not annotated:
        raise FileNotFoundError(f"{folder.annotations}: has no annotation file of the images that {path} lists")
    logger.info("left out %d images of %s without an annotation file", len(stems) - len(annotated), path)
    return annotated
