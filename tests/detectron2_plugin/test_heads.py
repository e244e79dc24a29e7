"""The heads that are a part of the classifier, against torchvision's classifier and the trunk's own res5."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision

from resnet_backbone.models.registry import create_model
from resnet_backbone.weights import WeightsError

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.modeling.roi_heads import build_box_head  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402

from resnet_backbone.detectron2_plugin import ImageNetRes5ROIHeads, VGGBoxHead, add_resnet_backbone_config  # noqa: E402
from resnet_backbone.detectron2_plugin.roi_heads import res5_of  # noqa: E402

CROPS = ShapeSpec(channels=512, height=7, width=7)
TINY = ("MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TRAIN", 10, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4)


def config(*overrides):
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    cfg.merge_from_list(list(overrides))
    return cfg


def c4(arch: str, *overrides):
    """C4, from scratch."""
    return config(
        *("MODEL.BACKBONE.NAME", "build_imagenet_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
        *("MODEL.RESNET_BACKBONE.ARCH", arch, "MODEL.RESNET_BACKBONE.OUT_FEATURES", ["res4"]),
        *("MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.ROI_HEADS.NAME", "ImageNetRes5ROIHeads"),
        *(*TINY, *overrides),
    )


def vgg_c5(arch: str = "vgg16", *overrides):
    """conv5 with fc6 and fc7, as Fast R-CNN has them."""
    return config(
        *("MODEL.BACKBONE.NAME", "build_imagenet_backbone", "MODEL.RESNET_BACKBONE.ARCH", arch),
        *("MODEL.RESNET_BACKBONE.NORM", "", "MODEL.RESNET_BACKBONE.OUT_FEATURES", ["conv5"]),
        *("MODEL.RPN.IN_FEATURES", ["conv5"], "MODEL.ROI_HEADS.IN_FEATURES", ["conv5"]),
        *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "VGGBoxHead"),
        *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7, *TINY, *overrides),
    )


@pytest.mark.parametrize("arch", ["plain18", "resnet18", "resnet50", "resnet18d", "resnext50_32x4d"])
def test_res5_is_the_trunks_own(arch):
    trunk = create_model(arch, num_classes=0, out_features=["res4", "res5"]).eval()
    head = res5_of(copy.deepcopy(trunk)).eval()
    with torch.no_grad():
        features = trunk(torch.rand(2, 3, 224, 224))
        assert torch.equal(head(features["res4"]), features["res5"])


@pytest.mark.parametrize(
    ("arch", "channels"),
    [("resnet18", 512), ("resnet34", 512), ("plain34", 512), ("resnet101", 2048), ("wide_resnet50_2", 2048)],
)
def test_c4_head_has_the_size_of_its_network(arch, channels):
    with torch.device("meta"):
        heads = build_model(c4(arch, "MODEL.DEVICE", "meta")).roi_heads
        whole = create_model(arch, num_classes=0)
    assert type(heads) is ImageNetRes5ROIHeads
    assert heads.box_predictor.cls_score.in_features == channels
    own = {name: tensor.shape for name, tensor in whole.get_submodule("res5").state_dict().items()}
    assert {name: tensor.shape for name, tensor in heads.res5.state_dict().items()} == own


@pytest.mark.parametrize("arch", ["resnet18", "resnet34"])
def test_trap_res5_of_basic_blocks_is_filled_whole(tmp_path, numbered, checkpoint, arch):
    """With Detectron2's head 33 of 50 tensors of ResNet-18's res5 load, and the rest stays random."""
    model = build_model(c4(arch, "MODEL.RESNET_BACKBONE.NORM", "FrozenBN"))
    state = numbered(arch)
    DetectionCheckpointer(model).load(checkpoint(tmp_path / "w.pth", state))
    names = dict(model.state_dict())
    res5 = [name for name in names if name.startswith("roi_heads.res5.")]
    assert len(res5) == sum(name.startswith("res5.") and "num_batches" not in name for name in state)
    for name in res5:
        assert torch.equal(names[name], state[name.removeprefix("roi_heads.")]), name


@pytest.mark.parametrize("kind", ["missing", "left over"])
def test_res5_head_is_as_strict_as_the_trunk(tmp_path, numbered, checkpoint, kind):
    state = numbered("resnet18")
    if kind == "missing":
        state = {name: tensor for name, tensor in state.items() if not name.startswith("res5.1.")}
    else:
        state |= {name: t for name, t in numbered("resnet34").items() if name.startswith("res5.2.")}
    with torch.device("meta"):
        model = build_model(c4("resnet18", "MODEL.RESNET_BACKBONE.NORM", "FrozenBN", "MODEL.DEVICE", "meta"))
    model.backbone.strict_weights = False
    model.backbone.to_empty(device="cpu")
    said = r"does not fit res5 of resnet18 at roi_heads.res5; (.|\n)*10 of 25 tensors .*: res5\.[12]\.conv1"
    with pytest.raises(WeightsError, match=said):
        DetectionCheckpointer(model).load(checkpoint(tmp_path / "w.pth", state))


def test_fc6_and_fc7_are_torchvisions():
    with torch.device("meta"):
        classifier = torchvision.models.vgg16(weights=None).classifier.eval()
    head = build_box_head(vgg_c5(), CROPS).eval()
    assert type(head) is VGGBoxHead and head.output_shape == ShapeSpec(channels=4096)
    for layer, ours in ((classifier[0], head.fc6), (classifier[3], head.fc7)):
        layer.weight, layer.bias = ours.weight, ours.bias
    crops = torch.rand(3, 512, 7, 7)
    with torch.no_grad():
        features = classifier[:6](crops.flatten(1))
        assert features.std() > 0
        assert torch.equal(head(crops), features)
        head.dropout = 0.5
        assert torch.equal(head(crops), features)
        dropped = (head.train()(crops) == 0).float().mean() - (features == 0).float().mean()
    assert 0.1 < dropped < 0.4


def test_a_whole_imagenet_file_fills_vgg_and_its_head(tmp_path, numbered, checkpoint):
    with torch.device("meta"):
        model = build_model(vgg_c5("vgg16", "MODEL.DEVICE", "meta", "MODEL.ROI_BOX_HEAD.DROPOUT", 0.5))
    assert model.roi_heads.box_head.dropout == 0.5
    model.to_empty(device="cpu")
    state = numbered("vgg16")
    DetectionCheckpointer(model).load(checkpoint(tmp_path / "w.pth", state))
    names = model.state_dict()
    for ours, theirs in (("backbone.conv5_3", "conv5_3"), *((f"roi_heads.box_head.{n}", n) for n in ("fc6", "fc7"))):
        for kind in ("weight", "bias"):
            assert torch.equal(names[f"{ours}.{kind}"], state[f"{theirs}.{kind}"])


def test_vgg_features_without_a_classifier_are_refused(tmp_path, numbered, checkpoint):
    """As IMAGENET1K_FEATURES are: fc6 and fc7 would stay random."""
    with torch.device("meta"):
        model = build_box_head(vgg_c5(), CROPS)
    state = {name: tensor for name, tensor in numbered("vgg16").items() if not name.startswith("fc")}
    with pytest.raises(WeightsError, match="The file has no classifier; take weights that have fc6 and fc7"):
        DetectionCheckpointer(model).load(checkpoint(tmp_path / "w.pth", state))


def test_vgg_with_fc6_and_fc7_trains(images):
    """Frozen are conv1 and conv2; whatever else there is gets a gradient."""
    model = build_model(vgg_c5()).train()
    with EventStorage():
        losses = model(images)
    sum(losses.values()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {f"backbone.conv{i}_{j}.{k}" for i in (1, 2) for j in (1, 2) for k in ("weight", "bias")}


@pytest.mark.parametrize(
    ("arch", "shape", "said"),
    [
        ("resnet50", CROPS, "it needs a VGG .not resnet50"),
        ("vgg16", ShapeSpec(channels=512, height=14, width=14), "got crops of .512, 14, 14"),
        ("vgg16", ShapeSpec(channels=256, height=7, width=7), "got crops of .256, 7, 7"),
    ],
)
def test_fc6_needs_vgg_and_its_crops(arch, shape, said):
    with pytest.raises(ValueError, match=said):
        VGGBoxHead(shape, arch=arch)


@pytest.mark.parametrize(
    "overrides",
    [("MODEL.ROI_HEADS.IN_FEATURES", ["res3"]), ("MODEL.RESNET_BACKBONE.ARCH", "vgg16")],
)
def test_res5_needs_a_resnet_and_its_res4(overrides):
    cfg = c4("resnet18", *overrides)
    with pytest.raises(ValueError, match="it needs a ResNet .* and MODEL.ROI_HEADS.IN_FEATURES: .res4"):
        ImageNetRes5ROIHeads(cfg, {name: ShapeSpec(channels=256, stride=16) for name in ("res3", "res4")})


def test_a_trunk_without_res5_has_none_to_give():
    with torch.device("meta"):
        trunk = create_model("resnet18", num_classes=0, out_features=["res4"])
    with pytest.raises(ValueError, match="resnet18 has no res5 here"):
        res5_of(trunk)


def test_freeze_at_counts_stages_of_the_backbone_and_not_the_head():
    """As with Detectron2's own C4, whose parameters have the same names."""
    ours = c4("resnet50", "MODEL.BACKBONE.FREEZE_AT", 5, "MODEL.DEVICE", "meta")
    theirs = config(
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.FREEZE_AT", 5, "MODEL.DEVICE", "meta"),
        *("MODEL.RESNETS.NORM", "BN", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
    )
    trained, expected = (
        {name for name, p in build_model(cfg).named_parameters() if p.requires_grad} for cfg in (ours, theirs)
    )
    assert trained == expected and any(name.startswith("roi_heads.res5") for name in trained)
    assert not any(name.startswith("backbone") for name in trained)
