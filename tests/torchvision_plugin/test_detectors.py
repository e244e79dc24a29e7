"""Every network under every kind of detector: it builds, learns one step and detects; heads hold the classifier."""

from __future__ import annotations

import pytest
import torch
import torchvision

from resnet_backbone.models.registry import create_model, list_models
from resnet_backbone.torchvision_plugin.detector import build_detector
from resnet_backbone.weights import read_weights
from tests.helpers import quickly

NETS = [name for name in list_models() if not name.startswith("cifar")]
RESNETS = [name for name in NETS if not name.startswith("vgg")]
VGGS = [name for name in NETS if name.startswith("vgg")]
DC5 = [
    *("MODEL.RESNET_BACKBONE.OUT_FEATURES", "['res5']", "MODEL.RESNET_BACKBONE.RES5_DILATION", "2"),
    *("MODEL.RPN.IN_FEATURES", "['res5']", "MODEL.ROI_HEADS.IN_FEATURES", "['res5']"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", "2", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
]


def norm_of(arch: str) -> str:
    return "" if arch in ("vgg16", "vgg19") else "FrozenBN"


def scratch(arch: str) -> list[str]:
    return ["MODEL.RESNET_BACKBONE.ARCH", arch, "MODEL.RESNET_BACKBONE.NORM", norm_of(arch), "MODEL.WEIGHTS", ""]


FASTER = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}
SMALL_MASKS = [
    *("MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
]


def step_and_detect(detector: torch.nn.Module, names: set[str] = FASTER) -> list[dict[str, torch.Tensor]]:
    """One training step, whose losses must reach every parameter that is trained; then detections, odd sizes."""
    torch.manual_seed(0)
    images = [torch.randint(256, (3, 57, 70), dtype=torch.uint8), torch.randint(256, (3, 64, 48), dtype=torch.uint8)]
    targets = [
        {"boxes": torch.tensor([[5.0, 6, 50, 50], [20, 20, 66, 57]]), "labels": torch.tensor([0, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    if "loss_mask" in names:
        targets[0]["masks"] = torch.ones(2, 57, 70, dtype=torch.uint8)
        targets[1]["masks"] = torch.ones(0, 64, 48, dtype=torch.uint8)
    losses = detector.train()(images, targets)
    assert set(losses) == names
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name  # else DistributedDataParallel fails
    with torch.inference_mode():
        return detector.eval()(images)


@pytest.mark.parametrize("arch", quickly(NETS))
def test_fpn(tiny, arch):
    extra = []
    if arch.startswith("vgg"):
        features = "['conv3', 'conv4', 'conv5', 'pool5']"
        extra = ["MODEL.RESNET_BACKBONE.OUT_FEATURES", features, "MODEL.FPN.IN_FEATURES", features]
    cfg = tiny(
        "Base-RCNN-FPN.yaml", *scratch(arch), *extra, "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"
    )
    detector = build_detector(cfg)
    assert {name: info.stride for name, info in detector.backbone.feature_info.items()} == {
        **{"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    }
    step_and_detect(detector)


@pytest.mark.parametrize("arch", quickly(NETS, keep=["resnext50_32x4d"]))
def test_retinanet(tiny, arch):
    config, extra = "retinanet/r18_fpn.yaml", ["MODEL.FPN.OUT_CHANNELS", "16"]
    if arch.startswith("vgg"):
        config = "retinanet/vgg16_fpn.yaml"
    detector = build_detector(tiny(config, *scratch(arch), *extra))
    last = next(reversed(detector.backbone.bottom_up.feature_info.values())).channels
    assert detector.backbone.fpn.extra_blocks.p6.in_channels == last
    step_and_detect(detector, {"loss_cls", "loss_box_reg"})


@pytest.mark.parametrize(
    ("config", "arch", "side"),
    [
        ("mask/r18_fpn.yaml", "resnet18", 28),
        ("mask/r50_c4.yaml", "resnet18", 14),
        ("mask/r50_c4.yaml", "resnet50", 14),
        ("Base-RCNN-VGG-C5.yaml", "vgg16", 28),
    ],
)
def test_mask(tiny, config, arch, side):
    detector = build_detector(tiny(config, *scratch(arch), *SMALL_MASKS))
    for found in step_and_detect(detector, {*FASTER, "loss_mask"}):
        assert found["masks"].shape == (len(found["boxes"]), side, side) and len(found["boxes"]) > 0
        assert found["masks"].min() >= 0 and found["masks"].max() <= 1


def test_masks_of_c4_share_the_box_heads_res5(tiny):
    """The loss on the box head's own regions is the one on regions computed anew: frozen norms know no batch."""
    everything = ["MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0"]
    detector = build_detector(tiny("mask/r50_c4.yaml", *scratch("resnet18"), *SMALL_MASKS, *everything)).train()
    heads, calls = detector.roi_heads, []
    heads.box_head.res5.register_forward_hook(lambda *_: calls.append(1))
    features = {"res4": torch.randn(1, 256, 6, 8)}
    boxes = torch.tensor([[5.0, 6, 50, 50], [20, 20, 118, 88]])
    truth = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": torch.ones(2, 96, 128, dtype=torch.uint8)}
    found = heads(features, [boxes], [(96, 128)], [truth])[1]["loss_mask"]
    assert len(calls) == 1
    proposals, _, labels, _ = heads.select_training_samples([boxes], [truth])
    anew = heads.mask_head(heads.mask_regions(features, proposals, [(96, 128)]))
    # Every cell of a full mask inside its box is 1.
    expected = torch.nn.functional.softplus(-anew[torch.arange(len(labels[0])), labels[0] - 1]).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("arch", quickly(RESNETS, keep=["resnet50d", "resnext50_32x4d"]))
def test_c4_runs_the_trunks_own_res5_on_the_regions(tiny, arch):
    detector = build_detector(tiny("Base-RCNN-C4.yaml", *scratch(arch)))
    assert getattr(detector.backbone, "res5", None) is None
    expected = create_model(arch, num_classes=0, norm="FrozenBN").res5
    head = detector.roi_heads.box_head.res5
    assert [(n, p.shape) for n, p in head.named_parameters()] == [(n, p.shape) for n, p in expected.named_parameters()]
    step_and_detect(detector)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_dc5(tiny, arch):
    detector = build_detector(tiny("Base-RCNN-C4.yaml", *scratch(arch), *DC5, "MODEL.ROI_BOX_HEAD.FC_DIM", "16"))
    assert detector.backbone.feature_info["res5"].stride == 16
    step_and_detect(detector)


@pytest.mark.parametrize("arch", VGGS)
def test_vgg_c5(tiny, arch):
    detector = build_detector(tiny("Base-RCNN-VGG-C5.yaml", *scratch(arch)))
    assert detector.backbone.feature_info["conv5"].stride == 16  # no pool5
    frozen = {name for name, p in detector.backbone.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"conv1_1", "conv1_2", "conv2_1", "conv2_2"}
    step_and_detect(detector)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_c4_head_and_trunk_together_are_the_classifier(tiny, tmp_path, arch):
    torch.manual_seed(0)
    classifier = getattr(torchvision.models, arch)(weights=None).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    detector = build_detector(
        tiny("Base-RCNN-C4.yaml", *scratch(arch)), read_weights(tmp_path / "weights.pth", arch=arch)
    )
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        res4 = detector.eval().backbone(images)["res4"]
        pooled = detector.roi_heads.box_head(res4)
        torch.testing.assert_close(classifier.fc(pooled), classifier(images), rtol=1e-4, atol=1e-4)


def test_vgg_c5_head_and_trunk_together_are_the_classifier(tiny, tmp_path):
    torch.manual_seed(0)
    classifier = torchvision.models.vgg16(weights=None).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    cfg = tiny("Base-RCNN-VGG-C5.yaml", *scratch("vgg16"))
    detector = build_detector(cfg, read_weights(tmp_path / "weights.pth", arch="vgg16")).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        conv5 = detector.backbone(images)["conv5"]
        fc7 = detector.roi_heads.box_head(torch.nn.functional.max_pool2d(conv5, 2))
        torch.testing.assert_close(classifier.classifier[6](fc7), classifier(images), rtol=1e-4, atol=1e-4)


def test_dropout_of_the_vgg_head(tiny):
    keys = ["MODEL.ROI_BOX_HEAD.DROPOUT", "0.75"]
    head = build_detector(tiny("Base-RCNN-VGG-C5.yaml", *scratch("vgg16"), *keys)).roi_heads.box_head
    without = build_detector(tiny("Base-RCNN-VGG-C5.yaml", *scratch("vgg16"))).roi_heads.box_head
    without.load_state_dict(head.state_dict())
    x = torch.rand(4, 512, 7, 7)
    with torch.inference_mode():
        expected = without.train()(x)
        assert torch.equal(head.eval()(x), expected) and (expected == 0).float().mean() < 0.7
        assert (head.train()(x) == 0).float().mean() > 0.75


def test_detections_have_the_promised_form(tiny):
    cfg = tiny("quickstart.yaml", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "15")
    for found, (height, width) in zip(step_and_detect(build_detector(cfg)), [(57, 70), (64, 48)], strict=True):
        boxes, scores, labels = found["boxes"], found["scores"], found["labels"]
        assert boxes.shape == (15, 4) and boxes.dtype == scores.dtype == torch.float32
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert scores.min() >= 0 and scores.max() <= 1 and (scores.diff() <= 0).all()
        assert labels.min() >= 0 and labels.max() < cfg.MODEL.ROI_HEADS.NUM_CLASSES


def test_freeze_at_counts_stages_of_the_backbone_and_not_the_c4_head(tiny):
    detector = build_detector(tiny("faster/r18_c4.yaml", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "5"))
    assert not any(parameter.requires_grad for parameter in detector.backbone.parameters())
    convolutions = [m for m in detector.roi_heads.box_head.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions and all(convolution.weight.requires_grad for convolution in convolutions)


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        ("quickstart.yaml", ["MODEL.FPN.IN_FEATURES", "['res2', 'res5']"], "must double"),
        ("quickstart.yaml", ["MODEL.FPN.IN_FEATURES", "['res2', 'res3']"], "leave res5 unused"),
        ("quickstart.yaml", ["MODEL.FPN.IN_FEATURES", "['conv3']"], "must be some of what the trunk returns"),
        ("quickstart.yaml", ["MODEL.RPN.IN_FEATURES", "['p7']"], "MODEL.RPN.IN_FEATURES"),
        ("quickstart.yaml", ["MODEL.ROI_HEADS.IN_FEATURES", "['res4']"], "MODEL.ROI_HEADS.IN_FEATURES"),
        ("quickstart.yaml", ["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"], "2 lists for 5 levels"),
        ("quickstart.yaml", ["MODEL.ROI_HEADS.NAME", "ImageNetRes5ROIHeads"], "IN_FEATURES: .res4."),
        ("quickstart.yaml", ["MODEL.ROI_BOX_HEAD.NAME", "VGGBoxHead"], "it needs a VGG"),
        ("quickstart.yaml", ["MODEL.ROI_BOX_HEAD.NAME", ""], "needs MODEL.ROI_BOX_HEAD.NAME"),
        ("quickstart.yaml", ["MODEL.RESNET_BACKBONE.ARCH", "resnet19"], "ARCH 'resnet19' must be one of"),
        ("quickstart.yaml", ["MODEL.RESNET_BACKBONE.ARCH", "vgg16"], "take 'vgg16_bn'"),
        (
            "quickstart.yaml",
            ["MODEL.BACKBONE.FREEZE_AT", "7"],
            r"freeze_at=7 must be 0 .*freeze_at is MODEL.BACKBONE.FREEZE_AT",
        ),
        ("quickstart.yaml", ["MODEL.ROI_BOX_HEAD.NUM_FC", "0"], "NUM_FC or NUM_CONV must be 1 or more"),
        ("Base-RCNN-VGG-C5.yaml", ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "14"], "POOLER_RESOLUTION: 7"),
        (
            "Base-RCNN-VGG-C5.yaml",
            ["MODEL.ROI_HEADS.NAME", "ImageNetRes5ROIHeads"],
            r"of our own \(not .*vgg16\)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_parts_that_do_not_fit_are_refused(tiny, config, overrides, message):
    with pytest.raises(ValueError, match=message):
        build_detector(tiny(config, *overrides))


@pytest.mark.parametrize("config", ["quickstart.yaml", "retinanet/r18_fpn.yaml"])
def test_labels_count_from_0_going_in_and_coming_out(tiny, config):
    """A target of label 1 raises the score of the second of three classes, which is found as label 1."""
    has_background = config == "quickstart.yaml"  # torchvision's first class
    section = "MODEL.ROI_HEADS" if has_background else "MODEL.RETINANET"
    overrides = [f"{section}.NUM_CLASSES", "3", f"{section}.SCORE_THRESH_TEST", "0.5"]
    torch.manual_seed(0)
    detector = build_detector(tiny(config, *overrides, *scratch("resnet18"))).train()
    layer = (
        detector.roi_heads.box_predictor.cls_score if has_background else detector.head.classification_head.cls_logits
    )
    image = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    target = {"boxes": torch.tensor([[8.0, 8, 56, 56]]), "labels": torch.tensor([1])}
    sum(detector([image], [target]).values()).backward()
    assert layer.bias.grad.reshape(-1, 3 + has_background).sum(0)[has_background:].argmin() == 1
    with torch.no_grad():
        layer.weight.zero_()
        scores = torch.tensor([-20.0, -20, 20, -20][not has_background :])
        layer.bias.copy_(scores.repeat(len(layer.bias) // len(scores)))
    found = detector.eval()([image])[0]["labels"]
    assert len(found) and (found == 1).all()
