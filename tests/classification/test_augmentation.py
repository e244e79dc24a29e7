"""Random transforms of training, in files and on the device, against what the papers say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from resnet_backbone.classification.config import load_config
from resnet_backbone.classification.transforms import ColorJitterAlexNet, DeviceImages, mean_color, training_transform
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.engine.batches import BatchSampler
from resnet_backbone.weights import InputFormat, TestTransform

RGB = InputFormat("RGB", (125.307, 122.961, 113.8575), (62.993, 62.089, 66.705))
BGR = InputFormat("BGR", RGB.mean[::-1], RGB.std[::-1])
NO_CHANGE = InputFormat("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))  # pixels / 255


def picture(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(300, 500), (640, 480), (480, 480), (100, 90), (229, 224)])
@pytest.mark.parametrize("config", ["imagenet_resnet50.yaml", "imagenet_vgg16.yaml"])
def test_imagenet_images_come_out_as_squares(size, config):
    cfg = load_config(f"classification/{config}")
    torch.manual_seed(0)
    transform = training_transform(cfg, RGB)
    for _ in range(5):
        image = transform(picture(*size))
        assert image.shape == (3, 224, 224) and image.dtype == torch.float32 and torch.isfinite(image).all()


def test_the_short_side_is_drawn_from_the_whole_range(monkeypatch):
    """256 to 480, both ends included, keeping the proportions."""
    cfg = load_config("classification/imagenet_resnet50.yaml")
    resize = training_transform(cfg, RGB).transforms[1]
    torch.manual_seed(0)
    sides = []
    for _ in range(3000):
        height, width = resize.make_params([torch.zeros(3, 60, 90)])["size"]
        sides.append(height)
        assert abs(width / height - 1.5) < 0.01
    assert (min(sides), max(sides)) == (256, 480)
    assert np.histogram(sides, bins=5)[0].min() > 500


def test_random_crops_see_every_place_and_both_mirror_images():
    cfg = load_config("classification/cifar10_resnet20.yaml", ["DATALOADER.ON_DEVICE", "False"])
    transform = training_transform(cfg, NO_CHANGE)
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[0, 0] = 255  # a corner: where it lands tells the crop
    torch.manual_seed(0)
    seen = {tuple(torch.nonzero(transform(Image.fromarray(pixels))[0])[:1].flatten().tolist()) for _ in range(1500)}
    rows = {place[0] for place in seen if place}
    columns = {place[1] for place in seen if place}
    assert rows == set(range(5)) and columns == {*range(5), *range(27, 32)}  # () where it was cropped away
    assert () in seen


def test_padding_has_the_mean_colour():
    assert mean_color(RGB) == [125, 123, 114] == mean_color(BGR)
    cfg = load_config("classification/cifar10_resnet20.yaml", ["DATALOADER.ON_DEVICE", "False", "INPUT.PAD", "32"])
    torch.manual_seed(0)
    images = [training_transform(cfg, RGB)(Image.new("RGB", (32, 32), (255, 0, 0))) for _ in range(50)]
    border = min(images, key=lambda image: image.abs().max())
    assert border.abs().max() < 0.01


def test_alexnets_colours():
    """The shift is the same all over an image, and over many images has the covariance of section 4.1."""
    jitter = ColorJitterAlexNet()
    image = torch.rand(3, 4, 5)
    torch.manual_seed(0)
    shifts = torch.stack([jitter(image) - image for _ in range(4000)])
    assert shifts.std((2, 3)).max() < 1e-6
    vectors, values = torch.tensor(jitter.EIGENVECTORS), torch.tensor(jitter.EIGENVALUES)
    expected = vectors @ torch.diag((0.1 * values) ** 2) @ vectors.T
    torch.testing.assert_close(torch.cov(shifts[:, :, 0, 0].T), expected, rtol=0.1, atol=1e-6)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def dataset(colors):
    return open_classes(str(colors / "train"))


def kept(dataset, input_format=RGB, pad=4, size=32):
    return DeviceImages(dataset, TestTransform(size, size), input_format, torch.device("cpu"), pad=pad)


@pytest.mark.parametrize("input_format", [RGB, BGR], ids=["RGB", "BGR"])
@pytest.mark.parametrize("pad", [0, 4])
def test_images_on_the_device_are_those_of_the_files(dataset, input_format, pad):
    images = kept(dataset, input_format, pad).unchanged(torch.arange(len(dataset)))
    assert images.is_contiguous(memory_format=torch.channels_last)
    for index in range(len(dataset)):
        pixels = np.asarray(dataset[index][0]).astype(np.float32)
        if input_format.channel_order == "BGR":
            pixels = pixels[:, :, ::-1]
        expected = (pixels - input_format.mean) / input_format.std
        np.testing.assert_allclose(images[index].permute(1, 2, 0), expected, rtol=1e-4, atol=1e-5)


def test_crops_on_the_device_are_crops_of_the_padded_image(dataset):
    images = kept(dataset, NO_CHANGE)
    indices = torch.arange(len(dataset))
    plain = images.unchanged(indices)
    padded = F.pad(plain, (4, 4, 4, 4))
    seen = set()
    for seed in range(80):
        for index, image in enumerate(images.augmented(indices, torch.Generator().manual_seed(seed), flip=True)):
            places = [
                (top, left, mirrored)
                for mirrored in (False, True)
                for top in range(9)
                for left in range(9)
                if torch.equal(padded[index, :, top : top + 32, left : left + 32].flip(2 if mirrored else ()), image)
            ]
            assert len(places) == 1
            seen |= set(places)
    assert len(seen) == 2 * 81  # in 1920 draws none is missed


def test_without_flip_nothing_is_mirrored(dataset):
    images = kept(dataset, pad=0)
    indices = torch.arange(len(dataset))
    out = images.augmented(indices, torch.Generator().manual_seed(0), flip=False)
    assert torch.equal(out, images.unchanged(indices))


def test_the_batches_of_the_device_follow_the_sampler_and_start_anywhere(dataset):
    images = kept(dataset, pad=0)
    options = {"seed": 3, "rank": 1, "world_size": 2}
    batches = images.training_batches(4, flip=False, start=0, **options)
    sampler = iter(BatchSampler(np.ones(len(dataset)), 4, group=False, start=0, **options))
    whole = []
    for _ in range(8):
        pixels, labels = next(batches)
        indices = torch.tensor([index for _, index in next(sampler)])
        assert torch.equal(pixels, images.unchanged(indices))
        assert torch.equal(labels, torch.from_numpy(dataset.labels)[indices])
        whole.append(pixels)
    padded = kept(dataset)
    first = padded.training_batches(4, flip=True, start=0, **options)
    later = padded.training_batches(4, flip=True, start=5, **options)
    expected = [next(first) for _ in range(8)][5:]
    for (a, _), (b, _) in zip(expected, later, strict=False):
        assert torch.equal(a, b)


def test_images_of_other_sizes_are_brought_to_one(tmp_path):
    for index, size in enumerate(((40, 60), (64, 48), (20, 20))):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture(*size).save(tmp_path / "a" / f"{index}.png")
    images = kept(open_classes(str(tmp_path)))
    assert images.unchanged(torch.arange(3)).shape == (3, 3, 32, 32)


def test_shares_of_a_test_set_are_every_image_once(dataset):
    images = kept(dataset, pad=0)
    shares = [images.test_batches(4, rank=rank, world_size=3) for rank in range(3)]
    indices = torch.cat([numbers for share in shares for numbers, _ in share])
    assert sorted(indices.tolist()) == list(range(len(dataset)))
