"""Every model of the registry under every builder that makes sense.

On the meta device shapes and gradients cost nothing.
"""

from __future__ import annotations

import copy
import inspect
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import resnet_backbone

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import FPN as D2FPN  # noqa: E402
from detectron2.modeling import build_backbone, build_model  # noqa: E402
from detectron2.modeling.backbone.fpn import LastLevelP6P7  # noqa: E402
from detectron2.structures import ImageList  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from fvcore.common.config import CfgNode  # noqa: E402

from resnet_backbone.detectron2_plugin import add_resnet_backbone_config, to_backbone  # noqa: E402
from resnet_backbone.models import registry  # noqa: E402
from resnet_backbone.models.acceleration import Acceleration, accelerate  # noqa: E402
from resnet_backbone.models.layers import FrozenBatchNorm2d  # noqa: E402
from resnet_backbone.models.resnet import (
    BasicBlock,  # noqa: E402
    ResNet,  # noqa: E402
)
from tests.helpers import quickly  # noqa: E402

SINGLE, FPN, RETINANET, FCOS = (
    f"build_imagenet_{kind}backbone" for kind in ("", "fpn_", "retinanet_fpn_", "fcos_fpn_")
)
MODELS = [arch for arch in resnet_backbone.list_models() if not arch.startswith("cifar_")]  # of detectors
SIZES = ((97, 131), (64, 90))


def config(builder: str, arch: str, features: list[str], *overrides: object) -> CfgNode:
    """A config of Detectron2 for one of our backbones, from scratch, on ``features``."""
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    norm = "" if arch in ("vgg16", "vgg19") else "BN"
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", builder, "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.RESNET_BACKBONE.ARCH", arch, "MODEL.RESNET_BACKBONE.NORM", norm),
            *("MODEL.RESNET_BACKBONE.OUT_FEATURES", features, "MODEL.FPN.IN_FEATURES", features),
            *("MODEL.RPN.IN_FEATURES", features, "MODEL.ROI_HEADS.IN_FEATURES", features),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            *overrides,
        ]
    )
    return cfg


def last_features(arch: str, count: int) -> list[str]:
    names = [f"conv{i}" for i in range(1, 6)] if arch.startswith("vgg") else [f"res{i}" for i in range(2, 6)]
    return names[-count:]


def check_forward(backbone: nn.Module, height: int, width: int) -> None:
    """What output_shape says must be what comes, and every parameter must get a gradient."""
    shapes = backbone.output_shape()
    features = backbone(torch.randn(2, 3, height, width, device="meta"))
    assert list(features) == list(shapes)
    for name, feature in features.items():
        spec = shapes[name]
        rounded = {(-(-height // spec.stride), -(-width // spec.stride)), (height // spec.stride, width // spec.stride)}
        assert tuple(feature.shape[:2]) == (2, spec.channels), name
        assert tuple(feature.shape[2:]) in rounded, name
    sum(feature.sum() for feature in features.values()).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("arch", quickly(MODELS))
def test_single_scale(arch):
    """C4 and C5 together, and what is one of a kind: DC5, and VGG's last pooling."""
    if arch.startswith("vgg"):
        options = [({"conv4": 8, "conv5": 16}, 1), ({"pool5": 32}, 1)]
    else:
        options = [({"res4": 16, "res5": 32}, 1), ({"res5": 16}, 2)]
    for strides, dilation in options:
        with torch.device("meta"):
            cfg = config(SINGLE, arch, list(strides), "MODEL.RESNET_BACKBONE.RES5_DILATION", dilation)
            backbone = build_backbone(cfg)
        assert {name: spec.stride for name, spec in backbone.output_shape().items()} == strides
        check_forward(backbone, 97, 131)


def test_single_scale_builds_nothing_after_its_last_feature():
    with torch.device("meta"):
        backbone = build_backbone(config(SINGLE, "resnet50", ["res4"]))
    assert {name.split(".")[0] for name in backbone.state_dict()} == {"stem", "res2", "res3", "res4"}


@pytest.mark.parametrize(
    ("builder", "count", "levels"),
    [
        (FPN, 4, ["p2", "p3", "p4", "p5", "p6"]),
        (RETINANET, 3, ["p3", "p4", "p5", "p6", "p7"]),
        (FCOS, 3, ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
@pytest.mark.parametrize("arch", quickly(MODELS))
def test_pyramids(arch, builder, count, levels):
    if arch.startswith("vgg"):  # conv5 has stride 16
        levels = [f"p{int(name[1:]) - 1}" for name in levels]
    with torch.device("meta"):
        backbone = build_backbone(config(builder, arch, last_features(arch, count)))
    assert {name: spec.stride for name, spec in backbone.output_shape().items()} == {n: 2 ** int(n[1:]) for n in levels}
    divisor = 16 if arch.startswith("vgg") else 32
    assert backbone.size_divisibility == divisor
    check_forward(backbone, 3 * divisor, 5 * divisor)


@pytest.mark.parametrize(
    ("arch", "features", "levels"),
    [
        ("resnet18", ["res2", "res3", "res4"], ["p2", "p3", "p4", "p5"]),
        ("resnet50", ["res3", "res4", "res5"], ["p3", "p4", "p5", "p6"]),
        ("vgg16", ["conv3", "conv4", "conv5"], ["p2", "p3", "p4", "p5"]),
    ],
)
def test_fpn_on_three_levels(arch, features, levels):
    """Detectron2's LastLevelMaxPool reads p5 whatever the last level is: it builds, and fails in forward."""
    with torch.device("meta"):
        backbone = build_backbone(config(FPN, arch, features))
    assert list(backbone.output_shape()) == levels
    check_forward(backbone, 64, 96)


@pytest.mark.parametrize(("arch", "channels"), [("resnet18", 512), ("resnet50", 2048), ("vgg16", 512)])
def test_p6_reads_the_last_feature_with_its_channels(arch, channels):
    with torch.device("meta"):
        top = build_backbone(config(RETINANET, arch, last_features(arch, 3))).top_block
    assert (top.in_feature, top.p6.in_channels) == (last_features(arch, 1)[0], channels)


@pytest.mark.parametrize(("arch", "features"), [("resnet18", ["res3", "res4", "res5"]), ("vgg16", ["conv4", "conv5"])])
def test_p6_and_p7_of_fcos_come_from_the_last_level(arch, features):
    """As Detectron2's own FCOS config says it."""
    backbone = build_backbone(config(FCOS, arch, features, "MODEL.FPN.OUT_CHANNELS", 16)).eval()
    last = list(backbone.output_shape())[-3]
    stock = D2FPN(backbone.bottom_up, features, 16, top_block=LastLevelP6P7(16, 16, in_feature=last)).eval()
    stock.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, levels = stock(images), backbone(images)
    assert list(levels) == list(expected) and all(torch.equal(levels[name], expected[name]) for name in levels)


def test_retinanets_pyramid_under_fcos_is_told(caplog):
    with torch.device("meta"), caplog.at_level(logging.WARNING):
        build_backbone(config(RETINANET, "resnet18", ["res5"], "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS"))
    assert "those of FCOS come from p5: write build_imagenet_fcos_fpn_backbone" in caplog.text


@pytest.mark.parametrize(
    ("builder", "arch", "features", "divisor"),
    [
        (SINGLE, "resnet18", ["res4"], 0),
        (SINGLE, "vgg16", ["conv5"], 16),
        (SINGLE, "vgg16", ["pool5"], 32),
        (FPN, "resnet18", ["res2", "res3", "res4", "res5"], 32),
        (FPN, "vgg16", ["conv3", "conv4", "conv5"], 16),
    ],
)
def test_images_are_padded_as_the_backbone_needs(builder, arch, features, divisor):
    with torch.device("meta"):
        backbone = build_backbone(config(builder, arch, features))
    assert backbone.size_divisibility == divisor
    images = [torch.zeros(3, *size) for size in SIZES]
    as_in_v06 = ImageList.from_tensors(images, backbone.size_divisibility)
    batches = [as_in_v06]
    if "padding_constraints" in inspect.signature(ImageList.from_tensors).parameters:  # not in v0.6
        constraints = backbone.padding_constraints
        batches.append(ImageList.from_tensors(images, backbone.size_divisibility, padding_constraints=constraints))
    for batch in batches:
        height, width = batch.tensor.shape[2:]
        assert (height, width) == tuple(-(-side // (divisor or 1)) * (divisor or 1) for side in (97, 131))


NORMS = {"BN": nn.BatchNorm2d, "FrozenBN": FrozenBatchNorm2d, "SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("arch", "frozen"), [("resnet18", ("stem", "res2")), ("vgg16_bn", ("conv1_", "conv2_"))])
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_norms_and_frozen_stages(norm, arch, frozen, freeze_at):
    """Frozen stages, and no others, have no gradients and constant batch norms."""
    overrides = ("MODEL.RESNET_BACKBONE.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", freeze_at)
    with torch.device("meta"):
        trunk = build_backbone(config(FPN, arch, last_features(arch, 3), *overrides)).bottom_up
    norms = {name: module for name, module in trunk.named_modules() if name.endswith(".norm")}
    assert len(norms) > 10
    for name, module in norms.items():
        is_frozen = bool(freeze_at) and name.startswith(frozen)
        expected = FrozenBatchNorm2d if is_frozen and norm != "GN" else NORMS[norm]
        assert type(module) is expected, name
    for name, parameter in trunk.named_parameters():
        assert parameter.requires_grad is not (bool(freeze_at) and name.startswith(frozen)), name


def test_four_channels():
    cfg = config(FPN, "resnet18", last_features("resnet18", 4))
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * 4, [1.0] * 4
    backbone = build_backbone(cfg)
    assert backbone(torch.rand(1, 4, 64, 64))["p2"].shape == (1, 256, 16, 16)


def small_detector(builder: str, arch: str, *overrides: object) -> nn.Module:
    """A detector with few proposals; ``overrides`` say the rest."""
    tiny = (
        *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 30, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 10),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, "MODEL.MASK_ON", True),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64]]),
    )
    return build_model(config(builder, arch, last_features(arch, 4), *tiny, *overrides))


C4 = ("MODEL.RPN.IN_FEATURES", ["res4"], "MODEL.ROI_HEADS.IN_FEATURES", ["res4"])
C4 += ("MODEL.RESNET_BACKBONE.OUT_FEATURES", ["res4"], "MODEL.ROI_HEADS.NAME", "ImageNetRes5ROIHeads")
LEVELS = [f"p{i}" for i in range(2, 6)]
PYRAMID = ("MODEL.RPN.IN_FEATURES", [*LEVELS, "p6"], "MODEL.ROI_HEADS.IN_FEATURES", LEVELS)
PYRAMID += ("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [96]], "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
PYRAMID += ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1)
PYRAMID += ("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
DENSE = ("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])


@pytest.mark.parametrize(
    ("builder", "arch", "overrides"),
    [
        (SINGLE, "resnet18", C4),
        (SINGLE, "resnet50", C4),
        (SINGLE, "plain18", C4),
        (FPN, "resnet18", PYRAMID),
        (RETINANET, "resnet18", DENSE),
    ],
    ids=["c4-18", "c4-50", "c4-plain", "fpn", "retinanet"],
)
def test_no_parameter_of_a_detector_goes_without_a_gradient(images, builder, arch, overrides):
    """DistributedDataParallel without find_unused_parameters needs it."""
    model = small_detector(builder, arch, *overrides).train()
    torch.manual_seed(0)
    with EventStorage():
        losses = model(images)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle], ids=["copy", "pickle"])
@pytest.mark.parametrize(("builder", "arch"), [(FPN, "resnet18"), (SINGLE, "vgg16_bn")])
def test_copies(copied: Callable[[nn.Module], nn.Module], builder, arch, same_tensors):
    features = last_features(arch, 4 if builder == FPN else 1)
    backbone = build_backbone(config(builder, arch, features)).eval()
    other = copied(backbone)
    same_tensors(other.state_dict(), backbone.state_dict())
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        same_tensors(other(images), backbone(images))
    assert other.output_shape() == backbone.output_shape()


def test_trap_14_trunks_can_be_exported(same_tensors):
    """torch.jit.script fails on Detectron2's, for its list of stages."""
    trunk = build_backbone(config(SINGLE, "resnet18", ["res5"])).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        same_tensors(torch.export.export(trunk, (images,)).module()(images), trunk(images))


def test_what_projects_read_of_detectron2s_resnet():
    trunk = to_backbone(resnet_backbone.create_model("resnet50", num_classes=0, out_features=["res3", "res5"]))
    assert trunk._out_features == ["res3", "res5"]
    assert trunk._out_feature_channels == {"res3": 512, "res5": 2048}
    assert trunk._out_feature_strides == {"res3": 8, "res5": 32}
    assert trunk.output_shape() == {
        "res3": ShapeSpec(channels=512, stride=8),
        "res5": ShapeSpec(channels=2048, stride=32),
    }


def test_backbone_and_trunk_are_one_network():
    trunk = resnet_backbone.create_model("resnet18", num_classes=0).eval()
    backbone = to_backbone(trunk)
    accelerate(backbone, Acceleration(checkpoint_stages=("res3",)), needed=0)
    assert (backbone.arch, backbone.training, trunk.checkpoint_stages) == ("resnet18", False, ("res3",))
    backbone.train().double()
    assert trunk.training and [*backbone.state_dict()] == [*trunk.state_dict()]
    pairs = zip([*backbone.parameters(), *backbone.buffers()], [*trunk.parameters(), *trunk.buffers()], strict=True)
    assert all(ours is theirs and ours.dtype != torch.float32 for ours, theirs in pairs)
    with pytest.raises(AttributeError, match="no_such_layer"):
        backbone.no_such_layer  # noqa: B018


def test_a_classifier_is_no_backbone():
    with torch.device("meta"):
        model = resnet_backbone.create_model("resnet18")
    with pytest.raises(ValueError, match="has a classifier of 1000 classes: build it with num_classes=0"):
        to_backbone(model)


class OwnResNet(ResNet):
    """What a user registers: a class of their own."""


def own_resnet(arch: str, **options: object) -> OwnResNet:
    options = {name: value for name, value in options.items() if value is not None}
    return OwnResNet(arch, BasicBlock, (1, 1, 1, 1), **options)


@pytest.mark.parametrize("arch", ["own_resnet10", "cifar_resnet20", "resnet18", "vgg16"])
def test_backbones_of_any_class_can_be_pickled_and_copied(tmp_path, monkeypatch, arch):
    """As loader processes, copies of a detector and torch.save of a whole module do."""
    if arch == "own_resnet10":
        monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))  # it is forgotten after the test
        registry.register_model(arch, own_resnet)
    backbone = to_backbone(resnet_backbone.create_model(arch, num_classes=0)).eval()
    torch.save(backbone, tmp_path / "whole.pth")
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = backbone(images)
        for again in (
            through_pickle(backbone),
            copy.deepcopy(backbone),
            torch.load(tmp_path / "whole.pth", weights_only=False),
        ):
            assert type(again) is type(backbone) and again.output_shape() == backbone.output_shape()
            found = again(images)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
