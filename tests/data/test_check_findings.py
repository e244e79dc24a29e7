"""Every kind of finding, and whether reading the file does what the finding says."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_backbone.data.coco.findings import KINDS, MAX_EXAMPLES, Finding
from resnet_backbone.data.coco.read import check_coco_json, read_coco_json

Change = Callable[[dict[str, Any]], Any]
MARK = [41.0, 31.0, 20.0, 20.0]  # the box of the annotation that is changed
SQUARE = [[41, 31, 61, 31, 61, 51, 41, 51]]


def document() -> dict[str, Any]:
    """Two images of 100 x 80 (width x height), two classes, 30 boxes; nothing to find in it."""
    annotations = [
        {"id": i + 1, "image_id": 7 + i % 2, "category_id": 1 + i % 3 // 2, "bbox": [i, i, 20, 20], "iscrowd": 0}
        for i in range(30)
    ]
    annotations[0] |= {"bbox": MARK, "category_id": 1, "image_id": 7}
    for annotation in annotations:
        annotation["segmentation"] = SQUARE
    return {
        "images": [{"id": 7 + i, "file_name": f"{i}.png", "height": 80, "width": 100} for i in range(2)],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        "annotations": annotations,
    }


def mark(**values: Any) -> Change:
    """Change the marked annotation; None takes a key out."""

    def change(data: dict[str, Any]) -> None:
        for key, value in values.items():
            data["annotations"][0][key] = value
            if value is None:
                del data["annotations"][0][key]

    return change


def more(where: str, **values: Any) -> Change:
    """Add a copy of the last entry of a list, changed."""
    return lambda data: data[where].append({**data[where][-1], **values})


def every_box(form: Callable[[float, float, float, float], list[float]]) -> Change:
    def change(data: dict[str, Any]) -> None:
        for annotation in data["annotations"]:
            annotation["bbox"] = form(*annotation["bbox"])

    return change


def many_of_one(data: dict[str, Any]) -> None:
    boxes = [{**data["annotations"][0], "id": 100 + i, "bbox": [i / 100, 0, 20, 20]} for i in range(3000)]
    data["annotations"] += boxes


def keep_one_of_class_2(data: dict[str, Any]) -> None:
    kept = [annotation for annotation in data["annotations"] if annotation["category_id"] == 2][:1]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] == 1] + kept


# Kind, what brings it about, how many are found, and where it is kept or repaired: the box of the marked annotation.
INSIDE = (41.0, 31.0, 61.0, 51.0)
CASES: list[tuple[str, Change, int, tuple[float, ...] | None]] = [
    ("malformed_image", lambda data: data["images"][0].pop("height"), 1, None),
    ("malformed_image", more("images", id=9, file_name="\ud800.png"), 1, None),
    ("malformed_image", more("images", id=9, file_name=""), 1, None),
    ("malformed_image", more("images", id=2**63), 1, None),
    ("image_size", more("images", id=9, file_name="9.png", height=0), 1, None),
    ("image_size", more("images", id=9, file_name="9.png", width=-5), 1, None),
    ("image_size", more("images", id=9, file_name="9.png", width=2**62, height=2**62), 1, None),
    ("repeated_image_id", more("images", file_name="9.png"), 1, None),
    ("repeated_file", more("images", id=9), 1, INSIDE),
    ("unlabelled_image", more("images", id=9, file_name="9.png"), 1, INSIDE),
    ("nothing_to_train_on", lambda data: data["annotations"].clear(), 2, None),
    ("malformed_category", lambda data: data["categories"][0].pop("name"), 1, None),
    ("repeated_category_id", more("categories", name="cat"), 1, None),
    ("repeated_category_name", more("categories", id=3), 1, INSIDE),
    ("similar_category_name", more("categories", id=3, name=" BEE"), 1, INSIDE),
    ("similar_category_name", more("categories", id=3, name=" "), 1, INSIDE),
    ("unused_class", more("categories", id=3, name="cat"), 1, INSIDE),
    ("rare_class", keep_one_of_class_2, 1, INSIDE),
    ("unbalanced_classes", many_of_one, 1, INSIDE),
    ("malformed_annotation", mark(image_id="7"), 1, None),
    ("malformed_annotation", mark(category_id=1.5), 1, None),
    ("malformed_annotation", mark(iscrowd=2), 1, None),
    ("malformed_annotation", mark(bbox=None), 1, None),
    ("malformed_annotation", lambda data: data["annotations"].append([1]), 1, None),
    ("malformed_box", mark(bbox=[1, 2, 3]), 1, None),
    ("malformed_box", mark(bbox=[1, 2, 3, float("nan")]), 1, None),
    ("malformed_box", mark(bbox=[1, 2, float("inf"), 3]), 1, None),
    ("malformed_box", mark(bbox=[1, 2, 10**400, 3]), 1, None),
    ("malformed_box", mark(bbox=[1, 2, True, 3]), 1, None),
    ("orphan_annotation", mark(image_id=99), 1, None),
    ("unknown_category", mark(category_id=5), 1, None),
    ("corner_boxes", every_box(lambda x, y, w, h: [x + 30, y + 20, x + 30 + w, y + 20 + h]), 20, None),
    ("normalised_boxes", every_box(lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80]), 30, None),
    ("negative_box", mark(bbox=[41, 31, -5, 20]), 1, None),
    ("empty_box", mark(bbox=[41, 31, 0, 20]), 1, None),
    ("empty_box", mark(bbox=[41, 31, 1e-9, 20]), 1, None),
    ("outside_box", mark(bbox=[100, 31, 5, 20]), 1, None),
    ("outside_box", mark(bbox=[-30, 31, 30, 20]), 1, None),
    ("clipped_box", mark(bbox=[90, 70, 20, 20]), 1, (90, 70, 100, 80)),
    ("clipped_box", mark(bbox=[-9, -9, 1e300, 1e300]), 1, (0, 0, 100, 80)),
    ("tiny_box", mark(bbox=[41, 31, 4, 4]), 1, (41, 31, 45, 35)),
    ("malformed_area", mark(area="large"), 1, INSIDE),
    ("malformed_area", mark(area=10**400), 1, INSIDE),
    ("doubtful_area", mark(area=-1), 1, INSIDE),
    ("crowd", mark(iscrowd=1), 1, None),
    ("repeated_annotation", more("annotations", id=100), 1, INSIDE),
    ("repeated_annotation_id", mark(id=2), 1, INSIDE),
    ("missing_annotation_id", mark(id=None), 1, INSIDE),
    ("missing_annotation_id", mark(id=2**70), 1, INSIDE),
    ("no_mask", mark(segmentation=None), 1, None),
    ("malformed_mask", mark(segmentation=[[41, 31, float("nan"), 31, 61, 51]]), 1, None),
    ("malformed_mask", mark(segmentation=[[41, 31, 10**400, 31, 61, 51]]), 1, None),
    ("malformed_mask", mark(segmentation=[[41, 31, 5000, 31, 61, 51]]), 1, None),
    ("malformed_mask", mark(segmentation="text"), 1, None),
    ("malformed_mask", mark(segmentation={"size": [80, 99], "counts": [80 * 99]}), 1, None),
    ("malformed_mask", mark(segmentation={"size": [80, 100], "counts": [5, 5]}), 1, None),
    ("malformed_mask", mark(segmentation={"size": [80, 100], "counts": [-1, 8001]}), 1, None),
    ("malformed_mask", mark(segmentation={"size": [80, 100], "counts": "zzz"}), 1, None),
    ("malformed_mask", mark(segmentation={"size": [80, 100], "counts": "o" * 100_000 + "0"}), 1, None),
    ("malformed_mask", mark(segmentation={"size": [10**400, 100], "counts": [10**402]}), 1, None),
    ("run_lengths", mark(segmentation={"size": [80, 100], "counts": [8000]}), 1, None),
    ("no_polygon", mark(segmentation=[[41, 31, 61, 51], [1, 2, 3]]), 1, None),
    ("no_polygon", mark(segmentation=[]), 1, None),
    ("broken_polygon", mark(segmentation=[*SQUARE, [1, 2, 3, 4]]), 1, INSIDE),
]  # fmt: skip
ELSEWHERE = {  # test_check_images.py, tests/test_check_dataset.py
    "missing_image", "unreadable_image", "other_size", "turned_image", "unusual_mode", "repeated_content",
    "shared_file", "shared_content", "looks_same", "unusable_file", "other_classes",
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write_json(data: dict[str, Any]) -> Path:
        path = tmp_path / "a.json"
        path.write_text(json.dumps(data))
        return path

    return write_json


def of_kind(findings: list[Finding], key: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.key == key]
    return finding


def usage(key: str) -> dict[str, Any]:
    return {"training": True, "with_masks": True, "mask_format": "polygon" if key == "run_lengths" else "bitmask"}


def marked(path: Path, key: str) -> list[tuple[float, ...]]:
    """The boxes of image 7 that are at or near the marked place, as reading leaves them."""
    read = read_coco_json(path, **usage(key))
    image = read.image_ids.tolist().index(7)
    boxes = read.boxes[read.first[image] : read.first[image + 1]]
    other = {(float(i), float(i), i + 20.0, i + 20.0) for i in range(30)}
    return [tuple(box) for box in boxes.tolist() if tuple(box) not in other]


def test_nothing_is_found_in_good_data(write):
    path = write(document())
    assert check_coco_json(path, **usage("")).findings == []
    assert marked(path, "") == [INSIDE]


def test_every_kind_has_its_case():
    assert {key for key, *_ in CASES} | ELSEWHERE == set(KINDS)


@pytest.mark.parametrize(("key", "change", "count", "box"), CASES)
def test_reading_does_what_the_finding_says(write, caplog, key, change, count, box):
    data = document()
    change(data)
    path = write(data)
    finding = of_kind(check_coco_json(path, **usage(key)).findings, key)
    assert (finding.count, finding.action) == (count, KINDS[key].action)
    assert 1 <= len(finding.examples) <= MAX_EXAMPLES and finding.count <= finding.total
    if finding.action == "stop":
        with pytest.raises(ValueError) as error:
            read_coco_json(path, **usage(key))
        assert finding.headline() in str(error.value) and finding.examples[0].line() in str(error.value)
        return
    with caplog.at_level(logging.INFO):
        found = marked(path, key)
    assert [r.levelno for r in caplog.records if finding.headline() in r.getMessage()] == [
        logging.WARNING if finding.warns else logging.INFO
    ]
    if key == "unlabelled_image":
        assert read_coco_json(path, **usage(key)).image_ids.tolist() == [7, 8]
    elif finding.action == "drop":
        assert found == []
    if box is not None:
        assert tuple(box) in [tuple(place) for place in found]


def test_all_that_stops_is_said_at_once(write):
    data = document()
    change_of = {key: change for key, change, *_ in reversed(CASES)}  # the first of each
    for key in ("orphan_annotation", "malformed_category", "image_size"):
        change_of[key](data)
    data["annotations"][5]["bbox"] = "none"
    with pytest.raises(ValueError) as error:
        read_coco_json(write(data), training=True, with_masks=False)
    for key in ("orphan_annotation", "malformed_category", "image_size", "malformed_annotation"):
        assert KINDS[key].title in str(error.value)
    assert "4 kinds of mistakes" in str(error.value)
    assert KINDS["unknown_category"].title not in str(error.value)  # it follows from the malformed category


def test_examples_name_the_place(write):
    data = document()
    data["annotations"][0]["bbox"] = [41, 31, 0, 5]
    finding = of_kind(check_coco_json(write(data), training=True, with_masks=False).findings, "empty_box")
    assert finding.examples[0].to_dict() == {
        "text": "annotations[0] has bbox [41, 31, 0, 5]", "image_id": 7, "file_name": "0.png", "annotation_id": 1,
        "box": (41, 31, 0, 5), "twin": None,
    }  # fmt: skip


@pytest.mark.parametrize(("key", "change", "count", "box"), [case for case in CASES if "mask" in case[0]])
def test_masks_that_are_not_used_stop_nothing(write, key, change, count, box):
    data = document()
    change(data)
    path = write(data)
    finding = of_kind(check_coco_json(path, training=True, with_masks=False).findings, key)
    assert (finding.action, finding.count) == ("keep", count)
    assert len(read_coco_json(path, training=True, with_masks=False).boxes) == 30


def test_without_any_mask_nothing_is_said_of_masks(write):
    data = document()
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    assert check_coco_json(write(data), training=True, with_masks=False).findings == []


@pytest.mark.parametrize(("listed", "used", "advice"), [
    ([1, 2, 3], [0, 1, 2], "add 1"), ([1, 2, 3], [0, 2], "add 1"), ([0, 1, 2], [1, 2, 3], "take 1"),
    ([1, 2, 3], [1, 2, 9], ""), ([1, 2, 3], [0, 1, 3], ""),
])  # fmt: skip
def test_categories_that_are_counted_from_elsewhere(write, listed, used, advice):
    data = document()
    data["categories"] = [{"id": key, "name": f"c{key}"} for key in listed]
    for number, annotation in enumerate(data["annotations"]):
        annotation["category_id"] = used[number % len(used)]
    note = of_kind(check_coco_json(write(data), training=True, with_masks=False).findings, "unknown_category").note
    assert (advice in note) if advice else note == ""


@pytest.mark.parametrize("spoiled", [0, 1, 3])
def test_boxes_that_cannot_be_corners_clear_the_others(write, spoiled):
    """A slip does not; where more are no x1 y1 x2 y2, boxes that reach out are cut, and the log asks."""
    data = document()
    every_box(lambda x, y, w, h: [x + 30, y + 20, x + 30 + w, y + 20 + h])(data)
    for number in range(spoiled):
        data["annotations"][3 + number]["bbox"] = [50, 50, 20, 60 - number]
    keys = [f.key for f in check_coco_json(write(data), training=True, with_masks=False).findings if f.warns]
    assert keys == (["clipped_box"] if spoiled == 3 else ["corner_boxes", "clipped_box"])


def test_shares_of_the_image_that_are_rounded_up(write):
    data = document()
    every_box(lambda x, y, w, h: [x / 100, y / 80, w / 100, h / 80])(data)
    data["annotations"][0]["bbox"] = [0.0, 0.0, 1.0005, 1.0]
    data["annotations"][1]["bbox"] = [10, 10, 5, 5]
    found = of_kind(check_coco_json(write(data), training=True, with_masks=False).findings, "normalised_boxes")
    assert found.count == 29 and found.action == "stop"


def test_a_malformed_image_does_not_make_orphans_of_its_annotations(write):
    data = document()
    for image in data["images"]:
        image["width"] = str(image["width"])
    keys = [finding.key for finding in check_coco_json(write(data), training=True, with_masks=False).findings]
    assert keys == ["malformed_image"]


def test_a_file_name_cannot_draw_on_the_terminal(write):
    data = document()
    data["images"][0]["file_name"] = "\x1b[32ma\nTraining would start.png"
    data["annotations"][0]["bbox"] = [41, 31, 0, 5]
    finding = of_kind(check_coco_json(write(data), training=True, with_masks=False).findings, "empty_box")
    assert "\x1b" not in finding.text() and "\\x1b[32ma\\nTraining" in finding.text()


def test_integers_as_boxes_of_one_pixel_are_no_shares(write):
    data = document()
    every_box(lambda *_: [0, 0, 1, 1])(data)
    keys = [f.key for f in check_coco_json(write(data), training=True, with_masks=False).findings]
    assert "normalised_boxes" not in keys and "tiny_box" in keys


def test_a_set_that_is_evaluated_keeps_what_it_is_measured_by(write):
    data = document()
    data["annotations"][0] |= {"iscrowd": 1}
    data["annotations"][1]["bbox"] = [5, 5, 0, 5]
    checked = check_coco_json(write(data), training=False, with_masks=False)
    assert {f.key: f.action for f in checked.findings} == {"crowd": "keep", "empty_box": "keep"}
    assert of_kind(checked.findings, "empty_box").does() == "counted in the evaluation as objects that nothing can find"


def hostile() -> list[bytes]:
    good = json.dumps(document())
    values = ["null", "true", "-1", "1e400", "NaN", "[]", "{}", '"x"', "1" * 400, '"\\ud800"', "[[[]]]", "1" * 5000]
    return [
        b"[" * 100_000,
        b'{"images":' * 100_000,
        b'{"images": [], "annotations": ' + b"[" * 900 + b"]" * 900 + b', "categories": []}',
        b"\xff\xfe\x00\xd8\x00",
        *(good.replace('"segmentation": [[41', f'"segmentation": [[{value}', 1).encode() for value in values),
        *(
            good.replace(old, old.split(":")[0] + f": {value}", 1).encode()
            for old in ('"id": 7', '"height": 80', '"id": 1', '"image_id": 7', '"category_id": 1', '"iscrowd": 0')
            for value in values
        ),
        good.replace('"segmentation": [[', '"segmentation": [{"segmentation": [[', 1)
        .replace("]]}", "]]}]}", 1)
        .encode(),
    ]


@pytest.mark.parametrize("with_masks", [False, True])
def test_no_content_ends_in_another_error(tmp_path, with_masks):
    path = tmp_path / "a.json"
    outcomes = set()
    for content in hostile():
        path.write_bytes(content)
        try:
            read_coco_json(path, training=True, with_masks=with_masks)
            outcomes.add("read")
        except (ValueError, OSError) as error:
            assert str(path) in str(error) and len(str(error)) < 5000
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(("crowds", "warns"), [(0.1, False), (0.5, True), (0.9, True)])
def test_many_crowds_are_suspicious(write, crowds, warns):
    data = document()
    for annotation in data["annotations"][: round(30 * crowds)]:
        annotation["iscrowd"] = 1
    for training in (True, False):
        found = of_kind(check_coco_json(write(data), training=training, with_masks=False).findings, "crowd")
        assert (found.count, found.warns, "single objects have 0" in found.note) == (30 * crowds, warns, warns)


def test_crowds_alone_leave_nothing_to_train_on(write):
    data = document()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(ValueError, match=r"nothing to train on: all annotations are crowds \(iscrowd 1\)"):
        read_coco_json(write(data), training=True, with_masks=False)


def test_every_kind_is_documented():
    text = (Path(__file__).parents[2] / "datasets/README.md").read_text()
    for key, kind in KINDS.items():
        assert f"| `{key}` | {kind.title} | {kind.action} |" in text, key


def test_the_file_is_not_changed_by_its_order(write):
    """Boxes end with their own image whatever the order of the lists."""
    data = document()
    shuffled = copy.deepcopy(data)
    shuffled["images"].reverse()
    shuffled["annotations"] = [data["annotations"][i] for i in np.random.default_rng(0).permutation(30)]
    shuffled["categories"].reverse()
    one, other = (read_coco_json(write(d), training=True, with_masks=True) for d in (data, shuffled))
    assert one.image_ids.tolist() == other.image_ids.tolist() and one.class_names == other.class_names
    for i in range(2):
        own = [sorted(zip(r.boxes[r.first[i] : r.first[i + 1]].tolist(), r.labels[r.first[i] : r.first[i + 1]].tolist(),
                          strict=True)) for r in (one, other)]  # fmt: skip
        assert own[0] == own[1] and len(own[0]) == 15
