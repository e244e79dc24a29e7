"""Weight files of random networks, a little data, and the command line that is tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from resnet_backbone.data.prepare.shapes import generate_shapes
from resnet_backbone.weights import InputFormat, package_weights
from resnet_backbone.weights.catalog import TORCHVISION_RGB
from resnet_backbone.weights.source import FORMAT_VERSION, PACKAGE_KEY


def random_state(arch: str) -> dict[str, torch.Tensor]:
    """torchvision's state dict with random norms; the big linear layers of VGG are views of one column."""
    generator = torch.Generator().manual_seed(len(arch))
    with torch.device("meta"):
        shapes = getattr(torchvision.models, arch)(weights=None).state_dict()
    state = {}
    for name, shape in shapes.items():
        if name.startswith("classifier.") and shape.ndim == 2:
            state[name] = (torch.randn(len(shape), 1, generator=generator) * 0.02).expand(shape.shape)
        elif name.endswith(("bias", "running_mean")):
            state[name] = torch.rand(shape.shape, generator=generator) * 0.2 - 0.1
        elif shape.ndim == 1:
            state[name] = torch.rand(shape.shape, generator=generator) * 0.4 + 0.8
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        else:
            fan_in = shape[0].numel()
            state[name] = torch.randn(shape.shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


@pytest.fixture(scope="session")
def raw_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``raw_file("resnet18")``: a file as torchvision publishes it, unknown to the catalog."""
    folder = tmp_path_factory.mktemp("raw")

    def make(arch: str) -> Path:
        path = folder / f"{arch}.pth"
        if not path.is_file():
            torch.save(random_state(arch), path)
        return path

    return make


@pytest.fixture(scope="session")
def packaged_file(raw_file, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``packaged_file("resnet50", input_format, stride_in_1x1)``: a file that says how it was trained."""
    folder = tmp_path_factory.mktemp("packaged")

    def make(arch: str, input_format: InputFormat = TORCHVISION_RGB, stride_in_1x1: bool = False) -> Path:
        path = folder / f"{arch}-{input_format.channel_order}-{input_format.std[0]}-{stride_in_1x1}.pth"
        if not path.is_file():
            package_weights(raw_file(arch), path, input_format=input_format, stride_in_1x1=stride_in_1x1)
        return path

    return make


@pytest.fixture(scope="session")
def packaged_vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packaged VGG-16 with batch norm, in 60 MB: package_weights would write its linear layers out."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16_bn.pth"
    facts = {"format_version": FORMAT_VERSION, "arch": "vgg16_bn", "norm": "BN", "stride_in_1x1": False}
    facts |= {"input_format": TORCHVISION_RGB.to_dict(), "licence": "", "acc1": None}
    torch.save({"model": random_state("vgg16_bn"), PACKAGE_KEY: facts}, path)
    return path


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    generate_shapes(root / "shapes", num_train=6, num_val=1, seed=0)
    return root


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of another size than the network's, with a different course in each channel."""
    path = tmp_path / "photo.png"
    ramp = torch.linspace(0, 255, 300).expand(260, 300)
    pixels = torch.stack([ramp, ramp.flip(1) * 0.5, torch.linspace(0, 200, 260)[:, None].expand(260, 300)], dim=2)
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
    return path


@pytest.fixture
def doctor(load_script, data_root, monkeypatch, capsys) -> Callable[..., tuple[int, dict[str, Any]]]:
    """``doctor("--config-file", ...)``: exit status and the JSON that tools/doctor.py printed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_root))
    main = load_script("tools/doctor.py").main

    def run(*words: str | Path) -> tuple[int, dict[str, Any]]:
        status = main(["--json", *map(str, words)])
        return status, json.loads(capsys.readouterr().out)

    return run


@pytest.fixture(params=["torchvision", "detectron2"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "detectron2":
        pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    return request.param


@pytest.fixture
def examine(doctor, engine) -> Callable[..., tuple[int, dict[str, Any]]]:
    """``examine("faster/r18_fpn.yaml", weights, "KEY", "VALUE", ...)``: a config on the engine, with data there is."""

    def run(config: str, weights: str | Path, *overrides: str, images: list[Path] | None = None) -> Any:
        pictures = ["--images", *images, "--"] if images else []
        data = ["DATASETS.TRAIN", "('shapes_train',)", "DATASETS.TEST", "('shapes_val',)"]
        small = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", weights]
        return doctor("--config-file", config, "--engine", engine, *pictures, *small, *data, *overrides)

    return run
