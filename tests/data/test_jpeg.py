"""The decoder of ordinary JPEG files against Pillow: equal pixels, and everything else left to Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_backbone.data.images.read import decode_like_pillow, read_image, read_interleaved

OPTIONS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "coarse": {"quality": 5},
    "fine": {"quality": 100},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 2},
    "stored as RGB": {"keep_rgb": True, "subsampling": 0},
    "color profile": {"icc_profile": bytes(70_000)},
    "comment": {"comment": b"\xff\xd9 is no end here"},
}


def encoded(mode: str, height: int, width: int, **options: Any) -> bytes:
    """A JPEG file of edges and gradients with some noise."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 5 % 256, y * 7 % 256, (x // 9 + y // 7) % 2 * 255], axis=2) + rng.integers(-9, 9, (1, 1, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decode(data: bytes) -> torch.Tensor | None:
    with Image.open(io.BytesIO(data)) as image:
        return decode_like_pillow(image)


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (16, 16), (17, 33), (61, 90)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", OPTIONS)
def test_pixels_are_those_of_pillow(kind, mode, size):
    data = encoded(mode, *size, **OPTIONS[kind])
    pixels = decode(data)
    assert pixels is not None and pixels.dtype == torch.uint8
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), by_pillow(data))


def test_pixels_of_photographs_are_those_of_pillow(coco_mini, bccd):
    paths = [*sorted((coco_mini / "val2017").glob("*.jpg")), *sorted((bccd / "JPEGImages").glob("*.jpg"))[:20]]
    for path in paths:
        data = path.read_bytes()
        pixels = decode(data)
        assert pixels is not None, path
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), by_pillow(data)), path


@pytest.mark.parametrize(
    "data",
    [
        encoded("CMYK", 20, 30),
        encoded("RGB", 20, 30) + b"\0",
        encoded("RGB", 20, 30)[:-2],
        encoded("RGB", 20, 30)[:-40],
        encoded("RGB", 20, 30, progressive=True)[:-40],
    ],
    ids=["CMYK", "followed by something", "without end", "cut off", "cut off progressive"],
)
def test_what_is_left_to_pillow(data):
    assert decode(data) is None


def test_other_formats_are_left_to_pillow():
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4)).save(buffer, "png")
    assert decode(buffer.getvalue()) is None
    assert decode_like_pillow(Image.new("RGB", (5, 4))) is None


def test_pillow_goes_on_where_it_was_left(tmp_path):
    """What was read of the file to look at its end does not matter to Pillow."""
    data = encoded("RGB", 20, 30) + b"trailer"
    (tmp_path / "a.jpg").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), by_pillow(data))


def spoilt(data: bytes, rng: np.random.Generator) -> bytes:
    """Change, remove or insert some bytes, or let the file end in the middle, with a proper end mark."""
    kind, place = rng.integers(4), int(rng.integers(2, len(data)))
    if kind == 0:
        return data[:place] + bytes([rng.integers(256)]) + data[place + 1 :]
    if kind == 1:
        return data[:place] + data[place + int(rng.integers(1, 100)) :]
    if kind == 2:
        return data[:place] + rng.bytes(int(rng.integers(1, 20))) + data[place:]
    return data[:place] + b"\xff\xd9"


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_as_pillow_does(tmp_path):
    whole = [encoded(mode, 40, 56, **options) for mode in ("RGB", "L", "CMYK") for options in OPTIONS.values()]
    whole = [data for data in whole if len(data) < 20_000]
    rng = np.random.default_rng(0)
    path = tmp_path / "a.jpg"
    outcomes = {"read": 0, "refused": 0}
    for number in range(400):
        data = spoilt(whole[number % len(whole)], rng)
        path.write_bytes(data)
        try:
            expected = by_pillow(data)
        except (OSError, SyntaxError, ValueError, IndexError):
            with pytest.raises((OSError, ValueError)):
                read_image(path)
            outcomes["refused"] += 1
            continue
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected), number
        outcomes["read"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_a_torchvision_without_a_decoder(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(encoded("RGB", 20, 30))
    expected = read_image(tmp_path / "a.jpg")
    monkeypatch.setattr("resnet_backbone.data.images.read.decode_jpeg", None)
    assert decode(encoded("RGB", 20, 30)) is None
    assert torch.equal(read_image(tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_layout_in_memory(tmp_path: Path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.open(io.BytesIO(encoded("RGB", 20, 30))).save(path)
    interleaved, planar = read_interleaved(path), read_image(path)
    assert interleaved.permute(1, 2, 0).is_contiguous() and planar.is_contiguous()
    assert torch.equal(interleaved, planar)
