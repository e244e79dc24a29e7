"""Segmentations against pycocotools, and damaged ones that pycocotools would read past its buffers."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from resnet_backbone.data.coco.masks import (
    crop_polygons,
    decode_segmentation,
    decompress,
    find_broken,
    summarise_segmentation,
)


def usable_segmentation(segmentation, height: int, width: int):
    """The segmentation without broken polygons; ValueError where it does not fit an image of that size."""
    summary = summarise_segmentation(segmentation)
    if fault := summary.fault(height, width):
        raise ValueError(fault)
    return summary.usable


def decompress_counts(text: str) -> list[int]:
    return decompress([text])[0].tolist()


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, written independently of the library."""
    flat = np.concatenate([[0], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10_000), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_rle_forms_agree(height, width, seed, density):
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    runs = runs_of(mask)
    assert decompress_counts(text) == runs
    for counts in (text, runs):
        rle = usable_segmentation({"size": [height, width], "counts": counts}, height, width)
        assert (decode_segmentation(rle, height, width) == mask).all()


@pytest.mark.parametrize("length", [70_000, 2_000_000])
def test_long_runs(length):
    mask = np.zeros((length, 2), np.uint8)
    mask[length // 3 :, 1] = 1
    text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    assert decompress_counts(text) == runs_of(mask)


def test_polygons_are_filled_and_united():
    square = [[2, 2, 8, 2, 8, 8, 2, 8], [10, 2, 14, 2, 14, 4, 10, 4], [1, 1, 5, 5]]
    usable = usable_segmentation(square, 12, 16)
    assert usable == square[:2]  # pycocotools would take the third for a box
    mask = decode_segmentation(usable, 12, 16)
    expected = np.zeros((12, 16), np.uint8)
    expected[2:8, 2:8] = 1
    expected[2:4, 10:14] = 1
    assert (mask == expected).all()


def test_slanted_polygon_agrees_with_opencv():
    polygon = [10.5, 5.25, 88.0, 30.5, 60.75, 91.0, 12.0, 70.0]
    mask = decode_segmentation(usable_segmentation([polygon], 100, 100), 100, 100)
    drawn = cv2.fillPoly(np.zeros((100, 100), np.uint8), [np.rint(np.reshape(polygon, (-1, 2))).astype(int)], 1)
    union, overlap = np.count_nonzero(mask | drawn), np.count_nonzero(mask & drawn)
    assert overlap / union > 0.95


@pytest.mark.parametrize("segmentation", [[], [[]], [[1, 1, 5, 5]], [[1, 1, 5, 5, 7]], [[1, 1, 5, 5, 7, 7, 9]]])
def test_nothing_to_draw(segmentation):
    assert usable_segmentation(segmentation, 10, 10) is None


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("text", "expected a list of polygons"),
        (None, "expected a list of polygons"),
        ([1, 2, 3, 4, 5, 6], "expected a list of polygons"),
        ([[1, 2, "3", 4, 5, 6]], "holds '3'"),
        ([[1, 2, None, 4, 5, 6]], "holds None"),
        ([[1, 2, float("nan"), 4, 5, 6]], "holds nan"),
        ([[1, 2, float("inf"), 4, 5, 6]], "holds inf"),
        ([[1, 2, 1e9, 4, 5, 6]], "holds 1000000000.0"),
        ([[1, 2, True, 4, 5, 6]], "holds True"),
        ({}, "needs"),
        ({"size": [10, 10]}, "needs"),
        ({"counts": [100]}, "needs"),
        ({"size": [10, 11], "counts": [110]}, r"size \[10, 11\]"),
        ({"size": [10, 10], "counts": [99]}, "add up to 99"),
        ({"size": [10, 10], "counts": [101]}, "add up to 101"),
        ({"size": [10, 10], "counts": []}, "add up to 0"),
        ({"size": [10, 10], "counts": [-1, 101]}, "counts are"),
        ({"size": [10, 10], "counts": [50.0, 50.0]}, "counts are"),
        ({"size": [10, 10], "counts": 100}, "counts are"),
        ({"size": [10, 10], "counts": ""}, "has no counts"),
        ({"size": [10, 10], "counts": "0000"}, "add up to"),
        ({"size": [10, 10], "counts": "zzz"}, "does not occur"),
        ({"size": [10, 10], "counts": "é"}, "does not occur"),
        ({"size": [10, 10], "counts": "o"}, "ends within"),
    ],
)
def test_damaged_segmentations(segmentation, message):
    with pytest.raises(ValueError, match=message):
        usable_segmentation(segmentation, 10, 10)


@pytest.mark.parametrize(("x", "y", "width", "height"), [(0, 0, 64, 64), (100.5, 20.25, 640, 32), (7, 9, 64, 16)])
def test_polygons_cropped_to_a_box_are_the_same_in_every_box(x, y, width, height):
    """A box is a grid of its own, wherever it lies and however it is stretched."""
    polygons = [np.array([5.0, 5, 50, 10, 60, 60, 20, 50]), np.array([1.0, 40, 15, 40, 15, 60])]
    placed = [(p.reshape(-1, 2) * [width / 64, height / 64] + [x, y]).reshape(-1) for p in polygons]
    cropped = crop_polygons(placed, np.array([x, y, x + width, y + height]), 64)
    assert (cropped == decode_segmentation(polygons, 64, 64)).all() and 0 < cropped.mean() < 1


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 999)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_many_masks_are_decompressed_as_each_by_itself(shapes):
    masks = [np.random.default_rng(seed).integers(0, 2, (h, w), dtype=np.uint8) for h, w, seed in shapes]
    texts = [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks]
    counts, begins = decompress(texts)
    assert [part.tolist() for part in np.split(counts, begins[1:])] == list(map(runs_of, masks))
    pixels = [mask.size for mask in masks]
    assert find_broken(texts, pixels) is None
    pixels[-1] += 1
    assert find_broken(texts, pixels) == (
        len(masks) - 1, f"adds up to {masks[-1].size} pixels, the image has {pixels[-1]}",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "\u1234", "o", "ooooooooooo0", "5", "?é"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_broken_one_of_many_is_found(text, place):
    good = coco_mask.encode(np.ones((10, 10), np.uint8, order="F"))["counts"].decode()
    texts = [good, good, good]
    texts[place] = text
    position, what = find_broken(texts, [100] * 3)
    assert position == place and what
