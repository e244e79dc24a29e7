"""What can be tested of a Mac's GPU without one: no float64, one process, right gradients since torchvision 0.29."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resnet_backbone.config.acceleration import acceleration_of, check_training_precision, default_device
from resnet_backbone.config.schema import ConfigError
from resnet_backbone.engine.processes import check_processes
from resnet_backbone.engine.solver import build_optimizer
from resnet_backbone.models.layers import precise
from resnet_backbone.torchvision_plugin.detector import build_detector
from tests.processes import ROOT

DEVICE_SIDE = ("models", "engine", "torchvision_plugin")
FLOAT64 = re.compile(r"\.double\(\)|torch\.float64")
SMALL = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"]
DETECTORS = {
    "Faster R-CNN": ["Base-RCNN-FPN.yaml", *SMALL],
    "Mask R-CNN": ["Base-RCNN-FPN.yaml", "MODEL.MASK_ON", "True", *SMALL],
    "RetinaNet": ["Base-RetinaNet.yaml"],
}


class WithoutFloat64(TorchDispatchMode):
    """Refuses every operation that reads or makes numbers in float64, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, made)):
            if isinstance(value, Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{function} on {value.dtype}, which MPS does not have")
        return made


def test_float64_is_noticed():
    with pytest.raises(TypeError, match="float64"), WithoutFloat64():
        precise(torch.ones(2))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_of_training_and_an_inference_stay_in_float32(tiny, name):
    config, *overrides = DETECTORS[name]
    cfg = tiny(config, "MODEL.WEIGHTS", "", "MODEL.RESNET_BACKBONE.NORM", "BN", *overrides)
    detector = build_detector(cfg, None)
    optimizer = build_optimizer(cfg, detector)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=generator) for _ in range(2)]
    target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 70.0]]), "labels": torch.tensor([1])}
    if cfg.MODEL.MASK_ON:
        target["masks"] = torch.ones(1, 96, 128, dtype=torch.uint8)
    before = [parameter.detach().clone() for parameter in detector.parameters()]
    with WithoutFloat64():
        losses = detector(images, [target, target])
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        with torch.inference_mode():
            found = detector.eval()(images)
    assert any(not torch.equal(old, new) for old, new in zip(before, detector.parameters(), strict=True))
    assert len(found) == 2 and set(found[0]) >= {"boxes", "labels", "scores"}


def test_float64_of_networks_and_improvements_is_not_asked_of_mps():
    with FakeTensorMode():
        assert precise(torch.empty(2, device="mps")).dtype == torch.float32
    assert precise(torch.ones(1)).dtype == torch.float64
    paths = [path for name in DEVICE_SIDE for path in sorted((ROOT / "resnet_backbone" / name).rglob("*.py"))]
    found = [line for path in paths for line in path.read_text().splitlines() if FLOAT64.search(line)]
    assert len(paths) > 30 and len(found) == 1 and '"mps"' in found[0], "write precise(...) of models/layers.py"


@pytest.fixture
def mac(monkeypatch):
    """What torch says on a Mac with a GPU, and a torchvision of that version."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    return lambda version: monkeypatch.setattr(torchvision, "__version__", version)


@pytest.mark.parametrize(("version", "device"), [("0.28.3", "cpu"), ("0.29.0+cpu", "mps"), ("1.0", "mps")])
def test_the_gpu_of_a_mac_is_chosen_where_its_gradients_are_right(mac, tiny, version, device):
    """https://github.com/pytorch/vision/pull/9510: RoIAlign's were added up too often until torchvision 0.29."""
    mac(version)
    assert default_device() == device
    cfg = tiny("Base-RCNN-FPN.yaml", "MODEL.DEVICE", "mps")
    if device == "mps":
        check_training_precision(cfg)
    else:
        with pytest.raises(ConfigError, match="wrong RoIAlign gradients on MPS: take 0.29"):
            check_training_precision(cfg)
    check_training_precision(tiny("Base-RetinaNet.yaml", "MODEL.DEVICE", "mps"))


def test_mps_is_one_gpu_for_one_process_and_keeps_torchs_memory_format(mac, tiny):
    mac("0.29.1")
    cfg = tiny("Base-RCNN-FPN.yaml", "MODEL.DEVICE", "mps", "SOLVER.AMP.ENABLED", "True", "SOLVER.IMS_PER_BATCH", "2")
    check_processes(cfg, 1, norm="MODEL.RESNET_BACKBONE.NORM")
    with pytest.raises(ValueError, match="for one process; write --num-gpus 1, or MODEL.DEVICE cpu"):
        check_processes(cfg, 2, norm="MODEL.RESNET_BACKBONE.NORM")
    assert not acceleration_of(cfg).channels_last


def test_mps_that_is_not_there_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="MODEL.DEVICE mps: torch has no such GPU; write MODEL.DEVICE cpu"):
        tiny("Base-RCNN-FPN.yaml", "MODEL.DEVICE", "mps")
