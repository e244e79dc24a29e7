"""What goes wrong with backbones in Detectron2 without a word: input, stride, frozen norms, heads. Here it is said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from fvcore.common.config import CfgNode
from torch import nn

from resnet_backbone.weights import InputFormat, package_weights

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.layers import ShapeSpec  # noqa: E402
from detectron2.modeling import BACKBONE_REGISTRY, FPN, ROI_HEADS_REGISTRY, build_backbone, build_model  # noqa: E402
from detectron2.modeling.roi_heads import Res5ROIHeads  # noqa: E402
from detectron2.solver import build_optimizer  # noqa: E402

from resnet_backbone.detectron2_plugin import ImageNetRes5ROIHeads, add_resnet_backbone_config  # noqa: E402
from resnet_backbone.detectron2_plugin import build_imagenet_backbone as build_resnet_backbone  # noqa: E402
from resnet_backbone.detectron2_plugin.backbone import TrunkBackbone  # noqa: E402

RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
RGB_3X3 = {**RGB, "MODEL.RESNETS.STRIDE_IN_1X1": False}
MSRA = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
CONVERTED = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
PUBLISHED = "https://download.pytorch.org/models/resnet50-0676ba61.pth"


@pytest.fixture
def trunk() -> Callable[..., nn.Module]:
    """``trunk({"KEY": value, ...})``: C4's, on the meta device, with Detectron2's defaults for all else."""

    def build(values: dict[str, object]) -> nn.Module:
        cfg = get_cfg()
        add_resnet_backbone_config(cfg)
        cfg.merge_from_list(["MODEL.BACKBONE.NAME", "build_imagenet_backbone"])
        cfg.merge_from_list(["MODEL.RESNET_BACKBONE.OUT_FEATURES", ["res4"]])
        cfg.merge_from_list([item for pair in values.items() for item in pair])
        with torch.device("meta"):
            return build_backbone(cfg)

    return build


@pytest.mark.parametrize(
    ("source", "needs", "has"),
    [
        ("imagenet://resnet50/IMAGENET1K_V1", RGB_3X3, {}),
        (CONVERTED, RGB_3X3, {}),
        (PUBLISHED, RGB_3X3, {}),
        (MSRA, {}, RGB_3X3),
        ("imagenet://resnet50/MSRA", {}, RGB_3X3),
    ],
)
def test_trap_3_stride_and_colour_order_are_those_of_the_weights(trunk, source, needs, has):
    """A wrong place of the stride changes every feature, and the tensors do not show it."""
    trunk({"MODEL.WEIGHTS": source, **needs})
    with pytest.raises(ValueError) as caught:
        trunk({"MODEL.WEIGHTS": source, **has})
    message = str(caught.value)
    assert message.startswith(f"the input does not match the weights {source}; write\n")
    for key in RGB_3X3:
        assert f"  {key}: " in message
    for key in RGB_3X3:  # each of them alone, too
        wrong = {**needs, key: has[key]} if has else {k: v for k, v in needs.items() if k != key}
        with pytest.raises(ValueError, match=f"write\n  {key}: ") as caught:
            trunk({"MODEL.WEIGHTS": source, **wrong})
        assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("query", ["", "?matching_heuristics=True"])
def test_trap_3_a_packaged_file_says_it_itself(tmp_path, trunk, numbered, query):
    state = {
        name: t for name, t in numbered("resnet50", num_classes=0).items() if name.startswith(("stem", "res2", "res3"))
    }
    torch.save(state, tmp_path / "own.pth")
    own = InputFormat("BGR", (104.0, 117.0, 124.0), (1.0, 1.0, 1.0))
    package_weights(tmp_path / "own.pth", tmp_path / "w.pth", arch="resnet50", input_format=own, stride_in_1x1=True)
    source = f"{tmp_path}/w.pth{query}"
    trunk({"MODEL.WEIGHTS": source, "MODEL.PIXEL_MEAN": [104.0, 117.0, 124.0]})
    with pytest.raises(ValueError, match=r"MODEL.PIXEL_MEAN: \[104.0, 117.0, 124.0\]   # the config has \[103.53, "):
        trunk({"MODEL.WEIGHTS": source})
    with pytest.raises(
        ValueError, match="is of resnet50, MODEL.RESNET_BACKBONE.ARCH is resnet101; write ARCH: resnet50"
    ):
        trunk({"MODEL.WEIGHTS": source, "MODEL.RESNET_BACKBONE.ARCH": "resnet101"})


def test_trap_2_published_weights_of_another_depth(trunk):
    with pytest.raises(ValueError, match="is of resnet50, MODEL.RESNET_BACKBONE.ARCH is resnet101"):
        trunk({"MODEL.WEIGHTS": MSRA, "MODEL.RESNET_BACKBONE.ARCH": "resnet101"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"MODEL.RESNETS.DEPTH": 101}, "write MODEL.RESNET_BACKBONE.ARCH: resnet101, or MODEL.RESNETS.DEPTH: 50"),
        (
            {"MODEL.RESNETS.DEPTH": 101, "MODEL.RESNET_BACKBONE.ARCH": "plain34"},
            "write MODEL.RESNET_BACKBONE.ARCH: resnet101, or MODEL.RESNETS.DEPTH: 50",
        ),
        ({"MODEL.RESNETS.NORM": "GN"}, "write MODEL.RESNET_BACKBONE.NORM: GN, or MODEL.RESNETS.NORM: FrozenBN"),
        (
            {"MODEL.RESNETS.RES5_DILATION": 2},
            "MODEL.RESNET_BACKBONE.RES5_DILATION: 2, or MODEL.RESNETS.RES5_DILATION: 1",
        ),
        (
            {"MODEL.RESNETS.DEPTH": 101, "MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 8},
            "write MODEL.RESNET_BACKBONE.ARCH: resnext101_32x8d, or MODEL.RESNETS.DEPTH: 50",
        ),
        ({"MODEL.RESNETS.NUM_GROUPS": 32}, "no network here has these groups.*or MODEL.RESNETS.NUM_GROUPS: 1"),
        (
            {"MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True]},
            r"write MODEL.RESNET_BACKBONE.DEFORM_ON_PER_STAGE: \[False, True, True, True\], or MODEL.RESNETS.DEFORM",
        ),
        ({"MODEL.RESNETS.RES2_OUT_CHANNELS": 64}, "RES2_OUT_CHANNELS is 64: no network here has it so"),
        ({"MODEL.RESNETS.STEM_OUT_CHANNELS": 32}, "STEM_OUT_CHANNELS is 32: no network here has it so"),
        ({"MODEL.RESNET_BACKBONE.ARCH": "resnet51"}, "ARCH 'resnet51' must be one of plain18, "),
        ({"MODEL.RESNET_BACKBONE.NORM": "LN"}, "unknown norm 'LN'"),
        ({"MODEL.RESNET_BACKBONE.OUT_FEATURES": ["res4", "res5"]}, r"OUT_FEATURES: \['res4'\], or other IN_FEATURES"),
        ({"MODEL.RESNET_BACKBONE.OUT_FEATURES": ["res5", "res4"]}, r"OUT_FEATURES: \['res4'\], or other IN_FEATURES"),
        ({"MODEL.RPN.IN_FEATURES": ["res3"]}, r"OUT_FEATURES: \['res3', 'res4'\]"),
        ({"MODEL.RPN.IN_FEATURES": ["p2"]}, "write MODEL.BACKBONE.NAME: build_imagenet_fpn_backbone"),
        ({"MODEL.BACKBONE.FREEZE_AT": 7}, "freeze_at=7 must be 0"),
    ],
)
def test_options_that_ask_for_another_network(trunk, values, said):
    with pytest.raises(ValueError, match=said):
        trunk(values)


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "plain18", "vgg16"])
def test_trap_res5_head_of_bottlenecks_on_a_network_without(trunk, arch):
    """Detectron2 builds it; a part of res5 then loads, and the rest stays random."""
    features = ["conv4"] if arch == "vgg16" else ["res4"]
    values: dict[str, object] = {"MODEL.RESNET_BACKBONE.ARCH": arch, "MODEL.RESNET_BACKBONE.OUT_FEATURES": features}
    values |= {"MODEL.RPN.IN_FEATURES": features, "MODEL.ROI_HEADS.IN_FEATURES": features}
    values |= {"MODEL.RESNET_BACKBONE.NORM": "" if arch == "vgg16" else "BN"}
    right = "StandardROIHeads" if arch == "vgg16" else "ImageNetRes5ROIHeads"
    with pytest.raises(ValueError, match=f"which is wrong for {arch}; write {right}"):
        trunk(values)
    trunk({**values, "MODEL.ROI_HEADS.NAME": right})


@pytest.mark.parametrize(
    "ours",
    [
        {"ARCH": "resnext50_32x4d"},
        {"ARCH": "wide_resnet50_2"},
        {"ARCH": "resnet50d"},
        {"DEFORM_ON_PER_STAGE": [False, False, False, True]},
    ],
    ids=str,
)
def test_trap_res5_head_of_plain_bottlenecks_on_another_network(trunk, ours):
    values = {"MODEL.RESNET_BACKBONE.NORM": "FrozenBN", **{f"MODEL.RESNET_BACKBONE.{k}": v for k, v in ours.items()}}
    with pytest.raises(ValueError, match="which is not res5 of .* here; write ImageNetRes5ROIHeads"):
        trunk(values)
    trunk({**values, "MODEL.ROI_HEADS.NAME": "ImageNetRes5ROIHeads"})
    if ours.get("ARCH") == "resnext50_32x4d":
        trunk({**values, "MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 4})


@pytest.fixture
def their_heads() -> Iterator[type[Res5ROIHeads]]:
    """Heads that a project has made from Res5ROIHeads, as Detic has."""

    class TheirRes5ROIHeads(Res5ROIHeads):
        pass

    ROI_HEADS_REGISTRY.register(TheirRes5ROIHeads)
    yield TheirRes5ROIHeads
    del ROI_HEADS_REGISTRY._obj_map["TheirRes5ROIHeads"]


def test_trap_res5_head_of_bottlenecks_in_heads_of_other_projects(trunk, their_heads):
    values = {"MODEL.RESNET_BACKBONE.ARCH": "resnet34", "MODEL.ROI_HEADS.NAME": "TheirRes5ROIHeads"}
    with pytest.raises(
        ValueError, match="TheirRes5ROIHeads builds the bottlenecks .* wrong for resnet34; write"
    ) as caught:
        trunk(values)
    assert "TheirRes5ROIHeads._build_res5_block = ImageNetRes5ROIHeads._build_res5_block" in str(caught.value)
    their_heads._build_res5_block = ImageNetRes5ROIHeads._build_res5_block
    trunk(values)
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    cfg.merge_from_list([item for pair in values.items() for item in pair])
    with torch.device("meta"):
        heads = their_heads(cfg, {"res4": ShapeSpec(channels=256, stride=16)})
    assert heads.res5[0].conv1.in_channels == 256 and heads.box_predictor.cls_score.in_features == 512


def test_a_pyramid_of_another_projects_around_the_trunk(trunk):
    """Its heads read levels that only the project knows."""

    def build_their_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> nn.Module:
        return build_resnet_backbone(cfg, input_shape)

    values = {"MODEL.ROI_HEADS.NAME": "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4"]}
    with pytest.raises(ValueError, match="build_imagenet_fpn_backbone, which makes levels p2"):
        trunk(values)
    BACKBONE_REGISTRY.register(build_their_fpn_backbone)
    try:
        built = trunk({**values, "MODEL.BACKBONE.NAME": "build_their_fpn_backbone"})
        with pytest.raises(ValueError, match="the input does not match the weights"):
            trunk({**values, "MODEL.BACKBONE.NAME": "build_their_fpn_backbone", "MODEL.WEIGHTS": PUBLISHED})
    finally:
        del BACKBONE_REGISTRY._obj_map["build_their_fpn_backbone"]
    assert list(built.output_shape()) == ["res4"]


def test_trap_res5_head_with_another_norm_than_the_trunk(trunk):
    with pytest.raises(ValueError, match="write ImageNetRes5ROIHeads, or the same for both"):
        trunk({"MODEL.RESNET_BACKBONE.NORM": "GN"})
    trunk({"MODEL.RESNET_BACKBONE.NORM": "GN", "MODEL.RESNETS.NORM": "GN"})
    trunk({"MODEL.RESNET_BACKBONE.NORM": "GN", "MODEL.ROI_HEADS.NAME": "ImageNetRes5ROIHeads"})


def test_heads_of_other_projects_may_read_what_they_like(trunk):
    out = {"MODEL.RESNET_BACKBONE.OUT_FEATURES": ["res2", "res5"]}
    trunk({**out, "MODEL.META_ARCHITECTURE": "PanopticDeepLab"})
    trunk({**out, "MODEL.ROI_HEADS.NAME": "TheirROIHeads"})
    precomputed = {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals", "MODEL.ROI_HEADS.IN_FEATURES": ["res5"]}
    trunk({**out, **precomputed, "MODEL.ROI_HEADS.NAME": "StandardROIHeads"})


@pytest.mark.parametrize(("builder", "last"), [("fpn_", "res5"), ("retinanet_fpn_", "res5")])
def test_a_pyramid_that_leaves_the_last_stage_unused(trunk, builder, last):
    values = {
        "MODEL.BACKBONE.NAME": f"build_imagenet_{builder}backbone",
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4"],
    }
    all_four = ["res2", "res3", "res4", "res5"]
    with pytest.raises(ValueError, match=f"leave {last} unused, which the trunk computes"):
        trunk({**values, "MODEL.RESNET_BACKBONE.OUT_FEATURES": all_four})
    with pytest.raises(ValueError, match="must double"):
        trunk({**values, "MODEL.FPN.IN_FEATURES": ["res2", "res4"], "MODEL.RESNET_BACKBONE.OUT_FEATURES": all_four[:3]})


def test_trap_8_frozen_stages_keep_their_statistics_and_others_do_not(trunk):
    cfg = get_cfg()
    add_resnet_backbone_config(cfg)
    cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_imagenet_fpn_backbone", "MODEL.RESNET_BACKBONE.ARCH", "resnet18"]
    )
    cfg.merge_from_list(["MODEL.RESNET_BACKBONE.NORM", "BN", "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]])
    backbone = build_backbone(cfg).train()
    names = [name for name in backbone.state_dict() if name.endswith("running_mean")]
    before = {name: backbone.state_dict()[name].clone() for name in names}
    backbone(torch.rand(2, 3, 64, 64))
    for name in names:
        frozen = name.startswith(("bottom_up.stem.", "bottom_up.res2."))
        assert torch.equal(backbone.state_dict()[name], before[name]) is frozen, name


@pytest.mark.parametrize(
    ("values", "warned"),
    [
        ({}, True),
        ({"MODEL.BACKBONE.FREEZE_AT": 0}, True),
        ({"MODEL.RESNET_BACKBONE.NORM": "BN", "MODEL.ROI_HEADS.NAME": "ImageNetRes5ROIHeads"}, True),
        ({"MODEL.WEIGHTS": MSRA}, False),
        (
            {
                "MODEL.BACKBONE.FREEZE_AT": 0,
                "MODEL.RESNET_BACKBONE.NORM": "BN",
                "MODEL.ROI_HEADS.NAME": "ImageNetRes5ROIHeads",
            },
            False,
        ),
    ],
)
def test_trap_9_frozen_layers_without_weights_are_warned_of(trunk, caplog, values, warned):
    with caplog.at_level(logging.WARNING):
        trunk(values)
    assert ("layers stay random and never train" in caplog.text) is warned


def test_trap_16_norms_have_no_weight_decay(stock_config, in_place):
    """Detectron2 tells norms by their classes: with others, WEIGHT_DECAY_NORM would do nothing."""
    options = ("MODEL.RESNETS.NORM", "BN", "SOLVER.WEIGHT_DECAY_NORM", "0.5", "MODEL.BACKBONE.FREEZE_AT", "0")
    cfg = stock_config("COCO-Detection/faster_rcnn_R_50_FPN_1x", *options)
    decays = []
    for config in (cfg, in_place(cfg)):
        model = build_model(config)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = build_optimizer(config, model).param_groups
        decays.append({names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]})
    assert decays[0] == decays[1]
    assert decays[1]["backbone.bottom_up.stem.conv1.norm.weight"] == 0.5


def test_trunks_are_backbones(trunk):
    """Peers of ours fail here: no output_shape, no Backbone, features in a set without an order."""
    backbone = trunk({"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.RESNET_BACKBONE.OUT_FEATURES": ["res4", "res2"]})
    assert isinstance(backbone, TrunkBackbone)
    assert isinstance(backbone.output_shape()["res2"], ShapeSpec)
    assert list(backbone.output_shape()) == backbone._out_features == ["res2", "res4"]
    assert isinstance(FPN(backbone, ["res4"], 8), nn.Module)
    assert isinstance(get_cfg(), CfgNode)


def test_a_pyramid_without_a_level_that_retinanet_reads(stock_config, in_place):
    cfg = in_place(stock_config("COCO-Detection/retinanet_R_50_FPN_1x"))
    cfg.MODEL.BACKBONE.NAME = "build_imagenet_fpn_backbone"
    with pytest.raises(ValueError, match=r"IN_FEATURES .*'p7'\], .* write .*: build_imagenet_retinanet_fpn_backbone"):
        build_model(cfg)
