"""What we package goes into Detectron2's own models through its own checkpointer."""

import pytest
import torch

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import InputFormat, package_weights

pytest.importorskip("detectron2", reason="Detectron2 is not installed: it comes from its own repository")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling.backbone import build_backbone  # noqa: E402


@pytest.mark.parametrize("builder", ["build_resnet_backbone", "build_resnet_fpn_backbone"])
@pytest.mark.parametrize("depth", [18, 50])
def test_stock_checkpointer_fills_a_stock_resnet(tmp_path, random_torchvision, depth, builder):
    reference = random_torchvision(f"resnet{depth}")
    torch.save(reference.state_dict(), tmp_path / "raw.pth")
    rgb = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    package_weights(tmp_path / "raw.pth", tmp_path / "out.pth", input_format=rgb, stride_in_1x1=False)

    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = builder
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    backbone = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(backbone).load(str(tmp_path / "out.pth"))

    resnet = backbone.bottom_up if builder.endswith("fpn_backbone") else backbone
    model = create_model(f"resnet{depth}", weights=str(tmp_path / "out.pth"), num_classes=0, norm="FrozenBN").eval()
    state = resnet.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        ours, theirs = model.forward_features(images), resnet(images)
    for name, feature in theirs.items():
        torch.testing.assert_close(ours[name], feature, rtol=1e-5, atol=1e-5)
