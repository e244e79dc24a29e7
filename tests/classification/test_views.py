"""What a classifier is shown, against torchvision's presets and against cropping by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.models import ResNet18_Weights, ResNet50_Weights, VGG16_BN_Weights, VGG16_Weights
from torchvision.transforms import functional as F

from resnet_backbone.classification.transforms import KINDS, ONE_CROP, SCALES, Views, multi_scale, one_crop, ten_crops
from resnet_backbone.data.images.classes import read_rgb
from resnet_backbone.weights import InputFormat, TestTransform, get_entry
from resnet_backbone.weights.catalog import MSRA_BGR, TORCHVISION_RGB

V1 = TestTransform(256, 224)
# Width and height: landscape, portrait, odd, square, smaller than the crop, long and thin, exactly the crop.
SIZES = [(300, 200), (201, 333), (257, 255), (256, 256), (37, 51), (500, 61), (224, 224), (231, 640)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("preset", "name"),
    [
        (ResNet18_Weights.IMAGENET1K_V1, "resnet18/IMAGENET1K_V1"),
        (ResNet50_Weights.IMAGENET1K_V2, "resnet50/IMAGENET1K_V2"),
        (VGG16_BN_Weights.IMAGENET1K_V1, "vgg16_bn/IMAGENET1K_V1"),
        (VGG16_Weights.IMAGENET1K_FEATURES, "vgg16/IMAGENET1K_FEATURES"),
    ],
)
def test_one_crop_is_torchvisions_preset_to_the_bit(preset, name, size):
    entry = get_entry(*name.split("/"))
    image = noise(*size)
    found = one_crop(image, entry.input_format, entry.test_transform)
    assert found.dtype == torch.float32
    assert torch.equal(found, preset.transforms()(image))


@pytest.mark.parametrize("size", [(300, 200), (201, 333)])
def test_bicubic_is_torchvisions_too(size):
    preset = torchvision.transforms._presets.ImageClassification(
        crop_size=224, resize_size=235, interpolation=torchvision.transforms.InterpolationMode.BICUBIC
    )
    transform = get_entry("resnet50", "TIMM_A3").test_transform
    assert torch.equal(one_crop(noise(*size), TORCHVISION_RGB, transform), preset(noise(*size)))


def test_real_photographs(coco_mini):
    paths = sorted((coco_mini / "val2017").glob("*.jpg"))[:6]
    assert len(paths) == 6
    for path in paths:
        image = read_rgb(path)
        for preset, resize in ((ResNet50_Weights.IMAGENET1K_V1, 256), (ResNet50_Weights.IMAGENET1K_V2, 232)):
            assert torch.equal(one_crop(image, TORCHVISION_RGB, TestTransform(resize, 224)), preset.transforms()(image))


def test_bgr_is_rgb_turned_round():
    image = noise(90, 70)
    transform = TestTransform(40, 32)
    mirrored_format = InputFormat("BGR", TORCHVISION_RGB.mean[::-1], TORCHVISION_RGB.std[::-1])
    rgb, bgr = (one_crop(image, format, transform) for format in (TORCHVISION_RGB, mirrored_format))
    assert torch.equal(bgr, rgb.flip(0)) and not torch.equal(bgr, rgb)


def test_msras_pixels_are_those_less_their_mean():
    image = noise(32, 32)
    found = one_crop(image, MSRA_BGR, TestTransform(32, 32))
    expected = np.asarray(image, dtype=np.float64)[:, :, ::-1] - (103.53, 116.28, 123.675)
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, atol=2e-5)


def crop_by_hand(image: Image.Image, crop: int) -> list[Image.Image]:
    width, height = image.size
    corners = [(0, 0), (width - crop, 0), (0, height - crop), (width - crop, height - crop)]
    centre = (int(round((width - crop) / 2)), int(round((height - crop) / 2)))
    return [image.crop((left, top, left + crop, top + crop)) for left, top in [*corners, centre]]


@pytest.mark.parametrize("size", SIZES)
def test_ten_crops_are_corners_and_centre_of_the_image_and_of_its_mirror_image(size):
    transform = TestTransform(75, 64)
    image = noise(*size)
    width, height = size
    if width < height:
        resized = image.resize((75, int(75 * height / width)), Image.Resampling.BILINEAR)
    else:
        resized = image.resize((int(75 * width / height), 75), Image.Resampling.BILINEAR)
    by_hand = crop_by_hand(resized, 64) + crop_by_hand(ImageOps.mirror(resized), 64)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = torch.stack([F.normalize(F.to_tensor(crop), mean, std) for crop in by_hand])
    found = ten_crops(image, TORCHVISION_RGB, transform)
    assert torch.equal(found, expected)
    assert torch.equal(found[4], one_crop(image, TORCHVISION_RGB, transform))


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (37, 51)])
def test_multi_scale_are_the_image_and_its_mirror_image_at_every_size(size):
    width, height = size
    found = multi_scale(noise(*size), TORCHVISION_RGB, TestTransform(75, 64), (64, 97))
    assert len(found) == 2
    for scale, images in zip((64, 97), found, strict=True):
        long = int(scale * max(size) / min(size))
        shape = (long, scale) if height > width else (scale, long)
        assert images.shape == (2, 3, *shape)
        resized = noise(*size).resize(shape[::-1], Image.Resampling.BILINEAR)
        for images_of, image in zip(images, (resized, ImageOps.mirror(resized)), strict=True):
            expected = F.normalize(F.to_tensor(image), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            assert torch.equal(images_of, expected)


def test_views_are_values():
    assert ONE_CROP == Views("1-crop") and Views("1-crop") in {ONE_CROP}
    assert Views("multi-scale").scales == SCALES == (224, 256, 384, 480, 640)
    assert Views("multi-scale", [256, 288]) == Views("multi-scale", (256, 288))  # as YAML has them
    assert [str(Views(kind, (64, 96))) for kind in KINDS] == ["1-crop", "10-crop", "multi-scale (64, 96)"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("5-crop",), "unknown views '5-crop'; write one of 1-crop, 10-crop, multi-scale"),
        (("multi-scale", ()), "scales are []; write one or more lengths"),
        (("multi-scale", (224, 0)), "scales are [224, 0]"),
        (("multi-scale", (224, 224)), "each once"),
        (("multi-scale", (224.0,)), "in whole pixels"),
        (("multi-scale", (True,)), "in whole pixels"),
        (("multi-scale", "224"), "in whole pixels"),
    ],
)
def test_other_views_are_refused(arguments, says):
    with pytest.raises(ValueError) as caught:
        Views(*arguments)
    assert says in str(caught.value)
