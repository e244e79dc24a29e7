"""STEM, RES4_DILATION and RES5_MULTI_GRID, beside the keys that DeepLab's own configs have for the same."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")
deeplab = pytest.importorskip("detectron2.projects.deeplab", reason="this Detectron2 comes without its projects")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_backbone  # noqa: E402

from resnet_backbone.detectron2_plugin import add_resnet_backbone_config  # noqa: E402

FEATURES = ["res2", "res5"]


def deeplab_config(ours: dict[str, object] | None = None, **theirs: object):
    """Keys of MODEL.RESNET_BACKBONE and of MODEL.RESNETS, in a config that DeepLab has added its own to."""
    cfg = get_cfg()
    deeplab.add_deeplab_config(cfg)
    add_resnet_backbone_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_imagenet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.update({"OUT_FEATURES": FEATURES, "NORM": "BN", **theirs})
    cfg.MODEL.RESNET_BACKBONE.update({"OUT_FEATURES": FEATURES, "NORM": "BN", **(ours or {})})
    return cfg


OS16 = {"RES5_DILATION": 2}
OS8 = {"RES4_DILATION": 2, "RES5_DILATION": 4}


@pytest.mark.parametrize(
    ("both", "stem", "multi_grid"),
    [(OS16, "deeplab", [1, 2, 4]), (OS8, "deeplab", [1, 2, 4]), (OS16, "basic", [1, 2, 4]), (OS8, "basic", [1, 1, 1])],
    ids=["os16", "os8", "os16-basic", "os8-basic-no-multi-grid"],
)
def test_the_keys_build_deeplabs_trunk(both, stem, multi_grid):
    theirs = {**both, "STEM_TYPE": stem, "STEM_OUT_CHANNELS": 128 if stem == "deeplab" else 64}
    cfg = deeplab_config(
        {**both, "STEM": stem, "RES5_MULTI_GRID": multi_grid}, **theirs, RES5_MULTI_GRID=multi_grid, STRIDE_IN_1X1=False
    )
    ours = build_backbone(cfg).eval()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    stock = build_backbone(cfg).eval()
    assert ours.output_shape() == stock.output_shape()
    ours.load_state_dict(stock.state_dict())
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = stock(images)
        for name, features in ours(images).items():
            assert torch.equal(features, expected[name]), name


@pytest.mark.parametrize(
    ("key", "theirs", "our_key", "ours"),
    [
        ("STEM_TYPE", "deeplab", "STEM", "basic"),
        ("RES4_DILATION", 2, "RES4_DILATION", 1),
        ("RES5_MULTI_GRID", [1, 2, 4], "RES5_MULTI_GRID", [1, 1, 1]),
    ],
)
def test_contradictions_are_refused_with_the_lines_to_write(key, theirs, our_key, ours):
    """With DeepLab's heads, the defaults of ``add_deeplab_config`` are a choice of the project's: they count."""
    agreeing = {"STEM_TYPE": "basic", "RES5_MULTI_GRID": [1, 1, 1]}
    build_backbone(deeplab_config(**agreeing))
    cfg = deeplab_config(**{**agreeing, key: theirs})
    cfg.MODEL.SEM_SEG_HEAD.NAME = "DeepLabV3PlusHead"
    with pytest.raises(ValueError) as refused:
        build_backbone(cfg)
    for line in (f"MODEL.RESNET_BACKBONE.{our_key}: {theirs}", f"MODEL.RESNETS.{key}: {ours}"):
        assert line in str(refused.value)
        node, name = line.split(": ")[0].removeprefix("MODEL.").split(".")
        mended = cfg.clone()
        mended.MODEL[node][name] = theirs if node == "RESNET_BACKBONE" else ours
        if our_key == "RES4_DILATION":
            mended.MODEL.RESNET_BACKBONE.RES5_DILATION = 4 if node == "RESNET_BACKBONE" else 1
        build_backbone(mended)


def test_a_project_may_call_add_deeplab_config_for_its_schedule_alone():
    build_backbone(deeplab_config())
    with pytest.raises(ValueError, match="write MODEL.RESNET_BACKBONE.RES4_DILATION: 2"):
        build_backbone(deeplab_config(RES4_DILATION=2))


def test_a_tuple_says_the_same_as_a_list():
    cfg = deeplab_config({"STEM": "deeplab", "RES5_MULTI_GRID": (1, 2, 4)})
    assert build_backbone(cfg).output_shape()["res5"].channels == 2048


def test_vgg_has_none_of_it():
    vgg = {"ARCH": "vgg16", "NORM": "", "OUT_FEATURES": ["conv3", "pool5"]}
    assert list(build_backbone(deeplab_config(vgg)).output_shape()) == ["conv3", "pool5"]
    with pytest.raises(ValueError, match="vgg16 has no stem.*leave out stem"):
        build_backbone(deeplab_config({**vgg, "STEM": "deeplab"}))
