"""Classifiers and trunks as files: their outputs are those of the network, whose norms are not folded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from resnet_backbone.export.trunk import exportable_trunk
from resnet_backbone.export.write import FORMATS, export
from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import InputFormat, TestTransform, WeightsError, package_weights

PIXELS = InputFormat("BGR", (100.0, 110.0, 120.0), (50.0, 60.0, 70.0))


def packaged(folder: Path, arch: str, num_classes: int, norm: str | None = None) -> tuple[Path, torch.nn.Module]:
    """A packaged file with statistics unlike those of a new network, and the network itself."""
    torch.manual_seed(0)
    model = create_model(arch, num_classes=num_classes, norm=norm).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    torch.save(model.state_dict(), folder / "raw.pth")
    path = folder / "packaged.pth"
    package_weights(
        folder / "raw.pth",
        path,
        arch,
        PIXELS,
        stride_in_1x1=False,
        test_transform=TestTransform(40, 32),
        class_names=[f"class {number}" for number in range(num_classes)],
    )
    return path, model


@pytest.mark.parametrize(
    ("arch", "norm", "out_features", "form"),
    [
        ("resnet18", None, None, "onnx"),
        ("resnet18", None, ("res3", "res5"), "torch"),
        ("resnet50", "FrozenBN", ("res2", "res3", "res4", "res5"), "onnx"),
        ("plain18", None, ("res4",), "onnx"),
        ("vgg16", None, ("conv4", "pool5"), "onnx"),
        ("vgg16_bn", None, ("conv5",), "torch"),
        ("cifar_resnet20", None, None, "torch"),
    ],
)
def test_a_file_returns_what_the_network_does(tmp_path, arch, norm, out_features, form):
    weights, model = packaged(tmp_path, arch, 0 if out_features else 7, norm)
    exportable = exportable_trunk(weights, arch, out_features)
    path = tmp_path / f"trunk{FORMATS[form].suffix}"
    agreement = export(exportable, path, form)
    names = out_features or ("logits",)
    assert set(agreement.largest) == set(names) and len(agreement.images) == 3
    run = _onnx(path, names) if form == "onnx" else _torch(path, names)
    smallest = exportable.facts.smallest_side
    for shape in ((1, 3, smallest, smallest), (5, 3, smallest + 1, 3 * smallest - 1), (2, 3, 128, 129)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model.forward_features(images) if out_features else {"logits": model(images)}
        for name, value in run(images).items():
            assert value.shape == expected[name].shape
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-5 * scale)
    facts = json.loads(FORMATS[form].facts(path))
    assert (facts["channel_order"], facts["mean"], facts["std"]) == ("BGR", [100, 110, 120], [50, 60, 70])
    assert facts["class_names"] == ([] if out_features else [f"class {number}" for number in range(7)])
    assert list(facts["outputs"]) == list(names) and "40" in facts["resize"] and "32 x 32" in facts["resize"]


def _onnx(path, names):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    model = onnx.load(str(path))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "height", "width"] and tuple(value.name for value in model.graph.output) == names
    assert {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.output} == {"batch"}

    def run(images):
        values = session.run(None, {"images": images.numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run


def _torch(path, names):
    module = torch.export.load(path).module()
    return lambda images: dict(zip(names, (value.detach() for value in module(images)), strict=True))


def test_what_weights_must_say(tmp_path):
    weights, _ = packaged(tmp_path, "resnet18", 0)
    with pytest.raises(WeightsError, match="holds no classifier: name the feature maps"):
        exportable_trunk(weights, None, None)
    with pytest.raises(WeightsError, match="does not tell the pixels"):
        exportable_trunk(tmp_path / "raw.pth", None, ["res5"])
    with pytest.raises(ValueError, match="must name one or more of"):
        exportable_trunk(weights, None, ["res9"])
    with pytest.raises(WeightsError, match="not of resnet50"):
        exportable_trunk(weights, "resnet50", ["res5"])


def test_a_trunk_can_be_exported_where_nothing_else_has_imported_torchvision():
    code = "import torch, resnet_backbone.export.trunk, resnet_backbone.export.write; torch.ops.torchvision.roi_pool"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
