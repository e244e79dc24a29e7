"""RetinaNet against Detectron2's on the same weights, and its loss on paper."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F

from resnet_backbone.torchvision_plugin.detector import build_backbone, build_detector

SMALL = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.WEIGHTS", "", "MODEL.RETINANET.NUM_CLASSES", "3"]


def images_and_targets() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """The second image has no object."""
    images = [torch.randint(256, (3, 90, 120), dtype=torch.uint8), torch.randint(256, (3, 64, 48), dtype=torch.uint8)]
    boxes = torch.tensor([[5.0, 6, 50, 50], [20, 20, 118, 88], [70, 3, 75, 9]])
    return images, [
        {"boxes": boxes, "labels": torch.tensor([0, 2, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]


def to_detectron2(key: str) -> str:
    """Our name of a parameter to Detectron2's."""
    key = re.sub(r"fpn\.inner_blocks\.(\d)\.0", lambda m: f"fpn_lateral{int(m[1]) + 3}", key)
    key = re.sub(r"fpn\.layer_blocks\.(\d)\.0", lambda m: f"fpn_output{int(m[1]) + 3}", key)
    key = key.replace("fpn.extra_blocks", "top_block")
    for ours, theirs in (("classification_head", "cls_subnet"), ("regression_head", "bbox_subnet")):
        key = re.sub(rf"{ours}\.conv\.(\d)\.0", lambda m, t=theirs: f"{t}.{2 * int(m[1])}", key)
    key = key.replace("classification_head.cls_logits", "cls_score")
    return key.replace("regression_head.bbox_reg", "bbox_pred")


@pytest.fixture
def pair(tiny):
    """Our detector and Detectron2's with the same random weights."""
    config = pytest.importorskip("detectron2.config", reason="Detectron2 is not installed")
    modeling = pytest.importorskip("detectron2.modeling")
    cfg = tiny("retinanet/r18_fpn.yaml", *SMALL, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.02")
    theirs_cfg = config.get_cfg()
    for key in ("META_ARCHITECTURE", "PIXEL_MEAN", "PIXEL_STD"):
        theirs_cfg.MODEL[key] = cfg.MODEL[key]
    theirs_cfg.MODEL.FPN.update(cfg.MODEL.FPN)
    theirs_cfg.MODEL.ANCHOR_GENERATOR.update(cfg.MODEL.ANCHOR_GENERATOR)
    theirs_cfg.MODEL.RETINANET.update(cfg.MODEL.RETINANET)
    theirs_cfg.MODEL.DEVICE = "cpu"
    theirs_cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    theirs_cfg.MODEL.RESNETS.update(DEPTH=18, RES2_OUT_CHANNELS=64, OUT_FEATURES=["res3", "res4", "res5"])
    torch.manual_seed(0)
    ours, theirs = build_detector(cfg), modeling.build_model(theirs_cfg)
    state = theirs.state_dict()
    for key, value in ours.state_dict().items():
        if key != "loss_normalizer":
            assert state[to_detectron2(key)].shape == value.shape
            if "head." in key and "bias" not in key:
                value.normal_(std=0.1)  # so that scores spread
            state[to_detectron2(key)].copy_(value)
    assert len(state) == len(ours.state_dict()) - 1
    return ours, theirs


@pytest.mark.parametrize(("kind", "of_p6"), [("fcos", "p5"), ("retinanet", "res5")])
def test_what_p6_and_p7_are_made_of(tiny, kind, of_p6):
    """The level of FCOS's pyramid has as many channels as the trunk's last map here: shapes alone would not tell."""
    cfg = tiny("retinanet/r18_fpn.yaml", "MODEL.BACKBONE.NAME", f"build_imagenet_{kind}_fpn_backbone")
    cfg.MODEL.FPN.OUT_CHANNELS = 512
    backbone = build_backbone(cfg, None).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        levels = backbone(images)
        below = levels | backbone.bottom_up.forward_features(images)
        top = backbone.fpn.extra_blocks
        p6 = F.conv2d(below[of_p6], top.p6.weight, top.p6.bias, stride=2, padding=1)
        p7 = F.conv2d(p6.relu(), top.p7.weight, top.p7.bias, stride=2, padding=1)
    assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]
    torch.testing.assert_close(levels["p6"], p6)
    torch.testing.assert_close(levels["p7"], p7)


def test_losses_and_gradients_are_detectron2s(pair):
    """Of several steps: the normaliser is a running mean."""
    structures = pytest.importorskip("detectron2.structures", reason="Detectron2 is not installed")
    events = pytest.importorskip("detectron2.utils.events")
    ours, theirs = pair
    images, targets = images_and_targets()
    inputs = []
    for image, target in zip(images, targets, strict=True):
        fields = {"gt_boxes": structures.Boxes(target["boxes"]), "gt_classes": target["labels"]}
        inputs.append({"image": image, "instances": structures.Instances(image.shape[1:], **fields)})
    ours.train(), theirs.train()
    for _ in range(3):
        found = ours(images, targets)
        with events.EventStorage():
            expected = theirs(inputs)
        assert found.keys() == expected.keys() == {"loss_cls", "loss_box_reg"}
        for key in found:
            assert expected[key] > 0
            torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=0)
    assert ours.loss_normalizer.item() == pytest.approx(theirs.loss_normalizer)
    sum(found.values()).backward(), sum(expected.values()).backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            scale = gradients[to_detectron2(name)].abs().max().item()
            torch.testing.assert_close(
                parameter.grad, gradients[to_detectron2(name)], rtol=1e-3, atol=1e-4 * scale, msg=name
            )


def test_detections_are_detectron2s(pair):
    ours, theirs = pair
    images, _ = images_and_targets()
    with torch.inference_mode():
        found = ours.eval()(images)
        expected = theirs.eval()([{"image": image} for image in images])
    for a, b in zip(found, (e["instances"] for e in expected), strict=True):
        # Detectron2's post-processing removes what is empty at the edge; ours does when it goes back to the original.
        kept = (a["boxes"][:, 2] > a["boxes"][:, 0]) & (a["boxes"][:, 3] > a["boxes"][:, 1])
        assert len(b) > 20 and b.scores.std() > 0.01
        torch.testing.assert_close(a["boxes"][kept], b.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(a["scores"][kept], b.scores, rtol=1e-4, atol=1e-5)
        assert torch.equal(a["labels"][kept], b.pred_classes)


def test_at_the_start_every_score_is_the_prior(tiny):
    detector = build_detector(tiny("retinanet/r18_fpn.yaml", *SMALL, "MODEL.RETINANET.PRIOR_PROB", "0.2"))
    bias = detector.head.classification_head.cls_logits.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.2))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_losses_on_paper(tiny, beta):
    """One anchor of class 2 among three, one that counts for nothing, and a normaliser that moves from 100 to 90.1."""
    detector = build_detector(
        tiny("retinanet/r18_fpn.yaml", *SMALL, "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", str(beta))
    ).train()
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 4.5], [50, 50, 60, 60]])
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}]
    logits, deltas = torch.randn(1, 3, 3), torch.randn(1, 3, 4)
    losses = detector.compute_loss(targets, {"cls_logits": logits, "bbox_regression": deltas}, [anchors])
    expected = 0.0
    for anchor, row in ((0, logits[0, 0]), (2, logits[0, 2])):
        for k, x in enumerate(row.tolist()):
            p = 1 / (1 + math.exp(-x))
            is_class = anchor == 0 and k == 1
            expected -= 0.25 * (1 - p) ** 2 * math.log(p) if is_class else 0.75 * p**2 * math.log(1 - p)
    assert losses["loss_cls"].item() == pytest.approx(expected / 90.1, rel=1e-4)
    box_loss = F.smooth_l1_loss(deltas[0, 0], torch.zeros(4), beta=beta, reduction="sum")
    assert losses["loss_box_reg"].item() == pytest.approx(box_loss.item() / 90.1, rel=1e-4)


@pytest.mark.parametrize("channels", [16, 512])
def test_the_top_levels_come_from_the_trunk(tiny, channels):
    """Also where the pyramid has as many channels as the trunk, for which torchvision would take p5."""
    backbone = build_detector(
        tiny("retinanet/r18_fpn.yaml", *SMALL, "MODEL.FPN.OUT_CHANNELS", str(channels))
    ).backbone.eval()
    x = torch.randn(1, 3, 64, 128)
    with torch.inference_mode():
        levels, res5 = backbone(x), backbone.bottom_up.forward_features(x)["res5"]
        top = backbone.fpn.extra_blocks
        torch.testing.assert_close(levels["p6"], top.p6(res5))
        torch.testing.assert_close(levels["p7"], top.p7(F.relu(levels["p6"])))
    assert {name: info.stride for name, info in backbone.feature_info.items()} == {
        **{"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']"], "must be all levels of a pyramid; .* returns .'p3', .*'p7'"),
        (["MODEL.BACKBONE.NAME", "build_imagenet_backbone"], "MODEL.BACKBONE.NAME: build_imagenet_retinanet_fpn"),
        (["MODEL.BACKBONE.NAME", "build_imagenet_fpn_backbone"], "all levels of a pyramid; .* returns .'p3', .*'p6'"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"], "2 lists for 5 levels"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [64], [64], [64, 65]]"], "the same number of anchors"),
        (["MODEL.RETINANET.PRIOR_PROB", "0.0"], "PRIOR_PROB is 0.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parts_that_do_not_fit_are_refused(tiny, overrides, message):
    with pytest.raises(ValueError, match=message):
        build_detector(tiny("retinanet/r18_fpn.yaml", *SMALL, *overrides))
