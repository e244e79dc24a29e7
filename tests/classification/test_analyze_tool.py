"""tools/analyze_model.py from its command line to its files, on weights and images that the tests write."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from resnet_backbone import create_model, list_models
from resnet_backbone.classification.complexity_table import complexity_row
from resnet_backbone.classification.figures import measure_responses, measure_sources, spread
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.weights import InputFormat, TestTransform, package_weights
from resnet_backbone.weights.catalog import TORCHVISION_RGB

BGR = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def tool(load_script):
    return load_script("tools/analyze_model.py")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven images of odd sizes in two classes."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for index in range(7):
        folder = root / ("cat" if index < 4 else "dog")
        folder.mkdir(exist_ok=True)
        small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((70 + 3 * index, 61), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return root


def package(path, arch, input_format=TORCHVISION_RGB, transform=TestTransform(40, 32), seed=0, **options):  # noqa: B008
    torch.manual_seed(seed)
    model = create_model(arch, num_classes=4, **options)
    raw = path.with_name(f"raw_{path.name}")
    torch.save(model.state_dict(), raw)
    stride = model.stride_in_1x1 if arch == "resnet50" else None
    package_weights(raw, path, arch, input_format, stride, test_transform=transform)
    raw.unlink()
    return model


def images_of(dataset, indices, transform, mean, std, order=(0, 1, 2)):
    """As torchvision prepares them."""
    preset = ImageClassification(
        crop_size=transform.crop,
        resize_size=transform.resize,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=InterpolationMode(transform.interpolation),
        antialias=True,
    )
    pixels = torch.stack([preset(dataset[index][0]) for index in indices])[:, list(order)] * 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def test_table(tool, capsys, monkeypatch):
    assert tool.main(["table"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{arch} " in text for arch in list_models())
    row = complexity_row("cifar_plain20", {})
    monkeypatch.setattr(tool, "complexity_rows", lambda: [row])
    assert tool.main(["table", "--markdown"]) == 0
    assert "\n| cifar_plain20 | " in capsys.readouterr().out


def test_stages(tool, capsys):
    assert tool.main(["stages", "resnet50", "--stride-in-1x1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:3] == ["total", "25,557,032", "3,857.97"]
    assert tool.main(["stages", "resnet34", "--shortcut", "A", "--preactivation", "--size", "64"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("resnet34, one image of 64 x 64 pixels") and "\npostact  512 x 2 x 2 " in out
    assert tool.main(["stages", "cifar_resnet20"]) == 0
    assert capsys.readouterr().out.startswith("cifar_resnet20, one image of 32 x 32 pixels")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["stages", "resnet51"], "unknown model 'resnet51'; did you mean"),
        (["stages", "plain18", "--shortcut", "A"], "plain18 has no shortcuts"),
        (["stages", "vgg16", "--size", "16"], "write a size of 32 or more"),
        (["curves", "/nowhere", "--output", "x"], "no /nowhere/metrics.json"),
        (["responses", "resnet18/IMAGENET1K_V9", "--data", "PHOTOS", "--output", "x"], "neither a file nor a name"),
        (["responses", "PHOTOS", "--data", "PHOTOS", "--output", "x"], "weights.pth; a run of"),
        (["responses", "x.pth", "--data", "/nowhere", "--output", "x"], "'/nowhere' is neither a folder"),
        (["responses", "x.pth", "--data", "PHOTOS", "--output", "x", "--images", "0"], "write 1 or more"),
    ],
)
def test_errors(tool, capsys, photos, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    assert tool.main([str(photos) if word == "PHOTOS" else word for word in argv]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.out == "" and list(tmp_path.iterdir()) == []


def test_responses(tool, capsys, photos, tmp_path):
    """A packaged file and a run's folder, each with the pixels that its weights want, one of them bicubic and BGR."""
    run = tmp_path / "run_of_resnet"
    run.mkdir()
    first_format, second_format = TestTransform(40, 32), TestTransform(48, 40, "bicubic")
    first = package(tmp_path / "plain.pth", "cifar_plain20", transform=first_format)
    second = package(run / "weights.pth", "cifar_resnet20", BGR, second_format, shortcut="B")
    output = tmp_path / "output"
    argv = ["responses", str(tmp_path / "plain.pth"), str(run), "--data", str(photos), "--output", str(output)]
    assert tool.main([*argv, "--images", "3"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-2:] == [str(output / "responses.csv"), str(output / "responses.png")]

    dataset, indices = open_classes(str(photos)), [0, 2, 4]
    first_images = images_of(dataset, indices, first_format, TORCHVISION_RGB.mean, TORCHVISION_RGB.std)
    second_images = images_of(dataset, indices, second_format, BGR.mean, BGR.std, (2, 1, 0))
    with (output / "responses.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, model, images in (("plain", first, first_images), (run.name, second, second_images)):
        own = [row for row in rows if row["network"] == name]
        expected = measure_responses(model, [images])
        assert [row["layer"] for row in own] == [layer.name for layer in expected.layers]
        assert [float(row["std"]) for row in own] == pytest.approx([layer.std for layer in expected.layers], rel=1e-4)
        assert {row["images"] for row in own} == {"3"}


def test_weights_bring_their_options(photos, tmp_path):
    """Pre-activation, the stride's place, option A and group norm are the weights' own."""
    dataset = open_classes(str(photos))
    for arch, options in (
        ("cifar_resnet20", {"preactivation": True}),
        ("resnet50", {"stride_in_1x1": True, "shortcut": "A"}),
        ("cifar_resnet20", {"norm": "GN"}),
    ):
        model = package(tmp_path / "weights.pth", arch, **options)
        (measured,) = measure_sources([str(tmp_path / "weights.pth")], dataset, 2, ["x"])
        images = images_of(dataset, [0, 3], TestTransform(40, 32), TORCHVISION_RGB.mean, TORCHVISION_RGB.std)
        expected = measure_responses(model, [images], "x")
        assert measured == replace(expected, layers=measured.layers)
        stds = [[layer.std for layer in one.layers] for one in (measured, expected)]
        assert stds[0] == pytest.approx(stds[1], rel=1e-4)


def test_weights_that_say_too_little(tool, capsys, photos, tmp_path):
    raw, untested = tmp_path / "raw.pth", tmp_path / "untested.pth"
    torch.save(create_model("resnet18").state_dict(), raw)
    model = package(untested, "cifar_plain20", transform=None)
    output = tmp_path / "output"
    rest = ["--data", str(photos), "--output", str(output), "--images", "2"]
    for argv, message in (
        ([str(raw)], "does not say on which pixels it was trained"),
        ([str(untested)], "write --resize and --crop"),
        ([str(untested), "--crop", "32"], "--resize and --crop belong together"),
    ):
        assert tool.main(["responses", *argv, *rest]) == 1
        assert message in capsys.readouterr().err and not output.exists()
    assert tool.main(["responses", str(untested), *rest, "--resize", "40", "--crop", "32"]) == 0
    images = images_of(
        open_classes(str(photos)), [0, 3], TestTransform(40, 32), TORCHVISION_RGB.mean, TORCHVISION_RGB.std
    )
    expected = [layer.std for layer in measure_responses(model, [images]).layers]
    with (output / "responses.csv").open() as file:
        assert [float(row["std"]) for row in csv.DictReader(file)] == pytest.approx(expected, rel=1e-4)


def test_names(photos, tmp_path):
    dataset = open_classes(str(photos))
    package(tmp_path / "good.pth", "cifar_plain20")
    twice = [str(tmp_path / "good.pth")] * 2
    with pytest.raises(ValueError, match="two networks are called good; give each a name of its own with --names"):
        measure_sources(twice, dataset, 2)
    with pytest.raises(ValueError, match="2 networks need 2 names, got 1: x"):
        measure_sources(twice, dataset, 2, ["x"])
    measured = measure_sources(twice, dataset, 99, ["a", "b"])
    assert [(one.name, one.num_images) for one in measured] == [("a", 7), ("b", 7)]


@pytest.mark.parametrize(
    ("total", "count", "indices"), [(10, 3, [0, 3, 6]), (4, 9, [0, 1, 2, 3]), (7, 7, list(range(7)))]
)
def test_images_are_spread(total, count, indices):
    assert spread(total, count) == indices


def test_curves(tool, capsys, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    records = [
        {"iteration": i, "total_loss": 1.0, "train_error": 50.0 - i, "lr": 0.1, "time": 0.1} for i in (9, 19, 29)
    ]
    records.append({"iteration": 29, "val/classification/top1_error": 33.0})
    (run / "metrics.json").write_text("".join(json.dumps(record) + "\n" for record in records))
    output = tmp_path / "output"
    assert tool.main(["curves", str(run), "--output", str(output), "--names", "mine"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(output / "curves.csv"), str(output / "curves.png")]
    assert (output / "curves.csv").read_text().splitlines()[-1] == "mine,test,val,30,33.0"
