"""Anchors, poolers, losses and pre-processing, against torchvision's and Detectron2's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from resnet_backbone.models.trunk import FeatureInfo
from resnet_backbone.torchvision_plugin.config import get_cfg
from resnet_backbone.torchvision_plugin.detector import Preprocess
from resnet_backbone.torchvision_plugin.inference import rescale
from resnet_backbone.torchvision_plugin.roi_heads import FastRCNNConvFCHead, ROIHeads, ROIPooler
from resnet_backbone.torchvision_plugin.rpn import RPN, AnchorGenerator

SIZES, RATIOS, STRIDES = [[32], [64], [128]], [[0.5, 1.0, 2.0]], [4, 8, 16]


def feature_maps(height: int, width: int, channels: int = 8) -> list[torch.Tensor]:
    return [torch.randn(2, channels, -(-height // s), -(-width // s)) for s in STRIDES]


def boxes(count: int, height: int = 256, width: int = 320) -> torch.Tensor:
    corner = torch.rand(count, 2) * torch.tensor([width, height]) * 0.6
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * torch.tensor([width, height]) * 0.9], dim=1)


def test_anchors_are_torchvisions_but_for_its_rounding():
    images = ImageList(torch.zeros(2, 3, 64, 96), [(64, 96), (60, 90)])
    maps = feature_maps(64, 96)
    ours = AnchorGenerator(SIZES, RATIOS, STRIDES, 0.0)(images, maps)
    theirs = TorchvisionAnchors(tuple(map(tuple, SIZES)), tuple(map(tuple, RATIOS)) * 3)(images, maps)
    assert len(ours) == len(theirs) == 2
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.51)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors_are_detectron2s(offset):
    generator = pytest.importorskip("detectron2.modeling.anchor_generator", reason="Detectron2 is not installed")
    maps = feature_maps(70, 101)
    theirs = generator.DefaultAnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS, strides=STRIDES, offset=offset)(maps)
    ours = AnchorGenerator(SIZES, RATIOS, STRIDES, offset)(ImageList(maps[0], [(70, 101)]), maps)
    torch.testing.assert_close(ours[0], torch.cat([b.tensor for b in theirs]), rtol=0, atol=1e-5)


def test_pooling_without_alignment_is_torchvisions():
    torch.manual_seed(0)
    maps = dict(zip(("p2", "p3", "p4"), feature_maps(256, 320), strict=True))
    rois = [boxes(40), boxes(0), boxes(17)][::2]
    pool = MultiScaleRoIAlign(list(maps), 7, 2)
    theirs = pool(maps, rois, [(256, 320), (256, 320)])
    ours = ROIPooler(list(maps), STRIDES, 7, 2, "ROIAlign")(maps, rois, [(256, 320), (256, 320)])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("levels", [1, 3])
def test_pooling_is_detectron2s(levels):
    """Its ROIPooler calls torchvision's RoIAlign itself for ROIAlignV2."""
    poolers = pytest.importorskip("detectron2.modeling.poolers", reason="Detectron2 is not installed")
    structures = pytest.importorskip("detectron2.structures")
    torch.manual_seed(0)
    names = ("p2", "p3", "p4")[-levels:]
    strides = STRIDES[-levels:]
    maps = dict(zip(names, feature_maps(256, 320)[-levels:], strict=True))
    rois = [boxes(40), boxes(9)]
    ours = ROIPooler(names, strides, 7, 0, "ROIAlignV2")(maps, rois, [])
    theirs = poolers.ROIPooler(7, [1 / s for s in strides], 0, "ROIAlignV2")
    expected = theirs(list(maps.values()), [structures.Boxes(b) for b in rois])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign", "ROIPool"])
def test_mixed_precision_does_not_round_the_boxes(kind):
    """Far right in a wide image, bfloat16 knows every eighth pixel only."""
    ramp = (torch.arange(400.0) - 256).expand(1, 1, 8, 400)  # whole numbers, so exact in bfloat16 around the box
    roi = [torch.tensor([[1001.7, 4.0, 1050.4, 24.0]])]
    pool = ROIPooler(["p2"], [4], 7, 2, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pool({"p2": ramp.bfloat16()}, roi, [])
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), pool({"p2": ramp}, roi, []), rtol=0.004, atol=0.01)


def test_pooling_no_box_at_all():
    maps = dict(zip(("p2", "p3", "p4"), feature_maps(64, 64), strict=True))
    assert ROIPooler(list(maps), STRIDES, 7, 0, "ROIAlignV2")(maps, [boxes(0), boxes(0)], []).shape == (0, 8, 7, 7)


@pytest.mark.parametrize("divisibility", [1, 32])
def test_preprocessing_normalises_and_pads_with_zeros(divisibility):
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    images = [torch.randint(256, (3, 50, 70), dtype=torch.uint8), torch.randint(256, (3, 61, 40), dtype=torch.uint8)]
    batch, _ = Preprocess(mean, std, divisibility)(images)
    assert batch.tensors.shape == ((2, 3, 64, 96) if divisibility == 32 else (2, 3, 61, 70))
    assert batch.image_sizes == [(50, 70), (61, 40)]
    for row, image in zip(batch.tensors, images, strict=True):
        h, w = image.shape[-2:]
        expected = (image.double() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        torch.testing.assert_close(row[:, :h, :w].double(), expected, rtol=1e-5, atol=1e-5)
        assert row[:, h:].abs().sum() == 0 and row[:, :, w:].abs().sum() == 0


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_the_box_loss_is_l1_or_smooth_l1_over_all_samples(beta):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", beta, "MODEL.ROI_HEADS.NUM_CLASSES", 2])
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    heads = ROIHeads(cfg, {"res4": FeatureInfo(8, 16)}, FastRCNNConvFCHead(8, cfg.MODEL.ROI_BOX_HEAD))
    logits, deltas, targets = torch.randn(5, 3), torch.randn(5, 12), torch.randn(5, 4)
    labels = torch.tensor([0, 2, 1, 0, 2])
    losses = heads._losses(logits, deltas, labels, targets)
    expected = 0.0
    for row, label in enumerate(labels.tolist()):
        if label:
            for k in range(4):
                d = abs(float(deltas[row, 4 * label + k] - targets[row, k]))
                expected += 0.5 * d * d / beta if d < beta else d - beta / 2
    assert losses["loss_box_reg"].item() == pytest.approx(expected / 5, rel=1e-5)
    assert losses["loss_classifier"].item() == pytest.approx(F.cross_entropy(logits, labels).item())


def test_losses_and_proposals_of_the_rpn_are_detectron2s():
    """The same head weights and features: the same proposals, and the same losses where all anchors are sampled."""
    rpn = pytest.importorskip("detectron2.modeling.proposal_generator.rpn", reason="Detectron2 is not installed")
    config = pytest.importorskip("detectron2.config")
    layers = pytest.importorskip("detectron2.layers")
    structures = pytest.importorskip("detectron2.structures")
    events = pytest.importorskip("detectron2.utils.events")
    keys = ["MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4"], "MODEL.ANCHOR_GENERATOR.SIZES", SIZES]
    keys += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10**6, "MODEL.RPN.POSITIVE_FRACTION", 1.0]
    ours_cfg, theirs_cfg = get_cfg(), config.get_cfg()
    ours_cfg.merge_from_list(keys), theirs_cfg.merge_from_list(keys)
    names = ("p2", "p3", "p4")
    torch.manual_seed(0)
    ours = RPN(ours_cfg, {n: FeatureInfo(8, s) for n, s in zip(names, STRIDES, strict=True)})
    shapes = {n: layers.ShapeSpec(channels=8, stride=s) for n, s in zip(names, STRIDES, strict=True)}
    theirs = rpn.RPN(theirs_cfg, shapes)
    for a, b in zip(ours.head.parameters(), theirs.rpn_head.parameters(), strict=True):
        b.data.copy_(a.data.normal_(std=0.1))
    features = dict(zip(names, feature_maps(96, 128), strict=True))
    sizes = [(96, 128), (90, 120)]
    truth = [boxes(3, 90, 120).clamp(max=90), boxes(2, 90, 120).clamp(max=90)]
    ours_images = ImageList(torch.zeros(2, 3, 96, 128), sizes)
    theirs_images = structures.ImageList(torch.zeros(2, 3, 96, 128), sizes)
    instances = [structures.Instances(s, gt_boxes=structures.Boxes(t)) for s, t in zip(sizes, truth, strict=True)]
    proposals, losses = ours.train()(ours_images, features, [{"boxes": t} for t in truth])
    with events.EventStorage():
        expected_proposals, expected = theirs.train()(theirs_images, features, instances)
    assert losses["loss_objectness"].item() == pytest.approx(expected["loss_rpn_cls"].item(), rel=1e-4)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(expected["loss_rpn_loc"].item(), rel=1e-4)
    for a, b in zip(proposals, expected_proposals, strict=True):
        torch.testing.assert_close(a, b.proposal_boxes.tensor, rtol=1e-4, atol=1e-3)


def test_detections_return_to_the_original_image():
    found = {
        "boxes": torch.tensor([[10.0, 20, 30, 40], [90, 40, 120, 60], [200, 10, 210, 20]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([0, 1, 2]),
    }
    back = rescale(found, (50, 100), (100, 300))
    torch.testing.assert_close(back["boxes"], torch.tensor([[30.0, 40, 90, 80], [270, 80, 300, 100]]))
    assert back["labels"].tolist() == [0, 1] and back["scores"].tolist() == pytest.approx([0.9, 0.8])
