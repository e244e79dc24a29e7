"""Every mode, every EXIF orientation, every kind of broken file."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from resnet_backbone.data.images.read import read_image

HEIGHT, WIDTH = 24, 40


def gradient() -> np.ndarray:
    """No symmetry: each corner has another color."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 2], axis=2).astype(np.uint8)


def save_with_orientation(path: Path, orientation: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(gradient()).save(path, exif=exif)


def as_array(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "gif", "jpg"])
def test_formats(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(gradient()).save(path, **options)
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.is_contiguous() and image.shape == (3, HEIGHT, WIDTH)
    tolerance = {"gif": 40, "jpg": 4}.get(suffix, 0)
    assert np.abs(as_array(image).astype(int) - gradient()).max() <= tolerance


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, suffix):
    path = tmp_path / f"a.{suffix}"
    save_with_orientation(path, orientation)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
        stored = np.asarray(image)
    assert (as_array(read_image(path)) == upright).all()
    assert (as_array(read_image(path, upright.shape[:2])) == upright).all()
    if orientation >= 5:  # the sides are swapped, so the annotation file can mean the stored pixels
        assert (as_array(read_image(path, stored.shape[:2])) == stored).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_agrees_with_opencv(tmp_path, orientation):
    path = tmp_path / "a.jpg"
    save_with_orientation(path, orientation)
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert np.abs(as_array(read_image(path)).astype(int) - bgr[..., ::-1]).max() <= 3


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_meaningless_orientation_is_upright(tmp_path, orientation):
    save_with_orientation(tmp_path / "a.png", orientation)
    assert (as_array(read_image(tmp_path / "a.png")) == gradient()).all()


def test_damaged_exif_is_reported_and_the_pixels_are_read(tmp_path, caplog):
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=b"Exif\x00\x00not a TIFF header")
    assert (as_array(read_image(tmp_path / "a.png")) == gradient()).all()
    assert "EXIF" in caplog.text and "a.png" in caplog.text


def test_size_that_is_neither(tmp_path):
    save_with_orientation(tmp_path / "a.jpg", 6)
    with pytest.raises(ValueError, match=r"a\.jpg.*40 x 24.*24 x 40 without.*24 x 41"):
        read_image(tmp_path / "a.jpg", (24, 41))


def test_gray_is_repeated(tmp_path):
    gray = gradient()[..., 0]
    Image.fromarray(gray).save(tmp_path / "a.png")
    assert all((channel.numpy() == gray).all() for channel in read_image(tmp_path / "a.png"))


def test_one_bit(tmp_path):
    bits = gradient()[..., 0] > 100
    Image.fromarray(bits).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png")[1].numpy() == bits * 255).all()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_gray_keeps_its_range(tmp_path, suffix):
    deep = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 68).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep)
    assert deep.max() > 60_000
    assert (read_image(tmp_path / f"a.{suffix}")[0].numpy() == deep // 256).all()


def test_16_bit_rgb(tmp_path):
    deep = gradient().astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., ::-1])
    assert (as_array(read_image(tmp_path / "a.png")) == gradient()).all()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_without_a_range_are_refused(tmp_path, mode):
    values = np.full((4, 4), 70_000, dtype=np.int32)
    image = Image.fromarray(values if mode == "I" else values.astype(np.float32))
    image.save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"a\.tiff.*32-bit"):
        read_image(tmp_path / "a.tiff")


def test_alpha_is_dropped(tmp_path):
    rgba = np.dstack([gradient(), np.zeros((HEIGHT, WIDTH), np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert (as_array(read_image(tmp_path / "a.png")) == gradient()).all()


def test_gray_with_alpha(tmp_path):
    Image.fromarray(gradient()[..., :2], mode=None).convert("LA").save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        luminance = np.asarray(image)[..., 0]
    assert (read_image(tmp_path / "a.png")[2].numpy() == luminance).all()


@pytest.mark.parametrize("transparency", [None, 0, bytes(range(256))])
def test_palette(tmp_path, transparency):
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    assert (as_array(read_image(tmp_path / "a.png")) == palette[indices]).all()


def test_cmyk(tmp_path):
    cmyk = np.zeros((8, 8, 4), np.uint8)
    cmyk[..., 0] = 255  # full cyan is no red
    Image.fromarray(cmyk, mode="CMYK").save(tmp_path / "a.jpg", quality=100)
    red, green, blue = read_image(tmp_path / "a.jpg").float().mean(dim=(1, 2))
    assert red < 5 and green > 250 and blue > 250


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_truncated_files_are_named(tmp_path, suffix, fraction):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg"}.get(suffix, suffix))
    whole = buffer.getvalue()
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(OSError, match=r"broken\."):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"<svg/>"])
def test_files_that_are_no_image(tmp_path, content):
    (tmp_path / "note.jpg").write_bytes(content)
    with pytest.raises(OSError, match=r"note\.jpg"):
        read_image(tmp_path / "note.jpg")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(OSError, match="no regular file"):
        read_image(tmp_path)


def test_decompression_bomb(tmp_path, monkeypatch):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_real_photographs(coco_mini):
    for path in sorted((coco_mini / "val2017").glob("*.jpg"))[:20]:
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert read_image(path, bgr.shape[:2]).shape[1:] == bgr.shape[:2]
        assert np.abs(as_array(read_image(path)).astype(int) - bgr[..., ::-1]).mean() < 1
