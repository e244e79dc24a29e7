"""A detector of the torchvision engine on timm's networks trains, with the input of its weights, and is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resnet_backbone.doctor.examine import examine_config
from resnet_backbone.torchvision_plugin.checkpoint import load_checkpoint, load_trained
from resnet_backbone.torchvision_plugin.doctor import TorchvisionEngine
from resnet_backbone.torchvision_plugin.run import Run
from resnet_backbone.weights import InputFormat, package_weights

timm = pytest.importorskip("timm", reason="timm is not installed: pip install resnet_backbone[timm]")


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.save(timm.create_model("test_efficientnet").state_dict(), tmp_path / "raw.pth")
    pixels = InputFormat("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
    package_weights(tmp_path / "raw.pth", tmp_path / "packaged.pth", "timm/test_efficientnet", pixels)
    return str(tmp_path / "packaged.pth")


def test_two_lines_change_the_network(tiny, weights):
    words = ["MODEL.RESNET_BACKBONE.ARCH", "timm/test_efficientnet", "MODEL.WEIGHTS", weights]
    words += ["MODEL.RESNET_BACKBONE.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2"]
    cfg = tiny("quickstart.yaml", *words, "SOLVER.MAX_ITER", "2")
    run = Run(cfg)
    assert list(run.cfg.MODEL.PIXEL_MEAN) == list(run.cfg.MODEL.PIXEL_STD) == [127.5] * 3
    before = {name: tensor.clone() for name, tensor in run.model.backbone.state_dict().items()}
    run.start()
    after = load_checkpoint(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    assert after["input"]["MODEL.PIXEL_MEAN"] == [127.5] * 3
    moved = {n for n, t in before.items() if not torch.equal(t, after["model"][f"backbone.{n}"])}
    trained = {name for name, one in run.model.backbone.named_parameters() if one.requires_grad}
    # Weights of a random network may get gradients too small to move all of them in two steps.
    assert {name.partition(".")[0] for name in moved} == {"bottom_up", "fpn"} and moved <= trained
    frozen = {name.removeprefix("bottom_up.") for name in run.model.backbone.state_dict()} - {
        name.removeprefix("bottom_up.") for name in trained
    }
    parameters = {name for name in frozen if "bn" not in name}
    assert {name.partition(".")[0] for name in parameters} == {"conv_stem", "blocks"}
    assert {name[:8] for name in parameters if name.startswith("blocks")} == {"blocks.0", "blocks.1"}
    cfg.MODEL.WEIGHTS = str(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    _, detector, _ = load_trained(cfg)
    assert len(detector([torch.zeros(3, 70, 91)])) == 1


def test_the_doctor_compares_the_trunk_with_the_file(tiny, weights):
    cfg = tiny("quickstart.yaml", "MODEL.RESNET_BACKBONE.ARCH", "timm/test_efficientnet", "MODEL.WEIGHTS", weights)
    path = Path(cfg.OUTPUT_DIR).with_suffix(".yaml")
    path.write_text(cfg.dump())
    report = examine_config(TorchvisionEngine(), str(path), [])
    assert {name: section.status for name, section in report.sections.items()}["classification"] == "ok"
