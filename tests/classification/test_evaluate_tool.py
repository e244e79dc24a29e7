"""tools/evaluate_classifier.py: its table, its files, and what it says to mistakes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from resnet_backbone import create_model
from resnet_backbone.classification.evaluate import EnsembleScore, MemberScore, score_text
from resnet_backbone.classification.predict import Member
from resnet_backbone.classification.transforms import ONE_CROP, Views
from resnet_backbone.data.images.classes import open_classes
from resnet_backbone.data.prepare.cifar10 import prepare_cifar10
from resnet_backbone.files.atomic import file_hash
from resnet_backbone.metrics.classification import ClassificationMetrics
from resnet_backbone.metrics.run_facts import device_name, git_commit, hash_labels, read_figures
from resnet_backbone.version import __version__
from resnet_backbone.weights import TestTransform, package_weights
from resnet_backbone.weights.catalog import TORCHVISION_RGB

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")
CIFAR = TestTransform(32, 32)


@pytest.fixture(scope="module")
def main(load_script):
    return load_script("tools/evaluate_classifier.py").main


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Two images in each of seven class folders."""
    root = tmp_path_factory.mktemp("animals")
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (40 + number, 35, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """``packaged("name", seed=0, transform=CIFAR, **facts)``: a CIFAR network's file."""
    root = tmp_path_factory.mktemp("weights")

    def make(name, seed=0, transform=CIFAR, class_names=(), num_classes=7, **facts) -> str:
        torch.manual_seed(seed)
        model = create_model("cifar_resnet20", num_classes=num_classes)
        with torch.no_grad():
            model.linear.weight.normal_(std=2.0)
        torch.save(model.state_dict(), root / f"{name}.tensors.pth")
        path = root / f"{name}.pth"
        package_weights(
            root / f"{name}.tensors.pth",
            path,
            input_format=TORCHVISION_RGB,
            test_transform=transform,
            class_names=class_names,
        )
        if facts:
            content = torch.load(path, weights_only=True)
            content["resnet_backbone"] |= facts
            torch.save(content, path)
        return str(path)

    return make


def words(folder: Path, *weights: str) -> list[str]:
    return ["--weights", *weights, "--data", str(folder), "--num-workers", "0", "--device", "cpu", "--batch-size", "4"]


@torch.no_grad()
def by_hand(path: str, folder: Path) -> torch.Tensor:
    """torchvision's reading of the images and the network as it stands in the file."""
    model = create_model("cifar_resnet20", num_classes=7)
    model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=False)
    transforms = torchvision.transforms
    steps = [
        transforms.Resize(32),
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    images = torchvision.datasets.ImageFolder(str(folder), transform=transforms.Compose(steps))
    return torch.cat([model.eval()(image[None]).softmax(1) for image, _ in images])


def test_an_ensemble_from_the_command_line(main, folders, packaged, tmp_path, capsys):
    sources = [packaged("first", 0), packaged("second", 1, class_names=CLASSES)]
    output = tmp_path / "output"
    assert main([*words(folders, *sources), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    each = [by_hand(source, folders) for source in sources]
    mean = (each[0] + each[1]) / 2
    labels = torch.arange(7).repeat_interleave(2)
    errors = [100 * (found.argmax(1) != labels).double().mean().item() for found in [*each, mean]]
    top5 = [found.topk(5).indices for found in [*each, mean]]
    errors5 = [100 * (1 - (found == labels[:, None]).any(1).double().mean().item()) for found in top5]

    rows = [line for line in printed.splitlines() if line.startswith((*sources, "mean of the 2"))]
    assert len(rows) == 3
    for row, error, error5 in zip(rows, errors, errors5, strict=True):
        assert f" {error:.2f} % (" in row and f" {error5:.2f} % (" in row
    assert "32, 1-crop 32, bilinear" in rows[0]
    figures = json.loads(printed.splitlines()[-1])["classification"]
    assert figures["top1_error"] == pytest.approx(errors[2]) and figures["top5_error"] == pytest.approx(errors5[2])
    assert figures["loss"] == pytest.approx(-mean.log()[range(14), labels].mean().item(), rel=1e-4)

    assert read_figures(output / "metrics.json") == {"classification": figures}
    facts = json.loads((output / "facts.json").read_text())
    dataset = open_classes(str(folders))
    assert facts["command"].startswith("python ")
    assert facts["commit"] == git_commit() and facts["resnet_backbone"] == __version__
    assert (facts["torch"], facts["torchvision"]) == (torch.__version__, torchvision.__version__)
    assert (facts["device"], facts["dtype"]) == (device_name(torch.device("cpu")), "float32")
    assert (facts["views"], facts["scales"]) == ("1-crop", None)
    assert (facts["dataset"], facts["num_images"], facts["class_names"]) == (str(folders), 14, list(CLASSES))
    assert facts["labels_sha256"] == hash_labels([dataset.image_name(n) for n in range(14)], labels.tolist())
    for member, source, error in zip(facts["members"], sources, errors, strict=False):
        assert member["source"] == source and member["sha256"] == file_hash(Path(source), "sha256")
        assert member["test_transform"] == {"resize": 32, "crop": 32, "interpolation": "bilinear"}
        assert member["top1_error"] == pytest.approx(error)

    lines = list(csv.reader((output / "predictions.csv").read_text().splitlines()))
    assert lines[0][:4] == ["image", "label", "class1", "probability1"] and len(lines[0]) == 12
    assert [line[:2] for line in lines[1:]] == [[f"{name}/{number}.png", name] for name in CLASSES for number in (0, 1)]
    for line, probabilities in zip(lines[1:], mean, strict=True):
        values, indices = probabilities.topk(5)
        assert line[2::2] == [CLASSES[index] for index in indices]
        assert [float(value) for value in line[3::2]] == pytest.approx(values.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("views", "shown"),
    [
        (["--views", "10-crop"], "36, 10-crop 32, bilinear"),
        (["--views", "multi-scale", "--scales", "32", "40"], "32, 40, bilinear"),
    ],
)
def test_other_views_and_a_file_that_does_not_say_its_transform(
    main, folders, packaged, views, shown, tmp_path, capsys
):
    silent = packaged("silent", transform=None)
    given = ["--resize", "36", "--crop", "32", "--dtype", "bfloat16", "--output", str(tmp_path)]
    assert main([*words(folders, silent), *views, *given]) == 0
    assert shown in capsys.readouterr().out
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["views"] == views[1] and facts["dtype"] == "bfloat16"
    assert facts["scales"] == ([32, 40] if views[1] == "multi-scale" else None)
    assert facts["members"][0]["given_transform"] is True


def test_the_published_error_stands_beside(main, folders, packaged, capsys):
    """Of 14 images with e wrong the interval is wide: 100 - acc1 is put inside and outside of it."""
    source = packaged("published", acc1=50.0, acc5=None)
    assert main(words(folders, source)) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["classification"]
    inside, outside = 100 - figures["top1_error"], 100 - figures["top5_error_high"] - 1
    source = packaged("published", acc1=inside, acc5=outside)
    assert main([*words(folders, source), "--views", "multi-scale", "--scales", "32"]) == 0
    printed = capsys.readouterr().out
    assert f"{100 - inside:.2f} % (inside)" in printed and f"{100 - outside:.2f} % (outside)" in printed
    assert "Published errors are of one crop of ImageNet's validation images" in printed
    assert "This is multi-scale: expect fewer errors." in printed


def score(acc1, acc5, num_classes=1000):
    member = Member(
        "s", "resnet50/IMAGENET1K_V1", "resnet50", "", TORCHVISION_RGB, TestTransform(256, 224), False, acc1, acc5
    )
    metrics = ClassificationMetrics(50_000, 23.87, 7.138 if num_classes > 5 else None, 0.96)
    return EnsembleScore((MemberScore(member, metrics, 123.4),), metrics, torch.zeros(0))


def test_the_table_of_one_classifier():
    lines = score_text(score(76.13, 92.862), ONE_CROP).splitlines()
    assert len(lines) == 5  # one row, no mean
    assert re.split(r"\s{2,}", lines[2]) == [
        "resnet50/IMAGENET1K_V1",
        "256, 1-crop 224, bilinear",
        "23.87 % (23.50 to 24.25)",
        "7.14 % (6.92 to 7.37)",
        "23.87 % (inside)",
        "7.14 % (inside)",
        "123.4",
    ]
    assert "expect fewer errors" not in lines[-1]
    unknown = score_text(score(None, None, num_classes=5), Views("10-crop")).splitlines()
    assert re.split(r"\s{2,}", unknown[2])[3:6] == ["-", "-", "-"] and "ublished errors" not in "".join(unknown[3:])


def said(main, capsys, *arguments: str) -> str:
    """What a run with a mistake says: one error, exit status 1, no figures."""
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    return captured.err


def test_mistakes_are_explained(main, folders, packaged, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    good, silent = packaged("good"), packaged("silent", transform=None)
    assert "neither a file nor a name in the catalog" in said(main, capsys, *words(folders, "nothing.pth"))
    assert "no weights 'V9' for resnet50" in said(main, capsys, *words(folders, "imagenet://resnet50/V9"))
    assert "neither a folder" in said(main, capsys, *words(tmp_path / "absent", good))
    assert "imagenet/val" in said(main, capsys, "--weights", good, "--data", "imagenet_val", "--device", "cpu")
    assert "write --resize and --crop" in said(main, capsys, *words(folders, silent))
    assert "--resize and --crop go together" in said(main, capsys, *words(folders, silent), "--resize", "32")
    assert "go together" in said(main, capsys, *words(folders, silent), "--interpolation", "bicubic")
    assert "at most resize, 32" in said(main, capsys, *words(folders, silent), "--resize", "32", "--crop", "40")
    assert "leave it out" in said(main, capsys, *words(folders, good), "--resize", "36", "--crop", "32")
    assert "--scales is of --views multi-scale" in said(main, capsys, *words(folders, good), "--scales", "32")
    assert "is given twice" in said(main, capsys, *words(folders, good, good))
    multi_scale = ("--views", "multi-scale", "--scales")
    assert "write scales of 32 or more" in said(main, capsys, *words(folders, good), *multi_scale, "16")
    assert "each once" in said(main, capsys, *words(folders, good), *multi_scale, "32", "32")
    three = packaged("three", num_classes=3)
    assert "tells 3 classes apart" in said(main, capsys, *words(folders, good, three))
    turned = packaged("turned", class_names=CLASSES[::-1])
    assert "class 0 is 'gnu' there and 'ant' here" in said(main, capsys, *words(folders, turned))
    assert "batch_size must be 1 or more" in said(main, capsys, *words(folders, good), "--batch-size", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no GPU here" in said(main, capsys, *words(folders, good), "--device", "cuda")


def test_outputs_that_overflow_are_an_error(main, folders, tmp_path, capsys):
    model = create_model("cifar_resnet20", num_classes=7)
    with torch.no_grad():
        model.linear.weight.fill_(3e38)
    torch.save(model.state_dict(), tmp_path / "large.pth")
    package_weights(
        tmp_path / "large.pth", tmp_path / "p.pth", input_format=TORCHVISION_RGB, test_transform=TestTransform(32, 32)
    )
    assert "are not finite, of image 0 first" in said(main, capsys, *words(folders, str(tmp_path / "p.pth")))


def test_a_damaged_image_is_an_error(main, folders, packaged, tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes((folders / name / "0.png").read_bytes()[:200])
    assert "0.png is not an image that can be read" in said(main, capsys, *words(tmp_path, packaged("good")))


@pytest.mark.slow
@pytest.mark.parametrize(("file", "error"), [("resnet20-12fca82f.th", 18.97), ("resnet56-4bfd9763.th", 16.80)])
def test_the_published_networks_of_cifar10(main, cifar10_resnets, tmp_path, capsys, file, error):
    """On CIFAR-10 (JPEG copy); the errors are what the authors' own code gives on the same 10,000 files."""
    prepare_cifar10(tmp_path, cifar10_resnets.parent / "cifar10_jpeg.zip")
    arguments = ["--weights", str(cifar10_resnets / file), "--data", str(tmp_path / "test")]
    assert main([*arguments, "--num-workers", "0", "--batch-size", "250"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["classification"]
    assert (found["num_images"], found["top1_error"]) == (10_000, pytest.approx(error, abs=0.011))
