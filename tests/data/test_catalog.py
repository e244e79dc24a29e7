"""Names, places, and what is said when something is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from resnet_backbone.command import SCRIPTS
from resnet_backbone.data.catalog import DatasetSpec, check_dataset_files, datasets_root, get_dataset

OWN = {"NAME": "cells", "JSON": "cells/train.json", "IMAGES": "cells/images"}
BUILTIN = [
    "coco_2014_train", "coco_2014_val", "coco_2014_minival", "coco_2014_valminusminival", "coco_2017_train",
    "coco_2017_val", "coco_2017_val_100", "shapes_train", "shapes_val", "bccd_trainval", "bccd_test",
    "voc07_trainval", "voc07_test", "voc12_trainval", "voc12_test",
    "ilsvrc_det_train", "ilsvrc_det_val1", "ilsvrc_det_val2", "ilsvrc_det_balanced1", "ilsvrc_det_balanced2",
    "ilsvrc_loc_val",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_setting(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)


@pytest.mark.parametrize("name", BUILTIN)
def test_every_builtin_lies_below_the_root(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    spec = get_dataset(name)
    assert spec.name == name
    assert spec.json_path.is_relative_to(tmp_path) and spec.image_folder.is_relative_to(tmp_path)
    verb, name = re.match(r"resnet-backbone (prepare) (\w+)", spec.fetch_command).groups()
    assert (
        f"{verb} {name}" in SCRIPTS and (Path(__file__).resolve().parents[2] / f"datasets/prepare_{name}.py").is_file()
    )
    assert "{root}" not in spec.fetch_command


def test_whose_map_a_set_has():
    rules = {name: get_dataset(name).voc_rule for name in BUILTIN}
    assert {name for name, rule in rules.items() if rule == "VOC 2007"} == {"voc07_trainval", "voc07_test"}
    assert {name for name, rule in rules.items() if rule == "VOC 2010"} == {"voc12_trainval", "voc12_test"}
    assert {name for name, rule in rules.items() if rule == "ILSVRC"} == {
        name for name in BUILTIN if name.startswith("ilsvrc_det")
    }


def test_paths_of_detectron2():
    """As ``_PREDEFINED_SPLITS_COCO`` in Detectron2's ``builtin.py``."""
    table = ast.literal_eval("""{
        "coco_2014_train": ("coco/train2014", "coco/annotations/instances_train2014.json"),
        "coco_2014_val": ("coco/val2014", "coco/annotations/instances_val2014.json"),
        "coco_2014_minival": ("coco/val2014", "coco/annotations/instances_minival2014.json"),
        "coco_2014_valminusminival": ("coco/val2014", "coco/annotations/instances_valminusminival2014.json"),
        "coco_2017_train": ("coco/train2017", "coco/annotations/instances_train2017.json"),
        "coco_2017_val": ("coco/val2017", "coco/annotations/instances_val2017.json"),
        "coco_2017_val_100": ("coco/val2017", "coco/annotations/instances_val2017_100.json"),
    }""")
    for name, (images, json_path) in table.items():
        spec = get_dataset(name)
        assert (spec.image_folder, spec.json_path) == (Path("datasets") / images, Path("datasets") / json_path)


def test_root(monkeypatch):
    assert datasets_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert datasets_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert datasets_root() == Path.home() / "data"


def test_own_data():
    spec = get_dataset("cells", [OWN])
    assert spec == DatasetSpec("cells", Path("cells/train.json"), Path("cells/images"), "")
    assert get_dataset("shapes_val", [OWN]).name == "shapes_val"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("coco_2017_trian", "coco_2017_train"),
        ("shape_train", "shapes_train"),
        ("cell", "cells"),
        ("zzzzqqq", "bccd_test"),
    ],
)
def test_unknown_names(name, suggestion):
    with pytest.raises(ValueError, match=suggestion) as error:
        get_dataset(name, [OWN])
    assert "OWN: [{NAME:" in str(error.value) and repr(name) in str(error.value)


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ([{**OWN, "LABELS": "x"}], ValueError, "unknown key LABELS"),
        ([{"NAME": "a", "JSON": "b"}], ValueError, "IMAGES is missing"),
        ([{"name": "a", "JSON": "b", "IMAGES": "c"}], ValueError, "unknown key name, NAME is missing"),
        ([{}], ValueError, "NAME is missing, JSON is missing"),
        ([{**OWN, "JSON": 5}], TypeError, "JSON is 5"),
        ([{**OWN, "NAME": ""}], TypeError, "NAME is ''"),
        ([{**OWN, "IMAGES": None}], TypeError, "IMAGES is None"),
        ([OWN, OWN], ValueError, r"OWN\[1\]: NAME 'cells' is taken"),
        ([{**OWN, "NAME": "coco_2017_val"}], ValueError, "'coco_2017_val' is taken"),
    ],
)
def test_own_entries_that_are_refused(own, error, message):
    with pytest.raises(error, match=message):
        get_dataset("shapes_train", own)


def test_files_that_are_there(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    check_dataset_files(DatasetSpec("a", tmp_path / "a.json", tmp_path, ""))


@pytest.mark.parametrize(("json_there", "images_there"), [(True, False), (False, True), (False, False)])
def test_missing_files_are_told_apart(tmp_path, monkeypatch, json_there, images_there):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    spec = get_dataset("coco_2017_val")
    spec.json_path.parent.mkdir(parents=True)
    if json_there:
        spec.json_path.write_text("{}")
    if images_there:
        spec.image_folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError) as error:
        check_dataset_files(spec)
    message = str(error.value)
    assert (str(spec.json_path) in message) is not json_there
    assert (str(spec.image_folder) in message) is not images_there
    assert f"$DETECTRON2_DATASETS, which is {tmp_path}" in message
    assert "resnet-backbone prepare coco --year 2017" in message


def test_missing_files_without_a_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"not set\)\. Get it with: resnet-backbone prepare shapes"):
        check_dataset_files(get_dataset("shapes_train"))


def test_missing_own_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"DATASETS\.OWN") as error:
        check_dataset_files(get_dataset("cells", [OWN]))
    assert str(tmp_path / "cells/train.json") in str(error.value)


@pytest.mark.parametrize("name", ["../other", "day:night", "a\\b", "..", "who?", "a\nb"])
def test_names_that_are_no_folder_are_refused(name):
    """Results of several test sets lie in folders of their names, on every system."""
    with pytest.raises(ValueError, match="names a folder of results, too; write letters, digits and _"):
        get_dataset("my_train", [{"NAME": name, "JSON": "a.json", "IMAGES": "images"}])
    assert get_dataset("mine (2) été", [{"NAME": "mine (2) été", "JSON": "a.json", "IMAGES": "i"}]).name
