"""tools/check_dataset.py on real and spoiled data, and that a run does what it says."""

from __future__ import annotations

import json
import logging
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from resnet_backbone.torchvision_plugin.config import load_config
from resnet_backbone.torchvision_plugin.datasets import open_test_sets, open_train_set


@pytest.fixture
def tool(load_script, capsys) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Returns the exit status and the object that was printed."""
    main = load_script("tools/check_dataset.py").main

    def run(*words: str | Path) -> tuple[int, dict[str, Any]]:
        status = main(["--json-report", *map(str, words)])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def data(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shapes to spoil, which $DETECTRON2_DATASETS names."""
    shutil.copytree(shapes, tmp_path / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    return tmp_path / "data/shapes"


def spoil(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def kinds(report: dict[str, Any], index: int = 0) -> dict[str, int]:
    return {finding["kind"]: finding["count"] for finding in report["sets"][index]["findings"]}


def test_two_boxes_of_bccd_are_empty(bccd, tool, tmp_path):
    """All of its boxes, as the XML files have them."""
    images, annotations = [], []
    for path in sorted((bccd / "Annotations").glob("*.xml")):
        root = ElementTree.parse(path).getroot()  # noqa: S314
        size = {key: int(root.findtext(f"size/{key}")) for key in ("height", "width")}
        images.append({"id": len(images), "file_name": f"{path.stem}.jpg", **size})
        for item in root.iter("object"):
            x1, y1, x2, y2 = (int(item.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
            label = ("Platelets", "RBC", "WBC").index(item.findtext("name")) + 1
            place = {"image_id": images[-1]["id"], "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            annotations.append({"id": len(annotations) + 1, **place})
    categories = [{"id": 1, "name": "Platelets"}, {"id": 2, "name": "RBC"}, {"id": 3, "name": "WBC"}]
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    status, report = tool("--json", path, "--images", bccd / "JPEGImages")
    found = kinds(report)
    assert status == 0 and found["empty_box"] == 2 and "outside_box" not in found
    assert report["sets"][0]["num_annotations"] == 4888 and report["sets"][0]["num_images"] == 364


def test_coco_itself_is_in_order(coco_mini, tool):
    notes = coco_mini / "annotations"
    status, report = tool(
        *("--json", notes / "instances_train2017.json", "--images", coco_mini / "train2017", "--masks"),
        *("--val-json", notes / "instances_val2017.json", "--val-images", coco_mini / "val2017", "--deep"),
    )
    assert status == 0 and [f for one in report["sets"] for f in one["findings"] if f["warning"]] == []
    assert kinds(report, 0)["crowd"] == 8 and kinds(report, 1)["crowd"] == 5


def test_a_config_names_the_data(data, tool):
    status, report = tool("--config-file", "quickstart.yaml")
    assert status == 0 and [(one["name"], one["training"], one["num_images"]) for one in report["sets"]] == [
        ("shapes_train", True, 12),
        ("shapes_val", False, 5),
    ]
    words = ("DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)")
    status, report = tool("--config-file", "mask/r18_fpn.yaml", *words)  # of polygons, and the shapes are run lengths
    assert status == 1 and "run_lengths" in kinds(report)


def test_areas_that_do_not_fit(data, tool, caplog):
    def change(content):
        for annotation in content["annotations"]:
            annotation["area"] = 1

    spoil(data / "annotations/val.json", change)
    status, report = tool("--config-file", "quickstart.yaml")
    (finding,) = [found for found in report["sets"][1]["findings"] if found["kind"] == "doubtful_area"]
    assert status == 0 and finding["warning"] and finding["count"] == finding["total"] > 0
    cfg = load_config("quickstart.yaml")
    open_test_sets(cfg, open_train_set(cfg).class_names)
    assert "objects whose area does not fit their box" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_both_readers_take_every_encoding_of_json(data, tool, encoding):
    for split in ("train", "val"):
        path = data / f"annotations/{split}.json"
        path.write_bytes(path.read_text().encode(encoding))
    status, report = tool("--config-file", "quickstart.yaml")
    assert status == 0 and [one["num_images"] for one in report["sets"]] == [12, 5]
    cfg = load_config("quickstart.yaml")
    assert len(open_test_sets(cfg, open_train_set(cfg).class_names)) == 1


@pytest.mark.parametrize(("change", "kind"), [
    (lambda content: content["annotations"][0].update(category_id=77), "unknown_category"),
    (lambda content: content["images"][0].update(file_name="gone.jpg"), "missing_image"),
    (lambda content: content["categories"][0].update(name="disc"), "other_classes"),
    (lambda content: content["annotations"][0]["bbox"].__setitem__(2, -5), "negative_box"),
    (lambda content: content.clear(), "unusable_file"),
])  # fmt: skip
def test_what_stops_a_run(data, tool, change, kind):
    spoil(data / "annotations/val.json", change)
    status, report = tool("--config-file", "quickstart.yaml")
    finding = report["sets"][1]["findings"][0]
    assert status == 1 and report["stops"] == 1 and (finding["kind"], finding["action"]) == (kind, "stop")
    cfg = load_config("quickstart.yaml")
    train_set = open_train_set(cfg)
    with pytest.raises((ValueError, FileNotFoundError)):
        open_test_sets(cfg, train_set.class_names, train_set)


def damage(data: Path) -> None:
    path = sorted((data / "train").glob("*.jpg"))[3]
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_opens_images_where_it_is_asked_to(data, tool, asked):
    damage(data)
    status, report = tool("--config-file", "quickstart.yaml", *(["--deep"] if asked else []))
    assert (status, "unreadable_image" in kinds(report)) == (int(asked), asked)
    cfg = load_config("quickstart.yaml", ["DATASETS.CHECK_IMAGES", str(asked)])
    train_set = open_train_set(cfg)
    if asked:
        with pytest.raises(ValueError, match=r"(?s)shapes_train: .*1 of 12 images that cannot be read"):
            open_test_sets(cfg, train_set.class_names, train_set)
    else:
        assert len(open_test_sets(cfg, train_set.class_names, train_set)) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_detectron2_opens_images_where_it_is_asked_to(data, asked):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin.config import load_config as load_detectron2_config
    from resnet_backbone.detectron2_plugin.datasets import register_datasets

    damage(data)
    cfg = load_detectron2_config("quickstart.yaml", ["DATASETS.CHECK_IMAGES", str(asked)])
    if asked:
        with pytest.raises(ValueError, match=r"(?s)shapes_train: .*1 of 12 images that cannot be read"):
            register_datasets(cfg, training=True)
    else:
        assert len(register_datasets(cfg, training=True)) == 5


def leak(data: Path, tool: Callable[..., Any]) -> None:
    words = ("DATASETS.TEST", "('shapes_train',)")
    status, report = tool("--config-file", "quickstart.yaml", *words)
    assert status == 0 and kinds(report, 1)["shared_file"] == 12 and "shared_file" not in kinds(report, 0)


def test_a_run_tells_that_it_is_scored_on_what_it_learned(data, tool, caplog):
    leak(data, tool)
    cfg = load_config("quickstart.yaml", ["DATASETS.TEST", "('shapes_train',)"])
    with caplog.at_level(logging.WARNING):
        train_set = open_train_set(cfg)
        open_test_sets(cfg, train_set.class_names, train_set)
    assert "shapes_train: 12 of 12 images that are trained on and evaluated, too" in caplog.text


def test_detectron2_tells_it_too(data, caplog, monkeypatch):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from resnet_backbone.detectron2_plugin.config import load_config as load_detectron2_config
    from resnet_backbone.detectron2_plugin.datasets import register_datasets

    monkeypatch.setattr(logging.getLogger("resnet_backbone"), "propagate", True)
    cfg = load_detectron2_config("quickstart.yaml", ["DATASETS.TEST", "('shapes_train',)"])
    with caplog.at_level(logging.WARNING):
        register_datasets(cfg, training=True)
    assert "12 of 12 images that are trained on and evaluated, too" in caplog.text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.pictures += tag == "img" and (dict(attrs)["src"] or "").startswith("data:image/jpeg;base64,")


def test_the_page_shows_what_was_found_and_escapes_it(data, tool, tmp_path):
    image = next((data / "train").glob("*.jpg"))
    nasty = "<script>alert('1')<img src=x onerror=1>.jpg"
    shutil.copy(image, data / "train" / nasty)

    def change(content: dict[str, Any]) -> None:
        (entry,) = [one for one in content["images"] if one["file_name"] == image.name]
        entry["file_name"] = nasty
        for annotation in content["annotations"]:
            if annotation["image_id"] == entry["id"]:
                annotation["bbox"][2] = 0
        content["categories"][0]["name"] = "<script>"

    for split in ("train", "val"):
        spoil(data / f"annotations/{split}.json", change if split == "train" else lambda c: c["categories"][0].update(
            name="<script>"))  # fmt: skip
    _, report = tool("--config-file", "quickstart.yaml", "--output", tmp_path / "out")
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    assert "boxes without area: left out" in (tmp_path / "out/report.txt").read_text()
    html = (tmp_path / "out/index.html").read_text()
    page = _Page()
    page.feed(html)
    shown = sum(e["file_name"] is not None for one in report["sets"] for f in one["findings"] for e in f["examples"])
    assert "script" not in page.tags and page.pictures == shown >= 2
    assert "&lt;script&gt;alert(" in html


def test_a_picture_is_in_the_frame_of_the_annotations(data, tool, tmp_path):
    """A photograph of EXIF's orientation 6 whose annotations are of the stored pixels is shown as stored."""
    from resnet_backbone.doctor.dataset_report import SetToCheck, check_sets, dataset_page

    path = sorted((data / "train").glob("*.jpg"))[0]
    with Image.open(path) as image:
        stored = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = stored.resize((200, 100))
    wide.save(path, exif=exif)

    def resize(content: dict[str, Any]) -> None:
        (entry,) = [one for one in content["images"] if one["file_name"] == path.name]
        entry |= {"width": 200, "height": 100}
        for annotation in content["annotations"]:
            if annotation["image_id"] == entry["id"]:
                annotation["bbox"] = [5, 5, 50, 50]

    spoil(data / "annotations/train.json", resize)
    sets = [SetToCheck("a", data / "annotations/train.json", data / "train", True)]
    (one,) = check_sets(sets, deep=True)
    one.findings = [finding for finding in one.findings if finding.key == "turned_image"]
    assert 'width="360" height="180"' in dataset_page("", [one])


@pytest.mark.parametrize(("words", "message"), [
    (["--json", "none.json", "--images", "none"], ""),
    (["--config-file", "none.yaml"], "none.yaml"),
    (["--config-file", "quickstart.yaml", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"], "nothing to check"),
    (["--config-file", "quickstart.yaml", "DATASETS.TRAIN", "('nothing',)"], "unknown data set"),
])  # fmt: skip
def test_mistakes_end_with_status_1(load_script, capsys, words, message):
    assert load_script("tools/check_dataset.py").main(words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--json", "a.json"], ["--json", "a.json", "--images", "a", "--val-json", "b.json"], [],
    ["--json", "a.json", "--images", "a", "SEED", "1"], ["--config-file", "quickstart.yaml", "--masks"],
])  # fmt: skip
def test_words_that_do_not_go_together(load_script, words):
    with pytest.raises(SystemExit):
        load_script("tools/check_dataset.py").main(words)
