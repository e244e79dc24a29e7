"""Resize, crop, flip and colours against Detectron2's arithmetic, Pillow and NumPy."""

from __future__ import annotations

import random
from decimal import ROUND_FLOOR, Decimal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from resnet_backbone.data.transforms import (
    RemoveVanished,
    ResizeShortestEdge,
    shortest_edge_size,
    test_transforms,
    train_transforms,
)


def sample(height=30, width=50, with_masks=True, seed=0):
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    boxes = torch.tensor([[3.0, 4.0, 20.0, 25.0], [0.0, 0.0, width, height], [10.5, 2.25, 11.5, 29.0]])
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([2, 0, 1]),
        "image_id": 17,
        "size": (height, width),
    }
    if with_masks:
        masks = torch.zeros(3, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        target["masks"] = tv_tensors.Mask(masks)
    return tv_tensors.Image(pixels), target


def detectron2_size(height, width, size, max_size):
    """``get_output_shape`` of Detectron2's ``ResizeShortestEdge``, statement by statement."""
    size = size * 1.0
    scale = size / min(height, width)
    newh, neww = (size, scale * width) if height < width else (scale * height, size)
    if max(newh, neww) > max_size:
        scale = max_size * 1.0 / max(newh, neww)
        newh = newh * scale
        neww = neww * scale
    return int(newh + 0.5), int(neww + 0.5)


def exact_size(height, width, size, max_size):
    """The same in exact decimals: rounding half up of the ideal size."""
    factor = min(Decimal(size) / min(height, width), Decimal(max_size) / max(height, width))
    return [int((side * factor + Decimal("0.5")).to_integral_value(ROUND_FLOOR)) for side in (height, width)]


@pytest.mark.parametrize(
    ("short_edge", "max_size"), [(800, 1333), (640, 1333), (600, 1000), (320, 533), (1, 10), (97, 97)]
)
def test_size_arithmetic(short_edge, max_size):
    rng = random.Random(0)
    pairs = [(rng.randint(1, 2000), rng.randint(1, 2000)) for _ in range(3000)] + [(480, 640), (640, 480), (500, 500)]
    for height, width in pairs:
        ours = shortest_edge_size(height, width, short_edge, max_size)
        theirs = detectron2_size(height, width, short_edge, max_size)
        assert ours == tuple(max(side, 1) for side in theirs)  # an extreme image keeps a pixel
        assert all(abs(a - b) <= 1 for a, b in zip(ours, exact_size(height, width, short_edge, max_size), strict=True))
        assert max(ours) <= max_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((427, 640), (800, 1199)), ((300, 1000), (400, 1333))],
)
def test_known_sizes(size, expected):
    assert shortest_edge_size(*size, 800, 1333) == expected


@pytest.mark.parametrize("size", [(20, 33), (45, 75), (30, 50), (7, 12)])
def test_pixels_agree_with_pillow(size):
    image, _ = sample()
    resized, _ = ResizeShortestEdge((size[0],), 1000)(image, sample()[1])
    pillow = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size[::-1], Image.Resampling.BILINEAR))
    assert resized.shape == (3, *size) and resized.dtype == torch.uint8 and isinstance(resized, tv_tensors.Image)
    assert np.abs(resized.permute(1, 2, 0).numpy().astype(int) - pillow).max() <= 1


@pytest.mark.parametrize("size", [(20, 33), (45, 75), (30, 50), (7, 12), (1, 1), (90, 150)])
@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
def test_pixels_do_not_depend_on_their_layout_in_memory(size, flip):
    transform = train_transforms((size[0],), 1000, flip=flip)
    for seed in range(4):
        image, target = sample(seed=seed)
        interleaved = tv_tensors.Image(image.permute(1, 2, 0).contiguous().permute(2, 0, 1))
        assert interleaved.stride() != image.stride()
        torch.manual_seed(seed)
        planar, _ = transform(image, target)
        torch.manual_seed(seed)
        assert torch.equal(transform(interleaved, target)[0], planar)


def test_boxes_and_masks_follow():
    image, target = sample()
    _, resized = test_transforms(60, 1000)(image, target)
    np.testing.assert_allclose(resized["boxes"].numpy(), target["boxes"].numpy() * 2, atol=1e-4)
    assert resized["boxes"].canvas_size == (60, 100)
    assert (resized["masks"].numpy() == target["masks"].numpy().repeat(2, axis=1).repeat(2, axis=2)).all()
    assert resized["size"] == (30, 50) and resized["image_id"] == 17 and resized["labels"].tolist() == [2, 0, 1]


@pytest.mark.parametrize("length", [1, 2, 7, 97, 480, 640])
def test_masks_are_sampled_as_pillow_samples_them(length):
    rng = np.random.default_rng(0)
    for new in (1, 2, 5, 60, 333, 600, 800, 1067):
        _, target = sample(length, length)
        masks = torch.from_numpy(rng.integers(0, 2, (3, length, length), dtype=np.uint8))
        target["masks"] = tv_tensors.Mask(masks)
        moved = ResizeShortestEdge((new,), 2000).transform(target["masks"], {"size": (new, 2 * new)})
        assert isinstance(moved, tv_tensors.Mask) and moved.shape == (3, new, 2 * new)
        for mask, before in zip(moved.numpy(), masks.numpy(), strict=True):
            expected = Image.fromarray(before).resize((2 * new, new), Image.Resampling.NEAREST)
            assert np.array_equal(mask, np.asarray(expected))


@pytest.mark.parametrize(("old", "new"), [(640, 800), (640, 512), (333, 1000)])
def test_edges_of_masks_stay_where_edges_of_boxes_go(old, new):
    offsets = []
    for edge in range(20, old - 20, 7):
        mask = torch.zeros(1, old, old, dtype=torch.uint8)
        mask[..., edge:] = 1
        moved = ResizeShortestEdge((new,), 2000).transform(tv_tensors.Mask(mask), {"size": (new, new)})
        offsets.append(new - int(moved[0, 0].sum()) - edge * new / old)
    assert abs(np.mean(offsets)) < 0.15


@pytest.mark.parametrize(("height", "width", "size"), [(30, 50, 47), (480, 640, 800), (33, 57, 20)])
def test_boxes_move_in_double_precision(height, width, size):
    """Against Detectron2's arithmetic on the same corners: scale, flip, clip, in float64, and then float32."""
    rng = np.random.default_rng(0)
    corners = (np.sort(rng.uniform(0, 1, (50, 2, 2)), axis=1) * [width, height]).reshape(-1, 4).astype(np.float32)
    corners[0] = [0, 0, width, height]
    transform = train_transforms((size,), 2000, flip="horizontal")
    flips = set()
    for seed in range(8):
        target = {
            "boxes": tv_tensors.BoundingBoxes(torch.from_numpy(corners), format="XYXY", canvas_size=(height, width)),
            "labels": torch.arange(50),
        }
        torch.manual_seed(seed)
        image, moved = transform(tv_tensors.Image(torch.zeros(3, height, width, dtype=torch.uint8)), target)
        new_height, new_width = image.shape[1:]
        sides = [new_width, new_height] * 2
        plain = corners.astype(np.float64) * np.tile([new_width * 1.0 / width, new_height * 1.0 / height], 2)
        mirrored = np.stack([new_width - plain[:, 2], plain[:, 1], new_width - plain[:, 0], plain[:, 3]], axis=1)
        expected = [np.clip(boxes, 0, sides).astype(np.float32) for boxes in (plain, mirrored)]
        found = moved["boxes"].numpy()
        (flipped,) = (number for number, boxes in enumerate(expected) if np.array_equal(found, boxes))
        flips.add(flipped)
        assert found.dtype == np.float32
    assert flips == {0, 1}


def test_sides_scale_separately():
    image, target = sample(33, 50)
    resized, after = test_transforms(20, 1000)(image, target)
    height, width = resized.shape[1:]
    assert (height, width) == (20, 30)
    expected = target["boxes"].numpy() * [30 / 50, 20 / 33, 30 / 50, 20 / 33]
    np.testing.assert_allclose(after["boxes"].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
def test_flip_agrees_with_numpy(direction):
    transform = train_transforms((0,), 1000, flip=direction)
    axis = {"horizontal": 2, "vertical": 1}[direction]
    flipped = 0
    for seed in range(40):
        image, target = sample(seed=seed)
        torch.manual_seed(seed)
        after, moved = transform(image, target)
        if torch.equal(after, image):
            assert torch.equal(moved["boxes"], target["boxes"])
            continue
        flipped += 1
        assert (after.numpy() == np.flip(image.numpy(), axis)).all()
        assert (moved["masks"].numpy() == np.flip(target["masks"].numpy(), axis)).all()
        x1, y1, x2, y2 = target["boxes"].numpy().T
        expected = [50 - x2, y1, 50 - x1, y2] if direction == "horizontal" else [x1, 30 - y2, x2, 30 - y1]
        np.testing.assert_allclose(moved["boxes"].numpy(), np.stack(expected, axis=1), atol=1e-5)
        assert moved["labels"].tolist() == [2, 0, 1]
    assert 8 <= flipped <= 32


def test_no_flip():
    image, target = sample()
    for seed in range(20):
        torch.manual_seed(seed)
        assert torch.equal(train_transforms((0,), 1000, flip="none")(image, target)[0], image)


@pytest.mark.parametrize("max_size", [10, 1000])
def test_zero_keeps_the_size(max_size):
    image, target = sample()
    after, moved = test_transforms(0, max_size)(image, target)
    assert torch.equal(after, image) and torch.equal(moved["boxes"], target["boxes"])


def short_sides(sizes, sampling, number):
    transform = ResizeShortestEdge(sizes, 10_000, sampling)
    return [min(transform(*sample(with_masks=False))[0].shape[1:]) for _ in range(number)]


def test_choice_takes_every_listed_size():
    torch.manual_seed(0)
    assert set(short_sides((20, 31, 64), "choice", 60)) == {20, 31, 64}


def test_range_includes_both_ends():
    torch.manual_seed(0)
    assert set(short_sides((20, 24), "range", 150)) == {20, 21, 22, 23, 24}


def test_only_torch_decides():
    transform = train_transforms((20, 40), 1000, "range")

    def run(seed, other):
        random.seed(other)
        np.random.seed(other)
        torch.manual_seed(seed)
        return [transform(*sample()) for _ in range(6)]

    def same(a, b):
        return all(x.shape == y.shape and torch.equal(x, y) for (x, _), (y, _) in zip(a, b, strict=True))

    assert same(run(1, 1), run(1, 2))
    assert not same(run(1, 1), run(2, 1))


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
def test_polygons_move_with_the_image(flip):
    """A polygon around the box of an instance stays around it."""
    transform = train_transforms((45,), 1000, flip=flip)
    moved = 0
    for seed in range(10):
        image, target = sample(seed=seed)
        frame = {"format": "XYXY", "canvas_size": (30, 50), "dtype": torch.float64}
        target["polygons"] = [
            [tv_tensors.BoundingBoxes(torch.tensor(corners).double().repeat(1, 2), **frame)]
            for corners in ([[x1, y1], [x2, y1], [x2, y2]] for x1, y1, x2, y2 in target["boxes"].tolist())
        ]
        torch.manual_seed(seed)
        after, changed = transform(image, target)
        for (polygon,), box in zip(changed["polygons"], changed["boxes"].numpy(), strict=True):
            assert isinstance(polygon, np.ndarray) and polygon.shape == (6,)
            points = polygon.reshape(-1, 2)
            np.testing.assert_allclose([*points.min(0), *points.max(0)], box, atol=1e-4)
        x, y = changed["polygons"][0][0][:2]
        left, top = changed["boxes"][0][:2].tolist()
        moved += abs(x - left) > 1 or abs(y - top) > 1
    assert moved == 0 if flip == "none" else 1 <= moved <= 9


def test_polygons_of_vanished_instances_are_removed():
    image, target = sample(with_masks=False)
    corner = torch.tensor([[1.0, 1, 1, 1], [5, 1, 5, 1], [5, 5, 5, 5]]).double()
    frame = {"format": "XYXY", "canvas_size": (30, 50)}
    target["polygons"] = [[tv_tensors.BoundingBoxes(corner + k, **frame)] * (k + 1) for k in range(3)]
    target["boxes"][1] = torch.tensor([5.0, 5.0, 5.0, 9.0])
    _, kept = RemoveVanished()(image, target)
    assert [len(polygons) for polygons in kept["polygons"]] == [1, 3]
    assert kept["polygons"][1][2].tolist() == [3, 3, 7, 3, 7, 7]


def test_vanished_instances_are_removed():
    image, target = sample()
    target["boxes"][1] = torch.tensor([5.0, 5.0, 5.0, 9.0])
    target["masks"][2] = 0
    _, kept = RemoveVanished()(image, target)
    assert kept["labels"].tolist() == [2] and kept["boxes"].shape == (1, 4) and kept["masks"].shape == (1, 30, 50)
    assert isinstance(kept["boxes"], tv_tensors.BoundingBoxes) and isinstance(kept["masks"], tv_tensors.Mask)
    assert len(target["labels"]) == 3


def test_a_mask_lost_in_shrinking_takes_its_box_along():
    image, target = sample()
    target["masks"][0] = 0
    target["masks"][0, 4, 3] = 1
    _, kept = train_transforms((5,), 1000, flip="none")(image, target)
    assert 2 not in kept["labels"].tolist() and len(kept["labels"]) == len(kept["masks"]) == len(kept["boxes"])


def test_no_instance_at_all():
    image, target = sample()
    empty = {
        **target,
        "boxes": tv_tensors.wrap(target["boxes"][:0], like=target["boxes"]),
        "labels": target["labels"][:0],
    }
    empty["masks"] = tv_tensors.Mask(target["masks"][:0])
    _, after = train_transforms((45,), 1000)(image, empty)
    assert after["boxes"].shape == (0, 4) and after["masks"].shape == (0, 45, 75) and len(after["labels"]) == 0


def coordinates_sample(height=30, width=50):
    """Pixels that say where they are: x, y and 200; two boxes, each with a triangle in it."""
    _, target = sample(height, width, with_masks=False)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = tv_tensors.Image(torch.from_numpy(np.stack([x, y, np.full_like(x, 200)]).astype(np.uint8)))
    boxes = torch.tensor([[2.0, 3.0, 20.0, 25.0], [25.5, 10.25, 48.0, 28.0]])
    frame = {"format": "XYXY", "canvas_size": (height, width)}
    corners = [torch.tensor([[x0, y0], [x1, y0], [x1, y1]]).double() for x0, y0, x1, y1 in boxes.tolist()]
    target["polygons"] = [[tv_tensors.BoundingBoxes(points.repeat(1, 2), **frame)] for points in corners]
    return image, {**target, "boxes": tv_tensors.BoundingBoxes(boxes, **frame), "labels": torch.tensor([5, 7])}


def clipped_triangle(corners, window):
    """The part of a triangle with a right angle at (x1, y0) in a window, by a fine grid: its box, None for nothing."""
    (x0, y0), (x1, _), (_, y1) = corners
    left, top, right, bottom = window
    x, y = np.meshgrid(np.linspace(left, right, 401), np.linspace(top, bottom, 401))
    inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1) & ((x - x0) * (y1 - y0) >= (y - y0) * (x1 - x0))
    return [x[inside].min(), y[inside].min(), x[inside].max(), y[inside].max()] if inside.any() else None


@pytest.mark.parametrize(
    ("crop", "least", "most"),
    [
        (("relative", (0.5, 0.3)), (15, 15), (15, 15)),
        (("relative_range", (0.5, 0.3)), (15, 15), (30, 50)),
        (("absolute", (12, 400)), (12, 50), (12, 50)),
        (("absolute_range", (8, 40)), (8, 8), (30, 40)),
    ],
)
def test_a_random_crop_is_a_window(crop, least, most):
    transform = train_transforms((0,), 1000, flip="none", crop=crop)
    image, target = coordinates_sample()
    triangles = [polygons[0][:, :2].tolist() for polygons in target["polygons"]]
    sizes, places, vanished = set(), set(), 0
    for seed in range(40):
        torch.manual_seed(seed)
        cut, after = transform(image, target)
        height, width = cut.shape[1:]
        left, top = cut[0, 0, 0].item(), cut[1, 0, 0].item()
        assert torch.equal(cut, image[:, top : top + height, left : left + width]) and isinstance(cut, tv_tensors.Image)
        assert (np.array([height, width]) >= least).all() and (np.array([height, width]) <= most).all()
        sizes.add((height, width))
        places.add((left, top))
        window = (left, top, left + width, top + height)
        expected = {label: clipped_triangle(t, window) for label, t in zip((5, 7), triangles, strict=True)}
        found = dict(zip(after["labels"].tolist(), after["boxes"].tolist(), strict=True))
        for label in expected.keys() - found.keys():
            assert expected[label] is None or np.subtract(expected[label][2:], expected[label][:2]).min() < 0.3
            vanished += 1
        for label, box in found.items():
            np.testing.assert_allclose(np.add(box, [left, top] * 2), expected[label], atol=0.3)
        points = [np.concatenate(polygons).reshape(-1, 2) for polygons in after["polygons"]]
        for polygon, box in zip(points, after["boxes"].numpy(), strict=True):
            np.testing.assert_allclose([*polygon.min(0), *polygon.max(0)], box, atol=1e-5)
    assert len(places) > (5 if crop[0] == "absolute" else 20) and (len(sizes) == 1) == (least == most)
    assert vanished > 0 or crop[0] == "absolute"


def test_boxes_alone_are_cut_at_the_window():
    transform = train_transforms((0,), 1000, flip="none", crop=("absolute", (20, 30)))
    image, target = coordinates_sample()
    del target["polygons"]
    for seed in range(10):
        torch.manual_seed(seed)
        cut, after = transform(image, target)
        corner = torch.tensor([cut[0, 0, 0].item(), cut[1, 0, 0].item()]).repeat(2)
        moved = torch.minimum((target["boxes"] - corner).clamp(min=0), torch.tensor([30.0, 20, 30, 20]))
        kept = (moved[:, 2:] > moved[:, :2]).all(1)
        assert torch.equal(after["boxes"].as_subclass(torch.Tensor), moved[kept])
        assert after["boxes"].canvas_size == (20, 30) and torch.equal(after["labels"], target["labels"][kept])


def test_large_scale_jitter_scales_the_square_and_pads_with_gray():
    transform = train_transforms((0,), 1000, flip="none", large_scale_jitter=(0.1, 2.0, 100))
    image, target = coordinates_sample()
    widths, offsets = [], set()
    for seed in range(60):
        torch.manual_seed(seed)
        after, moved = transform(image, target)
        assert after.shape == (3, 100, 100) and moved["boxes"].canvas_size == (100, 100)
        padded = (after == 128).all(0)
        rows, columns = (~padded).any(1).sum().item(), (~padded).any(0).sum().item()
        assert (after[2, :rows, :columns] == 200).all() and padded[rows:].all() and padded[:, columns:].all()
        torch.manual_seed(seed)
        ideal = 100 * (0.1 + 1.9 * torch.rand((), dtype=torch.float64).item())  # of the longer side
        assert columns == min(round(ideal), 100) and rows == min(round(ideal * 30 / 50), 100)
        widths.append(ideal)
        if ideal <= 100:  # nothing is cut
            expected = target["boxes"].numpy() * ([columns / 50, rows / 30] * 2)
            np.testing.assert_allclose(moved["boxes"].numpy(), expected, atol=1e-3)
        else:
            offsets.add(after[0, 0, 0].item())
    assert min(widths) < 20 and max(widths) > 180 and len(offsets) > 10


def test_masks_are_cut_as_the_image_is():
    image, target = sample()
    plain = {key: value for key, value in target.items() if key != "masks"}
    for options in ({"crop": ("relative", (0.6, 0.6))}, {"large_scale_jitter": (0.5, 2.0, 40)}):
        transform = train_transforms((0,), 1000, **options)
        for seed in range(12):
            torch.manual_seed(seed)
            after, moved = transform(image, target)
            assert moved["masks"].shape[1:] == after.shape[1:] and isinstance(moved["masks"], tv_tensors.Mask)
            for mask, box in zip(moved["masks"], moved["boxes"].tolist(), strict=True):
                ys, xs = torch.where(mask)
                assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            torch.manual_seed(seed)
            again, boxes_alone = transform(image, plain)
            assert torch.equal(after, again) and set(moved["labels"].tolist()) <= set(boxes_alone["labels"].tolist())


def test_colors_are_torchvisions_and_boxes_stay():
    factors = (0.4, 0.4, 0.4, 0.1)
    transform = train_transforms((0,), 1000, flip="none", color_jitter=factors)
    image, target = sample()
    seen = []
    for seed in range(5):
        torch.manual_seed(seed)
        after, moved = transform(image, target)
        torch.manual_seed(seed)
        assert torch.equal(after, v2.ColorJitter(*factors)(image)) and after.dtype == torch.uint8
        assert torch.equal(moved["boxes"], target["boxes"]) and torch.equal(moved["masks"], target["masks"])
        seen.append(after.float().mean().item())
    assert np.ptp(seen) > 5


@pytest.mark.parametrize("options", [{"crop": ("relative", (0.01, 0.01))}, {"large_scale_jitter": (0.001, 0.001, 64)}])
def test_a_pixel_is_left_and_no_instance(options):
    image, target = sample(2, 400)
    image = tv_tensors.Image(image.permute(1, 2, 0).contiguous().permute(2, 0, 1))  # as images are read
    after, moved = train_transforms((0,), 1000, **options)(image, target)
    assert min(after.shape[1:]) >= 1 and len(moved["labels"]) == len(moved["boxes"]) == len(moved["masks"])


@pytest.mark.parametrize("options", [{"crop": ("absolute", (10, 10))}, {"large_scale_jitter": (0.1, 2.0, 64)}])
def test_augmentation_without_an_instance(options):
    image, target = sample()
    empty = {
        **target,
        "boxes": tv_tensors.wrap(target["boxes"][:0], like=target["boxes"]),
        "labels": target["labels"][:0],
        "masks": tv_tensors.Mask(target["masks"][:0]),
    }
    after, moved = train_transforms((0,), 1000, **options)(image, empty)
    assert moved["boxes"].shape == (0, 4) and moved["masks"].shape == (0, *after.shape[1:])
