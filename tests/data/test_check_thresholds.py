"""Every threshold of the checks just below, at, and just above it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from resnet_backbone.data.coco.findings import Finding
from resnet_backbone.data.coco.read import check_coco_json

EPS = 1e-6
WIDTH, HEIGHT = 100, 80
Change = Callable[[dict[str, Any]], None]
Probe = Callable[[dict[str, Finding]], Any]


def document(boxes: list[list[float]], width: int = WIDTH, height: int = HEIGHT) -> dict[str, Any]:
    """Two images and two classes, which share the boxes in turn."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in range(2)],
        "categories": [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}],
        "annotations": [
            {"id": i, "image_id": i % 2, "category_id": 1 + i // 2 % 2, "bbox": box} for i, box in enumerate(boxes)
        ],
    }


def inside(count: int) -> list[list[float]]:
    """Boxes that are no corners: x2 > width were they x1, y1, x2, y2."""
    return [[60 + i / 10, 40 + i / 10, 20, 20] for i in range(count)]


def one(*box: float) -> dict[str, Any]:
    return document([list(box), *inside(29)])


def some(count: int, box: list[float], of: int = 30) -> dict[str, Any]:
    return document([*([[box[0] + i / 1000, *box[1:]] for i in range(count)]), *inside(of - count)])


def corners(fitting: int, of: int) -> dict[str, Any]:
    """Boxes that reach out far; ``fitting`` of them would fit as corners."""
    return document([[50 + i / 100, 30, 90, 70] if i < fitting else [60, 30, 59, 70] for i in range(of)])


def shares(count: int, of: int, value: float = 0.5, side: int = 80) -> dict[str, Any]:
    return document([[0.25, 0.25, value, 0.5]] * count + [[40, 40, 20, 20]] * (of - count), height=side)


def low_shares(value: float) -> dict[str, Any]:
    return document([[value, 0.25, 0.5, 0.5]] * 30)


def objects(*counts: int) -> dict[str, Any]:
    data = document([[i / 100, i % 7, 20, 20] for i in range(sum(counts))])
    for number, annotation in enumerate(data["annotations"]):
        annotation["category_id"] = 1 if number < counts[0] else 2
    return data


def crowds(count: int) -> dict[str, Any]:
    data = document(inside(30))
    for annotation in data["annotations"][:count]:
        annotation["iscrowd"] = 1
    return data


def image(height: int) -> dict[str, Any]:
    return document(inside(30), width=2, height=height)


def mask(far: float) -> dict[str, Any]:
    data = document(inside(30))
    for annotation in data["annotations"]:
        annotation["segmentation"] = [[60, 40, far, 40, 80, 60]]
    return data


def area(value: float, count: int = 30, box: tuple[float, ...] = (10, 10, 20, 10)) -> dict[str, Any]:
    """The area of the first, whose box is as given."""
    data = document([list(box), *inside(count - 1)])
    data["annotations"][0]["area"] = value
    return data


def areas(count: int, of: int) -> dict[str, Any]:
    """``count`` areas that are too small for their boxes."""
    data = document(inside(of))
    for annotation in data["annotations"][:count]:
        annotation["area"] = 1
    return data


def same_areas(of: int, largest: float = 40.0) -> dict[str, Any]:
    """One area for boxes of 10 x 10 to ``largest`` x 10, which each of them could have."""
    data = document([[20, 20, 10, 10]] * (of - 1) + [[20, 20, largest, 10]])
    for annotation in data["annotations"]:
        annotation["area"] = 30
    return data


def is_found(key: str) -> Probe:
    return lambda found: key in found


def warns(key: str) -> Probe:
    return lambda found: key in found and found[key].warns


def far_boxes(found: dict[str, Finding]) -> str:
    return found["clipped_box"].note.split()[0]


LIMIT = 2 * Image.MAX_IMAGE_PIXELS
# What is checked, how a document is made of a value, three values, and what is found at each.
CASES: list[tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...], Probe, tuple[Any, ...]]] = [
    ("right border", lambda v: one(50, 30, v, 20), (50 - EPS, 50, 50 + EPS), is_found("clipped_box"), (0, 0, 1)),
    ("lower border", lambda v: one(50, 30, 20, v), (50 - EPS, 50, 50 + EPS), is_found("clipped_box"), (0, 0, 1)),
    ("left border", lambda v: one(v, 30, 20, 20), (EPS, 0, -EPS), is_found("clipped_box"), (0, 0, 1)),
    ("upper border", lambda v: one(50, v, 20, 20), (EPS, 0, -EPS), is_found("clipped_box"), (0, 0, 1)),
    ("rounding", lambda v: one(50, 30, v, 20), (51 - EPS, 51, 51 + EPS), far_boxes, ("0", "0", "1")),
    ("several far", lambda v: some(v, [90, 30, 20, 20]), (4, 5, 6), warns("clipped_box"), (0, 1, 1)),
    ("a tenth far", lambda v: some(v, [90, 30, 20, 20], 80), (7, 8, 9), warns("clipped_box"), (0, 1, 1)),
    ("nearly all corners", lambda v: corners(v, 40), (37, 38, 39), is_found("corner_boxes"), (0, 1, 1)),
    ("nearly all shares", lambda v: shares(v, 40), (37, 38, 39), is_found("normalised_boxes"), (0, 1, 1)),
    ("slack", lambda v: shares(30, 30, v), (1.01 - EPS, 1.01, 1.01 + EPS), is_found("normalised_boxes"), (1, 1, 0)),
    ("low slack", low_shares, (-0.01 - EPS, -0.01, -0.01 + EPS), is_found("normalised_boxes"), (0, 1, 1)),
    ("large image", lambda v: shares(30, 30, side=v), (31, 32, 33), is_found("normalised_boxes"), (0, 1, 1)),
    ("tiny", lambda v: one(50, 30, 8, v), (7.999, 8, 8.001), is_found("tiny_box"), (1, 0, 0)),
    ("half are tiny", lambda v: some(v, [50, 30, 4, 4]), (14, 15, 16), warns("tiny_box"), (0, 0, 1)),
    ("no width", lambda v: one(50, 30, v, 20), (-0.01, 0, 0.01), is_found("empty_box"), (0, 1, 0)),
    ("negative", lambda v: one(50, 30, v, 20), (-0.01, 0, 0.01), is_found("negative_box"), (1, 0, 0)),
    ("right of the image", lambda v: one(v, 30, 9, 9), (99.9, 100, 100.1), is_found("outside_box"), (0, 1, 1)),
    ("left of the image", lambda v: one(v, 30, 9, 9), (-9.1, -9, -8.9), is_found("outside_box"), (1, 1, 0)),
    ("rare", lambda v: objects(v, 30), (9, 10, 11), is_found("rare_class"), (1, 0, 0)),
    ("unbalanced", lambda v: objects(12, v), (1199, 1200, 1201), is_found("unbalanced_classes"), (0, 0, 1)),
    ("many crowds", crowds, (8, 9, 10), warns("crowd"), (0, 1, 1)),
    ("largest image", image, (LIMIT // 2 - 1, LIMIT // 2, LIMIT // 2 + 1), is_found("image_size"), (0, 0, 1)),
    ("no height", image, (-1, 0, 1), is_found("image_size"), (1, 1, 0)),
    ("point far out", mask, (1000 - EPS, 1000, 1000 + EPS), is_found("malformed_mask"), (0, 0, 1)),
    ("point far out, negative", mask, (-1000 - EPS, -1000, -1000 + EPS), is_found("malformed_mask"), (1, 0, 0)),
    ("area and box", area, (316.8 - EPS, 316.8, 316.8 + 1e-3), is_found("doubtful_area"), (0, 0, 1)),
    ("area and side", area, (5 - EPS, 5, 5 + EPS), is_found("doubtful_area"), (1, 0, 0)),
    ("no box", lambda v: area(40, box=(10, 10, v, 10)), (-0.1, 0, 0.1), is_found("doubtful_area"), (0, 0, 1)),
    ("negative area", lambda v: area(v, 999, (1, 1, 0, 0)), (-EPS, 0, EPS), warns("doubtful_area"), (1, 0, 0)),
    ("largest area", lambda v: area(v, 999, (1, 1, 0, 0)), (9e9, 1e10, 1.1e10), warns("doubtful_area"), (0, 0, 1)),
    ("usual share", lambda v: areas(v, 300), (2, 3, 4), warns("doubtful_area"), (0, 0, 1)),
    ("same areas", same_areas, (4, 5, 6), is_found("doubtful_area"), (0, 1, 1)),
    ("same sizes", lambda v: same_areas(9, v), (14.99, 15, 15.01), is_found("doubtful_area"), (0, 0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "values", "probe", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_just_below_at_and_just_above(tmp_path, make, values, probe, expected):
    path = tmp_path / "a.json"
    found = []
    for value in values:
        data = make(value)
        path.write_text(json.dumps(data))
        with_masks = "segmentation" in data["annotations"][0]
        scored = make in (area, areas, same_areas) or "area" in data["annotations"][0]
        checked = check_coco_json(path, training=not scored, with_masks=with_masks)
        found.append(probe({finding.key: finding for finding in checked.findings}))
    assert tuple(found) == expected
