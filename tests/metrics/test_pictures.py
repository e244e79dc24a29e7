"""The pictures: what is drawn, where, in which color, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_backbone.metrics.drawing import (
    GAP,
    GRID_PAIRS,
    PictureSample,
    draw_pair,
    evenly_spaced,
    save_comparison_pictures,
)

NAMES = ["cat", "dog", "bird"]
NO_BOXES = {
    "gt_boxes": torch.zeros(0, 4),
    "gt_labels": torch.zeros(0, dtype=torch.long),
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.long),
    "scores": torch.zeros(0),
}


def gray(height, width):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def draw(image, **change):
    names = change.pop("class_names", NAMES)
    return draw_pair(PictureSample("name", image, **{**NO_BOXES, **change}), names)


def panels(pair):
    """The two halves, without the titles: the strip is the rows above the picture."""
    half = (pair.shape[2] - GAP) // 2
    return pair[:, :, :half], pair[:, :, -half:]


def drawn_pixels(panel, image_height):
    """Where a panel differs from the even gray picture."""
    return (panel[:, -image_height:] != 128).any(0)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (641, 97), (1, 1), (50, 30), (700, 1333)])
def test_shape_and_picture_content(height, width):
    pair = draw(gray(height, width))
    zoom = max(1, 640 / max(height, width))
    shown_height, shown_width = (max(1, round(side * zoom)) for side in (height, width))
    assert pair.dtype == torch.uint8 and pair.shape[0] == 3
    assert pair.shape[2] == 2 * shown_width + GAP
    assert pair.shape[1] > shown_height
    for panel in panels(pair):
        assert not drawn_pixels(panel, shown_height).any(), "no boxes, so the picture is shown as it is"
        title = panel[:, : pair.shape[1] - shown_height]
        assert title.float().std() > 5 or width < 10, "the strip holds text"


def test_ground_truth_is_left_and_predictions_are_right():
    box = torch.tensor([[100.0, 100, 200, 180]])
    label = torch.tensor([0])
    only_truth = {**NO_BOXES, "gt_boxes": box, "gt_labels": label}
    only_found = {**NO_BOXES, "boxes": box, "labels": label, "scores": torch.tensor([0.9])}
    left, right = panels(draw(gray(480, 640), **only_truth))
    assert drawn_pixels(left, 480).any() and not drawn_pixels(right, 480).any()
    left, right = panels(draw(gray(480, 640), **only_found))
    assert not drawn_pixels(left, 480).any() and drawn_pixels(right, 480).any()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (240, 320), (60, 80), (960, 1280)])
def test_boxes_are_where_they_should_be_at_every_size(height, width):
    box = torch.tensor([[0.25, 0.5, 0.75, 0.875]]) * torch.tensor([width, height, width, height])
    pair = draw(gray(height, width), gt_boxes=box, gt_labels=torch.tensor([1]))
    zoom = max(1, 640 / width)
    drawn = drawn_pixels(panels(pair)[0], round(height * zoom))
    rows, columns = torch.where(drawn)
    slack = 3
    assert columns.min() == pytest.approx(0.25 * width * zoom, abs=slack)
    assert columns.max() == pytest.approx(0.75 * width * zoom, abs=slack)
    assert rows.max() == pytest.approx(0.875 * height * zoom, abs=slack)
    assert not drawn[round(0.8 * height * zoom), round(0.5 * width * zoom)], "the inside stays visible"


def class_colors(label):
    boxes = torch.tensor([[50.0, 50, 150, 150], [300.0, 200, 420, 330]])
    labels = torch.tensor([label, label])
    parts = {"boxes": boxes[1:], "labels": labels[1:], "scores": torch.ones(1)}
    names = [f"c{k}" for k in range(80)]
    pair = draw(gray(480, 640), gt_boxes=boxes[:1], gt_labels=labels[:1], **parts, class_names=names)
    return [max_color(panel[:, -480:]) for panel in panels(pair)]


def read(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def max_color(panel):
    """The most frequent color that is neither the gray ground nor black, white or a mix of them."""
    pixels = panel.reshape(3, -1).T
    colorful = pixels[pixels.max(1).values.int() - pixels.min(1).values.int() > 60]
    colors, counts = colorful.unique(dim=0, return_counts=True)
    return tuple(colors[counts.argmax()].tolist())


def test_every_class_has_one_color_of_its_own():
    found = {label: class_colors(label) for label in range(0, 80, 7)}
    for left, right in found.values():
        assert left == right
    assert len({left for left, _ in found.values()}) == len(found)


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (0.3, 2), (0.5, 2), (0.51, 1), (1.0, 0)])
def test_only_detections_from_the_threshold_up_are_drawn(threshold, count, monkeypatch):
    monkeypatch.setattr("resnet_backbone.metrics.drawing.PICTURE_SCORE", threshold)
    boxes = torch.tensor([[10.0, 50, 60, 100], [200.0, 50, 260, 100], [400.0, 50, 460, 100]])
    found = {"boxes": boxes, "labels": torch.tensor([0, 1, 2]), "scores": torch.tensor([0.9, 0.5, 0.1])}
    pair = draw(gray(480, 640), **found)
    drawn = drawn_pixels(panels(pair)[1], 480)
    assert sum(drawn[:, x : x + 100].any().item() for x in (0, 190, 390)) == count


@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, 900, 900],
        [600, 440, 700, 520],
        [-90, -90, -10, -10],
        [100, 100, 100, 100],
        [200, 200, 150, 120],
        [0, 0, 1, 1],
        [639, 479, 640, 480],
    ],
    ids=str,
)
def test_odd_boxes_do_not_fail(box):
    boxes = torch.tensor([box], dtype=torch.float32)
    pair = draw(gray(480, 640), gt_boxes=boxes, gt_labels=torch.tensor([0]))
    assert drawn_pixels(panels(pair)[0], 480).any()


def test_labels_of_a_crowd_do_not_cover_each_other():
    boxes = torch.tensor([[100.0, 100, 200, 180]]).repeat(3, 1)
    pair = draw(gray(480, 640), gt_boxes=boxes, gt_labels=torch.tensor([0, 1, 2]))
    left = panels(pair)[0][:, -480:]
    plates = []
    for label in range(3):
        color = torch.tensor(class_colors(label)[0], dtype=torch.uint8)
        rows = torch.where((left == color[:, None, None]).all(0).sum(1) > 15)[0]
        plates.append(len(rows))
    assert min(plates) > 8, f"every label plate is visible, rows with its color: {plates}"


def test_inputs_stay_as_they_are():
    image = gray(480, 640)
    boxes = torch.tensor([[10.0, 10, 100, 100]])
    before = boxes.clone()
    label = torch.tensor([0])
    draw(image, gt_boxes=boxes, gt_labels=label, boxes=boxes, labels=label, scores=torch.ones(1))
    assert (image == 128).all() and boxes.equal(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 9, 9)}, "uint8"),
        ({"image": torch.zeros(1, 9, 9, dtype=torch.uint8)}, r"\(1, 9, 9\)"),
        ({"boxes": torch.zeros(1, 5)}, "detections: expected boxes"),
        ({"gt_boxes": torch.zeros(2, 4)}, "ground truth: expected boxes"),
        ({"scores": torch.zeros(2)}, "one score for each of the 0"),
        ({"gt_boxes": torch.tensor([[0, 0, math.nan, 1]]), "gt_labels": torch.tensor([0])}, "finite"),
        ({"gt_boxes": torch.zeros(1, 4), "gt_labels": torch.tensor([3])}, r"0 to 2.*got \[3\]"),
        ({"masks": torch.zeros(1, 90, 90, dtype=torch.bool)}, r"detections: expected masks of bool and shape \(0, 90"),
        ({"gt_masks": torch.zeros(0, 90, 90)}, "ground truth: expected masks of bool.* got torch.float32"),
        ({"boxes": torch.zeros(1, 4), "labels": torch.tensor([-1]), "scores": torch.ones(1)}, r"got \[-1\]"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        draw(**{"image": gray(90, 90), **change})


def test_masks_are_tinted_in_the_color_of_their_class():
    """Each on its own side, below the boxes, and only those of the detections that are drawn."""
    boxes = torch.tensor([[100.0, 100, 200, 180], [300, 200, 420, 330]])
    labels = torch.tensor([0, 1])
    masks = torch.zeros(2, 480, 640, dtype=torch.bool)
    masks[0, 120:160, 120:180] = True
    masks[1, 220:300, 320:400] = True
    found = {"boxes": boxes, "labels": labels, "scores": torch.tensor([0.2, 0.9])}
    truth = {"gt_boxes": boxes[:1], "gt_labels": labels[:1], "gt_masks": masks[:1]}
    pair = draw(gray(480, 640), **truth, **found, masks=masks)
    left, right = (panel[:, -480:] for panel in panels(pair))
    untouched = torch.full((3,), 128, dtype=torch.uint8)
    for panel, (y, x), label in ((left, (140, 150), 0), (right, (260, 360), 1)):
        color = torch.tensor(class_colors(label)[0])
        expected = 0.55 * 128 + 0.45 * color
        assert (panel[:, y, x].float() - expected).abs().max() <= 1
    assert left[:, 260, 360].equal(untouched) and right[:, 140, 150].equal(untouched)
    assert left[:, 110, 150].equal(untouched), "inside the box, outside the mask"


@pytest.mark.parametrize("count", [1, 2, 3, GRID_PAIRS + 2])
def test_one_picture_a_sample_and_a_grid(count, tmp_path):
    samples = [PictureSample(f"../sub dir/same.v{k % 2}.jpg", gray(30 + 7 * k, 40), **NO_BOXES) for k in range(count)]
    paths = save_comparison_pictures(tmp_path / "pictures", samples, NAMES)
    assert len(paths) == count + 1 and len(set(paths)) == count + 1
    assert paths[0].name == "000_same_v0.png" and paths[-1].name == "grid.png"
    assert sorted(paths) == sorted((tmp_path / "pictures").iterdir())
    for sample, path in zip(samples, paths, strict=False):
        expected = draw_pair(sample, NAMES)
        assert read(path).equal(expected)
    grid = Image.open(paths[-1])
    columns = 1 if count < 3 else 2
    assert grid.width <= columns * 960 + 3 * GAP and grid.mode == "RGB"


def test_no_samples_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no samples"):
        save_comparison_pictures(tmp_path, [], NAMES)


def test_real_images_with_their_annotations(coco_mini, tmp_path):
    truth = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    ids = sorted(category["id"] for category in truth["categories"])
    names = {category["id"]: category["name"] for category in truth["categories"]}
    samples = []
    for entry in truth["images"][:4]:
        image = np.array(Image.open(coco_mini / "val2017" / entry["file_name"]).convert("RGB"))
        mine = [annotation for annotation in truth["annotations"] if annotation["image_id"] == entry["id"]]
        boxes = torch.tensor([annotation["bbox"] for annotation in mine]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([ids.index(annotation["category_id"]) for annotation in mine])
        picture = torch.from_numpy(image).permute(2, 0, 1)
        samples.append(PictureSample(entry["file_name"], picture, boxes, labels, boxes, labels, torch.ones(len(mine))))
    paths = save_comparison_pictures(tmp_path, samples, [names[key] for key in ids])
    for path, sample in zip(paths, samples, strict=False):
        left, right = panels(read(path))
        below_title = -sample.image.shape[1]
        assert max_color(left[:, below_title:]) == max_color(right[:, below_title:])
        assert not read(path)[:, below_title:, : sample.image.shape[2]].equal(sample.image)


@pytest.mark.parametrize("count", range(1, 41))
def test_pictures_are_drawn_from_the_whole_data_set(count):
    drawn = list(evenly_spaced(range(count)))
    assert len(drawn) == min(count, 8) == len(set(drawn))
    assert (drawn[0], drawn[-1]) == (0, count - 1)
    gaps = [b - a for a, b in zip(drawn, drawn[1:], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_of_no_images_nothing_is_drawn():
    assert list(evenly_spaced([])) == []
