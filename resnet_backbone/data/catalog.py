"""Data sets by name: Detectron2's names and folders for COCO, the other sets of ``datasets/``, and the user's own."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_NO_FOLDER = r'[<>:"/\\|?*\x00-\x1f]|^\.+$'  # what names of folders cannot have, on Windows or anywhere
_OWN_KEYS = ("NAME", "JSON", "IMAGES")
_OWN_EXAMPLE = "DATASETS: {OWN: [{NAME: my_train, JSON: path/to/train.json, IMAGES: path/to/images}]}"

_COCO_2017 = "resnet-backbone prepare coco --year 2017"
_COCO_2014 = "resnet-backbone prepare coco --year 2014"
_SHAPES = "resnet-backbone prepare shapes"
_SCENES = "resnet-backbone prepare scenes"
_SCENES_320 = f"{_SCENES} --image-size 320 --sizes 52 88 --output {{root}}/scenes320"
_BCCD = "resnet-backbone prepare bccd"
_VOC = "resnet-backbone prepare voc --sets {name}"
_VOC_TEST = (
    f"{_VOC} --archive VOC2012test.tar, which VOC's evaluation server gives to those who register: "
    "http://host.robots.ox.ac.uk:8080/"
)
_ILSVRC = "resnet-backbone prepare ilsvrc --sets {name}"
_MINIVAL = (
    f"{_COCO_2014}; then: curl -L https://dl.fbaipublicfiles.com/detectron/coco/coco_annotations_minival.tgz "
    "| tar -xz -C {root}/coco"
)
_VAL_100 = (
    f"{_COCO_2017} --no-train; then: curl -L -o {{root}}/coco/annotations/instances_val2017_100.json "
    "https://dl.fbaipublicfiles.com/detectron2/annotations/coco/instances_val2017_100.json"
)

# name: (annotation file, image folder, how to get them), below the root.
# COCO, and the image folders of VOC, as in Detectron2's data/datasets/builtin.py.
_BUILTIN = {
    "coco_2014_train": ("coco/annotations/instances_train2014.json", "coco/train2014", _COCO_2014),
    "coco_2014_val": ("coco/annotations/instances_val2014.json", "coco/val2014", _COCO_2014),
    "coco_2014_minival": ("coco/annotations/instances_minival2014.json", "coco/val2014", _MINIVAL),
    "coco_2014_valminusminival": ("coco/annotations/instances_valminusminival2014.json", "coco/val2014", _MINIVAL),
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017", _COCO_2017),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017", f"{_COCO_2017} --no-train"),
    "coco_2017_val_100": ("coco/annotations/instances_val2017_100.json", "coco/val2017", _VAL_100),
    "shapes_train": ("shapes/annotations/train.json", "shapes/train", _SHAPES),
    "shapes_val": ("shapes/annotations/val.json", "shapes/val", _SHAPES),
    "scenes_train": ("scenes/annotations/train.json", "scenes/train", _SCENES),
    "scenes_val": ("scenes/annotations/val.json", "scenes/val", _SCENES),
    "scenes320_train": ("scenes320/annotations/train.json", "scenes320/train", _SCENES_320),
    "scenes320_val": ("scenes320/annotations/val.json", "scenes320/val", _SCENES_320),
    "bccd_trainval": ("bccd/annotations/trainval.json", "bccd/images", _BCCD),
    "bccd_test": ("bccd/annotations/test.json", "bccd/images", _BCCD),
    "voc07_trainval": ("voc/annotations/voc07_trainval.json", "VOC2007/JPEGImages", _VOC),
    "voc07_test": ("voc/annotations/voc07_test.json", "VOC2007/JPEGImages", _VOC),
    "voc12_trainval": ("voc/annotations/voc12_trainval.json", "VOC2012/JPEGImages", _VOC),
    "voc12_test": ("voc/annotations/voc12_test.json", "VOC2012/JPEGImages", _VOC_TEST),
    "ilsvrc_det_train": ("ilsvrc/annotations/ilsvrc_det_train.json", "ILSVRC/Data/DET/train", _ILSVRC),
    "ilsvrc_det_val1": ("ilsvrc/annotations/ilsvrc_det_val1.json", "ILSVRC/Data/DET/val", _ILSVRC),
    "ilsvrc_det_val2": ("ilsvrc/annotations/ilsvrc_det_val2.json", "ILSVRC/Data/DET/val", _ILSVRC),
    "ilsvrc_det_balanced1": ("ilsvrc/annotations/ilsvrc_det_balanced1.json", "ILSVRC/Data/DET/val", _ILSVRC),
    "ilsvrc_det_balanced2": ("ilsvrc/annotations/ilsvrc_det_balanced2.json", "ILSVRC/Data/DET/val", _ILSVRC),
    "ilsvrc_loc_val": ("ilsvrc/annotations/ilsvrc_loc_val.json", "ILSVRC/Data/CLS-LOC/val", _ILSVRC),
}
# By whose rule a set's own mAP is taken, see evaluate_voc; 2010's is that of the later years, too.
VocRule = Literal["VOC 2007", "VOC 2010", "ILSVRC"]
_VOC_RULES: dict[str, VocRule] = {"voc07_": "VOC 2007", "voc12_": "VOC 2010", "ilsvrc_det_": "ILSVRC"}


@dataclass(frozen=True)
class DatasetSpec:
    """Where one COCO-format data set lies, and the command that gets it."""

    name: str
    json_path: Path
    image_folder: Path
    fetch_command: str  # empty for the user's own data
    voc_rule: VocRule | None = None  # None where no mAP but COCO's is reported


def datasets_root() -> Path:
    """``$DETECTRON2_DATASETS``, or ``datasets`` below the working directory, as in Detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def get_dataset(name: str, own: Sequence[Mapping[str, Any]] = ()) -> DatasetSpec:
    """Look a data set up by name. Whether its files are there is asked by :func:`check_dataset_files`.

    Args:
        name: a built-in name or one of ``own``.
        own: the config's ``DATASETS.OWN``: entries of exactly NAME, JSON and IMAGES; relative paths start at the
            working directory.

    Raises:
        ValueError: the name is unknown, or an entry of ``own`` has other keys or a name that is taken.
        TypeError: a value of ``own`` is not a string.
    """
    root = datasets_root()
    specs = {
        key: DatasetSpec(
            key,
            root / json_path,
            root / images,
            command.replace("{root}", str(root)).replace("{name}", key),
            next((rule for start, rule in _VOC_RULES.items() if key.startswith(start)), None),
        )
        for key, (json_path, images, command) in _BUILTIN.items()
    }
    for index, entry in enumerate(own):
        spec = _own_spec(entry, f"DATASETS.OWN[{index}]")
        if spec.name in specs:
            raise ValueError(f"DATASETS.OWN[{index}]: NAME {spec.name!r} is taken already; choose another")
        specs[spec.name] = spec
    if name not in specs:
        near = difflib.get_close_matches(name, specs, n=4, cutoff=0.5) or list(specs)
        raise ValueError(
            f"unknown data set {name!r}; did you mean {', '.join(near)}?\n"
            f"Your own data needs one entry in the config:\n  {_OWN_EXAMPLE}"
        )
    return specs[name]


def check_dataset_files(spec: DatasetSpec) -> None:
    """Raise FileNotFoundError, saying what is missing, where it was looked for, and how to get it."""
    missing = [] if spec.json_path.is_file() else [f"annotation file {spec.json_path.absolute()}"]
    missing += [] if spec.image_folder.is_dir() else [f"image folder {spec.image_folder.absolute()}"]
    if not missing:
        return
    message = f"data set {spec.name!r} is not there: no {' and no '.join(missing)}"
    if spec.fetch_command:
        setting = os.environ.get("DETECTRON2_DATASETS")
        root = (
            f"$DETECTRON2_DATASETS, which is {setting}" if setting else "./datasets, as $DETECTRON2_DATASETS is not set"
        )
        message += f"\n(looked below {root}). Get it with: {spec.fetch_command}"
    else:
        message += f"\nCorrect JSON and IMAGES of {spec.name!r} in DATASETS.OWN; relative paths start at {Path.cwd()}"
    raise FileNotFoundError(message)


def check_same_classes(name: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Raise ValueError where the data set ``name`` has other classes than the detector learns, or another order."""
    if list(found) != list(expected):
        other = sorted(set(found) ^ set(expected))
        how = f"in one of them only: {other[:8]}" if other else "the same in another order"
        raise ValueError(
            f"{name!r} has the classes {_few(found)}, the network tells {_few(expected)} apart ({how}); both need the "
            f"same"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _own_spec(entry: Mapping[str, Any], where: str) -> DatasetSpec:
    if set(entry) != set(_OWN_KEYS):
        wrong = [f"unknown key {key}" for key in entry if key not in _OWN_KEYS]
        wrong += [f"{key} is missing" for key in _OWN_KEYS if key not in entry]
        raise ValueError(f"{where}: {', '.join(wrong)}; write\n  {_OWN_EXAMPLE}")
    for key in _OWN_KEYS:
        if not isinstance(entry[key], str) or not entry[key]:
            raise TypeError(f"{where}: {key} is {entry[key]!r}; expected a text that is not empty")
    if re.search(_NO_FOLDER, entry["NAME"]):
        raise ValueError(f"{where}: NAME {entry['NAME']!r} names a folder of results, too; write letters, digits and _")
    return DatasetSpec(entry["NAME"], Path(entry["JSON"]).expanduser(), Path(entry["IMAGES"]).expanduser(), "")
