"""Predictions on a data set, against torchvision's networks and against views, windows and means written out here."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights
from torchvision.transforms import functional as F

from resnet_backbone import create_model, load_weights
from resnet_backbone.classification import evaluate
from resnet_backbone.classification import predict as predicting
from resnet_backbone.classification.evaluate import check_members, score_members
from resnet_backbone.classification.predict import Classifier, load_classifier, predict
from resnet_backbone.classification.transforms import ONE_CROP, Views
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.weights import TestTransform, WeightsError, package_weights, read_weights
from resnet_backbone.weights.catalog import MSRA_BGR, TORCHVISION_RGB

NUM_CLASSES = 7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = TestTransform(75, 64)
IMAGES = {  # name below the folder: width, height, mode
    "a/landscape.jpg": (300, 200, "RGB"),
    "a/odd_portrait.jpg": (201, 333, "RGB"),
    "b/grey.png": (255, 257, "L"),
    "b/smaller_than_the_crop.png": (37, 51, "RGB"),
    "c/four_inks.jpg": (240, 250, "CMYK"),
    "d/palette.png": (120, 90, "P"),
    "e/transparent.png": (99, 140, "RGBA"),
    "f/one_bit.png": (70, 130, "1"),
    "g/square.jpg": (224, 224, "RGB"),
    "g/thin.jpg": (190, 68, "RGB"),
    "g/tiny.png": (9, 8, "RGB"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders a to g with 11 images of every kind."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for name, (width, height, mode) in IMAGES.items():
        (root / name).parent.mkdir(exist_ok=True)
        picture(rng, width, height).convert(mode).save(root / name)
    return root


@pytest.fixture(scope="module")
def two_images(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(folders, tmp_path_factory.mktemp("two"), "a/odd_portrait.jpg", "g/thin.jpg")


@pytest.fixture(scope="module")
def one_image(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link(folders, tmp_path_factory.mktemp("one"), "a/landscape.jpg")


def link(folders: Path, root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir()
        (root / name).symlink_to(folders / name)
    return root


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def stir(model: nn.Module, side: int) -> nn.Module:
    """Give the norms parameters and statistics that matter, and the last layer weights that tell images apart."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(1)
    probe = torch.cat([to_input(picture(rng, side, side)) for _ in range(6)])
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    last = next(module for module in model.modules() if getattr(module, "out_features", None) == NUM_CLASSES)
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.3, 0.3, generator=generator)
            norm.momentum = None
        model.train()(probe)
        logits = model.eval()(probe)
        last.weight /= logits.std(0)[:, None]
        last.bias.copy_((last.bias - logits.mean(0)) / logits.std(0))
    return model


@functools.cache
def oracle(arch: str) -> nn.Module:
    torch.manual_seed(0)
    build = getattr(torchvision.models, arch)
    if "vgg" in arch:
        return stir(build(num_classes=NUM_CLASSES, init_weights=False), 224)
    return stir(build(num_classes=NUM_CLASSES), 96)


@functools.cache
def ours(arch: str) -> nn.Module:
    if "vgg" in arch:  # an initialisation that is overwritten takes long
        with torch.device("meta"):
            model = create_model(arch, num_classes=NUM_CLASSES)
        model = model.to_empty(device="cpu")
    else:
        model = create_model(arch, num_classes=NUM_CLASSES)
    load_weights(model, oracle(arch).state_dict())
    return model.eval()


@functools.cache
def own(arch: str) -> nn.Module:
    """A network that torchvision lacks."""
    torch.manual_seed(1)
    return stir(create_model(arch, num_classes=NUM_CLASSES), 32 if "cifar" in arch else 96)


@pytest.fixture(scope="module", autouse=True)
def _forget_networks() -> Iterator[None]:
    """Two of VGG have a gigabyte."""
    yield
    for cached in (oracle, ours, own):
        cached.cache_clear()


def classifier(model: nn.Module, transform: TestTransform) -> Classifier:
    return Classifier(model, TORCHVISION_RGB, transform, (), "tested")


def run(model: nn.Module, folder: Path, views: Views, transform: TestTransform, **options) -> Tensor:
    options = {"device": "cpu", "batch_size": 1, "num_workers": 0, **options}
    indices, probabilities = predict(classifier(model, transform), open_classes(str(folder)), views, **options)
    assert indices.tolist() == list(range(len(indices))) and probabilities.dtype == torch.float32
    return probabilities


def images_of(folder: Path) -> list[Image.Image]:
    """torchvision's reading of the folder."""
    return [image for image, _ in torchvision.datasets.ImageFolder(str(folder))]


def to_input(image: Image.Image) -> Tensor:
    return F.normalize(F.to_tensor(image), MEAN, STD)[None]


# One crop: torchvision's own transform and network


@pytest.mark.parametrize(
    ("arch", "preset"),
    [
        ("resnet18", ResNet50_Weights.IMAGENET1K_V1),
        ("resnet18", ResNet50_Weights.IMAGENET1K_V2),
        ("resnet50", ResNet50_Weights.IMAGENET1K_V2),
        pytest.param("vgg16_bn", ResNet50_Weights.IMAGENET1K_V1, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_one_crop_is_torchvisions_evaluation_to_the_bit(arch, preset, folders, two_images):
    folder = two_images if arch == "vgg16_bn" else folders
    made = preset.transforms()
    transform = TestTransform(made.resize_size[0], made.crop_size[0])
    expected = torch.cat([oracle(arch)(made(image)[None]).softmax(1) for image in images_of(folder)])
    assert torch.equal(run(ours(arch), folder, ONE_CROP, transform), expected)
    assert expected.std(0).max() > 0.05  # images are told apart


@torch.no_grad()
def test_a_packaged_file_of_torchvisions_weights_is_torchvisions_evaluation(coco_mini, tmp_path):
    """From the state dict that torchvision writes to the predictions for photographs."""
    made = ResNet50_Weights.IMAGENET1K_V2.transforms()
    torch.save(oracle("resnet18").state_dict(), tmp_path / "torchvision.pth")
    packaged = tmp_path / "packaged.pth"
    package_weights(
        tmp_path / "torchvision.pth",
        packaged,
        input_format=TORCHVISION_RGB,
        test_transform=TestTransform(232, 224),
    )
    photographs = tmp_path / "photographs"
    for number, path in enumerate(sorted((coco_mini / "val2017").glob("*.jpg"))[:5]):
        (photographs / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        (photographs / f"class{number % 2}" / path.name).symlink_to(path)
    loaded = load_classifier(packaged)
    assert (loaded.test_transform, loaded.input_format) == (TestTransform(232, 224), TORCHVISION_RGB)
    dataset = open_classes(str(photographs))
    _, found = predict(loaded, dataset, ONE_CROP, device="cpu", batch_size=1, num_workers=0)
    expected = torch.cat([oracle("resnet18")(made(image)[None]).softmax(1) for image in images_of(photographs)])
    assert torch.equal(found, expected) and len(found) == 5


@pytest.mark.parametrize(
    ("arch", "transform"),
    [("plain18", SMALL), ("cifar_resnet20", TestTransform(32, 32)), ("cifar_plain20", TestTransform(40, 32))],
)
@torch.no_grad()
def test_one_crop_of_other_networks(arch, transform, folders):
    made = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(transform.resize), torchvision.transforms.CenterCrop(transform.crop), to_input]
    )
    expected = torch.cat([own(arch)(made(image)).softmax(1) for image in images_of(folders)])
    assert torch.equal(run(own(arch), folders, ONE_CROP, transform), expected)


# Ten crops and whole images: plain loops


def crop_by_hand(image: Image.Image, crop: int) -> list[Image.Image]:
    width, height = image.size
    found = []
    for picture in (image, ImageOps.mirror(image)):
        for left, top in (
            (0, 0),
            (width - crop, 0),
            (0, height - crop),
            (width - crop, height - crop),
            (int(round((width - crop) / 2)), int(round((height - crop) / 2))),
        ):
            found.append(picture.crop((left, top, left + crop, top + crop)))
    return found


@pytest.mark.parametrize(
    ("arch", "transform"),
    [("resnet18", SMALL), ("resnet50", TestTransform(64, 64)), ("cifar_resnet20", TestTransform(40, 32))],
)
@torch.no_grad()
def test_ten_crops_are_the_mean_of_ten_softmaxes(arch, transform, folders, two_images):
    folder = two_images if arch == "resnet50" else folders
    reference, model = (own(arch), own(arch)) if "cifar" in arch else (oracle(arch), ours(arch))
    expected = []
    for image in images_of(folder):
        crops = crop_by_hand(F.resize(image, [transform.resize]), transform.crop)
        assert len(crops) == 10
        total = torch.zeros(NUM_CLASSES, dtype=torch.float64)
        for crop in crops:
            total += reference(to_input(crop))[0].double().softmax(0)
        expected.append(total / 10)
    for batch_size in (1, 64):
        found = run(model, folder, Views("10-crop"), transform, batch_size=batch_size)
        torch.testing.assert_close(found.double(), torch.stack(expected), atol=2e-6, rtol=1e-4)


def slide(features: Tensor, window: int, head: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of the head's logits over every position of a window."""
    _, _, height, width = features.shape
    logits = [
        head(features[:, :, top : top + window, left : left + window])[0].double()
        for top in range(height - window + 1)
        for left in range(width - window + 1)
    ]
    return torch.stack(logits).mean(0)


def features_of_torchvision(model: nn.Module, images: Tensor) -> Tensor:
    if hasattr(model, "features"):
        return model.features(images)
    for name, layer in model.named_children():
        if name == "avgpool":
            break
        images = layer(images)
    return images


def head_of_torchvision(model: nn.Module, features: Tensor) -> Tensor:
    if hasattr(model, "classifier"):
        return model.classifier(features.flatten(1))
    return model.fc(features.mean((2, 3)))


def slid_and_averaged(
    image: Image.Image,
    scales: tuple[int, ...],
    window: int,
    body: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
) -> Tensor:
    found = []
    for scale in scales:
        resized = F.resize(image, [scale])
        for shown in (resized, ImageOps.mirror(resized)):
            found.append(slide(body(to_input(shown)), window, head).softmax(0))
    return torch.stack(found).mean(0)


@pytest.mark.parametrize(
    ("arch", "transform", "scales", "window"),
    [
        ("resnet18", SMALL, (64, 97, 160), 2),
        ("resnet18", TestTransform(288, 288), (300,), 9),  # timm's larger crop
        ("resnet50", TestTransform(110, 96), (96, 110), 3),
        pytest.param("vgg16_bn", TestTransform(256, 224), (224, 256), 7, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_whole_images_are_the_mean_over_positions_mirror_images_and_scales(
    arch, transform, scales, window, folders, one_image
):
    folder = folders if arch == "resnet18" and max(scales) < 200 else one_image
    reference = oracle(arch)
    body = functools.partial(features_of_torchvision, reference)
    head = functools.partial(head_of_torchvision, reference)
    expected = [slid_and_averaged(image, scales, window, body, head) for image in images_of(folder)]
    found = run(ours(arch), folder, Views("multi-scale", scales), transform)
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("arch", "transform", "scales", "window"),
    [("plain18", SMALL, (70, 64), 2), ("cifar_resnet20", TestTransform(32, 32), (32, 41), 8)],
)
@torch.no_grad()
def test_whole_images_of_networks_with_another_stride(arch, transform, scales, window, folders):
    model = own(arch)

    def body(images: Tensor) -> Tensor:
        return list(model.forward_features(images).values())[-1]

    expected = [slid_and_averaged(image, scales, window, body, model.forward_head) for image in images_of(folders)]
    found = run(model, folders, Views("multi-scale", scales), transform)
    torch.testing.assert_close(found.double(), torch.stack(expected), atol=2e-6, rtol=1e-4)


# Shares, batches, workers, precision


@pytest.mark.parametrize("views", [ONE_CROP, Views("10-crop"), Views("multi-scale", (32, 36))], ids=str)
def test_three_shares_are_the_whole_and_nothing_is_left_out(views, folders):
    tested, dataset = classifier(own("cifar_resnet20"), TestTransform(36, 32)), open_classes(str(folders))
    whole = run(own("cifar_resnet20"), folders, views, TestTransform(36, 32))
    assert len(whole) == 11
    options = {"device": "cpu", "batch_size": 3, "num_workers": 0, "world_size": 3}
    found = torch.full_like(whole, -1)
    for rank in range(3):
        indices, probabilities = predict(tested, dataset, views, rank=rank, **options)
        assert indices.dtype == torch.int64 and indices.tolist() == list(range(rank, 11, 3))
        found[indices] = probabilities
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-4)


def test_more_processes_than_images(two_images):
    tested, dataset = classifier(own("cifar_resnet20"), TestTransform(32, 32)), open_classes(str(two_images))
    options = {"device": "cpu", "batch_size": 3, "num_workers": 0, "world_size": 5}
    shares = [predict(tested, dataset, ONE_CROP, rank=rank, **options) for rank in range(5)]
    assert [tuple(probabilities.shape) for _, probabilities in shares] == [(1, 7), (1, 7), (0, 7), (0, 7), (0, 7)]
    assert [indices.tolist() for indices, _ in shares] == [[0], [1], [], [], []]


def test_batches_change_rounding_alone_and_workers_nothing(folders, monkeypatch):
    alone = run(ours("resnet18"), folders, ONE_CROP, SMALL)
    with monkeypatch.context() as patch:
        bar = MagicMock()
        patch.setattr(predicting, "tqdm", bar)
        batches = run(ours("resnet18"), folders, ONE_CROP, SMALL, batch_size=4)
        assert bar.call_args.kwargs["total"] == 11
        assert [call.args for call in bar.return_value.update.call_args_list] == [(4,), (4,), (3,)]
    torch.testing.assert_close(batches, alone, atol=1e-6, rtol=1e-4)
    assert torch.equal(run(ours("resnet18"), folders, ONE_CROP, SMALL, batch_size=4, num_workers=2), batches)


def test_half_precision_is_close_and_is_used(folders):
    whole = run(ours("resnet18"), folders, ONE_CROP, SMALL)
    half = run(ours("resnet18"), folders, ONE_CROP, SMALL, dtype=torch.bfloat16)
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, atol=0.03, rtol=0)
    torch.testing.assert_close(half.sum(1), torch.ones(11), atol=1e-6, rtol=0)


def test_training_goes_on_as_if_nothing_had_happened(folders):
    torch.manual_seed(3)
    model = create_model("cifar_resnet20", num_classes=NUM_CLASSES)
    model.train()
    model.res2.eval()  # somebody keeps a part of it fixed
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    trained = run(model, folders, ONE_CROP, TestTransform(32, 32), num_workers=1)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(trained, run(model.eval(), folders, ONE_CROP, TestTransform(32, 32)))


# Ensembles


def package(model: nn.Module, path: Path, transform: TestTransform | None, **options) -> str:
    torch.save(model.state_dict(), path)
    packaged = path.with_suffix(".packaged.pth")
    package_weights(path, packaged, **{"input_format": TORCHVISION_RGB, "test_transform": transform, **options})
    return str(packaged)


@torch.no_grad()
def test_an_ensemble_is_the_mean_of_softmaxes_each_with_its_own_transform(folders, tmp_path):
    first = package(oracle("resnet18"), tmp_path / "a.pth", SMALL)
    second = package(own("cifar_resnet20"), tmp_path / "b.pth", None, class_names=list("abcdefg"))
    dataset = open_classes(str(folders))
    members = check_members([first, second], dataset, ONE_CROP, TestTransform(40, 32))
    assert [member.test_transform for member in members] == [SMALL, TestTransform(40, 32)]
    assert [member.given_transform for member in members] == [False, True]
    score = score_members(members, dataset, ONE_CROP, device="cpu", batch_size=1, num_workers=0)
    labels = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 6])
    each, expected = [], []
    for image in images_of(folders):
        of_first = oracle("resnet18")(to_input(F.center_crop(F.resize(image, [75]), [64]))).softmax(1)
        of_second = own("cifar_resnet20")(to_input(F.center_crop(F.resize(image, [40]), [32]))).softmax(1)
        each.append((of_first.argmax().item(), of_second.argmax().item()))
        expected.append((of_first + of_second) / 2)
    assert torch.allclose(score.probabilities, torch.cat(expected), atol=1e-7)
    for number, one in enumerate(score.members):
        wrong = sum(found[number] != label for found, label in zip(each, labels.tolist(), strict=True))
        assert one.metrics.top1_error == pytest.approx(100 * wrong / 11)
        assert one.images_per_s > 0
    assert score.metrics.top1_error == pytest.approx(
        100 * (torch.cat(expected).argmax(1) != labels).double().mean().item()
    )


def test_one_network_is_in_memory_at_a_time(folders, tmp_path, monkeypatch):
    sources = [package(own("cifar_resnet20"), tmp_path / f"{n}.pth", TestTransform(32, 32)) for n in "ab"]
    built: list[weakref.ref] = []

    def load(*arguments, **options):
        gc.collect()
        assert [reference for reference in built if reference() is not None] == []
        loaded = load_classifier(*arguments, **options)
        built.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(evaluate, "load_classifier", load)
    dataset = open_classes(str(folders))
    members = check_members(sources, dataset, ONE_CROP)
    score_members(members, dataset, ONE_CROP, device="cpu", batch_size=8, num_workers=0)
    assert len(built) == 2


# What is refused


def test_the_classifier_knows_its_classes_and_its_input(tmp_path):
    source = package(
        own("cifar_resnet20"),
        tmp_path / "a.pth",
        TestTransform(32, 32, "bicubic"),
        input_format=MSRA_BGR,
        class_names=list("gfedcba"),
    )
    loaded = load_classifier(source)
    assert (loaded.name, loaded.class_names) == (source, tuple("gfedcba"))
    assert (loaded.input_format, loaded.test_transform) == (MSRA_BGR, TestTransform(32, 32, "bicubic"))
    assert loaded.model.num_classes == NUM_CLASSES
    assert (
        load_classifier(source, test_transform=TestTransform(32, 32, "bicubic")).test_transform == loaded.test_transform
    )
    with pytest.raises(WeightsError, match=r"is tested with .*resize=32.*, not .*resize=40.*; leave the transform out"):
        load_classifier(source, test_transform=TestTransform(40, 32))


def test_weights_that_cannot_be_tested_are_refused(tmp_path):
    plain = tmp_path / "plain.pth"
    torch.save(oracle("resnet18").state_dict(), plain)
    with pytest.raises(WeightsError, match=r"does not say on which pixels .* resnet-backbone package .*weights.pth"):
        load_classifier(plain)
    no_transform = package(oracle("resnet18"), tmp_path / "a.pth", None)
    with pytest.raises(WeightsError, match=r"does not say how images are resized .*--resize 256 --crop 224"):
        load_classifier(no_transform)
    assert load_classifier(no_transform, test_transform=SMALL).test_transform == SMALL
    state = {name: tensor for name, tensor in oracle("resnet18").state_dict().items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "trunk.pth")
    package_weights(tmp_path / "trunk.pth", tmp_path / "packaged.pth", input_format=TORCHVISION_RGB)
    with pytest.raises(WeightsError, match=r"has no classifier, only a backbone of resnet18"):
        load_classifier(tmp_path / "packaged.pth")
    stem = {name: tensor for name, tensor in state.items() if name.startswith(("conv1", "bn1"))}
    torch.save(stem, tmp_path / "stem.pth")
    assert read_weights(tmp_path / "stem.pth").arch is None
    with pytest.raises(WeightsError, match=r"can be plain18 or .*resnet18 or .*resnet-backbone package --arch"):
        load_classifier(tmp_path / "stem.pth")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more and num_workers 0 or more, got 0 and 0"),
        ({"num_workers": -1}, "got 1 and -1"),
        ({"rank": 3, "world_size": 3}, "rank must be from 0 to world_size - 1, got 3 of 3"),
        ({"rank": -1}, "got -1 of 1"),
        ({"dtype": torch.float64}, "dtype torch.float64 must be one of torch.float32, torch.bfloat16, torch.float16"),
    ],
)
def test_arguments_out_of_range_are_refused(options, says, folders):
    with pytest.raises(ValueError) as caught:
        run(own("cifar_resnet20"), folders, ONE_CROP, TestTransform(32, 32), **options)
    assert says in str(caught.value)


def test_a_trunk_cannot_classify(folders):
    with pytest.raises(ValueError, match="tested has no head, and cannot classify: build the network with num_classes"):
        run(create_model("cifar_resnet20", num_classes=0), folders, ONE_CROP, TestTransform(32, 32))


def test_scales_that_are_too_small_are_refused_before_the_first_image(folders, monkeypatch):
    monkeypatch.setattr(predicting, "multi_scale", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(ValueError) as caught:
        run(own("plain18"), folders, Views("multi-scale", (128, 96, 32)), TestTransform(75, 64))
    assert str(caught.value) == (
        "scale 32 gives tested a map of 1 x 1 cells, and its head reads 2 x 2, those of a crop of 64 pixels; write "
        "scales of 64 or more"
    )
    with pytest.raises(ValueError, match=r"fc6 of vgg16_bn reads 7 x 7 cells, not 8 x 8: images of 224 pixels"):
        run(ours("vgg16_bn"), folders, Views("multi-scale", (256,)), TestTransform(256, 256))


def test_scales_below_the_crop_with_the_same_map_are_right(two_images):
    """57 to 64 pixels are two cells of stride 32."""
    found = run(own("plain18"), two_images, Views("multi-scale", (57,)), SMALL)
    assert torch.allclose(found.sum(1), torch.ones(2))


def members_of(sources, folder, views=ONE_CROP, transform=None):
    return check_members(sources, open_classes(str(folder)), views, transform)


def test_members_that_do_not_fit_are_refused_before_any_work(folders, two_images, tmp_path):
    good = package(own("cifar_resnet20"), tmp_path / "good.pth", TestTransform(32, 32))
    assert [member.name for member in members_of([good], folders)] == [good]
    with pytest.raises(ValueError, match="no weights to evaluate: give one or more"):
        members_of([], folders)
    with pytest.raises(ValueError, match=r"good.packaged.pth is given twice; an ensemble needs different weights"):
        members_of([good, good], folders)
    with pytest.raises(ValueError, match=r"all of the weights say their own: leave it out"):
        members_of([good], folders, transform=SMALL)
    with pytest.raises(WeightsError, match=r"tells 7 classes apart, .* has 2 \(a, g, ...\); take data of its classes"):
        members_of([good], two_images)
    turned = package(
        own("cifar_resnet20"), tmp_path / "t.pth", TestTransform(32, 32), class_names=list("abcdefg")[::-1]
    )
    with pytest.raises(WeightsError, match=r"the same classes in another order: class 0 is 'g' there and 'a' here"):
        members_of([good, turned], folders)
    others = package(own("cifar_resnet20"), tmp_path / "o.pth", TestTransform(32, 32), class_names=list("abcdefx"))
    with pytest.raises(WeightsError, match=r"have other classes: class 6 is 'x' there and 'g' here; give the folders"):
        members_of([others], folders)
    with pytest.raises(ValueError, match=r"scale 20 gives .*good.packaged.pth a map of 5 x 5 cells"):
        members_of([good], folders, Views("multi-scale", (20, 32)))


def test_a_damaged_image_is_named(folders, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/cut_off.jpg").write_bytes((folders / "a/landscape.jpg").read_bytes()[:900])
    for num_workers in (0, 1):
        with pytest.raises(ValueError, match=r"a/cut_off.jpg is not an image that can be read"):
            run(own("cifar_resnet20"), tmp_path, ONE_CROP, TestTransform(32, 32), num_workers=num_workers)
