"""Detectors as files: what ONNX Runtime and torch.export's programs find is what the detector finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from resnet_backbone.export.detector import describe_detector
from resnet_backbone.export.write import FORMATS, export

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a", "b", "c", "d", "e")
SIZES = [(77, 131), (200, 96), (64, 64), (301, 259)]  # height, width
TOLERANCES = (5e-3, 0, 1e-5, 1e-4)  # of boxes in pixels, labels, scores, masks


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    """Blocks of noise: edges of several scales."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(256, (1, 3, height // 16 + 1, width // 16 + 1), generator=generator).float()
    large = torch.nn.functional.interpolate(small, scale_factor=16, mode="nearest")[0, :, :height, :width]
    noise = torch.randint(-20, 21, large.shape, generator=generator)
    return (large + noise).clamp(0, 255).to(torch.uint8)


def assert_same(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> None:
    """Each detection has one of its own on the other side; scores equal but for rounding may come in another order."""
    assert [(value.shape, value.dtype) for value in actual] == [(value.shape, value.dtype) for value in expected]
    matches = []
    for box, label in zip(*expected[:2], strict=True):
        distances = (actual[0] - box).abs().amax(dim=1).masked_fill(actual[1] != label, float("inf"))
        matches.append(int(distances.argmin()))
    assert len(set(matches)) == len(matches)
    for want, have, tolerance in zip(expected, actual, TOLERANCES, strict=False):
        torch.testing.assert_close(have[matches], want, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param("mask_fpn", "onnx", marks=pytest.mark.slow),
        pytest.param("dc5", "torch", marks=pytest.mark.slow),
        pytest.param("retinanet", "onnx", marks=pytest.mark.slow),
        pytest.param("mask_fpn", "torch", marks=pytest.mark.slow),
        pytest.param("torchvision_mask", "onnx", marks=pytest.mark.slow),
        pytest.param("torchvision_retinanet", "torch", marks=pytest.mark.slow),
        pytest.param("mask_c4_context", "torch", marks=pytest.mark.slow),
        pytest.param("vgg_c5_roi_pool", "onnx", marks=pytest.mark.slow),
    ],
)
def test_a_file_finds_what_the_detector_finds(build, eager, tmp_path, name, form):
    cfg, detector = build(name)
    exportable = describe_detector(cfg, detector, NAMES)
    state = {key: value.clone() for key, value in detector.state_dict().items()}
    path = tmp_path / f"detector{FORMATS[form].suffix}"
    agreement = export(exportable, path, form)
    assert agreement.detections > 50 and agreement.unmatched == 0 and list(tmp_path.iterdir()) == [path]
    run = _onnx(path) if form == "onnx" else _torch(path)
    counts = []
    for seed, size in enumerate(SIZES):
        image = picture(*(max(side, exportable.facts.smallest_side) for side in size), seed)
        expected = eager(detector, image)
        counts.append(len(expected[0]))
        assert_same(expected, run(image))
    assert max(counts) > 10
    blank = torch.zeros(3, *(2 * [exportable.facts.smallest_side]), dtype=torch.uint8)
    assert_same(eager(detector, blank), run(blank))
    _finds_nothing(path, form, picture(150, 170, 0), len(exportable.facts.outputs))
    _says_what_it_is(path, form, cfg)
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items()), "not folded itself"


def _onnx(path: Path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: [torch.from_numpy(value) for value in session.run(None, {"image": image.numpy()})]


def _torch(path: Path):
    module = torch.export.load(path).module()
    return lambda image: [value.detach() for value in module(image)]


def _finds_nothing(path: Path, form: str, image: torch.Tensor, outputs: int) -> None:
    """No detection is no special case."""
    file = FORMATS[form].read(path)
    file.set_score_threshold(1.0)
    found = file(image)
    assert len(found) == outputs and all(len(value) == 0 for value in found)
    assert found[0].shape == (0, 4)


def _says_what_it_is(path: Path, form: str, cfg) -> None:
    if form == "onnx":
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
        text = {entry.key: entry.value for entry in model.metadata_props}["resnet_backbone"]
        (given,) = model.graph.input
        assert given.name == "image" and given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == [3, "height", "width"]
        assert [value.name for value in model.graph.output] == list(json.loads(text)["outputs"])
    else:
        files = {"resnet_backbone.json": ""}
        torch.export.load(path, extra_files=files)
        text = files["resnet_backbone.json"]
    facts = json.loads(text)
    assert facts["class_names"] == list(NAMES) and facts["channel_order"] == cfg.INPUT.FORMAT
    assert facts["mean"] == list(cfg.MODEL.PIXEL_MEAN) and facts["std"] == list(cfg.MODEL.PIXEL_STD)
    assert ("masks" in facts["outputs"]) == cfg.MODEL.MASK_ON and "64" in facts["resize"] and "128" in facts["resize"]
    assert FORMATS[form].facts(path) == text
    assert str(ROOT).encode() not in path.read_bytes(), "paths of this machine"


@pytest.mark.parametrize("num_classes", [1, 2, 5, 80])
def test_suppression_by_class(num_classes):
    """Against torchvision's, on boxes that overlap much, some of them outside of the image."""
    from torchvision.ops.boxes import _batched_nms_vanilla

    from resnet_backbone.export.detector import nms_by_class

    rng = np.random.default_rng(num_classes)
    for count in (0, 1, 2, 400):
        corner = torch.from_numpy(rng.uniform(-40, 100, (count, 2))).float()
        boxes = torch.cat([corner, corner + torch.from_numpy(rng.uniform(1, 60, (count, 2))).float()], dim=1)
        scores = torch.from_numpy(rng.permutation(count) / max(count, 1)).float()
        labels = torch.from_numpy(rng.integers(num_classes, size=count))
        kept = nms_by_class(boxes, scores, labels, num_classes, 0.3)
        expected = _batched_nms_vanilla(boxes, scores, labels, 0.3)
        assert kept.tolist() == expected.tolist()
